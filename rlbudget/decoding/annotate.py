"""Annotating: thinking that was already done, with what a stop at each checkpoint would have given.

The stored thinking is cut on the absolute grid, the model reads it again and answers at every cut.
Nothing is thought anew, so the traces are those of the logs' own decodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlbudget.decoding.checkpoints import Texts, checkpoints_of
from rlbudget.decoding.known import recording_settings
from rlbudget.decoding.record import BATCH_SIZE, remembering
from rlbudget.decoding.reread import Spelled, speller_of
from rlbudget.errors import UserError
from rlbudget.tasks.files import short_hash, task_of
from rlbudget.tasks.log_rows import LeftOutError, LogColumns, Logged, Tags
from rlbudget.tasks.logs import LeftOut, open_log
from rlbudget.tasks.scorers import extracted, find_scorer, scorer_of_task
from rlbudget.tasks.task import Question
from rlbudget.traces.store import TraceWriter, existing_ids
from rlbudget.traces.trace import FULL_DECODE, PROBE_TOKENS, Checkpoint, Final, Trace

if TYPE_CHECKING:
    from rlbudget.models.transformers_model import TransformersModel

_WINDOW = 8
"""batches of rows that are sorted by length together"""


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
class _Settings:
    name: str
    scorer: str
    stride: int
    max_tokens: int | None
    probe_tokens: int
    agreement: bool
    store_text: bool

    def meta(self, model: TransformersModel) -> dict[str, Any]:
        cap = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        compared = {"compared_with": FULL_DECODE} if self.agreement else {}
        return {
            "stride": self.stride,
            "probe_tokens": self.probe_tokens,
            "profile": model.profile.name,
            "exit_text": model.profile.exit_text,
            "scorer": self.scorer,
            **cap,
            **compared,
        }


@dataclass(frozen=True, slots=True)
class _Row:
    logged: Logged
    spelled: Spelled
    question: Question


@dataclass(slots=True)
class _Counted:
    n: int = 0
    skipped: int = 0
    tokens: int = 0
    exit_tokens: int = 0
    seen: set[str] = field(default_factory=set)


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
    ``on_left_out`` and counted. ``resume`` goes on with a folder of the same settings.
    ``progress`` is called with the rows done. Other settings are those of ``record``.

    Raises ``UserError`` for a log that cannot be read, a column that no row has, a log of which no
    row can be annotated, and as ``record`` does.
    """
    begun, log = time.monotonic(), Path(log)
    if batch_size < 1 or probe_tokens < 0 or (stride is not None and stride < 1):
        raise UserError(
            "batch_size and stride must be at least 1 and probe_tokens at least 0, not"
            f" {batch_size}, {stride} and {probe_tokens}"
        )
    left_out, counted = LeftOut(on_left_out), _Counted()
    profile = model.profile
    opened = open_log(
        log, columns or LogColumns(), Tags(profile.start_of_thinking, profile.end_of_thinking),
        left_out,
    )  # fmt: skip
    name = task or log.stem
    settings = _Settings(
        name=name,
        scorer=find_scorer(scorer or scorer_of_task(name)).name,
        stride=profile.stride if stride is None else stride,
        max_tokens=max_tokens,
        probe_tokens=probe_tokens,
        agreement=not opened.has_targets,
        store_text=store_text,
    )
    known = recording_settings("annotate", model, name, settings.meta(model), store_text=store_text)
    with TraceWriter(folder, append=resume, settings=known) as writer:
        there = existing_ids(folder)
        rows = _rows_of(model, opened.rows, settings, there, left_out, counted)
        while window := list(islice(rows, _WINDOW * batch_size)):
            for trace in _annotate(model, window, settings, batch_size, on_halved):
                writer.add(trace)
                counted.n += 1
                counted.tokens += trace.final.thinking_tokens + trace.final.answer_tokens
                counted.exit_tokens += sum(c.exit.answer_tokens for c in trace.checkpoints)
                if on_trace is not None:
                    on_trace(trace)
                if progress is not None:
                    progress(counted.n + counted.skipped + left_out.n)
            writer.flush()
        if not counted.n and not counted.skipped:
            raise UserError(f"{log}: none of its {left_out.n} rows can be annotated; the first:"
                            f" {left_out.first}")  # fmt: skip
    return AnnotateStats(
        n=counted.n, skipped=counted.skipped, left_out=left_out, tokens=counted.tokens,
        exit_tokens=counted.exit_tokens, agreement=settings.agreement,
        seconds=time.monotonic() - begun,
    )  # fmt: skip


