"""Recording: full decodes of a model, with the answer a stop at each checkpoint would give.

The batches are planned over the whole task before the first token, and each one is written as
it ends. A killed recording that goes on with ``resume`` therefore decodes the missing batches
exactly as an uninterrupted one would have.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlbudget.errors import UserError
from rlbudget.store import TraceWriter, existing_ids, load_traces
from rlbudget.tasks.task import Question, Task
from rlbudget.traces import Checkpoint, Exit, Final, Probe, Trace

if TYPE_CHECKING:
    from rlbudget.models.decode_batch import DecodeBatch, Finished
    from rlbudget.models.transformers_model import TransformersModel

PROBE_TOKENS = 8
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


@dataclass(frozen=True, slots=True)
class _Settings:
    stride: int
    max_tokens: int
    temperature: float
    probe_tokens: int
    seed: int
    store_text: bool

    def meta(self, model: TransformersModel) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "probe_tokens": self.probe_tokens,
            "profile": model.profile.name,
            "exit_text": model.profile.exit_text,
        }


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
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> RecordStats:
    """Decode every question of ``task`` once and write its trace to ``folder``.

    Settings left out are those of the model's profile. ``probe_tokens`` is the length of the
    trial answer recorded at each checkpoint, 0 for none. ``store_text`` keeps the thinking and
    where the checkpoints lie in it. ``resume`` goes on with a folder recorded under the same
    settings. ``progress(done, total)`` is called with counts of questions. Questions with options
    get the entropy of the model's choice among them at each checkpoint. Raises ``UserError`` for a
    folder that holds other traces, settings out of range, an option longer than an answer may be
    and a full disk.
    """
    begun = time.monotonic()
    profile = model.profile
    settings = _Settings(
        stride=profile.stride if stride is None else stride,
        max_tokens=profile.max_tokens if max_tokens is None else max_tokens,
        temperature=float(profile.temperature if temperature is None else temperature),
        probe_tokens=probe_tokens,
        seed=seed,
        store_text=store_text,
    )
    if batch_size < 1 or probe_tokens < 0:
        raise UserError(
            f"batch_size must be at least 1 and probe_tokens at least 0, not {batch_size} and"
            f" {probe_tokens}"
        )
    ids = [trace_id(seed, question.question_id) for question in task.questions]
    if len(set(ids)) < len(ids):
        raise UserError(f"the task {task.name} has two questions of one id")
    spelled = [model.option_ids(question.options) for question in task.questions]
    options_of = dict(zip(ids, spelled, strict=True))
    n = tokens = exit_tokens = 0
    with TraceWriter(folder, append=resume) as writer:
        there = existing_ids(folder) & set(ids)
        if there:
            _check_same(folder, there, model, settings)
        done = len(there)
        if progress is not None:
            progress(done, len(ids))
        for batch in _plan(model, task.questions, batch_size):
            missing = [q for q in batch if trace_id(seed, q.question_id) not in there]
            if not missing:
                continue
            options = [options_of[trace_id(seed, q.question_id)] for q in missing]
            for trace in _record_batch(model, task, missing, options, settings):
                writer.add(trace)
                n += 1
                tokens += trace.final.thinking_tokens + trace.final.answer_tokens
                exit_tokens += sum(c.exit.answer_tokens for c in trace.checkpoints)
            writer.flush()
            done += len(missing)
            if progress is not None:
                progress(done, len(ids))
    seconds = time.monotonic() - begun
    return RecordStats(
        n=n, skipped=len(there), tokens=tokens, exit_tokens=exit_tokens, seconds=seconds
    )


def _plan(
    model: TransformersModel, questions: Sequence[Question], batch_size: int
) -> Iterator[Sequence[Question]]:
    # Prompts of like length together: little padding, and the same batches at every resume.
    lengths = [len(model.prompt_ids(question.question)) for question in questions]
    order = sorted(range(len(questions)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        yield [questions[i] for i in order[start : start + batch_size]]


def _check_same(
    folder: Path | str, there: set[str], model: TransformersModel, settings: _Settings
) -> None:
    trace = next(trace for trace in load_traces(folder) if trace.trace_id in there)
    wanted = {**settings.meta(model), "model": model.name}
    found = {**trace.meta, "model": trace.model}
    for name, value in wanted.items():
        if found.get(name) != value:
            raise UserError(
                f"{folder} was recorded with {name} {found.get(name)!r}, not {value!r}: resume"
                " with the same settings or choose another folder"
            )


def _record_batch(
    model: TransformersModel,
    task: Task,
    questions: Sequence[Question],
    options: Sequence[Sequence[Sequence[int]]],
    settings: _Settings,
) -> Iterator[Trace]:
    seeds = [row_seed(settings.seed, question.question_id) for question in questions]
    batch = model.begin(
        [question.question for question in questions],
        seeds,
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        stride=settings.stride,
    )
    score = remembering(task, questions)
    checkpoints: list[list[Checkpoint]] = [[] for _ in questions]
    while True:
        batch.advance()
        rows = batch.at_checkpoint
        if not len(rows):
            break
        signals = batch.signals(rows)
        exits = batch.fork_exits(rows)
        probes = None
        if settings.probe_tokens:
            probes = batch.probes_of(exits, settings.probe_tokens)
            if probes is None:
                probes = batch.fork_probes(rows, settings.probe_tokens)
        choosing = [row for row in rows.tolist() if options[row]]
        read = batch.fork_options(choosing, [options[row] for row in choosing])
        choices = dict(zip(choosing, read, strict=True))
        for place, row in enumerate(rows.tolist()):
            answer, probe = exits[place], probes[place] if probes else None
            looks = {"exit_entropy": answer.entropy}
            if probe:
                looks["probe_tail"] = probe.tail
            if row in choices:
                looks["answer_entropy"] = choices[row].entropy
                looks["option_tokens"] = float(choices[row].tokens)
            checkpoints[row].append(
                Checkpoint(
                    thinking_tokens=batch.thinking_tokens,
                    signals={
                        **{name: float(column[place]) for name, column in signals.items()},
                        **looks,
                    },
                    exit=Exit(answer.answer, score(row, answer.answer), answer.answer_tokens),
                    probe=Probe(probe.answer, probe.confidence, probe.tokens) if probe else None,
                )
            )
    for row, question in enumerate(questions):
        end = batch.final[row]
        assert end is not None
        meta = {
            **question.meta,
            **settings.meta(model),
            "row_seed": seeds[row],
            "natural": end.natural,
        }
        if question.options:
            meta["options"] = list(question.options)
        if settings.store_text:
            meta |= _text(batch, row, end, checkpoints[row])
        yield Trace(
            trace_id=trace_id(settings.seed, question.question_id),
            question_id=question.question_id,
            task=task.name,
            question=question.question,
            target=question.target,
            model=model.name,
            seed=settings.seed,
            final=Final(
                answer=end.answer,
                exact_match=score(row, end.answer),
                thinking_tokens=end.thinking_tokens,
                answer_tokens=end.answer_tokens,
            ),
            checkpoints=tuple(checkpoints[row]),
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
    batch: DecodeBatch, row: int, end: Finished, checkpoints: Sequence[Checkpoint]
) -> dict[str, Any]:
    ids = batch.thinking_ids(row)
    # A prefix may end inside a character, whose text then differs from the whole's.
    prefixes = [batch.vocabulary.text(ids[: c.thinking_tokens], special=True) for c in checkpoints]
    return {
        "thinking": end.text,
        "cuts": [_common(prefix, end.text) for prefix in prefixes],
    }


def _common(prefix: str, text: str) -> int:
    """How many first characters two texts share."""
    if text.startswith(prefix):
        return len(prefix)
    return next(i for i, (a, b) in enumerate(zip(prefix, text + "\0", strict=False)) if a != b)
