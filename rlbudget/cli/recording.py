"""What makes traces: quickstart, record, import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from rlbudget.cli.arguments import (
    Flag,
    OptionalFloat,
    OptionalInt,
    OptionalStr,
)
from rlbudget.console import Told, note, progress

if TYPE_CHECKING:
    from rlbudget.decoding.record import RecordStats
    from rlbudget.tasks import Task


@dataclass(frozen=True)
class Quickstart:
    """Run the whole way on the embedded model: record, train, freeze, evaluate, decode."""

    out: Path = Path("out/quickstart")
    """Folder for traces, run, policy, evaluation and report."""
    seed: int = 0
    """Seed of the questions, the decodes, the split and the training."""
    n: int = 2400
    """Questions to record; 30% of them are held out."""

    def execute(self) -> None:
        """Run it."""
        from rlbudget.cli.quickstart import quickstart

        quickstart(self.out, seed=self.seed, n=self.n)


@dataclass(frozen=True)
class Record:
    """Record full decodes of a model, with the answer a stop at each checkpoint would give."""

    model: str
    """"embedded", "smollm2", a folder of Hugging Face weights, or a hub name."""
    task: str
    """"embedded", "smollm2", "reasoning-gym:FAMILY", a FILE of questions, or its layout and the
    file: "gsm8k:FILE", "math:FILE", "squad:FILE". A FILE is .jsonl, .csv, .tsv, .parquet, or a
    folder that `datasets` saved."""
    out: Path
    """Folder of the traces (Parquet parts)."""
    n: OptionalInt = None
    """Questions to record, one decode each; all of a FILE if left out."""
    question_column: OptionalStr = None
    """Column of the question in a FILE; dots reach into objects."""
    target_column: OptionalStr = None
    """Column of the right answer: text, or the letter or index (from 0) of one of the options."""
    options_column: OptionalStr = None
    """Column of the answers to choose from, a list of texts; by default "options" if there, ""
    for none."""
    id_column: OptionalStr = None
    """Column that names the questions; by default "id" if there."""
    scorer: OptionalStr = None
    """How answers are scored: auto, exact, text, number, math, choice, regex:PATTERN or
    python:PKG.FUNC; by default as the task says."""
    skip_bad: Flag = False
    """Leave bad rows of a FILE out and count them, instead of stopping at the first."""
    profile: OptionalStr = None
    """How the model is prompted and made to answer: embedded, smollm2, think or plain."""
    stride: OptionalInt = None
    """Thinking tokens between checkpoints; by default the profile's."""
    max_tokens: OptionalInt = None
    """Hard cap on thinking tokens; by default the profile's."""
    temperature: OptionalFloat = None
    """Sampling temperature, 0 for greedy; by default the profile's."""
    samples: OptionalInt = None
    """Draw so many samples of each question instead, to learn when to stop drawing."""
    probe_tokens: int = 8
    """Tokens of the trial answer recorded at each checkpoint, 0 for none."""
    batch_size: int = 128
    """Decodes at once."""
    store_text: Flag = False
    """Keep the text of the thinking in the traces."""
    seed: int = 0
    """Seed of the questions and of the sampling."""
    resume: Flag = False
    """Go on with the traces that are in the folder."""

    def execute(self) -> None:
        """Run it."""
        from rlbudget.cli.findings.decodes import of_profile
        from rlbudget.cli.findings.examples import FirstAnswers
        from rlbudget.cli.findings.show import report
        from rlbudget.decoding.record import record
        from rlbudget.decoding.record_samples import record_samples
        from rlbudget.models import load_model

        bad, left_out = Told("bad row"), Told("question")
        task = self.questions(bad)
        model = load_model(self.model, profile=self.profile)
        report(of_profile(model.name, model.profile.name, model.chosen_by))
        first = FirstAnswers(report)
        if self.samples is not None:
            with progress("Sampling") as advance:
                stats = record_samples(
                    model, task, self.out, samples=self.samples, max_tokens=self.max_tokens,
                    temperature=self.temperature, seed=self.seed,
                    batch_size=self.batch_size, resume=self.resume, progress=advance,
                    on_left_out=left_out, on_trace=first.take,
                )  # fmt: skip
            first.flush()
            note(f"{stats.n} questions sampled to {self.out}{bad}{left_out}")
            _report_traces(self.out, stats)
            return
        with progress("Recording") as advance:
            stats = record(
                model,
                task,
                self.out,
                stride=self.stride,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                probe_tokens=self.probe_tokens,
                batch_size=self.batch_size,
                store_text=self.store_text,
                seed=self.seed,
                resume=self.resume,
                progress=advance,
                on_left_out=left_out,
                on_trace=first.take,
            )
        first.flush()
        note(f"{stats.n} traces recorded to {self.out}{bad}{left_out}")
        _report_traces(self.out, stats)

    def questions(self, on_bad: Callable[[str], None]) -> Task:
        """The task to record; rows left out are told to ``on_bad``."""
        from rlbudget.tasks import Columns, load_task

        return load_task(
            self.task,
            n=self.n,
            seed=self.seed,
            columns=Columns(
                self.question_column, self.target_column, self.options_column, self.id_column
            ),
            scorer=self.scorer,
            skip_bad=self.skip_bad,
            on_bad=on_bad,
        )


@dataclass(frozen=True)
class Import:
    """Import traces of any model from the JSONL interchange."""

    file: tyro.conf.Positional[Path]
    """The JSONL file, one trace a line."""
    out: Path
    """Folder of the traces (Parquet parts)."""
    skip_bad: Flag = False
    """Leave bad lines out and count them, instead of stopping at the first."""
    scorer: OptionalStr = None
    """What scores answers without "exact_match": auto, exact, text, number, math, choice,
    regex:PATTERN or python:PKG.FUNC; by default the line's meta.scorer, or that of its task."""

    def execute(self) -> None:
        """Run it."""
        from rlbudget.traces.interchange import import_jsonl

        with progress("Importing") as advance:
            stats = import_jsonl(
                self.file,
                self.out,
                skip_bad=self.skip_bad,
                scorer=self.scorer,
                progress=advance,
            )
        bad = Told("bad line")
        for problem in stats.problems:
            bad(problem)
        bad.n = stats.bad
        note(f"{stats.n} traces imported to {self.out}{bad}")
        _report_traces(self.out)


def _report_traces(folder: Path, stats: RecordStats | None = None) -> None:
    """Say what the folder holds, what it cost and what is odd about it."""
    from rlbudget.cli.findings.recordings import of_recording
    from rlbudget.cli.findings.show import report
    from rlbudget.cli.findings.survey import survey

    report(of_recording(survey(folder), stats))