def _rows_of(
    model: TransformersModel, rows: Iterator[Logged], settings: _Settings, there: set[str],
    left_out: LeftOut, counted: _Counted,
) -> Iterator[_Row]:  # fmt: skip
    """The rows that are to be annotated; the others are counted."""
    speller = speller_of(model, settings.max_tokens)
    for logged in rows:
        if logged.identity in there:
            counted.skipped += 1
            continue
        try:
            spelled = speller.spell(logged)
            yield _Row(logged, spelled, _question(logged, spelled, settings))
        except LeftOutError as problem:
            left_out.add(logged.place, problem)


def _question(logged: Logged, spelled: Spelled, settings: _Settings) -> Question:
    target = logged.target
    if target is None:
        target = extracted(spelled.answer, settings.scorer).strip() or spelled.answer
        if not find_scorer(settings.scorer).score(spelled.answer, target):
            raise LeftOutError(
                "whose answer the scorer cannot compare",
                f"the scorer {settings.scorer} finds no answer in {spelled.answer[:60]!r} that"
                " others can agree with",
            )
    whole = "\0".join([spelled.question, *(f"{m.role}\0{m.content}" for m in logged.messages)])
    identity = f"{settings.name}-{short_hash(whole)}"
    return Question(identity, spelled.question, target)


def _annotate(
    model: TransformersModel, rows: Sequence[_Row], settings: _Settings, batch_size: int,
    on_halved: Callable[[str], None] | None,
) -> Iterator[Trace]:  # fmt: skip
    """The traces of some rows, as they end."""
    rows = sorted(rows, key=lambda row: -len(row.spelled.thinking))
    task = task_of(settings.name, [row.question for row in rows], settings.scorer)
    score = remembering(task, task.questions)
    everybody, no_options = range(len(rows)), [()] * len(rows)
    points: dict[int, list[Checkpoint]] = {}
    texts = Texts(model.vocabulary)
    under_way = None
    for batch in model.read_again(
        [row.spelled.prompt for row in rows],
        [row.spelled.thinking for row in rows],
        stride=settings.stride,
        batch_size=batch_size,
        on_halved=on_halved,
    ):
        if batch is not under_way:
            under_way, points, texts = batch, {}, Texts(model.vocabulary)
        for number in batch.ended.tolist():
            final = score(number, rows[number].spelled.answer)
            yield _trace(model, rows[number], points.pop(number, []), final, settings)
        looks = checkpoints_of(batch, everybody, no_options, settings.probe_tokens, score, texts)
        for number, point in zip(batch.at_checkpoint.tolist(), looks, strict=True):
            points.setdefault(number, []).append(point)


def _trace(
    model: TransformersModel, row: _Row, points: Sequence[Checkpoint], exact_match: int,
    settings: _Settings,
) -> Trace:  # fmt: skip
    meta = {**settings.meta(model), "natural": True}
    if settings.store_text:
        meta["thinking"] = row.logged.thinking
    spelled = row.spelled
    return Trace(
        trace_id=row.logged.identity,
        question_id=row.question.question_id,
        task=settings.name,
        question=spelled.question,
        target=row.question.target,
        model=model.name,
        seed=0,
        final=Final(spelled.answer, exact_match, len(spelled.thinking), spelled.answer_tokens),
        checkpoints=tuple(points),
        meta=meta,
    )
