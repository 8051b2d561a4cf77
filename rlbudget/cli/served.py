"""`rlbudget record --model URL` and `rlbudget annotate LOGS --model URL`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from rlbudget.decoding.annotate import AnnotateStats, Heard, Wanted
from rlbudget.decoding.annotate_served import annotate_served
from rlbudget.decoding.decoded import Decoded
from rlbudget.decoding.record_served import Listening, Served, opened, record_served
from rlbudget.errors import UserError
from rlbudget.integrations.openai import connect, decode
from rlbudget.models.served import Asked, ServedModel
from rlbudget.models.served_prompt import prompt_of
from rlbudget.models.site import ServerError
from rlbudget.strategies.plan import Plan
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


@dataclass(frozen=True)
class Asking:
    """What `rlbudget decode` asks of a served model."""

    question: str
    plan: Plan
    temperature: float | None
    max_tokens: int | None
    seed: int
    said: Mapping[str, Any]
    """what else ``Request`` takes"""


def decode_through(served: Served, asking: Asking) -> tuple[Decoded, ServedModel]:
    """Answer one question under a plan, through the first server that can; and the model."""

    async def run(url: str) -> tuple[Decoded, ServedModel]:
        asked = replace(served.asked, retries=3)
        async with opened(replace(served, urls=[url], asked=asked), [asking.question]) as model:
            prompt = await prompt_of(model, model.servers[0], asking.question)
            async with connect(
                url, asking.plan, model.tokenizer, model=model.name, key=served.key,
                eos_ids=model.vocabulary.eos_ids.tolist(), profile=model.profile.name,
                max_thinking_tokens=asking.max_tokens, context=model.context,
                timeout=asked.timeout,
            ) as server:  # fmt: skip
                decoded = await decode(
                    server, asking.question, prompt=prompt.ids, temperature=asking.temperature,
                    seed=asking.seed, **asking.said,
                )  # fmt: skip
            return decoded, model

    failed = ""
    for url in served.urls:
        try:
            return asyncio.run(run(url))
        except ServerError as error:
            failed = str(error)
    raise UserError(failed)


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


def annotate_through(served: Served, wanted: Wanted, heard: Heard) -> AnnotateStats:
    """Annotate a log, saying what the server gives and what it cost."""

    def on_model(model: ServedModel) -> None:
        report(of_profile(model.name, model.profile.name, model.chosen_by))
        report(of_served(model))

    stats, spent = annotate_served(served, wanted, heard, on_model=on_model)
    note(f"{spent.requests:,} requests, {spent.sent:,} prompt tokens, {spent.cached:,} of them"
         f" cached, {spent.written:,} written")  # fmt: skip
    return stats
