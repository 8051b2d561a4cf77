"""The JSONL interchange: traces of any model, one a line, every field checked.

A line may instead hold a question with ``samples`` (see ``traces.samples``); all lines of a
file are of one kind. Fields and types are those of ``rlbudget.traces.schema``.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from rlbudget.errors import UserError
from rlbudget.files import write_bytes
from rlbudget.files.folders import LOCK, locked
from rlbudget.tasks.lines import Line, at_place, lines_of
from rlbudget.tasks.scorers import find_scorer
from rlbudget.traces.samples import ORDERS, Sample, Sampled, size_problem, traces_of_samples
from rlbudget.traces.schema import (
    BadLineError,
    Kind,
    SampledLine,
    TraceLine,
    converted,
    decoded,
    kind_of,
)
from rlbudget.traces.scoring import Absent
from rlbudget.traces.store import TraceWriter, existing_ids
from rlbudget.traces.trace import MOST_SIGNALS, Trace, problem_of, trace_to_dict

_SHOWN_PROBLEMS = 10


@dataclass(frozen=True, slots=True)
class ImportStats:
    """What an import did."""

    n: int
    """traces written"""
    bad: int
    """lines left out"""
    problems: tuple[str, ...] = ()
    """the first few of them, each ``FILE:LINE: what is wrong``"""


def trace_from_dict(record: Any, *, scorer: str | None = None) -> Trace:
    """The trace of a JSON object; an absent ``exact_match`` is scored as ``read_jsonl`` says.

    Raises ``UserError`` saying what is wrong, the field named by its path.
    """
    try:
        return _as_trace(_completed(converted(record, TraceLine), scorer))
    except BadLineError as problem:
        raise UserError(str(problem)) from None


def read_jsonl(
    path: Path | str,
    *,
    skip_bad: bool = False,
    scorer: str | None = None,
    on_bad: Callable[[str], None] | None = None,
) -> Iterator[Trace]:
    """The traces of a file, one line in memory at a time; blank lines are passed over.

    Where ``exact_match`` is absent it is scored from answer and target, by the ``scorer`` of that
    name or else the one that the line's ``meta.scorer`` or its task names. A bad line, or a
    ``trace_id`` that came before, raises ``UserError`` as ``FILE:LINE: what is wrong``; with
    ``skip_bad`` it is skipped and reported to ``on_bad``.
    """
    for trace, _ in _read(Path(path), skip_bad, scorer, on_bad):
        yield _as_trace(trace)


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
    scorer: str | None = None,
) -> ImportStats:
    """Import a file into a new trace folder ``out``: all of it, or nothing.

    The traces are written to a folder beside ``out`` that takes its name at the end.
    ``scorer`` is that of ``read_jsonl``. ``progress`` is called with the bytes read and in all.
    Raises ``UserError`` for a bad line (without ``skip_bad``), a file without a trace, an ``out``
    that is not empty or that another process writes in, and a full disk; ``KeyboardInterrupt``
    says that nothing was imported.
    """
    file, out = Path(file), Path(out)
    _require_empty(out)
    made = not out.exists()
    try:
        with locked(out):
            _require_empty(out)
            stats = _import_locked(file, out, skip_bad, progress, scorer)
    except BaseException as error:
        if made:
            with contextlib.suppress(OSError):
                out.rmdir()
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"nothing was imported to {out}") from None
        raise
    return stats


def _require_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(p.name != LOCK for p in out.iterdir())):
        raise UserError(f"{out} is there and not empty: choose another --out")


def _import_locked(
    file: Path,
    out: Path,
    skip_bad: bool,
    progress: Callable[[int, int], None] | None,
    scorer: str | None,
) -> ImportStats:
    """``import_jsonl`` where nobody else writes in the empty folder ``out``."""
    ours = re.compile(rf"\.{re.escape(out.name)}\.\d+-[0-9a-f]{{8}}\.importing")
    for left in out.parent.iterdir():
        if ours.fullmatch(left.name):  # of one that was killed
            shutil.rmtree(left, ignore_errors=True)
    staging = out.with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}.importing")
    size = file.stat().st_size if file.is_file() else 0
    problems: list[str] = []
    bad = n = 0

    def on_bad(problem: str) -> None:
        nonlocal bad
        bad += 1
        if len(problems) < _SHOWN_PROBLEMS:
            problems.append(problem)

    try:
        with _no_collection(), TraceWriter(staging) as writer:
            for trace, position in _read(file, skip_bad, scorer, on_bad):
                writer.add(trace, checked=True)
                n += 1
                if progress and n % 100 == 0:
                    progress(position, max(size, position))
        if not n:
            found = f"none of its {bad} lines is a trace; the first: {problems[0]}" if bad else ""
            raise UserError(f"{file}: {found or 'it holds no trace'}")
        n = len(existing_ids(staging))
        _put(staging, out)
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            reason = error.__cause__.strerror or error.__cause__
            raise UserError(
                f"{out}: writing failed: {reason}; nothing was imported: make room and run it again"
            ) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(staging, ignore_errors=True)
    if progress:
        progress(size, size)
    return ImportStats(n=n, bad=bad, problems=tuple(problems))


def _put(staging: Path, out: Path) -> None:
    """Give the staged folder its name; ``out`` holds nothing but our lock."""
    with contextlib.suppress(FileNotFoundError):
        (out / LOCK).unlink()
    try:
        os.replace(staging, out)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        raise UserError(
            f"{out}: another process began to write here; nothing was imported: choose another"
            " --out"
        ) from None


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the garbage collector: traces hold no reference cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(
    path: Path,
    skip_bad: bool,
    scorer: str | None,
    on_bad: Callable[[str], None] | None,
) -> Iterator[tuple[Trace, int]]:
    """Traces as ``_completed`` gives them, each with the bytes read so far."""
    if scorer is not None:
        find_scorer(scorer)
    seen: set[str] = set()
    signals: set[str] = set()
    kind: Kind | None = None
    for line in lines_of(path):
        try:
            wanted = kind or kind_of(line.content)
            traces, identity = _traces(line, wanted, scorer)
            if identity in seen:
                name = "trace_id" if wanted is TraceLine else "question_id"
                raise BadLineError(f"$.{name} {identity!r} came before in this file")
            _check_signals(traces, signals)
        except BadLineError as problem:
            message = at_place(f"{path}:{line.number}", problem)
            if not skip_bad:
                raise UserError(message) from None
            if on_bad:
                on_bad(message)
            continue
        kind = wanted
        seen.add(identity)
        for trace in traces:
            yield trace, line.position


def _check_signals(traces: Sequence[Trace], known: set[str]) -> None:
    """A folder has a column for each name, so it has few."""
    for trace in traces:
        for point in trace.checkpoints:
            if not point.signals.keys() <= known:
                more = known | point.signals.keys()
                if len(more) > MOST_SIGNALS:
                    raise BadLineError(
                        f"$.checkpoints: {len(more)} names of signals in this file with those of"
                        f" the lines before; {MOST_SIGNALS} are the most"
                    )
                known |= more


def _traces(line: Line, kind: Kind, scorer: str | None) -> tuple[list[Trace], str]:
    """The traces of a line, and the id that may not come twice."""
    try:
        if kind is TraceLine:
            trace = _completed(decoded(line.content, TraceLine), scorer)
            return [trace], trace.trace_id
        sampled = _sampled(decoded(line.content, SampledLine), scorer)
    except BadLineError:
        if kind_of(line.content) is not kind:
            raise BadLineError("samples and traces may not stand in one file") from None
        raise
    try:
        traces = traces_of_samples(sampled, orders=ORDERS)
    except UserError as error:
        raise BadLineError(str(error)) from None
    for trace in traces:
        _check(trace)
    return traces, sampled.question_id


def _completed(line: TraceLine, scorer: str | None) -> Trace:
    """The line with its missing fields filled in, so that it has all attributes of a ``Trace``.

    An import writes columns from these objects: copying each into a ``Trace`` would take as long as
    the parsing. Raises ``BadLineError`` for a line that breaks a law of traces.
    """
    line.meta = line.meta or {}
    absent = Absent(line.target, line.question, line.task, line.meta, scorer)
    if line.final.exact_match is None:
        line.final.exact_match = absent.score(line.final.answer)
    for point in line.checkpoints:
        if point.exit.exact_match is None:
            point.exit.exact_match = absent.score(point.exit.answer)
        try:
            sum((point.signals or {}).values())  # type: ignore[arg-type]
        except TypeError:  # some are null
            measured = (point.signals or {}).items()
            point.signals = {name: value for name, value in measured if value is not None}
        if point.signals is None:
            point.signals = {}
    line.meta = absent.noted()
    trace = cast(Trace, line)
    _check(trace)
    return trace


def _as_trace(completed: Trace) -> Trace:
    """A ``Trace`` from a line with all attributes of one."""
    return msgspec.convert(completed, Trace, from_attributes=True)


def _sampled(line: SampledLine, scorer: str | None) -> Sampled:
    absent = Absent(line.target, line.question, line.task, line.meta or {}, scorer)
    if problem := size_problem([given.answer for given in line.samples]):
        raise BadLineError(f"$.samples: {problem}")
    samples = []
    for i, given in enumerate(line.samples):
        match = absent.score(given.answer) if given.exact_match is None else given.exact_match
        if match not in (0, 1):
            raise BadLineError(f"$.samples[{i}].exact_match must be 0 or 1, got {match}")
        samples.append(Sample(given.answer, match, given.tokens))
    return Sampled(
        question_id=line.question_id,
        task=line.task,
        question=line.question,
        target=line.target,
        model=line.model,
        samples=tuple(samples),
        scorer=absent.name,
        meta=line.meta or {},
    )


def _check(trace: Trace) -> None:
    if problem := problem_of(trace):
        raise BadLineError(f"$.{problem}")
