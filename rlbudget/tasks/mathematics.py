"""Whether two expressions are equal by sympy, in a process of its own.

Expressions that could be slow are refused beforehand, and the process is killed after a time limit.
The comparison itself is in ``rlbudget.tasks.equality``.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator

from rlbudget.tasks.worker import Worker

_SECONDS = 2.0
SECONDS = 2.5
"""for all the expressions of one answer"""
_LONGEST = 400
_LARGEST_POWER = 10_000
_MOST_OPERATORS = 60
_ENDLESS = re.compile(
    r"\\?(int|sum|prod|lim|binom(?!\{[0-9]{1,3}\}\{[0-9]{1,3}\})|gamma|factorial|iint|oint|bmod|pmod)"
    r"(?![a-z])|(?:[)}\]a-z]|[0-9]{3})\s*!(?!\s*=)",
    re.IGNORECASE,
)
_GROUP = r"\{(?:[^{}^*!]|\{[^{}^*!]*\})*\}|\([^()^*!]*\)"
_POWER = re.compile(
    rf"(?:\^|\*\*)\s*({_GROUP}|[+-]?[0-9]{{1,3}}(?![0-9]|,[0-9]|\{{,)|\\?[a-zA-Z]+)"
    r"(?!\s*(?:\^|\*\*))"
)
"""A power whose exponent holds no power itself."""
_LONG_NUMBER = re.compile(r"[0-9]{401}|[0-9][eE][+-]?[0-9]{3}|[0-9]{41}.*\^|\^.*[0-9]{41}")


def same_mathematics(one: str, other: str) -> bool:
    """Whether two compact expressions, or two equations, are equal; False for what cannot be read.

    Raises ``UserError`` where the package is missing.
    """
    if not (is_tame(one) and is_tame(other)):
        return False
    if _here:
        return _here[0](one, other)
    left = _answer.deadline - time.monotonic()
    return left > 0 and _asked(one, other, min(left, _SECONDS))


class _Answer(threading.local):
    """What a thread scores at the moment."""

    deadline = float("inf")


_answer = _Answer()
_here: list[Callable[[str, str], bool]] = []


def compare_here(equal: Callable[[str, str], bool]) -> None:
    """In a process that has limits of its own: compare in it, from now on, by ``equal``."""
    _here[:] = [equal]


@contextlib.contextmanager
def one_answer() -> Iterator[None]:
    """Bounds the time of all the comparisons made inside, by this thread."""
    outer = _answer.deadline
    _answer.deadline = min(outer, time.monotonic() + SECONDS)
    try:
        yield
    finally:
        _answer.deadline = outer


_WORKER = Worker(
    "rlbudget.tasks.equality:equal", "x", r"\frac{1}{2}", needs="latex2sympy2_extended"
)


def _asked(one: str, other: str, seconds: float) -> bool:
    equal = _KNOWN.get((one, other))
    if equal is None:
        equal = bool(_WORKER.ask(one, other, seconds=seconds, cpu_seconds=2))
        if len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.clear()
        _KNOWN[one, other] = equal
    return equal


_MOST_KNOWN = 65536
_KNOWN: dict[tuple[str, str], bool] = {}


def is_tame(text: str) -> bool:
    """Whether evaluating an expression is certain to be quick."""
    if len(text) > _LONGEST or _ENDLESS.search(text) or _LONG_NUMBER.search(text):
        return False
    powers = list(_POWER.finditer(text))
    if len(powers) != text.count("^") + text.count("**") or text.count("exp") > 1:
        return False
    if sum(map(text.count, "+-*/=<>")) > _MOST_OPERATORS:
        return False
    # Only a power of a bracket can hold another power: those exponents multiply.
    product, largest = 1, 1
    for power in powers:
        size = int("".join(re.findall("[0-9]", power[1]))[:9] or 1)
        if text[: power.start()].rstrip().endswith((")", "}", "]", "|")):
            product *= max(size, 1)
        else:
            largest = max(largest, size)
    return product * largest <= _LARGEST_POWER
