"""Folders that several processes may write and read at once, and that a kill must not break.

``locked`` is for a folder that grows: one writer at a time. ``replace_folder`` is for one that
changes as a whole: whoever reads it with ``read_folder`` finds the old version or the new one,
never files of both, and a kill at any moment leaves one of the two.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from rlbudget.errors import UserError
from rlbudget.files import flush_folder

if sys.platform != "win32":
    import fcntl

T = TypeVar("T")
Get = Callable[[str], bytes]
"""the content of a file of a folder, by its name ("a/b" for one in a folder within)"""

LARGEST = 1 << 28
"""bytes of the largest file that is read"""
PATIENCE = 60.0
"""seconds that a replacement waits for another one of the same folder"""
LOCK = ".lock"
"""file of a folder that is being written"""
_FIRST_WAIT, _LONGEST_WAIT = 1e-3, 0.05
_READS = 1000
"""times that a folder may be replaced while it is being read"""
_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_HERE = -100  # AT_FDCWD of linux/fcntl.h

_held: set[int] = set()


def _forget() -> None:
    """A forked child holds no lock of its parent's, which may die before it."""
    for handle in _held:
        with contextlib.suppress(OSError):
            os.close(handle)
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def locked(folder: Path | str, *, wait: float = 0.0, name: str = LOCK) -> Iterator[None]:
    """Nobody else writes in ``folder``, which is made if need be.

    The lock is a ``flock``: it ends with the process, whatever ends it, and what may be left of
    it hinders nobody. Raises ``UserError``, which names the holder, where another has it for
    ``wait`` seconds more, and for a folder that cannot be written. ``name`` is that of the file,
    for a folder with more than one lock.
    """
    folder = Path(folder)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / name, folder, wait):
        yield


@contextlib.contextmanager
def _lock(file: Path, folder: Path, wait: float) -> Iterator[None]:
    with _writing(folder):
        handle = _locked_file(file, folder, time.monotonic() + wait)
    _held.add(handle)
    try:
        yield
    finally:
        _held.discard(handle)
        with contextlib.suppress(OSError):
            if _is(file, handle):
                file.unlink()  # who waits for the lock finds the file gone, and makes another
        os.close(handle)


def _locked_file(file: Path, folder: Path, deadline: float) -> int:
    pause = _FIRST_WAIT
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if sys.platform == "win32":
                return handle
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(file, handle):
                with contextlib.suppress(OSError):  # a full disk: it is locked all the same
                    os.ftruncate(handle, 0)
                    os.write(handle, f"{os.getpid()}\n".encode())
                return handle
        except BlockingIOError:
            holder = os.pread(handle, 20, 0).decode(errors="replace").strip()
            if time.monotonic() >= deadline:
                os.close(handle)
                who = f"process {holder}" if holder.isdigit() else "another process"
                raise UserError(
                    f"{folder}: {who} is writing here; wait for it to end or choose another folder"
                ) from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_WAIT)


def _is(path: Path, handle: int) -> bool:
    """Whether a path still leads to an open file or folder."""
    try:
        there, here = path.stat(), os.fstat(handle)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error


def replace_folder(
    folder: Path | str,
    content: Mapping[str, bytes],
    *,
    check: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Make ``folder`` hold these files, by their names ("a/b" for one in a folder within).

    ``check`` is called with the folder, nobody else writing it, and may refuse it (``UserError``).
    What killed writers left beside it is removed. Raises ``UserError`` where it cannot be written;
    the old folder is then as it was.
    """
    folder = Path(os.path.realpath(folder))
    with _writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(_beside(folder, "lock"), folder, PATIENCE), _writing(folder):
        _recover(folder)
        check(folder)
        fresh = _beside(folder, f"{os.getpid()}-{secrets.token_hex(4)}.new")
        try:
            _write(fresh, content)
            if not folder.exists() or not any(folder.iterdir()):
                fresh.rename(folder)
            elif not _exchange(fresh, folder):
                _rename_twice(fresh, folder)
            flush_folder(folder.parent)
        finally:
            _recover(folder)


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(f".{folder.name}.{ending}")


def _left(folder: Path, ending: str) -> list[Path]:
    """What writers of a folder have beside it."""
    ours = re.compile(rf"\.{re.escape(folder.name)}\.\d+-[0-9a-f]{{8}}\.{ending}")
    return [path for path in folder.parent.iterdir() if ours.fullmatch(path.name)]


def _recover(folder: Path) -> None:
    """Undo, under the lock, what was begun and not finished, and remove what is left of it."""
    if not folder.exists() and (old := _left(folder, "old")):
        max(old, key=lambda path: path.stat().st_ctime_ns).rename(folder)
    for path in (*_left(folder, "new"), *_left(folder, "old")):
        shutil.rmtree(path, ignore_errors=True)


def _write(folder: Path, content: Mapping[str, bytes]) -> None:
    folder.mkdir()
    for name, data in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    for within in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        flush_folder(within)


@cache
def _renameat2() -> Any:
    """The call of the C library; None where it has none."""
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return None


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the file system or the platform cannot."""
    call = _renameat2()
    if call is None:
        return False
    names = (os.fsencode(path) for path in (one, other))
    if call(_HERE, next(names), _HERE, next(names), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _rename_twice(fresh: Path, folder: Path) -> None:
    """Between the two there is no folder: ``read_folder`` waits, and recovers it after a kill."""
    folder.rename(fresh.with_suffix(".old"))
    fresh.rename(folder)


def read_folder(folder: Path | str, use: Callable[[Get], T]) -> T:
    """What ``use`` makes of one version of a folder, whose files it gets by their names.

    It is called again where the folder was replaced meanwhile. Raises what it raises, and
    ``ValueError``, which does not name the folder, for a folder or file that is missing, no plain
    file, or above ``LARGEST`` bytes.
    """
    folder = Path(os.path.realpath(folder))
    for _ in range(_READS):
        handle = _opened(folder)
        try:
            return use(partial(_content, handle))
        except Exception:
            if _is(folder, handle):
                raise
        finally:
            os.close(handle)
    raise ValueError("it is being replaced all the time")


def _opened(folder: Path) -> int:
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
    try:
        return os.open(folder, flags)
    except FileNotFoundError:
        if not folder.parent.is_dir() or not (_left(folder, "old") or _left(folder, "new")):
            with contextlib.suppress(OSError):  # replaced since the first try?
                return os.open(folder, flags)
            raise ValueError("no such folder") from None
    except OSError as error:
        raise ValueError(f"cannot read it: {error.strerror}") from None
    try:
        with _lock(_beside(folder, "lock"), folder, PATIENCE), _writing(folder):
            _recover(folder)
            return os.open(folder, flags)
    except (UserError, OSError) as error:
        raise ValueError(f"no such folder ({error})") from None


def _content(handle: int, name: str) -> bytes:
    try:
        # A named pipe must not make it wait.
        place = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0), dir_fd=handle)
        with open(place, "rb") as file:
            found = os.fstat(place)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{name} is no plain file")
            if found.st_size > LARGEST:
                raise ValueError(f"{name} has more than {LARGEST:,} bytes")
            return file.read()
    except FileNotFoundError:
        raise ValueError(f"{name} is missing") from None
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror}") from None
