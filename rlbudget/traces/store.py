"""The trace store: a folder of Parquet parts.

A part holds up to some hundreds of traces, one row each; what belongs to checkpoints is a
column of lists. A part appears whole or not at all (a temporary file in the same folder,
flushed to the disk, then renamed), so a process killed at any moment loses at most the
traces it had not yet written; ``traces.parts`` notices damage, ``traces.numbered`` a part that is
gone, and ``traces.settings`` says what a folder was recorded with.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from rlbudget.errors import UserError, missing_extra
from rlbudget.files import write_bytes
from rlbudget.files.folders import locked

try:
    import pyarrow as pa
except ModuleNotFoundError as missing:
    raise missing_extra("cli", "pyarrow") from missing

from rlbudget.traces.columns import meta_of, part_of, table_of_part, traces_of
from rlbudget.traces.contents import digests_of
from rlbudget.traces.numbered import part_name, parts_there, renumber, require_all, write_count
from rlbudget.traces.parts import damage_named, read_part, sealed
from rlbudget.traces.settings import NONE, Settings, check_same, read_settings, write_settings
from rlbudget.traces.table import TraceTable, joined
from rlbudget.traces.trace import Trace, problem_of

Folders = Path | str | Sequence[Path | str]
"""A folder of traces, or several of them in order, no trace id in two."""

PART_SIZE = 256
_TEMPORARY = re.compile(r"\.(part-[0-9]{6,}\.parquet|settings\.json|_parts)\..*")


class TraceWriter:
    """Writes traces into a folder, a part at a time; one writer a folder.

    With ``append`` it adds parts to those that are there and never touches them; without, a
    folder that already holds traces is refused. ``settings`` are those of a recording: a folder
    keeps its first ones, and others are refused. A trace id may be added once only. Used as a
    context manager it also writes what it holds when the block ends by an exception.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        append: bool = False,
        settings: Settings = NONE,
        part_size: int = PART_SIZE,
    ) -> None:
        if part_size < 1:
            raise ValueError(f"part_size must be at least 1, got {part_size}")
        self.folder = Path(folder)
        self.n = 0
        """traces written"""
        self._part_size = part_size
        self._settings = settings
        self._held: list[Trace] = []
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{folder} is a file, not a folder for traces")
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(self.folder))
            self._next = self._begin(append)
            self._ids = existing_ids(self.folder)
            self._lock: contextlib.ExitStack | None = stack.pop_all()

    def _begin(self, append: bool) -> int:
        """How many parts are there; whatever may not be added to is refused."""
        for stray in self.folder.iterdir():
            if _TEMPORARY.fullmatch(stray.name):
                stray.unlink()
        parts = parts_there(self.folder)
        if parts and not append:
            raise UserError(
                f"{self.folder} already holds traces: add --resume to go on with them, or choose"
                " another --out"
            )
        begun = bool(parts) or read_settings(self.folder) != NONE
        if begun:
            check_same(self.folder, self._settings)
        try:
            renumber(self.folder, parts)
            if not begun and self._settings != NONE:
                write_settings(self.folder, self._settings)
        except OSError as error:
            raise UserError(f"cannot write {self.folder}: {error.strerror}") from error
        return len(parts)

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

    @property
    def ids(self) -> frozenset[str]:
        """Of the traces that are there."""
        return frozenset(self._ids)

    def add_part(self, part: pa.Table) -> None:
        """Take a part of another folder of the same settings as it is, whole.

        Raises ``UserError`` as ``add`` does; its traces are not checked.
        """
        if self._lock is None:
            raise ValueError("the writer is closed")
        self.flush()
        ids = part.column("trace_id").to_pylist()
        for name in ids:
            if name in self._ids:
                raise UserError(f"{self.folder}: trace {name!r} is there already")
            self._ids.add(name)
        self._write(part, len(ids))

    def flush(self) -> None:
        """Write what is held as a part of its own."""
        if not self._held:
            return
        held, self._held = self._held, []
        self._write(part_of(held, settings=self._settings.digest), len(held))

    def _write(self, part: pa.Table, n: int) -> None:
        path = self.folder / part_name(self._next)
        try:
            write_bytes(path, sealed(part))
        except OSError as error:
            kept = f"the {len(self._ids) - n} traces written before are kept: make room and"
            again = "run the same command with --resume"
            raise UserError(
                f"{self.folder}: writing failed: {error.strerror or error}; {kept} {again}"
            ) from error
        self._next += 1
        self.n += n

    def close(self) -> None:
        """Write what is held and unlock the folder; closing twice is allowed."""
        try:
            if self._lock is not None:
                self.flush()
                if self.n:
                    with contextlib.suppress(OSError):  # a full disk: the traces are there
                        write_count(self.folder, self._next)
        finally:
            self._unlock()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def is_store(folder: Path | str) -> bool:
    """Whether it is a folder with parts of traces in it."""
    folder = Path(folder)
    return folder.is_dir() and bool(parts_there(folder))


def existing_ids(folder: Path | str) -> set[str]:
    """The trace ids a folder holds, whether a part is missing or not; none where there is no folder
    yet."""  # fmt: skip
    folder = Path(folder)
    if not folder.is_dir():
        return set()
    seen: dict[str, Path] = {}
    for path, part in _read(folder, ["trace_id"]):
        _claim(part.column("trace_id").to_pylist(), path, seen)
    return set(seen)


