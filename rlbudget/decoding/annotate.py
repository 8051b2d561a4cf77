"""Annotating: thinking that was already done, with what a stop at each checkpoint would have given.

The stored thinking is cut on the absolute grid, the model reads it again and answers at every cut.
Nothing is thought anew, so the traces are those of the logs' own decodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlbudget.decoding.checkpoints import Written, checkpoints_of
from rlbudget.decoding.known import Named, recording_settings
from rlbudget.decoding.record import BATCH_SIZE, remembering, row_seed
from rlbudget.decoding.reread import Spelled, Speller, speller_of
from rlbudget.errors import UserError
from rlbudget.models.profiles import Profile
from rlbudget.tasks.files import short_hash, task_of
from rlbudget.tasks.log_rows import LeftOutError, LogColumns, Logged, Tags
from rlbudget.tasks.logs import LeftOut, open_log
from rlbudget.tasks.scorers import extracted, find_scorer, scorer_of_task
from rlbudget.tasks.task import Question
from rlbudget.traces.agreement import FIELD, FULL_DECODE
from rlbudget.traces.store import TraceWriter, existing_ids
from rlbudget.traces.trace import PROBE_TOKENS, Checkpoint, Final, Trace

if TYPE_CHECKING:
    from rlbudget.models.transformers_model import TransformersModel

_WINDOW = 8
"""batches of rows that are sorted by length together"""


@dataclass(frozen=True, slots=True)
class Heard:
    """Who is told what while a log is annotated."""

    on_left_out: Callable[[str], None]
    on_trace: Callable[[Trace], None]
    progress: Callable[[int], None]
    """rows done"""


@dataclass(frozen=True, slots=True)
class AnnotateStats:
    """What an annotation did."""

    n: int
    """traces annotated now"""
    skipped: int
    """traces that were there already"""
    left_out: LeftOut
    """rows that could not be annotated"""
    tokens: int
    """tokens of the logged decodes that were read now"""
    exit_tokens: int
    """tokens of the exit answers written now"""
    agreement: bool
    """whether exact match is agreement with the full decode, since the log holds no targets"""
    seconds: float


@dataclass(frozen=True, slots=True)
class Settings:
    """How a log is annotated."""

    name: str
    """of the task"""
    scorer: str
    stride: int
    max_tokens: int | None
    probe_tokens: int
    agreement: bool
    store_text: bool
    more: Mapping[str, Any] = field(default_factory=dict)
    """what else every trace says of it"""

    def meta(self, profile: Profile) -> dict[str, Any]:
        """What every trace says of it."""
        cap = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        compared = {FIELD: FULL_DECODE} if self.agreement else {}
        return {
            "stride": self.stride,
            "probe_tokens": self.probe_tokens,
            "profile": profile.name,
            "exit_text": profile.exit_text,
            "scorer": self.scorer,
            **cap,
            **compared,
            **self.more,
        }


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a log that is to be annotated."""

    logged: Logged
    spelled: Spelled
    question: Question


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is annotated, and how; the fields are the arguments of ``annotate``."""

    log: Path
    folder: Path
    columns: LogColumns
    task: str | None
    scorer: str | None
    stride: int | None
    max_tokens: int | None
    probe_tokens: int
    store_text: bool
    resume: bool
    shard: tuple[int, int] | None


@dataclass(slots=True)
class Work:
    """An annotation under way; made by ``begun``."""

    settings: Settings
    rows: Iterator[Row]
    """those that are to be annotated; the others are counted"""
    left_out: LeftOut
    writer: TraceWriter
    profile: Profile
    model: str
    heard: Heard
    started: float
    n: int = 0
    skipped: int = 0
    tokens: int = 0
    exit_tokens: int = 0

    def window(self, n: int) -> list[Row]:
        """The next rows, the longest thinking first; none at the end."""
        return sorted(islice(self.rows, n), key=lambda row: -len(row.spelled.thinking))

    def scored(self, rows: Sequence[Row]) -> Callable[[int, str], int]:
        """Scores answers to these rows, by their places."""
        task = task_of(self.settings.name, [row.question for row in rows], self.settings.scorer)
        return remembering(task, task.questions)

    def add(self, row: Row, points: Sequence[Checkpoint], exact_match: int) -> None:
        """Write the trace of a row, whose final answer matches or not."""
        settings, spelled = self.settings, row.spelled
        meta = {**settings.meta(self.profile), "natural": True}
        if settings.store_text:
            meta["thinking"] = row.logged.thinking
        trace = Trace(
            trace_id=row.logged.identity,
            question_id=row.question.question_id,
            task=settings.name,
            question=spelled.question,
            target=row.question.target,
            model=self.model,
            seed=0,
            final=Final(spelled.answer, exact_match, len(spelled.thinking), spelled.answer_tokens),
            checkpoints=tuple(points),
            meta=meta,
        )
        self.writer.add(trace)
        self.n += 1
        self.tokens += trace.final.thinking_tokens + trace.final.answer_tokens
        self.exit_tokens += sum(point.exit.answer_tokens for point in points)
        self.heard.on_trace(trace)
        self.heard.progress(self.n + self.skipped + self.left_out.n)

    @property
    def stats(self) -> AnnotateStats:
        """What it did."""
        return AnnotateStats(
            n=self.n, skipped=self.skipped, left_out=self.left_out, tokens=self.tokens,
            exit_tokens=self.exit_tokens, agreement=self.settings.agreement,
            seconds=time.monotonic() - self.started,
        )  # fmt: skip


@contextmanager
def begun(
    wanted: Wanted,
    model: Named,
    profile: Profile,
    speller: Speller,
    heard: Heard,
    **more: Any,
) -> Iterator[Work]:
    """Open the log and the folder; ``more`` is what else every trace says of its making.

    Raises ``UserError`` as ``annotate`` does, at the end also where nothing was annotated.
    """
    started, stride = time.monotonic(), wanted.stride
    if wanted.probe_tokens < 0 or (stride is not None and stride < 1):
        raise UserError(
            "stride must be at least 1 and probe_tokens at least 0, not"
            f" {stride} and {wanted.probe_tokens}"
        )
    left_out = LeftOut(heard.on_left_out)
    tags = Tags(profile.start_of_thinking, profile.end_of_thinking)
    log = open_log(wanted.log, wanted.columns, tags, left_out)
    name = wanted.task or wanted.log.stem
    settings = Settings(
        name=name,
        scorer=find_scorer(wanted.scorer or scorer_of_task(name)).name,
        stride=profile.stride if stride is None else stride,
        max_tokens=wanted.max_tokens,
        probe_tokens=wanted.probe_tokens,
        agreement=not log.has_targets,
        store_text=wanted.store_text,
        more=more,
    )
    known = recording_settings(
        "annotate", model, name, settings.meta(profile), store_text=wanted.store_text
    )
    with TraceWriter(wanted.folder, append=wanted.resume, settings=known) as writer:
        there = existing_ids(wanted.folder)
        work = Work(settings, iter(()), left_out, writer, profile, model.name, heard, started)
        work.rows = _rows_of(work, log.rows, speller, there, wanted.shard)
        yield work
    if not work.n and not work.skipped and left_out.n:
        raise UserError(f"{wanted.log}: none of its {left_out.n} rows can be annotated; the first:"
                        f" {left_out.first}")  # fmt: skip


def _rows_of(
    work: Work, rows: Iterator[Logged], speller: Speller, there: set[str],
    shard: tuple[int, int] | None,
) -> Iterator[Row]:  # fmt: skip
    """The rows that are to be annotated; the others are counted."""
    for logged in rows:
        if logged.identity in there:
            work.skipped += 1
            continue
        try:
            spelled = speller.spell(logged)
            identity = _question_id(logged, spelled, work.settings)
            if shard is not None and row_seed(0, identity) % shard[1] != shard[0] - 1:
                continue
            yield Row(logged, spelled, _question(logged, spelled, identity, work.settings))
        except LeftOutError as problem:
            work.left_out.add(logged.place, problem)


def _question_id(logged: Logged, spelled: Spelled, settings: Settings) -> str:
    whole = "\0".join([spelled.question, *(f"{m.role}\0{m.content}" for m in logged.messages)])
    return f"{settings.name}-{short_hash(whole)}"


def _question(logged: Logged, spelled: Spelled, identity: str, settings: Settings) -> Question:
    target = logged.target
    if target is None:
        target = extracted(spelled.answer, settings.scorer).strip() or spelled.answer
        if not find_scorer(settings.scorer).score(spelled.answer, target):
            raise LeftOutError(
                "whose answer the scorer cannot compare",
                f"the scorer {settings.scorer} finds no answer in {spelled.answer[:60]!r} that"
                " others can agree with",
            )
    return Question(identity, spelled.question, target)


def annotate(
    model: TransformersModel,
    log: Path | str,
    folder: Path | str,
    *,
    columns: LogColumns | None = None,
    task: str | None = None,
    scorer: str | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    probe_tokens: int = PROBE_TOKENS,
    batch_size: int = BATCH_SIZE,
    store_text: bool = False,
    resume: bool = False,
    shard: tuple[int, int] | None = None,
    progress: Callable[[int], None] | None = None,
    on_left_out: Callable[[str], None] | None = None,
    on_trace: Callable[[Trace], None] | None = None,
    on_halved: Callable[[str], None] | None = None,
) -> AnnotateStats:
    """Write the traces of the decodes that ``log`` holds to ``folder``.

    ``columns`` names the log's columns. Without a column of targets an exit is right where its
    answer agrees with that of the full decode, and the traces say so. ``task`` is the name that
    the traces carry, by default the file's; it chooses the scorer where it is a well-known one.
    ``max_tokens`` is the cap under which the log was made, where there was one. A row without a
    whole decode, one that the model cannot read, and one that came before are told to
    ``on_left_out`` and counted. ``resume`` goes on with a folder of the same settings. ``shard``
    ``(i, n)`` takes the i-th of n parts of the questions, by their texts alone. ``progress`` is
    called with the rows done. Other settings are those of ``record``.

    Raises ``UserError`` for a log that cannot be read, a column that no row has, a log of which no
    row can be annotated, and as ``record`` does.
    """
    wanted = Wanted(
        Path(log), Path(folder), columns or LogColumns(), task, scorer, stride, max_tokens,
        probe_tokens, store_text, resume, shard,
    )  # fmt: skip
    heard = Heard(on_left_out or _nothing, on_trace or _nothing, progress or _nothing)
    return annotate_wanted(model, wanted, heard, batch_size=batch_size, on_halved=on_halved)


def annotate_wanted(
    model: TransformersModel,
    wanted: Wanted,
    heard: Heard,
    *,
    batch_size: int = BATCH_SIZE,
    on_halved: Callable[[str], None] | None = None,
) -> AnnotateStats:
    """``annotate`` for those who have its arguments together."""
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
    speller = speller_of(model, wanted.max_tokens)
    with begun(wanted, model, model.profile, speller, heard) as work:
        while rows := work.window(_WINDOW * batch_size):
            _annotate(model, rows, work, batch_size, on_halved)
            work.writer.flush()
    return work.stats


def _nothing(_: Any) -> None:
    """Hear nothing."""


def _annotate(
    model: TransformersModel, rows: Sequence[Row], work: Work, batch_size: int,
    on_halved: Callable[[str], None] | None,
) -> None:  # fmt: skip
    score, settings = work.scored(rows), work.settings
    everybody, no_options = range(len(rows)), [()] * len(rows)
    points: dict[int, list[Checkpoint]] = {}
    written = Written(model.vocabulary, texts=True)
    under_way = None
    for batch in model.read_again(
        [row.spelled.prompt for row in rows],
        [row.spelled.thinking for row in rows],
        stride=settings.stride,
        batch_size=batch_size,
        on_halved=on_halved,
    ):
        if batch is not under_way:
            under_way, points, written = batch, {}, Written(model.vocabulary, texts=True)
        for number in batch.ended.tolist():
            final = score(number, rows[number].spelled.answer)
            work.add(rows[number], points.pop(number, []), final)
            written.forget(number)
        looks = checkpoints_of(batch, everybody, no_options, settings.probe_tokens, score, written)
        for number, point in zip(batch.at_checkpoint.tolist(), looks, strict=True):
            points.setdefault(number, []).append(point)
