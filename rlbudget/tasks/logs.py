"""Logs of thinking that was already done: a question, a thinking, an answer a row.

JSONL, CSV, Parquet, or what vLLM prints (``.log``). Where no column is named, a row may be flat
(``question``, ``thinking``, ``answer``), an OpenAI-style conversation (``messages``), a request
beside its response, or an export of a tracing tool (``input`` and ``output``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rlbudget.errors import UserError
from rlbudget.tasks.conversations import holds, names_of, reach
from rlbudget.tasks.lines import at_place
from rlbudget.tasks.log_rows import (
    LeftOutError,
    LogColumns,
    Logged,
    Tags,
    has_decode,
    logged_of,
)
from rlbudget.tasks.rows import BadRowError, Row, rows_of
from rlbudget.tasks.vllm_log import printed_rows

_LOOKED_AT = 200
"""rows of which one must have a column that is named"""
_SHOWN_NAMES = 20


@dataclass(slots=True)
class LeftOut:
    """Counts rows that are left out, and tells of each."""

    tell: Callable[[str], None] | None = None
    kinds: dict[str, int] = field(default_factory=dict)
    first: str | None = None

    def add(self, place: str, problem: BadRowError) -> None:
        """Count one."""
        kind = problem.kind if isinstance(problem, LeftOutError) else "unreadable"
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        message = at_place(place, problem)
        self.first = self.first or message
        if self.tell is not None:
            self.tell(message)

    @property
    def n(self) -> int:
        """Rows left out."""
        return sum(self.kinds.values())

    def __str__(self) -> str:
        return ", ".join(f"{n:,} {kind}" for kind, n in sorted(self.kinds.items()))


@dataclass(frozen=True, slots=True)
class Log:
    """A log that was opened."""

    rows: Iterator[Logged]
    """those that hold a whole decode, one in memory at a time; the others are counted"""
    has_targets: bool
    """whether a column holds the right answers"""


def open_log(path: Path, columns: LogColumns, tags: Tags, left_out: LeftOut) -> Log:
    """Begin to read a log.

    Raises ``UserError`` for a file that cannot be read as a table, one without a row, and a column
    that no row has.
    """
    every = _all_rows(path)
    first = list(islice(every, _LOOKED_AT))
    good = [row for _, row in first if not isinstance(row, BadRowError)]
    if not good:
        found = f"{first[0][0]}: {first[0][1]}" if first else "it is empty"
        raise UserError(f"{path} holds no row that can be read: {found}")
    _check_columns(path, good, columns)
    if columns.target is None and any(_some(reach(row, "target")) for row in good):
        columns = replace(columns, target="target")
    rows = _rows(chain(first, every), path.stem, columns, tags, left_out)
    return Log(rows, bool(columns.target))


def rows_in(path: Path) -> int:
    """How many rows a log has. Raises ``UserError`` for what cannot be read as one."""
    return sum(1 for _ in _all_rows(path))


def _all_rows(path: Path) -> Iterator[tuple[str, Row | BadRowError]]:
    return printed_rows(path) if path.suffix.lower() in (".log", ".txt") else rows_of(path)


def _rows(
    every: Iterable[tuple[str, Row | BadRowError]], name: str, columns: LogColumns, tags: Tags,
    left_out: LeftOut,
) -> Iterator[Logged]:  # fmt: skip
    seen: dict[str, tuple[str, bytes]] = {}
    for place, row in every:
        try:
            if isinstance(row, BadRowError):
                raise row
            logged = logged_of(place, row, name, columns, tags)
            _check_new(logged, seen)
        except BadRowError as problem:
            left_out.add(place, problem)
            continue
        yield logged


def _check_columns(path: Path, rows: Sequence[Row], columns: LogColumns) -> None:
    there = list(dict.fromkeys(name for row in rows for name in names_of(row)))
    shown = ", ".join(there[:_SHOWN_NAMES]) or "none"
    for option, name in columns.named.items():
        if not any(holds(row, name) for row in rows):
            raise UserError(f"{path}: there is no column {name!r} ({option}); there are: {shown}")
    if not any(
        columns.completion or columns.thinking or has_decode(row) for row in rows
    ):  # fmt: skip
        raise UserError(
            f"{path}: no column is known to hold a thinking or a completion: name them by"
            f" --question-column, --thinking-column and --answer-column, or --completion-column;"
            f" there are: {shown}"
        )


def _some(value: Any) -> bool:
    return value is not None and value != ""


def _check_new(logged: Logged, seen: dict[str, tuple[str, bytes]]) -> None:
    line = logged.place.rpartition(":")[2]
    whole = "\0".join((logged.question, logged.thinking, logged.answer)).encode()
    digest = hashlib.sha256(whole).digest()
    if logged.identity in seen:
        other, known = seen[logged.identity]
        if known == digest:
            raise LeftOutError("logged twice", f"the same row is on line {other}")
        raise LeftOutError(
            "of an id that came before",
            f"the id {logged.identity!r} is also on line {other} (--id-column names another column,"
            ' "" none)',
        )
    seen[logged.identity] = line, digest
