"""math-verify by itself, as a second opinion: what ``rlbudget score`` is compared with.

It runs in a process of its own, because its time-out needs the main thread and some of its work
cannot be interrupted.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from functools import cache

from rlbudget.errors import missing_extra
from rlbudget.tasks.worker import Worker, serve

_SECONDS = 10.0


def math_verify_says(text: str, target: str) -> int | None:
    """1 or 0 by math-verify's own extraction and comparison, None where it took too long.

    Raises ``UserError`` where the package is missing.
    """
    reply = _worker().ask(json.dumps([text, target]), seconds=_SECONDS)
    return None if reply is None else int(reply)


@cache
def _worker() -> Worker:
    if importlib.util.find_spec("math_verify") is None:
        raise missing_extra("models", "math-verify")
    return Worker([sys.executable, "-m", "rlbudget.tasks.peer"])


def _compare(text: str, target: str) -> bool:
    from math_verify import parse, verify

    try:
        return bool(verify(parse(f"${target}$"), parse(text)))
    except Exception:
        return False


def _prepared() -> Callable[[str, str], bool]:
    _compare("1", "1")
    return _compare


if __name__ == "__main__":
    serve(_prepared)
