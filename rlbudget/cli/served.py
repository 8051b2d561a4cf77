"""`rlbudget record --model URL`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlbudget.cli.findings.decodes import of_profile
from rlbudget.cli.findings.examples import FirstAnswers
from rlbudget.cli.findings.finding import report
from rlbudget.cli.findings.recordings import of_recording
from rlbudget.cli.findings.served import of_served, of_spending
from rlbudget.cli.findings.survey import survey
from rlbudget.cli.through import Prices, Through
from rlbudget.console import Told, note, progress
from rlbudget.decoding.record_served import Listening, Served, record_served
from rlbudget.models.served import Asked, ServedModel
from rlbudget.tasks.task import Task

DRY_RUN = 20
"""questions of --dry-run"""


def served_of(urls: Sequence[str], through: Through, profile: str | None) -> Served:
    """Where a model is served and how it is asked, as the command line says."""
    asked = Asked(
        concurrency=through.concurrency, timeout=through.timeout, system=through.system,
        template=through.template,
    )  # fmt: skip
    return Served(
        urls, model=through.served_model, tokenizer=through.tokenizer, profile=profile,
        key=through.key, asked=asked, patience=through.patience,
    )  # fmt: skip


def record_through(
    served: Served,
    task: Task,
    folder: Path,
    *,
    dry: bool,
    prices: Prices,
    bad: Told,
    left_out: Told,
    **settings: Any,
) -> None:
    """Record, or record a few and say what all would cost; ``settings`` are ``record_served``'s."""
    whole = len(task.questions)
    if dry:
        task = replace(task, questions=task.questions[:DRY_RUN])
    first = FirstAnswers(report)

    def on_model(model: ServedModel) -> None:
        report(of_profile(model.name, model.profile.name, model.chosen_by))
        report(of_served(model))

    with progress("Recording") as advance:
        listening = Listening(advance, on_model, left_out, first.take)
        done = record_served(served, task, folder, listening=listening, **settings)
    first.flush()
    note(f"{done.stats.n} traces recorded to {folder}{bad}{left_out}")
    report(of_spending(done, prices, whole=whole if dry else None))
    if dry:
        note("these are kept: the same command with --resume instead of --dry-run does the rest")
    else:
        report(of_recording(survey(folder), done.stats))
