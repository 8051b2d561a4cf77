"""What makes traces of logs: annotate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from rlbudget.cli.arguments import (
    File,
    Flag,
    Folder,
    N,
    Name,
    OptionalN,
    OptionalName,
)
from rlbudget.cli.asked import served
from rlbudget.cli.findings.decodes import of_profile
from rlbudget.cli.findings.examples import FirstAnswers
from rlbudget.cli.findings.finding import report
from rlbudget.cli.findings.recordings import of_annotation
from rlbudget.cli.findings.survey import survey
from rlbudget.cli.through import Through, addresses, refuse_others, shard_of
from rlbudget.console import Told, note, progress
from rlbudget.decoding.annotate import AnnotateStats, Heard, Wanted, annotate_wanted
from rlbudget.models import load_model
from rlbudget.tasks.log_rows import LogColumns
from rlbudget.tasks.logs import rows_in
from rlbudget.traces.shards import shard_folder


@dataclass(frozen=True)
class Annotate:
    """Turn logs of thinking that was already done into traces.

    The stored thinking is cut every stride, and the model answers at every cut.
    """

    logs: Annotated[tyro.conf.Positional[File], tyro.conf.arg(metavar="LOGS")]
    """.jsonl, .csv, .parquet, or what vLLM prints (.log)."""
    model: Name
    """"embedded", "smollm2", a folder of Hugging Face weights, a hub name, or the address of an
    OpenAI-compatible server, http://HOST:PORT/v1 (several with commas between them)."""
    out: Folder
    """Folder of the traces (Parquet parts)."""
    question_column: OptionalName = None
    """Column of the question, a text or a list of messages; dots reach into objects and lists
    ("input.messages"). By default the usual names are tried, here and below."""
    thinking_column: OptionalName = None
    """Column of the thinking."""
    answer_column: OptionalName = None
    """Column of the answer after it."""
    completion_column: OptionalName = None
    """Column of thinking and answer in one text with tags, of a message, or of a response."""
    target_column: OptionalName = None
    """Column of the right answer; by default "target" if there, "" for none. Without one exact
    match is agreement with the full decode."""
    id_column: OptionalName = None
    """Column that names the rows; by default "id" and the like, "" for none."""
    task: OptionalName = None
    """What the traces call their task; by default the name of the file."""
    scorer: OptionalName = None
    """How answers are compared: auto, exact, text, number, math, choice, regex:PATTERN or
    python:PACKAGE.FUNCTION; by default as the task says."""
    profile: OptionalName = None
    """How the model was prompted and is made to answer: embedded, smollm2, think or plain."""
    stride: OptionalN = None
    """Thinking tokens between checkpoints; by default the profile's."""
    max_tokens: OptionalN = None
    """The cap on thinking tokens under which the log was made, if there was one."""
    probe_tokens: N = 8
    """Tokens of the trial answer recorded at each checkpoint, 0 for none."""
    batch_size: N = 32
    """Rows at once; halved where the memory runs out."""
    device: OptionalName = None
    """cpu, cuda, cuda:1, mps, or auto to spread the layers over all devices; by default the first
    CUDA device, else the CPU."""
    dtype: OptionalName = None
    """float32, bfloat16 or float16; by default that of the weights."""
    store_text: Flag = False
    """Keep the text of the thinking in the traces."""
    resume: Flag = False
    """Continue with the traces that are in the folder."""
    shard: Annotated[str | None, tyro.conf.arg(metavar="I/N", help_behavior_hint="")] = None
    """Annotate the I-th of N parts of the questions alone, into a folder of its own below --out;
    goes on with what is there. Put them together by `rlbudget traces merge`."""
    server: tyro.conf.OmitArgPrefixes[Through] = field(default_factory=Through)

    def execute(self) -> None:
        """Run it."""
        urls, shard = addresses(self.model), shard_of(self.shard)
        refuse_others(self, urls, ("device", "dtype", "batch_size"))
        out, resume = self.out, self.resume
        if shard is not None:
            out, resume = shard_folder(out, shard), True
        total, told, first = rows_in(self.logs), Told("row"), FirstAnswers(report)
        wanted = Wanted(
            self.logs, out, self.columns, self.task, self.scorer, self.stride, self.max_tokens,
            self.probe_tokens, self.store_text, resume, shard,
        )  # fmt: skip
        with progress("Annotating") as advance:
            heard = Heard(told, first.take, lambda done: advance(done, total))
            stats = self._through(urls, wanted, heard) if urls else self._here(wanted, heard)
        first.flush()
        note(f"{stats.n} traces annotated to {out}{told}")
        report(of_annotation(survey(out), stats))

    def _here(self, wanted: Wanted, heard: Heard) -> AnnotateStats:
        model = load_model(self.model, profile=self.profile, device=self.device, dtype=self.dtype)
        report(of_profile(model.name, model.profile.name, model.chosen_by))
        return annotate_wanted(model, wanted, heard, batch_size=self.batch_size, on_halved=note)

    def _through(self, urls: Sequence[str], wanted: Wanted, heard: Heard) -> AnnotateStats:
        through = served()
        asked = through.served_of(urls, self.server, self.profile)
        stats: AnnotateStats = through.annotate_through(asked, wanted, heard)
        return stats

    @property
    def columns(self) -> LogColumns:
        """Those that were named."""
        return LogColumns(
            question=self.question_column,
            thinking=self.thinking_column,
            answer=self.answer_column,
            completion=self.completion_column,
            target=self.target_column,
            identity=self.id_column,
        )
