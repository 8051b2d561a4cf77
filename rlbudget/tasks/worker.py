"""Calls that may never return, made in a process with limits of time and memory.

Some texts keep a computer algebra system, a verifier or a regular expression busy without end, and
none of them can be interrupted from inside. ``Worker`` is the calling side, ``serve`` runs in its
process. The process ends when the calling process does, whatever it is doing then.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib
import importlib.util
import json
import logging
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from typing import Any

from rlbudget.errors import missing_extra

_START_SECONDS = 120.0
_BLOCK = 1 << 16
GROWTH = 96 * 2**20
"""bytes that one process may hold more than after its first call"""

_ALL: weakref.WeakSet[Worker] = weakref.WeakSet()


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
        how many bytes the process may take after that call, None for any number.
        """
        self._function = function
        self._first = first
        self._needs = needs
        self._growth = growth
        self._asking = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
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
            if self._process is None:
                self._start()
            return self._call(line, seconds)

    def close(self) -> None:
        """Kill the process; the next call starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            self._drop(process)

    def forget(self) -> None:
        """In a forked child: the process is the parent's. Nothing is sent to it or ended."""
        self._asking = threading.Lock()  # a thread that does not live here may hold the other
        process, self._process = self._process, None
        if process is not None:
            process.returncode = 0  # it is no child of this process to wait for
            self._drop(process)

    def _drop(self, process: subprocess.Popen[bytes]) -> None:
        for pipe in filter(None, (process.stdin, process.stdout)):
            pipe.close()  # unbuffered: nothing is flushed
        os.close(self._lifeline)

    def _start(self) -> None:
        if importlib.util.find_spec(self._needs) is None:
            raise missing_extra("models", "math-verify")
        held, self._lifeline = os.pipe()
        program = (
            f"import sys; sys.path[:0] = {[path for path in sys.path if isinstance(path, str)]!r};"
            " from rlbudget.tasks.worker import serve;"
            f" serve({self._function!r}, {held}, {self._growth})"
        )
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(held,),
                bufsize=0,
            )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(held)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        line = json.dumps([int(_START_SECONDS), self._first]).encode() + b"\n"
        self._call(line, _START_SECONDS)
        if self._process is None:
            raise RuntimeError(f"the process of {self._function} did not start")

    def _call(self, line: bytes, seconds: float) -> Any:
        reply = None
        try:
            with contextlib.suppress(BrokenPipeError):
                reply = self._exchanged(line, seconds)
        finally:
            if reply is None:  # also where the waiting was interrupted: the reply would come late
                self.close()
        return None if reply is None else json.loads(reply)

    def _exchanged(self, line: bytes, seconds: float) -> bytes | None:
        """The reply to a line; None where the process ended or the time ran out."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = time.monotonic() + seconds
        write, read = process.stdin.fileno(), process.stdout.fileno()
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


def serve(function: str, lifeline: int, growth: int | None) -> None:
    """A JSON line with a limit in seconds and arguments in, a JSON line with the result out, until
    the end of input. Nothing is ever written to ``lifeline``: it breaks when the caller ends."""
    _end_with(lifeline)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not pass for a reply
    logging.disable(logging.CRITICAL)
    module, _, name = function.partition(":")
    called = getattr(importlib.import_module(module), name)
    limited = growth is None
    for line in sys.stdin.buffer:
        seconds, arguments = json.loads(line)
        used = time.process_time()
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + seconds + 1), resource.RLIM_INFINITY))
        try:
            reply = json.dumps(called(*arguments))
        except Exception:
            reply = "null"
        replies.write(f"{reply}\n")
        replies.flush()
        if not limited and growth is not None:
            _limit_memory(growth)
            limited = True


def _end_with(lifeline: int) -> None:
    """Let the kernel end this process (SIGIO) when the other end of a pipe is closed."""
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    if poll.poll(0):  # it was closed before the kernel was asked
        os._exit(0)


def _limit_memory(growth: int) -> None:
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + growth, resource.RLIM_INFINITY))
