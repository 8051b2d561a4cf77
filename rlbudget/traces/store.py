"""The trace store: a folder of Parquet parts.

A part holds up to some hundreds of traces, one row each; what belongs to checkpoints is a
column of lists. A part appears whole or not at all (a temporary file in the same folder,
flushed to the disk, then renamed), so a process killed at any moment loses at most the
traces it had not yet written, and pages carry checksums, so damage is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from rlbudget.errors import UserError, missing_extra
from rlbudget.files import write_bytes

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as missing:
    raise missing_extra("cli", "pyarrow") from missing

from rlbudget.traces.columns import FORMAT_KEY, FORMAT_VERSION, part_of, table_of_part, traces_of
from rlbudget.traces.table import TraceTable, joined
from rlbudget.traces.trace import LARGEST_SIGNAL, Trace, problem_of, signal_problem, trace_to_dict

if sys.platform != "win32":
    import fcntl

Folders = Path | str | Sequence[Path | str]
"""A folder of traces, or several of them in order, no trace id in two."""

PART_SIZE = 256
_PART = re.compile(r"part-([0-9]{6,})\.parquet")
_TEMPORARY = re.compile(r"\.part-[0-9]{6,}\.parquet\..*")
_LOCK = ".lock"


class TraceWriter:
    """Writes traces into a folder, a part at a time; one writer a folder.

    With ``append`` it adds parts to those that are there and never touches them; without, a
    folder that already holds traces is refused. A trace id may be added once only. Used as a
    context manager it also writes what it holds when the block ends by an exception.
    """

    def __init__(
        self, folder: Path | str, *, append: bool = False, part_size: int = PART_SIZE
    ) -> None:
        if part_size < 1:
            raise ValueError(f"part_size must be at least 1, got {part_size}")
        self.folder = Path(folder)
        self._part_size = part_size
        self._held: list[Trace] = []
        self._lock: int | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{folder} is a file, not a folder for traces") from None
        except OSError as error:
            raise UserError(f"{folder}: cannot make this folder: {error.strerror}") from error
        self._lock = _lock(self.folder)
        try:
            for stray in self.folder.iterdir():
                if _TEMPORARY.fullmatch(stray.name):
                    stray.unlink()
            parts = _parts(self.folder)
            if parts and not append:
                raise UserError(
                    f"{folder} already holds traces: add --resume to go on with them, or choose"
                    " another --out"
                )
            self._ids = existing_ids(self.folder)
        except BaseException:
            self._unlock()
            raise
        self._next = 1 + max((_number(part) for part in parts), default=-1)

    def add(self, trace: Trace, *, checked: bool = False) -> None:
        """Take a trace; every ``part_size`` traces a part is written.

        ``checked`` says that ``problem_of`` found nothing wrong with it.

        Raises ``UserError`` for a trace that breaks a law of ``Trace``, a trace id that is
        there already, or a full disk; whatever was written stays.
        """
        if self._lock is None:
            raise ValueError("the writer is closed")
        if not checked and (problem := problem_of(trace)):
            raise UserError(f"trace {trace.trace_id!r}: {problem}")
        if trace.trace_id in self._ids:
            raise UserError(f"{self.folder}: trace {trace.trace_id!r} is there already")
        self._ids.add(trace.trace_id)
        self._held.append(trace)
        if len(self._held) >= self._part_size:
            self.flush()

    def flush(self) -> None:
        """Write what is held as a part of its own."""
        if not self._held:
            return
        held, self._held = self._held, []
        path = self.folder / f"part-{self._next:06d}.parquet"
        try:
            write_bytes(path, _bytes_of(part_of(held)))
        except OSError as error:
            raise UserError(
                f"{self.folder}: writing failed: {error.strerror or error}; the"
                f" {len(self._ids) - len(held)} traces written before are kept: make room and"
                " run the same command with --resume"
            ) from error
        self._next += 1

    def close(self) -> None:
        """Write what is held and unlock the folder; closing twice is allowed."""
        try:
            if self._lock is not None:
                self.flush()
        finally:
            self._unlock()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def is_store(folder: Path | str) -> bool:
    """Whether it is a folder with parts of traces in it."""
    folder = Path(folder)
    return folder.is_dir() and bool(_parts(folder))


def existing_ids(folder: Path | str) -> set[str]:
    """The trace ids a folder holds; none where there is no folder yet."""
    folder = Path(folder)
    if not folder.is_dir():
        return set()
    seen: dict[str, Path] = {}
    for path in _parts(folder):
        _claim(_read(path, ["trace_id"]).column("trace_id").to_pylist(), path, seen)
    return set(seen)


def iter_traces(folder: Folders) -> Iterator[Trace]:
    """The traces of a folder, or of several, a part in memory at a time.

    Raises ``UserError`` for a folder without traces, a damaged or foreign part, or a trace
    id that occurs twice.
    """
    seen: dict[str, Path] = {}
    for path in _all_parts(folder):
        with _damage_named(path):
            traces = traces_of(_read(path))
        _claim([trace.trace_id for trace in traces], path, seen)
        yield from traces


def iter_questions(folder: Folders) -> Iterator[tuple[str, str]]:
    """The question id and the question of each trace; errors as ``iter_traces``, ids aside."""
    for path in _all_parts(folder):
        part = _read(path, ["question_id", "question"])
        ids, texts = (part.column(name).to_pylist() for name in ("question_id", "question"))
        yield from zip(ids, texts, strict=True)


def load_traces(folder: Folders) -> list[Trace]:
    """All traces of a folder, in the order they were written; errors as ``iter_traces``."""
    return list(iter_traces(folder))


def load_table(folder: Folders, *, context: bool = False) -> TraceTable:
    """The traces of a folder as columns: equal to ``table_of(load_traces(folder))``.

    Reads the columns it needs straight from arrow, texts left out. ``context`` adds the
    ``CONTEXT_SIGNALS`` and ``TASK_SIGNALS`` of each question to its checkpoints. Errors as
    ``iter_traces``, and for a signal that is infinite in float32.
    """
    seen: dict[str, Path] = {}
    parts = []
    for path in _all_parts(folder):
        with _damage_named(path):
            part = table_of_part(_read(path, without=_TEXTS - (_CONTEXT if context else set())))
        _claim(part.trace_ids.tolist(), path, seen)
        _check_signals(part, path)
        parts.append(part)
    return joined(parts)


def iter_parts(folder: Folders) -> Iterator[pa.Table]:
    """The parts of a folder as arrow tables, their texts left out but for ``task``, ``model`` and
    ``meta``; errors as ``iter_traces``."""  # fmt: skip
    for path in _all_parts(folder):
        yield _read(path, without=_TEXTS - {"task", "model", "meta"} | {"probe_answer"})


_TEXTS = {"task", "question", "target", "model", "meta", "final_answer", "exit_answer"}
_CONTEXT = {"task", "question", "meta"}


def digest(folder: Folders) -> str:
    """sha256 (hex) over the traces' contents in the order of their ids.

    Independent of how the traces are spread over parts and in which order they were written.
    """
    lines = {
        trace.trace_id: hashlib.sha256(
            json.dumps(trace_to_dict(trace), sort_keys=True, separators=(",", ":")).encode()
        ).digest()
        for trace in iter_traces(folder)
    }
    whole = hashlib.sha256()
    for trace_id in sorted(lines):
        whole.update(lines[trace_id])
    return whole.hexdigest()


def _parts(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if _PART.fullmatch(p.name)), key=_number)


def _number(part: Path) -> int:
    return int(part.name.removeprefix("part-").removesuffix(".parquet"))


def _all_parts(folders: Folders) -> list[Path]:
    several = [folders] if isinstance(folders, Path | str) else folders
    return [part for folder in several for part in _required_parts(Path(folder))]


def _required_parts(folder: Path) -> list[Path]:
    advice = "make traces with: rlbudget record --out FOLDER, or rlbudget import FILE --out FOLDER"
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; {advice}")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder of traces; {advice}")
    parts = _parts(folder)
    if not parts:
        raise UserError(f"{folder} holds no traces; {advice}")
    return parts


def _read(
    path: Path, columns: list[str] | None = None, *, without: Collection[str] = ()
) -> pa.Table:
    """A part: the ``columns`` alone, or all but those of ``without``."""
    with _damage_named(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        schema = file.schema_arrow
        version = (schema.metadata or {}).get(FORMAT_KEY)
        if version is None:
            raise pa.ArrowInvalid("it was not written by rlbudget")
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: written by another version of rlbudget (store format"
                f" {version.decode(errors='replace')}); use that version or record again"
            )
        columns = columns or [name for name in schema.names if name not in without]
        return file.read(columns=columns, use_threads=False)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path} is not a whole part of a trace store ({reason}): delete it and run the"
            " command that made it again, rlbudget record … --resume"
        ) from error


def _check_signals(part: TraceTable, path: Path) -> None:
    """Refuse what no float32 can hold, which ``problem_of`` keeps from new parts."""
    for name, column in part.signals.items():
        beyond = np.flatnonzero(np.abs(column) > LARGEST_SIGNAL)
        if len(beyond):
            row = int(beyond[0])
            trace_id = str(part.trace_ids[part.trace_of_row[row]])
            raise UserError(f"{path}: trace {trace_id!r}: {signal_problem(name, column[row])}")


def _claim(ids: list[str], path: Path, seen: dict[str, Path]) -> None:
    for trace_id in ids:
        if trace_id in seen:
            other = seen[trace_id]
            where = other.name if other.parent == path.parent else other
            raise UserError(
                f"{path}: trace {trace_id!r} is also in {where}: delete one of the parts"
            )
        seen[trace_id] = path


def _bytes_of(part: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    # Signals hardly ever repeat, so a dictionary of them would be slower and larger. Nobody reads
    # statistics, and no checksum covers them.
    pq.write_table(
        part, sink, compression="zstd", use_dictionary=False, write_statistics=False,
        write_page_checksum=True,
    )  # fmt: skip
    whole: bytes = sink.getvalue().to_pybytes()
    return whole


def _lock(folder: Path) -> int:
    """Lock the folder until the descriptor is closed, or the process is killed."""
    try:
        handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{folder}: cannot write here: {error.strerror}") from error
    if sys.platform != "win32":
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise UserError(
                f"{folder}: another process is writing traces here; wait for it to end"
            ) from error
    return handle
