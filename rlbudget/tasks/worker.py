"""Calls that may never return, made in a process with limits of time and memory.

Some texts keep a computer algebra system, a verifier or a regular expression busy without end, and
none of them can be interrupted from inside. ``Worker`` is the calling side. Its first call starts a
template process (``rlbudget.tasks.template``) that loads what is needed and forks a process that
answers; when that one has to be killed, the next is forked in milliseconds. All of them end when
the calling process does, whatever they are doing then.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Any

from rlbudget.errors import missing_extra

_START_SECONDS = 120.0
_BLOCK = 1 << 16
GROWTH = 96 * 2**20
"""bytes that one process may hold more than after its first call"""

_ALL: weakref.WeakSet[Worker] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class _Template:
    """The process that forks."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    """takes the ends of pipes of each process that it is to fork; closed, it ends"""
    lifeline: int

    def drop(self) -> None:
        """Close what belongs to it."""
        self.control.close()
        os.close(self.lifeline)


@dataclass(frozen=True, slots=True)
class _Pipes:
    """This side of the process that answers."""

    write: int
    read: int
    lifeline: int
    """closed, it kills the process"""

    def drop(self) -> None:
        """Close all."""
        for end in (self.lifeline, self.write, self.read):
            os.close(end)


class Worker:
    """Calls one function in a process: started at the first call, and again after it was killed
    or died. Safe to use from many threads, one call at a time; a forked process gets a process of
    its own."""  # fmt: skip

    def __init__(
        self, function: str, *first: Any, needs: str = "json", growth: int | None = GROWTH
    ) -> None:
        """``function`` is ``MODULE:FUNCTION``; arguments and results are plain JSON.

        ``first`` are arguments of a call that loads what is needed, not counted against the time
        of the first question. ``needs`` is a package that comes with math-verify. ``growth`` is
        how many bytes the process may take after that call, None for any number; such a function
        is one that we do not know, so nothing of it is loaded before the fork.
        """
        self._function = function
        self._first = first
        self._needs = needs
        self._growth = growth
        self._asking = threading.Lock()
        self._template: _Template | None = None
        self._pipes: _Pipes | None = None
        _ALL.add(self)
        atexit.register(_close, weakref.ref(self))

    def ask(self, *arguments: Any, seconds: float, cpu_seconds: int | None = None) -> Any:
        """The result; None where there is none within ``seconds``, or ``cpu_seconds`` of processor
        time (by default as many, rounded up), or within the memory, or where the call raised.

        Raises ``UserError`` where a package is missing.
        """
        limit = max(1, int(-(-seconds // 1))) if cpu_seconds is None else cpu_seconds
        try:
            line = json.dumps([limit, arguments]).encode() + b"\n"
        except (ValueError, TypeError, RecursionError):
            return None  # no JSON: numbers of 4,300 digits and more, nested too deeply
        with self._asking:
            if self._pipes is None:
                self._start()
            return self._call(line, seconds)

    def close(self) -> None:
        """End both processes; the next call starts others."""
        self._kill()
        template, self._template = self._template, None
        if template is not None:
            template.process.kill()
            template.process.wait()
            template.drop()

    def forget(self) -> None:
        """In a forked child: the processes are the parent's. Nothing is sent to them or ended."""
        self._asking = threading.Lock()  # a thread that does not live here may hold the other
        self._kill()  # closes copies: the parent keeps its own ends
        template, self._template = self._template, None
        if template is not None:
            template.process.returncode = 0  # it is no child of this process to wait for
            template.drop()

    def _kill(self) -> None:
        """End the process that answers."""
        pipes, self._pipes = self._pipes, None
        if pipes is not None:
            pipes.drop()

    def _start(self) -> None:
        if importlib.util.find_spec(self._needs) is None:
            raise missing_extra("models", "math-verify")
        first = json.dumps([int(_START_SECONDS), self._first]).encode() + b"\n"
        begun = self._template is not None
        for _ in range(1 + begun):  # a template that was there may have been killed meanwhile
            if self._template is None:
                self._template = self._launched()
            with contextlib.suppress(OSError):
                self._fork(self._template)
                self._call(first, _START_SECONDS)
            if self._pipes is not None:
                return
            self.close()
        raise RuntimeError(f"the process of {self._function} did not start")

    def _launched(self) -> _Template:
        ours, theirs = socket.socketpair()
        held, lifeline = os.pipe()
        loaded = None if self._growth is None else json.dumps(self._first)
        program = (
            f"import sys; sys.path[:0] = {[path for path in sys.path if isinstance(path, str)]!r};"
            " from rlbudget.tasks.template import serve;"
            f" serve({self._function!r}, {loaded!r}, {theirs.fileno()}, {held}, {self._growth})"
        )
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(held, theirs.fileno()),
            )
        except BaseException:
            ours.close()
            os.close(lifeline)
            raise
        finally:
            theirs.close()
            os.close(held)
        return _Template(process, ours, lifeline)

    def _fork(self, template: _Template) -> None:
        """Let the template fork a process; ``OSError`` where it has ended."""
        their_read, write = os.pipe()
        read, their_write = os.pipe()
        held, lifeline = os.pipe()
        self._pipes = _Pipes(write, read, lifeline)
        try:
            os.set_blocking(write, False)
            os.set_blocking(read, False)
            socket.send_fds(template.control, [b"f"], [their_read, their_write, held])
        except BaseException:
            self._kill()
            raise
        finally:
            for end in (their_read, their_write, held):
                os.close(end)

    def _call(self, line: bytes, seconds: float) -> Any:
        reply = None
        try:
            with contextlib.suppress(BrokenPipeError):
                reply = self._exchanged(line, seconds)
        finally:
            if reply is None:  # also where the waiting was interrupted: the reply would come late
                self._kill()
        return None if reply is None else json.loads(reply)

    def _exchanged(self, line: bytes, seconds: float) -> bytes | None:
        """The reply to a line; None where the process ended or the time ran out."""
        pipes = self._pipes
        assert pipes is not None
        deadline = time.monotonic() + seconds
        write, read = pipes.write, pipes.read
        left = memoryview(line)
        poll = select.poll()
        poll.register(read, select.POLLIN)
        with contextlib.suppress(BlockingIOError):
            left = left[os.write(write, left) :]  # nearly always the whole line
        if left:
            poll.register(write, select.POLLOUT)
        parts: list[bytes] = []
        while (wait := deadline - time.monotonic()) > 0:
            for handle, _ in poll.poll(1000 * wait):
                if handle == write:
                    with contextlib.suppress(BlockingIOError):
                        left = left[os.write(write, left[:_BLOCK]) :]
                    if not left:
                        poll.unregister(write)
                    continue
                part = os.read(read, _BLOCK)
                if not part:
                    return None
                parts.append(part)
                if part.endswith(b"\n"):
                    return b"".join(parts)
        return None


def _close(worker: weakref.ref[Worker]) -> None:
    if (alive := worker()) is not None:
        alive.close()


def _forget_all() -> None:
    for worker in list(_ALL):
        worker.forget()


os.register_at_fork(after_in_child=_forget_all)