def iter_asked(folder: Path | str) -> Iterator[tuple[str, str, str]]:
    """Trace id, question and target of each trace of a folder; nothing where there is none yet."""
    if Path(folder).is_dir():
        names = ("trace_id", "question", "target")
        for _, part in _read(Path(folder), names):
            yield from zip(*(part.column(name).to_pylist() for name in names), strict=True)


def iter_traces(folder: Folders) -> Iterator[Trace]:
    """The traces of a folder, or of several, a part in memory at a time.

    Raises ``UserError`` for a folder without traces, a part that is missing, damaged or foreign,
    or a trace id that occurs twice.
    """
    seen: dict[str, Path] = {}
    for path, part in _all_parts(folder):
        with damage_named(path):
            traces = traces_of(part)
        _claim([trace.trace_id for trace in traces], path, seen)
        yield from traces


def iter_questions(
    folder: Folders, *, of: Iterable[str] | None = None
) -> Iterator[tuple[str, str]]:
    """The question id and the question of each trace, ``of`` these ids if given; errors as
    ``iter_traces``, ids aside."""  # fmt: skip
    names = ("question_id", "question")
    wanted = None if of is None else set(map(str, of))
    for _, part in _all_parts(folder, names):
        for one in zip(*(part.column(name).to_pylist() for name in names), strict=True):
            if wanted is None or one[0] in wanted:
                yield one


def load_traces(folder: Folders) -> list[Trace]:
    """All traces of a folder, in the order they were written; errors as ``iter_traces``."""
    return list(iter_traces(folder))


def load_table(folder: Folders, *, context: bool = False) -> TraceTable:
    """The traces of a folder as columns: equal to ``table_of(load_traces(folder))``.

    Reads the columns it needs straight from arrow, texts left out. ``context`` adds the
    ``CONTEXT_SIGNALS`` and ``TASK_SIGNALS`` of each question to its checkpoints. Errors as
    ``iter_traces``.
    """
    return joined(list(iter_tables(folder, context=context)))


def iter_tables(
    folder: Folders, *, context: bool = False, of: Callable[[pa.Table], pa.Table] | None = None
) -> Iterator[TraceTable]:
    """The parts of ``load_table``, one in memory at a time; ``of`` chooses rows of each."""
    seen: dict[str, Path] = {}
    for path, part in _all_parts(folder, without=_TEXTS - (_CONTEXT if context else set())):
        _claim(part.column("trace_id").to_pylist(), path, seen)
        with damage_named(path):
            rows = part if of is None else of(part)
            table = table_of_part(rows) if rows.num_rows else None
        if table is not None:
            yield table


def iter_whole_parts(folder: Folders) -> Iterator[pa.Table]:
    """The parts of a folder as they are, one in memory at a time; errors as ``iter_traces``, ids
    aside."""  # fmt: skip
    for path, part in _all_parts(folder):
        with damage_named(path):
            yield part


def iter_parts(folder: Folders) -> Iterator[pa.Table]:
    """The parts of a folder as arrow tables, their texts left out but for ``task``, ``model`` and
    ``meta``; errors as ``iter_traces``."""  # fmt: skip
    left_out = _TEXTS - {"task", "model", "meta"} | {"probe_answer"}
    for path, part in _all_parts(folder, without=left_out):
        with damage_named(path):
            for meta in part.column("meta").to_pylist():
                meta_of(meta)
        yield part


_TEXTS = {"task", "question", "target", "model", "meta", "final_answer", "exit_answer"}
_CONTEXT = {"task", "question", "meta"}


def digest(folder: Folders) -> str:
    """sha256 (hex) over the traces' contents (``traces.contents``), in an order of their own.

    Independent of how the traces are spread over parts and in which order they were written.
    """
    seen: dict[str, Path] = {}
    found: list[bytes] = []
    for path, part in _all_parts(folder):
        _claim(part.column("trace_id").to_pylist(), path, seen)
        with damage_named(path):
            found += digests_of(part)
    return hashlib.sha256(b"".join(sorted(found))).hexdigest()


def _all_parts(
    folders: Folders, columns: Collection[str] | None = None, *, without: Collection[str] = ()
) -> Iterator[tuple[Path, pa.Table]]:
    """The parts of one folder or several, each checked as it is read."""
    several = [folders] if isinstance(folders, Path | str) else folders
    for folder in several:
        _require_parts(Path(folder))
    for folder in several:
        yield from _read(Path(folder), columns, without=without)


def _read(
    folder: Path, columns: Collection[str] | None = None, *, without: Collection[str] = ()
) -> Iterator[tuple[Path, pa.Table]]:
    settings = read_settings(folder)
    for path in parts_there(folder):
        yield path, read_part(path, settings, columns, without=without)


def _require_parts(folder: Path) -> None:
    advice = "make traces with: rlbudget record --out FOLDER, or rlbudget import FILE --out FOLDER"
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; {advice}")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder of traces; {advice}")
    if not require_all(folder):
        raise UserError(f"{folder} holds no traces; {advice}")


def _claim(ids: list[str], path: Path, seen: dict[str, Path]) -> None:
    for trace_id in ids:
        if trace_id in seen:
            other = seen[trace_id]
            if other.parent == path.parent:
                where, advice = other.name, f"delete {path.name} if it was copied here"
            else:
                where, advice = str(other), "put them together: rlbudget traces merge"
            raise UserError(f"{path}: trace {trace_id!r} is also in {where}: {advice}")
        seen[trace_id] = path
