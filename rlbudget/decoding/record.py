"""Recording: full decodes of a model, with the answer a stop at each checkpoint would give.

Questions join the batch as others end, so it stays wide to the last; what has ended is written
every so often. Each decode depends on its own seed alone, so a killed recording that goes on with
``resume`` gives the traces an uninterrupted one would have given, up to the last bits of signals:
those of a matrix product depend on the rows beside.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rlbudget.decoding.checkpoints import Written, checkpoints_of
from rlbudget.decoding.fitting import fitting
from rlbudget.decoding.known import check_ids, recording_settings, there_of
from rlbudget.errors import UserError
from rlbudget.models.profiles import Profile
from rlbudget.models.reading import Finished
from rlbudget.models.vocabulary import Vocabulary
from rlbudget.tasks.task import Question, Task
from rlbudget.traces.settings import Settings as FolderSettings
from rlbudget.traces.store import TraceWriter
from rlbudget.traces.trace import PROBE_TOKENS, Checkpoint, Final, Trace

if TYPE_CHECKING:
    from rlbudget.models.transformers_model import TransformersModel

BATCH_SIZE = 128


@dataclass(frozen=True, slots=True)
class RecordStats:
    """What a recording did."""

    n: int
    """traces recorded now"""
    skipped: int
    """traces that were there already"""
    tokens: int
    """tokens of the full decodes recorded now"""
    exit_tokens: int
    """tokens of the exit answers recorded now"""
    seconds: float
    left_out: tuple[str, ...] = ()
    """of each question that the model cannot decode its id and why"""


class Model(Protocol):
    """What a trace says of the model that made it."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def profile(self) -> Profile: ...  # noqa: D102

    @property
    def vocabulary(self) -> Vocabulary: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Settings:
    """How a recording is made."""

    stride: int
    max_tokens: int
    temperature: float
    probe_tokens: int
    seed: int
    store_text: bool
    text_signals: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)
    """what else every trace says of it"""

    def meta(self, model: Model) -> dict[str, Any]:
        """What every trace says of it."""
        return {
            "stride": self.stride,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "probe_tokens": self.probe_tokens,
            "profile": model.profile.name,
            "exit_text": model.profile.exit_text,
            **self.more,
        }

    def known(self, model: Model, task: Task) -> FolderSettings:
        """What a folder says of a recording of ``task``."""
        return recording_settings(
            "record", model, task.name, self.meta(model),
            scorer=task.scorer, seed=self.seed, store_text=self.store_text,
            **({"text_signals": True} if self.text_signals else {}),
        )  # fmt: skip


def settings_of(
    profile: Profile,
    *,
    stride: int | None,
    max_tokens: int | None,
    temperature: float | None,
    probe_tokens: int,
    seed: int,
    store_text: bool,
    text_signals: bool = False,
    more: Mapping[str, Any] | None = None,
) -> Settings:
    """What is left out is as in the model's profile; ``UserError`` for what is out of range."""
    if probe_tokens < 0:
        raise UserError(f"probe_tokens must be at least 0, not {probe_tokens}")
    made = Settings(
        stride=profile.stride if stride is None else stride,
        max_tokens=profile.max_tokens if max_tokens is None else max_tokens,
        temperature=float(profile.temperature if temperature is None else temperature),
        probe_tokens=probe_tokens,
        seed=seed,
        store_text=store_text,
        text_signals=text_signals,
        more=more or {},
    )
    if not 0 <= made.temperature < float("inf"):
        raise UserError(f"temperature must be 0 or more, not {made.temperature}")
    if made.max_tokens < 1 or made.stride < 1:
        raise UserError(
            f"max_tokens and stride must be at least 1, not {made.max_tokens} and {made.stride}"
        )
    return made


