"""The lines of a UTF-8 text file of JSON objects, one a line.

Lines end at ``\\n`` or ``\\r\\n`` only, so a U+2028 inside a text ends none. A byte order mark and
blank lines are skipped. A compressed or foreign file is refused by what it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rlbudget.errors import UserError

_BUFFER = 1 << 18
LONGEST_LINE = 1 << 24
"""bytes"""
_BOM = b"\xef\xbb\xbf"
_FOREIGN = (
    (b"\x1f\x8b", "is compressed (gzip): unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd): unpack it first"),
    (b"\xfd7zXZ", "is compressed (xz): unpack it first"),
    (b"BZh", "is compressed (bzip2): unpack it first"),
    (b"PK\x03\x04", "is a zip archive: unpack it first"),
    (b"PAR1", "is a Parquet file, not one of text lines"),
    (b"\xff\xfe", "is UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16: save it as UTF-8"),
)
"""How a file begins that is not UTF-8 text."""


_LONGEST_MESSAGE = 400


def at_place(place: str, problem: object) -> str:
    """``FILE:LINE: what is wrong``, whatever the line's own names and texts hold, on one line."""
    said = " ".join(str(problem).split())[:_LONGEST_MESSAGE]
    shown = (letter if letter.isprintable() else ascii(letter)[1:-1] for letter in said)
    return f"{place}: {''.join(shown)}"


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank."""

    number: int
    """from 1, blank lines counted"""
    content: bytes
    position: int
    """bytes of the file up to its end"""


def open_text(path: Path) -> BinaryIO:
    """A file opened at its first byte after a byte order mark.

    Raises ``UserError`` for one that cannot be read and one that is not UTF-8 text.
    """
    try:
        source = path.open("rb", buffering=_BUFFER)
        head = source.read(8)
    except OSError as error:
        raise UserError(f"{path}: cannot read this file: {error.strerror}") from None
    for mark, problem in _FOREIGN:
        if head.startswith(mark):
            source.close()
            raise UserError(f"{path} {problem}")
    source.seek(len(_BOM) if head.startswith(_BOM) else 0)
    return source


def bounded_lines(path: Path, source: BinaryIO) -> Iterator[bytes]:
    """The lines from where a file stands; ``UserError`` for one above ``LONGEST_LINE``."""
    number = 1
    while content := source.readline(LONGEST_LINE + 1):
        if len(content) > LONGEST_LINE:
            raise UserError(
                f"{path}:{number}: the line is longer than {LONGEST_LINE >> 20} MiB: is it one"
                " object a line?"
            )
        yield content
        number += 1


def lines_of(path: Path) -> Iterator[Line]:
    """The lines of a file, one in memory at a time.

    Raises ``UserError`` as ``open_text`` does and for a file that is one JSON array.
    """
    with open_text(path) as source:
        position = source.tell()
        first = True
        for number, content in enumerate(bounded_lines(path, source), 1):
            position += len(content)
            if content.isspace():
                continue
            if first and content.lstrip().startswith(b"["):
                raise UserError(
                    f"{path}:{number}: a list, where one object a line is read: write each element"
                    " on a line of its own (jq -c '.[]')"
                )
            first = False
            yield Line(number, content, position)
