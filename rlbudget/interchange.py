"""The JSONL interchange: traces of anybody's model, one a line, checked to the last field.

A line may instead hold a question with ``samples`` (see ``rlbudget.samples``); all lines of a
file are of one kind.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rlbudget.errors import UserError
from rlbudget.files import write_bytes
from rlbudget.interchange_quick import quick_trace
from rlbudget.samples import ORDERS, Sample, Sampled, traces_of_samples
from rlbudget.tasks.scorers import exact_match_text
from rlbudget.traces import Checkpoint, Exit, Final, Probe, Trace, problem_of

VERSION = 1
Score = Callable[[str, str], int]
"""``score(answer, target)`` -> 0 or 1"""

_SHOWN_PROBLEMS = 10
_KINDS = {str: "text", int: "a whole number", float: "a number", dict: "an object", list: "a list"}


@dataclass(frozen=True, slots=True)
class ImportStats:
    """What an import did."""

    n: int
    """traces written"""
    bad: int
    """lines left out"""
    problems: tuple[str, ...] = ()
    """the first few of them, each ``FILE:LINE: what is wrong``"""


class _BadTraceError(Exception):
    """What is wrong with a line, naming the field by its path."""


def trace_to_dict(trace: Trace) -> dict[str, Any]:
    """A trace as the JSON object of the interchange."""
    return {
        "version": VERSION,
        "trace_id": trace.trace_id,
        "question_id": trace.question_id,
        "task": trace.task,
        "question": trace.question,
        "target": trace.target,
        "model": trace.model,
        "seed": trace.seed,
        "meta": trace.meta,
        "final": {
            "answer": trace.final.answer,
            "exact_match": trace.final.exact_match,
            "thinking_tokens": trace.final.thinking_tokens,
            "answer_tokens": trace.final.answer_tokens,
        },
        "checkpoints": [_checkpoint_to_dict(point) for point in trace.checkpoints],
    }


def _checkpoint_to_dict(point: Checkpoint) -> dict[str, Any]:
    written: dict[str, Any] = {"thinking_tokens": point.thinking_tokens, "signals": point.signals}
    if point.probe is not None:
        written["probe"] = {
            "answer": point.probe.answer,
            "confidence": point.probe.confidence,
            "tokens": point.probe.tokens,
        }
    written["exit"] = {
        "answer": point.exit.answer,
        "exact_match": point.exit.exact_match,
        "answer_tokens": point.exit.answer_tokens,
    }
    return written


def trace_from_dict(record: Any, *, score: Score = exact_match_text) -> Trace:
    """The trace of a JSON object; an absent ``exact_match`` comes from ``score``.

    Raises ``UserError`` saying what is wrong, the field named by its path.
    """
    try:
        return _trace(record, score)
    except _BadTraceError as problem:
        raise UserError(str(problem)) from None


def read_jsonl(
    path: Path | str,
    *,
    skip_bad: bool = False,
    score: Score = exact_match_text,
    on_bad: Callable[[str], None] | None = None,
) -> Iterator[Trace]:
    """The traces of a file, one line in memory at a time; blank lines are passed over.

    A bad line, or a ``trace_id`` that came before, raises ``UserError`` as
    ``FILE:LINE: what is wrong``; with ``skip_bad`` it is left out and told to ``on_bad``.
    """
    for trace, _ in _read(Path(path), skip_bad, score, on_bad):
        yield trace


def write_jsonl(path: Path | str, traces: Iterable[Trace]) -> None:
    """Write traces one a line, the whole file at once or not at all."""
    lines = [json.dumps(trace_to_dict(t), ensure_ascii=False, allow_nan=False) for t in traces]
    write_bytes(Path(path), "".join(line + "\n" for line in lines).encode())


def import_jsonl(
    file: Path | str,
    out: Path | str,
    *,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
    score: Score = exact_match_text,
) -> ImportStats:
    """Import a file into a new trace folder ``out``: all of it, or nothing.

    The traces are written to a folder beside ``out`` that takes its name at the end.
    ``progress`` is called with the bytes read and in all. Raises ``UserError`` for a bad line
    (without ``skip_bad``), a file without a trace, or an ``out`` that is not empty.
    """
    from rlbudget.store import TraceWriter

    file, out = Path(file), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there and not empty: choose another --out")
    staging = out.parent / f".{out.name}.importing"
    size = file.stat().st_size if file.is_file() else 0
    problems: list[str] = []
    bad = n = 0

    def on_bad(problem: str) -> None:
        nonlocal bad
        bad += 1
        if len(problems) < _SHOWN_PROBLEMS:
            problems.append(problem)

    try:
        shutil.rmtree(staging, ignore_errors=True)
        with _no_collection(), TraceWriter(staging) as writer:
            for trace, position in _read(file, skip_bad, score, on_bad):
                writer.add(trace, checked=True)
                n += 1
                if progress and n % 100 == 0:
                    progress(position, max(size, position))
        if not n:
            found = (
                f"none of its {bad} lines is a trace; the first: {problems[0]}"
                if bad
                else ("it holds no trace")
            )
            raise UserError(f"{file}: {found}")
        os.replace(staging, out)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(staging, ignore_errors=True)
    if progress:
        progress(size, size)
    return ImportStats(n=n, bad=bad, problems=tuple(problems))


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Traces hold no cycles, so looking for cycles among them is work for nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(
    path: Path, skip_bad: bool, score: Score, on_bad: Callable[[str], None] | None
) -> Iterator[tuple[Trace, int]]:
    """Traces, each with the bytes read so far."""
    seen: set[str] = set()
    kind: bool | None = None
    position = 0
    try:
        source = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot read this file: {error.strerror}") from None
    with source:
        for number, line in enumerate(source, 1):
            position += len(line)
            if not line.strip():
                continue
            try:
                quick = quick_trace(line, VERSION)
                if quick is not None and kind is not True and quick.trace_id not in seen:
                    kind = False
                    seen.add(quick.trace_id)
                    yield quick, position
                    continue
                record = _json(line, number == 1)
                sampled = isinstance(record, dict) and "samples" in record
                if kind not in (None, sampled):
                    raise _BadTraceError("samples and traces may not stand in one file")
                traces = _samples(record, score) if sampled else [_trace(record, score)]
                if traces[0].trace_id in seen:
                    name = "question_id" if sampled else "trace_id"
                    value = getattr(traces[0], name)
                    raise _BadTraceError(f"{name} {value!r} came before in this file")
            except _BadTraceError as problem:
                message = f"{path}:{number}: {problem}"
                if not skip_bad:
                    raise UserError(message) from None
                if on_bad:
                    on_bad(message)
                continue
            kind = sampled
            seen.add(traces[0].trace_id)
            for trace in traces:
                yield trace, position


def _json(line: bytes, first: bool) -> Any:
    try:
        text = line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise _BadTraceError(f"invalid UTF-8 at byte {error.start + 1} of the line") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _BadTraceError(f"invalid JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError):
        raise _BadTraceError("invalid JSON: a number too long or too many brackets") from None


class _Fields:
    """The fields of a JSON object, taken one by one; ``done`` refuses what nobody took."""

    def __init__(self, record: Any, path: str) -> None:
        if not isinstance(record, dict):
            raise _BadTraceError(f"{path or 'the line'} must be an object, not {_named(record)}")
        self._record = record
        self._prefix = f"{path}." if path else ""
        self._taken: set[str] = set()

    def path(self, name: str) -> str:
        return self._prefix + name

    def take(self, name: str, kind: type) -> Any:
        if not self.has(name):
            raise _BadTraceError(f"missing field {self.path(name)}")
        value: Any = self._record[name]
        wanted = (int, float) if kind is float else (kind,)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise _BadTraceError(f"{self.path(name)} must be {_KINDS[kind]}, not {_named(value)}")
        if kind is not float:
            return value
        try:
            return float(cast(float, value))
        except OverflowError:
            raise _BadTraceError(f"{self.path(name)} is not finite: too large") from None

    def has(self, name: str) -> bool:
        """Whether the field is there and not null; either way it counts as known."""
        self._taken.add(name)
        return self._record.get(name) is not None

    def done(self) -> None:
        if unknown := sorted(set(self._record) - self._taken):
            raise _BadTraceError(
                f"unknown field {self.path(unknown[0])} (your own data may go under meta)"
            )


def _target(fields: _Fields) -> str:
    """The target of a line of the version that is read."""
    version = fields.take("version", int)
    if version != VERSION:
        raise _BadTraceError(f"unsupported version {version}; this rlbudget reads {VERSION}")
    target = fields.take("target", str)
    if not target.strip():
        raise _BadTraceError("target is empty")
    return str(target)


def _trace(record: Any, score: Score) -> Trace:
    fields = _Fields(record, "")
    target = _target(fields)
    trace = Trace(
        trace_id=fields.take("trace_id", str),
        question_id=fields.take("question_id", str),
        task=fields.take("task", str),
        question=fields.take("question", str),
        target=target,
        model=fields.take("model", str),
        seed=fields.take("seed", int),
        final=_final(_Fields(fields.take("final", dict), "final"), target, score),
        checkpoints=tuple(
            _checkpoint(_Fields(point, f"checkpoints[{i}]"), target, score)
            for i, point in enumerate(fields.take("checkpoints", list))
        ),
        meta=fields.take("meta", dict) if fields.has("meta") else {},
    )
    fields.done()
    if problem := problem_of(trace):
        raise _BadTraceError(problem)
    return trace


def _samples(record: Any, score: Score) -> list[Trace]:
    """The traces of a question with samples, one for each order."""
    fields = _Fields(record, "")
    target = _target(fields)
    samples = []
    for i, given in enumerate(fields.take("samples", list)):
        sample = _Fields(given, f"samples[{i}]")
        answer = sample.take("answer", str)
        match = _exact_match(sample, answer, target, score)
        samples.append(Sample(answer, match, sample.take("tokens", int)))
        sample.done()
        if match not in (0, 1):
            raise _BadTraceError(f"samples[{i}].exact_match must be 0 or 1, got {match}")
    sampled = Sampled(
        question_id=fields.take("question_id", str),
        task=fields.take("task", str),
        question=fields.take("question", str),
        target=target,
        model=fields.take("model", str),
        samples=tuple(samples),
    )
    fields.done()
    try:
        traces = traces_of_samples(sampled, orders=ORDERS)
    except UserError as error:
        raise _BadTraceError(str(error)) from None
    if problem := next(filter(None, map(problem_of, traces)), None):
        raise _BadTraceError(problem)
    return traces


def _final(fields: _Fields, target: str, score: Score) -> Final:
    answer = fields.take("answer", str)
    final = Final(
        answer=answer,
        exact_match=_exact_match(fields, answer, target, score),
        thinking_tokens=fields.take("thinking_tokens", int),
        answer_tokens=fields.take("answer_tokens", int),
    )
    fields.done()
    return final


def _checkpoint(fields: _Fields, target: str, score: Score) -> Checkpoint:
    tokens = fields.take("thinking_tokens", int)
    names = fields.take("signals", dict) if fields.has("signals") else {}
    signals = _Fields(names, fields.path("signals"))
    measured = {name: signals.take(name, float) for name in names if signals.has(name)}
    exit_fields = _Fields(fields.take("exit", dict), fields.path("exit"))
    answer = exit_fields.take("answer", str)
    given = Exit(
        answer=answer,
        exact_match=_exact_match(exit_fields, answer, target, score),
        answer_tokens=exit_fields.take("answer_tokens", int),
    )
    exit_fields.done()
    probe = None
    if fields.has("probe"):
        trial = _Fields(fields.take("probe", dict), fields.path("probe"))
        probe = Probe(
            answer=trial.take("answer", str),
            confidence=trial.take("confidence", float),
            tokens=trial.take("tokens", int),
        )
        trial.done()
    fields.done()
    return Checkpoint(thinking_tokens=tokens, signals=measured, exit=given, probe=probe)


def _exact_match(fields: _Fields, answer: str, target: str, score: Score) -> int:
    if not fields.has("exact_match"):
        return score(answer, target)
    return int(fields.take("exact_match", int))


def _named(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _KINDS.get(type(value), type(value).__name__)
