"""What makes traces: quickstart, record, import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from rlbudget.commands.arguments import (
    Flag,
    OptionalFloat,
    OptionalInt,
    OptionalStr,
)
from rlbudget.console import note, progress

if TYPE_CHECKING:
    from rlbudget.record import RecordStats


@dataclass(frozen=True)
class Quickstart:
    """Run the whole way on the embedded model: record, train, freeze, evaluate, decode."""

    out: Path = Path("runs/quickstart")
    """Folder for traces, run, policy, evaluation and report."""
    seed: int = 0
    """Seed of the questions, the decodes, the split and the training."""
    n: int = 2400
    """Questions to record; 30% of them are held out."""

    def execute(self) -> None:
        """Run it."""
        from rlbudget.quickstart import quickstart

        quickstart(self.out, seed=self.seed, n=self.n)


@dataclass(frozen=True)
class Record:
    """Record full decodes of a model, with the answer a stop at each checkpoint would give."""

    model: str
    """"embedded", "smollm2", a folder of Hugging Face weights, or a hub name."""
    task: str
    """"embedded", "smollm2", "reasoning-gym:FAMILY", "gsm8k:FILE.jsonl", "squad:FILE.jsonl" or
    FILE.jsonl."""
    n: int
    """Questions to record, one decode each."""
    out: Path
    """Folder of the traces (Parquet parts)."""
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
        from rlbudget.findings.decodes import of_profile
        from rlbudget.findings.examples import FirstAnswers
        from rlbudget.findings.show import report
        from rlbudget.models import load_model
        from rlbudget.record import record
        from rlbudget.record_samples import record_samples
        from rlbudget.tasks import load_task

        task = load_task(self.task, n=self.n, seed=self.seed)
        model = load_model(self.model, profile=self.profile)
        report(of_profile(model.name, model.profile.name, model.chosen_by))
        first = FirstAnswers(report)
        if self.samples is not None:
            with progress("Sampling") as advance:
                stats = record_samples(
                    model, task, self.out, samples=self.samples, max_tokens=self.max_tokens,
                    temperature=self.temperature, seed=self.seed,
                    batch_size=self.batch_size, resume=self.resume, progress=advance,
                    on_trace=first.take,
                )  # fmt: skip
            first.flush()
            note(f"{stats.n} questions sampled to {self.out}")
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
                on_trace=first.take,
            )
        first.flush()
        note(f"{stats.n} traces recorded to {self.out}")
        _report_traces(self.out, stats)


@dataclass(frozen=True)
class Import:
    """Import traces of any model from the JSONL interchange."""

    file: tyro.conf.Positional[Path]
    """The JSONL file, one trace a line."""
    out: Path
    """Folder of the traces (Parquet parts)."""
    skip_bad: Flag = False
    """Leave bad lines out and count them, instead of stopping at the first."""

    def execute(self) -> None:
        """Run it."""
        from rlbudget.interchange import import_jsonl

        with progress("Importing") as advance:
            stats = import_jsonl(self.file, self.out, skip_bad=self.skip_bad, progress=advance)
        bad = f", {stats.bad} bad lines left out" if stats.bad else ""
        note(f"{stats.n} traces imported to {self.out}{bad}")
        _report_traces(self.out)


def _report_traces(folder: Path, stats: RecordStats | None = None) -> None:
    """Say what the folder holds, what it cost and what is odd about it."""
    from rlbudget.findings.recordings import of_recording
    from rlbudget.findings.show import report
    from rlbudget.findings.survey import survey

    report(of_recording(survey(folder), stats))
