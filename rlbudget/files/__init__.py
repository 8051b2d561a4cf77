"""Writing a file so that a crash, a kill or a full disk leaves the old one or the new one."""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import sys
from pathlib import Path
from typing import Any

from rlbudget.errors import UserError

if sys.platform != "win32":
    import fcntl


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically, making its folder if need be.

    What writers of the same file left that were killed is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = _temporary(path)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        flush_folder(path.parent)
        _sweep(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _temporary(path: Path) -> tuple[int, Path]:
    """A new file beside ``path``, locked while its writer lives."""
    while True:
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        if _flock(handle) and temporary.exists():  # else taken for a dead writer's, and removed
            return handle, temporary
        os.close(handle)


def _flock(handle: int, *, wait: bool = True) -> bool:
    """Lock an open file; False where another has it. Where there are no locks all are had."""
    if sys.platform != "win32":
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError:
            return wait
    return sys.platform != "win32" or wait


def _sweep(path: Path) -> None:
    ours = re.compile(rf"\.{re.escape(path.name)}\.\d+-[0-9a-f]{{8}}\.tmp")
    for name in filter(ours.fullmatch, os.listdir(path.parent)):
        with contextlib.suppress(OSError):
            handle = os.open(path.with_name(name), os.O_RDWR)
            try:
                if _flock(handle, wait=False):
                    os.unlink(path.with_name(name))
            finally:
                os.close(handle)


def flush_folder(folder: Path) -> None:
    """So that the new name outlives a crash of the machine."""
    if sys.platform != "win32":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, content: str) -> None:
    """``write_bytes`` for UTF-8 text."""
    write_bytes(path, content.encode())


def save_bytes(path: Path, content: bytes) -> None:
    """``write_bytes`` where the caller can mend what goes wrong: ``UserError`` for ``OSError``."""
    try:
        write_bytes(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def json_ready(value: Any) -> Any:
    """Dicts and lists with tuples as lists and, as JSON has no NaN, what is not finite as None."""
    if isinstance(value, dict):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
