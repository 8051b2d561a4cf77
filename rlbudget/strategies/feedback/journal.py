"""A journal: what happened, a line each, which is there whole or not at all.

A line holds its number and its digest. Whoever writes holds a lock, so what has no end was left by
a writer that was killed: readers skip it, and the next writer cuts it off. Damaged lines and lines
out of order are skipped and counted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from rlbudget.errors import UserError
from rlbudget.policy.parsing import conform, parse
from rlbudget.policy.sealed import digest_of

Action = Literal["added", "proposed", "promoted", "refused", "rolled back"]
LONGEST_WHY = 2000
"""characters"""
_ROOM, _BYTES = ".room", 8192
"""a file of so many bytes that makes room on a full disk, where something must still be noted"""


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the journal."""

    time: str
    """UTC, ISO 8601"""
    action: Action
    version: int
    why: str = ""


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: Annotated[int, msgspec.Meta(ge=1)]
    time: str
    action: Action
    version: Annotated[int, msgspec.Meta(ge=1)]
    why: str
    digest: str


@dataclass(frozen=True, slots=True)
class Journal:
    """What a journal says."""

    events: tuple[Event, ...] = ()
    """the oldest first"""
    number: int = 0
    """of the last one"""
    skipped: int = 0
    """lines that are torn, damaged or out of order"""

    @property
    def served(self) -> list[int]:
        """The versions that were served until now and not taken back; the last is served."""
        stack: list[int] = []
        for event in self.events:
            if event.action == "promoted":
                stack.append(event.version)
            elif event.action == "rolled back":
                stack = stack[:-1]
                while stack and stack[-1] != event.version:
                    stack.pop()
                stack = stack or [event.version]
        return stack


def read_journal(path: Path) -> Journal:
    """What the file says; nothing where there is none. ``UserError`` for one that is unreadable."""
    try:
        *lines, torn = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return Journal()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    events, number, skipped = [], 0, int(bool(torn))
    for line in lines:
        try:
            said = _line(line)
        except ValueError:
            skipped += 1
            continue
        if said.number <= number:
            skipped += 1
            continue
        number = said.number
        events.append(Event(said.time, said.action, said.version, said.why))
    return Journal(tuple(events), number, skipped)


def _line(data: bytes) -> _Line:
    content = parse(data, "the line")
    said = conform(content, _Line, "the line")
    if said.digest != digest_of(content):
        raise ValueError("the line was altered")
    return said


def note(path: Path, action: Action, version: int, why: str) -> None:
    """Add an event, whole or not at all; only for who holds the lock of the folder.

    Raises ``UserError`` where it cannot be written; nothing has happened then.
    """
    content = {
        "number": read_journal(path).number + 1,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "action": action,
        "version": version,
        "why": why[:LONGEST_WHY],
    }
    line = json.dumps({**content, "digest": digest_of(content)}).encode() + b"\n"
    try:
        with _opened(path) as (handle, size):
            _add(path, handle, size, line)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    """The file and where its last whole line ends; what is behind is cut off."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        size = path.read_bytes().rfind(b"\n") + 1
        os.ftruncate(handle, size)
        yield handle, size
    finally:
        os.close(handle)


def _add(path: Path, handle: int, size: int, line: bytes) -> None:
    room = path.with_name(_ROOM)
    for last in (False, True):
        try:
            if os.pwrite(handle, line, size) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
            break
        except OSError as error:
            os.ftruncate(handle, size)
            if last or error.errno not in (errno.ENOSPC, errno.EDQUOT) or not room.exists():
                raise
            room.unlink()
    if not room.exists():
        with contextlib.suppress(OSError):
            room.write_bytes(bytes(_BYTES))
