"""Adding a line to a file that many threads and processes add lines to.

Every line is one write, made under a lock on the file (``flock``) that the kernel takes back when
its holder dies. So whoever holds the lock knows that a line without an end was left by a writer
that was killed, and cuts it off before the next one. Nothing is buffered: when ``add_line``
returns, the line is with the kernel and outlives the process.

Each call opens the file anew. That costs a few microseconds and leaves nothing to keep: a fork, a
file that a log rotation moved away and a folder that was deleted need no special care.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from pathlib import Path

if sys.platform != "win32":
    import fcntl

BEGINNING = b'{"version": '
"""of every line; what is torn and does not begin so is nobody's to cut off"""
PATIENCE = 1.0
"""seconds to wait for the lock, which is held for microseconds; then the line is written without
it: the caller has an answer to give, and the holder may be halted (SIGSTOP) for good"""
_FIRST_WAIT, _LONGEST_WAIT = 20e-6, 2e-3
"""seconds from one try for the lock to the next, each twice the one before"""
_BLOCK = 1 << 16

_log = logging.getLogger("rlbudget")


def add_line(path: Path, line: bytes, *, patience: float = PATIENCE) -> bool:
    """Add ``line``, which holds no newline, on a line of its own; its folder is made if need be.

    Returns whether the lock was got within ``patience`` seconds. Raises ``OSError`` where the line
    cannot be written whole; under the lock nothing of it is left then.
    """
    handle = _opened(path)
    try:
        locked = _lock(handle, patience)
        try:
            size = os.lseek(handle, 0, os.SEEK_END)
            if size and os.pread(handle, 1, size - 1) != b"\n":
                size, line = _mended(path, handle, size, line, cut=locked)
            if os.write(handle, line + b"\n") <= len(line):
                if locked:
                    os.ftruncate(handle, size)
                raise OSError("no room for the whole line")
        finally:
            if locked and sys.platform != "win32":
                # Closing is not enough where a fork has left a second owner.
                fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)
    return locked


def _opened(path: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
    try:
        return os.open(path, flags, 0o644)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, 0o644)


def _lock(handle: int, patience: float) -> bool:
    """Whether the file is locked; False too where its file system or platform has no locks."""
    if sys.platform == "win32":
        return False
    wait, deadline = _FIRST_WAIT, 0.0
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            now = time.monotonic()
            deadline = deadline or now + patience
            if now >= deadline:
                return False
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
        except OSError:
            return False


def _mended(path: Path, handle: int, size: int, line: bytes, *, cut: bool) -> tuple[int, bytes]:
    """The size of the file and what to write after a line that has no end.

    Under the lock its writer is dead: it is cut off, unless its end alone is missing. Without, it
    may be at work, and the new line begins after a newline of its own.
    """
    start, tail = size, b""
    while start and b"\n" not in tail:
        begin = max(start - _BLOCK, 0)
        start, tail = begin, os.pread(handle, start - begin, begin) + tail
    torn = tail[tail.rfind(b"\n") + 1 :]
    if not cut or not torn.startswith(BEGINNING[: len(torn)]) or _whole(torn):
        return size, b"\n" + line
    os.ftruncate(handle, size - len(torn))
    _log.warning("%s: cut off %d bytes of a line that a killed writer left", path, len(torn))
    return size - len(torn), line


def _whole(line: bytes) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        return isinstance(json.loads(line), dict)
    return False
