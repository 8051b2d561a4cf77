"""Calls that may never return, made in a process that is killed when it takes too long.

Some texts keep a computer algebra system or a regular expression busy without end, and neither can
be interrupted from inside. ``Worker`` is the calling side, ``serve`` runs in its process.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import importlib.util
import json
import logging
import os
import queue
import subprocess
import sys
import threading
from typing import Any

from rlbudget.errors import missing_extra

_START_SECONDS = 120.0
_LARGEST = 4 * 2**30
"""bytes of memory of a process"""


class Worker:
    """Calls one function in a process: started at the first call, and again after it was killed
    or died. Safe to use from many threads, one call at a time; a forked process gets a process of
    its own."""  # fmt: skip

    def __init__(self, function: str, *first: Any, needs: str = "json") -> None:
        """``function`` is ``MODULE:FUNCTION``; arguments and results are plain JSON.

        ``first`` are arguments of a call that loads what is needed, not counted against the time
        of the first question. ``needs`` is a package that comes with math-verify.
        """
        self._function = function
        self._first = first
        self._needs = needs
        self._asking = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._owner = -1
        atexit.register(self.close)

    def ask(self, *arguments: Any, seconds: float) -> Any:
        """The result, or None when there is none within ``seconds``.

        Raises ``UserError`` where a package is missing.
        """
        with self._asking:
            if self._owner != os.getpid() or self._process is None:
                self._start()
            return self._call(arguments, seconds)

    def close(self) -> None:
        """Kill the process; the next call starts another."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in filter(None, (process.stdin, process.stdout)):
            with contextlib.suppress(OSError):  # unsent input cannot be flushed
                pipe.close()

    def _start(self) -> None:
        if importlib.util.find_spec(self._needs) is None:
            raise missing_extra("models", "math-verify")
        self._owner = os.getpid()
        self._replies = queue.SimpleQueue()
        program = f"from rlbudget.tasks.worker import serve; serve({self._function!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        listening = (self._process, self._replies)
        threading.Thread(target=_listen, args=listening, daemon=True).start()
        if self._call(self._first, _START_SECONDS) is None:
            raise RuntimeError(f"the process of {self._function} did not start")

    def _call(self, arguments: tuple[Any, ...], seconds: float) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(arguments) + "\n")
            self._process.stdin.flush()
            reply = self._replies.get(timeout=seconds)
        except (OSError, queue.Empty):
            reply = ""
        if not reply:
            self.close()
        return json.loads(reply) if reply else None


def _listen(process: subprocess.Popen[str], replies: queue.SimpleQueue[str]) -> None:
    """Queue the lines of a process; an empty one says that it ended."""
    assert process.stdout is not None
    try:
        for line in process.stdout:
            replies.put(line.rstrip("\n"))
    except ValueError:
        pass  # close() closed the pipe
    replies.put("")


def serve(function: str) -> None:
    """A JSON line with arguments in, a JSON line with the result out, until the end of input."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not pass for a reply
    logging.disable(logging.CRITICAL)
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_LARGEST, _LARGEST))
    module, _, name = function.partition(":")
    called = getattr(importlib.import_module(module), name)
    for line in sys.stdin:
        replies.write(f"{json.dumps(called(*json.loads(line)))}\n")
        replies.flush()
