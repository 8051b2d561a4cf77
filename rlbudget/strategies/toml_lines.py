"""The line of every key of a TOML text, however it is spelled.

``tomllib`` reads the values but gives no lines. ``lines_of`` walks a text that ``tomllib`` accepts
and gives the line of each path into what was read: ``("rule", 1, "then")`` is the key ``then`` of
the second element of ``rule``, whether that was written ``[[rule]]``, ``[[ "rule" ]]``,
``rule = [{...}]`` or with dotted keys. It does not validate: ``tomllib`` has done so.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlbudget.errors import UserError

KeyPath = tuple[str | int, ...]

LONGEST_FILE = 2**20
"""bytes"""
LONGEST_LINE = 10_000
"""bytes"""
DEEPEST = 30
_LONGEST_MESSAGE = 1_000
"""characters"""
_MANY_DIGITS = re.compile(r"[0-9_]{4000}")

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")'
    r"|'''.*?'{3,5}(?!')"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]+")


@dataclass(frozen=True, slots=True)
class TomlFile:
    """A TOML file that was read, and where each of its keys stands."""

    path: Path
    text: str
    content: Mapping[str, Any]
    lines: Mapping[KeyPath, int]

    def line(self, *path: str | int) -> int:
        """The line of a path, or of the nearest thing around it that has one."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return 1

    def wrong(self, said: str, *path: str | int) -> UserError:
        """The error for a mistake in a line: ``FILE:LINE: what is wrong``."""
        short = said if len(said) <= _LONGEST_MESSAGE else f"{said[:_LONGEST_MESSAGE]} …"
        return UserError(f"{self.path}:{self.line(*path)}: {short}")


def read_toml(path: Path | str, what: str) -> TomlFile:
    """Read a TOML file; ``what`` names it in the ``UserError`` where it cannot be read."""
    file = Path(path)
    try:
        with file.open("rb") as source:
            content = source.read(LONGEST_FILE + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {what} {path}: {error}") from None
    text = _decoded(file, content)
    read = TomlFile(file, text, parse_toml(file, text), _lines_of(text))
    _check_values(read)
    return read


def _decoded(path: Path, content: bytes) -> str:
    """The text of a file of bounded size, its lines of bounded length."""
    for number, line in enumerate(content.split(b"\n"), 1):
        if len(line) > LONGEST_LINE:
            raise UserError(
                f"{path}:{number}: a line of more than {LONGEST_LINE:,} bytes; is this the file?"
            )
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        place = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{place}: invalid UTF-8") from None
    if len(content) > LONGEST_FILE:
        place = content.count(b"\n") + 1
        raise UserError(f"{path}:{place}: the file has more than {LONGEST_FILE:,} bytes")
    return text


def _lines_of(text: str) -> dict[KeyPath, int]:
    try:
        return lines_of(text)
    except RecursionError:
        return {}  # nested too deeply, as is said next


def inside(value: Any) -> Iterable[tuple[str | int, Any]]:
    """What a table or an array holds, by name or number; nothing where it is neither."""
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def _check_values(file: TomlFile) -> None:
    """Nothing is nested beyond reason, and a number has 64 bits, as TOML says."""
    left: list[tuple[KeyPath, Any]] = [((), file.content)]
    while left:
        path, value = left.pop()
        if len(path) > DEEPEST:
            raise file.wrong(f"nested more than {DEEPEST} deep", *path)
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise file.wrong("a whole number beyond 64 bits", *path)
        left += [((*path, name), one) for name, one in inside(value)]


def parse_toml(path: Path, text: str) -> dict[str, Any]:
    """What a TOML text says; ``UserError``, ``FILE:LINE: what is wrong``, where it is none."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        found = re.search(r"\(at line (\d+), column \d+\)", str(error))
        said = str(error).split(" (at ")[0]
        if found:
            line = int(found.group(1))
        elif digits := _MANY_DIGITS.search(text):
            line, said = text.count("\n", 0, digits.start()) + 1, "a number of too many digits"
        else:
            line = len(text.splitlines())
        raise UserError(f"{path}:{line}: {said}") from None


def lines_of(text: str) -> dict[KeyPath, int]:
    """The line, counted from 1, of each table, key and array element of a TOML text.

    ``text`` is one that ``tomllib.loads`` accepts, its line ends are ``\\n`` or ``\\r\\n``. A table
    written in several places has the line of the first.
    """
    reader = _Reader(text)
    reader.document()
    return reader.lines


class _Reader:
    def __init__(self, text: str) -> None:
        self._text, self._at, self._seen = text, 0, -1
        self._ends = [match.start() for match in re.finditer("\n", text)]
        self._elements: dict[KeyPath, int] = {}
        self.lines: dict[KeyPath, int] = {}

    def document(self) -> None:
        """Headers and keys up to the end of the text."""
        table: KeyPath = ()
        while self._goes_on():
            if self._skip("[["):
                table = self._header(element=True)
            elif self._skip("["):
                table = self._header(element=False)
            else:
                self._pair(table)

    def _header(self, *, element: bool) -> KeyPath:
        start = self._at
        *outer, last = self._key()
        table: KeyPath = ()
        for name in outer:
            table = self._latest((*table, name))
            self._note(table, start)
        table = (*table, last)
        self._note(table, start)
        if element:
            self._elements[table] = self._elements.get(table, -1) + 1
        table = self._latest(table)
        self._note(table, start)
        self._skip("]]" if element else "]")
        return table

    def _latest(self, path: KeyPath) -> KeyPath:
        """The table a header means: the latest element where the path is an array of tables."""
        return (*path, self._elements[path]) if path in self._elements else path

    def _pair(self, table: KeyPath) -> None:
        start = self._at
        for name in self._key():
            table = (*table, name)
            self._note(table, start)
        self._skip("=")
        self._match(_SPACE)
        self._value(table)

    def _value(self, path: KeyPath) -> None:
        if self._match(_STRING):
            return
        if self._skip("["):
            self._array(path)
        elif self._skip("{"):
            while self._goes_on() and not self._skip("}"):
                if not self._skip(","):
                    self._pair(path)
        else:
            self._match(_SCALAR)

    def _array(self, path: KeyPath) -> None:
        number = 0
        while self._goes_on() and not self._skip("]"):
            if self._skip(","):
                number += 1
            else:
                self._note((*path, number), self._at)
                self._value((*path, number))

    def _key(self) -> list[str]:
        """The names of a dotted key; what follows it is next."""
        names = []
        while True:
            self._match(_SPACE)
            quoted = self._match(_STRING)
            names.append(tomllib.loads(f"_ = {quoted}")["_"] if quoted else self._match(_BARE))
            self._match(_SPACE)
            if not self._skip("."):
                return names

    def _goes_on(self) -> bool:
        """Skip what is blank; whether something is left and the walk moves."""
        self._match(_BLANK)
        moved, self._seen = self._at > self._seen, self._at
        return moved and self._at < len(self._text)

    def _skip(self, said: str) -> bool:
        found = self._text.startswith(said, self._at)
        self._at += len(said) if found else 0
        return found

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return found.group() if found else ""

    def _note(self, path: KeyPath, place: int) -> None:
        self.lines.setdefault(path, bisect_right(self._ends, place - 1) + 1)