def row_seed(seed: int, question_id: str) -> int:
    """The seed of one decode: depends on nothing but these two; below 2**48."""
    digest = hashlib.sha256(f"{seed}:{question_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def trace_id(seed: int, question_id: str) -> str:
    """The id of the decode of a question under a recording's seed."""
    return f"{question_id}-s{seed}"


def record(
    model: TransformersModel,
    task: Task,
    folder: Path | str,
    *,
    stride: int | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    probe_tokens: int = PROBE_TOKENS,
    store_text: bool = False,
    text_signals: bool = False,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    on_left_out: Callable[[str], None] | None = None,
    on_trace: Callable[[Trace], None] | None = None,
    on_halved: Callable[[str], None] | None = None,
) -> RecordStats:
    """Decode every question of ``task`` once and write its trace to ``folder``.

    A question that does not fit into the model's context, that is no token to it, or that has an
    option longer than an answer may be is left out, told to ``on_left_out`` and counted.

    Settings left out are those of the model's profile. ``probe_tokens`` is the length of the
    trial answer recorded at each checkpoint, 0 for none. ``store_text`` keeps the thinking and
    where the checkpoints lie in it. ``resume`` goes on with a folder recorded under the same
    settings, which it keeps from before its first trace on. ``progress(done, total)`` is called
    with counts of questions, ``on_trace`` with each trace as it ends, ``on_halved`` with a line
    when the memory runs out: then the recording goes on with half the batch. Questions with
    options get the entropy of the model's choice among them at each checkpoint. Raises
    ``UserError`` for a folder that holds other traces, settings out of range, a task of which
    no question can be decoded, logits that are NaN, a memory that does not hold a single
    decode, and a full disk.
    """
    begun = time.monotonic()
    settings = settings_of(
        model.profile, stride=stride, max_tokens=max_tokens, temperature=temperature,
        probe_tokens=probe_tokens, seed=seed, store_text=store_text, text_signals=text_signals,
    )  # fmt: skip
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
    check_ids(task)
    fits = fitting(model, task, settings.max_tokens, on_left_out)
    task = fits.task
    ids = [trace_id(seed, question.question_id) for question in task.questions]
    spelled = [model.option_ids(question.options) for question in task.questions]
    options_of = dict(zip(ids, spelled, strict=True))
    n = tokens = exit_tokens = written = 0
    known = settings.known(model, task)
    with TraceWriter(folder, append=resume, settings=known) as writer:
        there = there_of(folder, dict(zip(ids, task.questions, strict=True)))
        missing = [q for q, name in zip(task.questions, ids, strict=True) if name not in there]
        missing.sort(key=lambda q: -len(model.prompt_ids(q.question)))
        rows = [options_of[trace_id(seed, question.question_id)] for question in missing]
        if progress is not None:
            progress(len(there), len(ids))
        seeds = [row_seed(seed, question.question_id) for question in missing]
        for ended in _record(model, task, missing, seeds, rows, settings, batch_size, on_halved):
            traces = [one.trace for one in ended]
            for trace in traces:
                writer.add(trace)
                if on_trace is not None:
                    on_trace(trace)
                tokens += trace.final.thinking_tokens + trace.final.answer_tokens
                exit_tokens += sum(c.exit.answer_tokens for c in trace.checkpoints)
            n += len(traces)
            if n - written >= batch_size:
                writer.flush()
                written = n
            if progress is not None:
                progress(len(there) + n, len(ids))
    seconds = time.monotonic() - begun
    return RecordStats(
        n=n, skipped=len(there), tokens=tokens, exit_tokens=exit_tokens, seconds=seconds,
        left_out=fits.left_out,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recorded:
    """A full decode, recorded."""

    trace: Trace
    text: str
    """everything after the prompt: thinking, end of thinking, answer"""


def record_one(
    model: TransformersModel,
    task: Task,
    *,
    seed: int,
    stride: int | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    probe_tokens: int = PROBE_TOKENS,
    store_text: bool = False,
) -> Recorded:
    """Record the one question of ``task`` as ``decode`` would decode it with this ``seed``.

    ``seed`` is that of the sampling itself, and of the trace. The rest is as for ``record``.
    """
    settings = settings_of(
        model.profile, stride=stride, max_tokens=max_tokens, temperature=temperature,
        probe_tokens=probe_tokens, seed=seed, store_text=store_text,
    )  # fmt: skip
    (question,) = task.questions
    rows = [model.option_ids(question.options)]
    recorded = _record(model, task, [question], [seed], rows, settings, 1)
    return next(one for ended in recorded for one in ended)


def _record(
    model: TransformersModel,
    task: Task,
    questions: Sequence[Question],
    seeds: Sequence[int],
    options: Sequence[Sequence[Sequence[int]]],
    settings: Settings,
    batch_size: int,
    on_halved: Callable[[str], None] | None = None,
) -> Iterator[list[Recorded]]:
    """The traces of the questions, some at a time, as they end."""
    from rlbudget.models.stream import Attempts, stream  # needs torch

    score = remembering(task, questions)
    attempts = Attempts(len(questions), batch_size, on_halved=on_halved)
    for attempt in attempts:
        with attempt:
            numbers, width = attempt.rows, attempt.width
            checkpoints: dict[int, list[Checkpoint]] = {}
            written = Written(model.vocabulary, texts=settings.text_signals)
            for batch in stream(
                model,
                [questions[number].question for number in numbers],
                [seeds[number] for number in numbers],
                batch_size=width,
                temperature=settings.temperature,
                max_tokens=settings.max_tokens,
                stride=settings.stride,
            ):
                rows = batch.at_checkpoint.tolist()
                looks = checkpoints_of(
                    batch, numbers, options, settings.probe_tokens, score, written
                )
                for row, point in zip(rows, looks, strict=True):
                    checkpoints.setdefault(row, []).append(point)
                recorded = []
                for row in sorted(batch.final):
                    end, number = batch.final.pop(row), numbers[row]
                    points, match = checkpoints.pop(row, []), score(number, end.answer)
                    trace = trace_of(model, task, questions[number], seeds[number], end, points,
                                   settings, match)  # fmt: skip
                    recorded.append(Recorded(trace, end.text + end.rest))
                    written.forget(number)
                    attempt.ended(number)
                if recorded:
                    yield recorded


def trace_of(
    model: Model,
    task: Task,
    question: Question,
    seed: int,
    end: Finished,
    checkpoints: Sequence[Checkpoint],
    settings: Settings,
    exact_match: int,
) -> Trace:
    """A recorded decode as a trace; ``seed`` is that of its sampling."""
    meta = {
        **question.meta,
        **settings.meta(model),
        "row_seed": seed,
        "scorer": task.scorer,
        "natural": end.natural,
    }
    if question.options:
        meta["options"] = list(question.options)
    if settings.store_text:
        meta |= _text(model.vocabulary, end, checkpoints)
    return Trace(
        trace_id=trace_id(settings.seed, question.question_id),
        question_id=question.question_id,
        task=task.name,
        question=question.question,
        target=question.target,
        model=model.name,
        seed=settings.seed,
        final=Final(
            answer=end.answer,
            exact_match=exact_match,
            thinking_tokens=end.thinking_tokens,
            answer_tokens=end.answer_tokens,
        ),
        checkpoints=tuple(checkpoints),
        meta=meta,
    )


def remembering(task: Task, questions: Sequence[Question]) -> Callable[[int, str], int]:
    """The task's scorer by row: neighbouring exits often give one and the same answer."""
    known: dict[tuple[int, str], int] = {}

    def score(row: int, answer: str) -> int:
        key = (row, answer)
        if key not in known:
            known[key] = task.score(questions[row], answer)
        return known[key]

    return score


def _text(
    vocabulary: Vocabulary, end: Finished, checkpoints: Sequence[Checkpoint]
) -> dict[str, Any]:
    # A prefix may end inside a character, whose text then differs from the whole's.
    prefixes = [vocabulary.text(end.ids[: c.thinking_tokens], special=True) for c in checkpoints]
    return {
        "thinking": end.text,
        "cuts": [_common(prefix, end.text) for prefix in prefixes],
    }


def _common(prefix: str, text: str) -> int:
    """How many first characters two texts share."""
    if text.startswith(prefix):
        return len(prefix)
    return next(i for i, (a, b) in enumerate(zip(prefix, text + "\0", strict=False)) if a != b)
