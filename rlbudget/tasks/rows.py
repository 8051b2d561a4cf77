"""Rows of a table of questions: JSONL, CSV, Parquet, or a folder that ``datasets`` saved.

A number is kept as the text it was written as (``73.0``, ``1e3``), so whole numbers are exact. NaN,
infinities and numbers beyond a float (1e400) are refused. A place is ``FILE:LINE`` in a text file
and ``FILE:ROW``, from 1, in the others.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from rlbudget.errors import UserError
from rlbudget.tasks.lines import LONGEST_LINE, bounded_lines, lines_of, open_text

Row = dict[str, Any]

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Endings of the files that are read."""


class BadRowError(Exception):
    """What is wrong with a row."""


class NumberText(str):
    """A number as it is written."""

    __slots__ = ()


def is_table(spec: str) -> bool:
    """Whether a text names a table of questions, by its ending or because the path exists."""
    return spec != "" and (spec.lower().endswith(KINDS) or Path(spec).exists())


def rows_of(path: Path) -> Iterator[tuple[str, Row | BadRowError]]:
    """Every row with its place, or what is wrong with it; one in memory at a time.

    Raises ``UserError`` for what cannot be read as a table at all.
    """
    kind = path.suffix.lower()
    if path.is_dir() or kind == ".parquet":
        from rlbudget.tasks.arrow_rows import folder_rows, parquet_rows  # needs pyarrow

        return _finite(folder_rows(path) if path.is_dir() else parquet_rows(path))
    if kind in (".csv", ".tsv"):
        return _csv_rows(path, "\t" if kind == ".tsv" else ",")
    if kind not in KINDS:
        open_text(path).close()
        raise UserError(f"{path}: what kind of file is it? Its name should end in one of:"
                        f" {', '.join(KINDS)}")  # fmt: skip
    return _json_rows(path)


# JSONL


def _json_rows(path: Path) -> Iterator[tuple[str, Row | BadRowError]]:
    for line in lines_of(path):
        yield f"{path}:{line.number}", _json_row(line.content)


def _json_row(line: bytes) -> Row | BadRowError:
    try:
        row = json.loads(
            line.decode().rstrip(),
            parse_int=NumberText,
            parse_float=_number,
            parse_constant=_no_number,
        )
    except UnicodeDecodeError as error:
        return BadRowError(f"invalid UTF-8 at byte {error.start + 1} of the line")
    except BadRowError as problem:
        return problem
    except json.JSONDecodeError as error:
        return BadRowError(f"invalid JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return BadRowError("invalid JSON: too many brackets")
    return row if isinstance(row, dict) else BadRowError("a line must be an object")


def _number(text: str) -> NumberText:
    if math.isinf(float(text)):
        raise BadRowError(f"{text} is no number of finite size")
    return NumberText(text)


def _no_number(name: str) -> NoReturn:
    raise BadRowError(f"{name} is no number (write null, or leave it out, where none is known)")


# CSV

_NOT_FINITE = ("nan", "inf", "+inf", "-inf")


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[str, Row | BadRowError]]:
    csv.field_size_limit(LONGEST_LINE)  # a question may be longer than the module's 128 KiB
    with open_text(path) as source:
        # Invalid UTF-8 becomes surrogates, so that the row that holds it can be named.
        texts = (line.decode("utf-8", "surrogateescape") for line in bounded_lines(path, source))
        reader = csv.reader(texts, delimiter=delimiter, strict=True)
        names: list[str] | None = None
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield f"{path}:{number}", BadRowError(f"invalid CSV: {error}")
                return
            if cells is None:
                return
            if not any(map(str.strip, cells)):
                continue
            if names is None:
                names = [cell.strip() for cell in cells]
                twice = next((name for name in names if name and names.count(name) > 1), None)
                if twice is not None:
                    raise UserError(f"{path}:{number}: the column {twice!r} is there twice")
            else:
                yield f"{path}:{number}", _csv_row(names, cells)


def _csv_row(names: list[str], cells: list[str]) -> Row | BadRowError:
    if len(cells) != len(names):
        return BadRowError(f"{len(cells)} cells where the first line names {len(names)} columns")
    if any("\udc80" <= c <= "\udcff" for cell in cells if not cell.isascii() for c in cell):
        return BadRowError("invalid UTF-8")
    for name, cell in zip(names, cells, strict=True):
        if cell.strip().lower() in _NOT_FINITE:
            return BadRowError(f"{cell.strip()} in column {name} is no number (leave it empty)")
    return {name: cell if cell.strip() else None for name, cell in zip(names, cells, strict=True)}


# Arrow


def _finite(rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row | BadRowError]]:
    for place, row in rows:
        try:
            yield place, {name: _plain(value) for name, value in row.items()}
        except BadRowError as problem:
            yield place, problem


def _plain(value: Any) -> Any:
    """A value with its numbers as text."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRowError(f"{value} is no number (null says that none is known)")
    return NumberText(repr(value)) if isinstance(value, int | float) else value
