"""A process that is killed (SIGKILL) at its k-th file-system operation."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from rlbudget.files import folders

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate",
          "os.chmod", "os.symlink"}  # fmt: skip
"""of ``sys.audit``, raised before the operation"""
FAULT, LATE = 3, 4
"""exit codes of a child: it raised; it was never killed and is not asked to be"""


def outlived(work: Callable[[], None], step: int) -> bool:
    """Do ``work`` in a forked child that is killed at its operation ``step``, from 0.

    Returns whether it came to its end before. Raises ``RuntimeError`` where it failed.
    """
    child = os.fork()
    if child == 0:
        code = FAULT
        try:
            _armed(step)
            work()
            code = 0
        finally:
            os._exit(code)
    ended = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL:
        return False
    if ended:
        raise RuntimeError(f"the writer failed at step {step}: status {ended}")
    return True


def _armed(step: int) -> None:
    left = step

    def due() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def audited(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and due():
            die()

    def before(of: Any, name: str) -> None:
        real = getattr(of, name)

        def killed(*arguments: Any, **named: Any) -> Any:
            if due():
                die()
            return real(*arguments, **named)

        setattr(of, name, killed)

    def halfway(name: str) -> None:
        """Killed before it, and when half of it is written."""
        real = getattr(os, name)

        def killed(handle: int, data: bytes, *place: int) -> Any:
            if due():
                die()
            if due():
                real(handle, bytes(data)[: len(data) // 2], *place)
                die()
            return real(handle, data, *place)

        setattr(os, name, killed)

    for name in ("fsync", "ftruncate"):
        before(os, name)
    before(fcntl, "flock")
    before(folders, "_exchange")
    for name in ("write", "pwrite"):
        halfway(name)
    sys.addaudithook(audited)
