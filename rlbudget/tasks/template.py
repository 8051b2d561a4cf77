"""The processes of ``rlbudget.tasks.worker``: a template that loads, and what it forks to answer.

The template has one thread and does nothing but fork, so that a process that had to be killed is
replaced by one that has everything loaded. Each fork gets limits and pipes of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import logging
import os
import resource
import select
import signal
import socket
import time
import warnings
from collections.abc import Callable
from typing import Any


def serve(
    function: str, loaded: str | None, control: int, lifeline: int, growth: int | None
) -> None:
    """Fork a process for each three ends of pipes that come over ``control``: of its input, its
    output and its lifeline. Ends with ``control``, or when ``lifeline`` breaks.

    ``loaded`` are the arguments, as JSON, of a call that is made before the first fork; None makes
    none and imports nothing. ``growth`` is what a process may take after its first call.
    """
    _end_with(lifeline)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the caller's: it closes what it ends
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if loaded is not None:
        with contextlib.suppress(Exception):
            _found(function)(*json.loads(loaded))
        gc.collect()
        gc.freeze()
    ways = socket.socket(fileno=control)
    child = 0
    while True:
        told, ends, _, _ = socket.recv_fds(ways, 1, 3)
        if child:  # the caller has given it up
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        if not told:
            os._exit(0)
        child = os.fork()
        if child == 0:
            try:
                os.close(lifeline)
                ways.close()
                given, replies, held = ends
                _answer(function, given, replies, held, growth)
            finally:
                os._exit(0)
        for end in ends:
            os.close(end)


def _found(function: str) -> Callable[..., Any]:
    module, _, name = function.partition(":")
    called: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return called


def _answer(function: str, given: int, replies: int, lifeline: int, growth: int | None) -> None:
    """A JSON line with a limit in seconds and arguments in, a JSON line with the result out, until
    the end of input. Nothing is ever written to ``lifeline``: it breaks when the caller closes it
    or ends."""
    _end_with(lifeline)
    called = _found(function)
    limited = growth is None
    with os.fdopen(given, "rb") as lines, os.fdopen(replies, "w") as out:
        for line in lines:
            seconds, arguments = json.loads(line)
            used = time.process_time()
            most = (int(used + seconds + 1), resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_CPU, most)
            try:
                reply = json.dumps(called(*arguments))
            except MemoryError:
                return  # what it holds would leave none for the next
            except Exception:
                reply = "null"
            out.write(f"{reply}\n")
            out.flush()
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
