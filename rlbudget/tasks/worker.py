"""A process that answers one line with one line, and is killed when it takes too long.

``Worker`` is the asking side, ``serve`` the other one.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

_START_SECONDS = 120.0


class Worker:
    """Started at the first question, and again after it was killed or died.

    The program writes the line ``ready`` when it is. Safe to use from many threads, one
    question at a time; a forked process gets a program of its own.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._asking = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._owner = -1
        atexit.register(self.close)

    def ask(self, line: str, *, seconds: float) -> str | None:
        """The reply to a line, or None when there is none within ``seconds``."""
        with self._asking:
            if self._owner != os.getpid() or self._process is None:
                self._start()
            assert self._process is not None
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()
                reply = self._replies.get(timeout=seconds)
            except (OSError, queue.Empty):
                reply = ""
            if not reply:
                self.close()
            return reply or None

    def close(self) -> None:
        """Kill the program; the next question starts another."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue  # what was left to send has nowhere to go

    def _start(self) -> None:
        self._owner = os.getpid()
        self._replies = queue.SimpleQueue()
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        self._process = process
        threading.Thread(target=_listen, args=(process, self._replies), daemon=True).start()
        try:
            ready = self._replies.get(timeout=_START_SECONDS) == "ready"
        except queue.Empty:
            ready = False
        if not ready:
            self.close()
            raise RuntimeError(f"{' '.join(self._command)} did not start")


def _listen(process: subprocess.Popen[str], replies: queue.SimpleQueue[str]) -> None:
    """Pass the program's lines on; an empty one tells that it ended."""
    assert process.stdout is not None
    try:
        for line in process.stdout:
            replies.put(line.rstrip("\n"))
    except ValueError:
        pass  # closed under our hands, by close()
    replies.put("")


def serve(prepare: Callable[[], Callable[[str, str], bool]]) -> None:
    """The program's side: a JSON line with two texts in, a line with 1 or 0 out, until the end.

    ``prepare`` loads what is needed and gives the comparison; what it prints goes nowhere.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not pass for a reply
    compare = prepare()
    replies.write("ready\n")
    replies.flush()
    for line in sys.stdin:
        replies.write(f"{int(compare(*json.loads(line)))}\n")
        replies.flush()
