"""Whether two expressions are equal, worked out by sympy in a process of its own.

An expression is looked at before it is handed over, and the process is killed when it takes too
long. What it works out is in ``rlbudget.tasks.equality``.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import sys
from collections.abc import Callable
from functools import cache, lru_cache

from rlbudget.errors import missing_extra
from rlbudget.tasks.worker import Worker, serve

if sys.platform != "win32":
    import resource

_SECONDS = 2.0
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
    return _asked(one, other)


@lru_cache(maxsize=65536)
def _asked(one: str, other: str) -> bool:
    return _worker().ask(json.dumps([one, other]), seconds=_SECONDS) == "1"


@cache
def _worker() -> Worker:
    if importlib.util.find_spec("latex2sympy2_extended") is None:
        raise missing_extra("models", "math-verify")
    return Worker([sys.executable, "-m", "rlbudget.tasks.mathematics"])


def is_tame(text: str) -> bool:
    """Whether working an expression out is sure to be quick."""
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


def _prepared() -> Callable[[str, str], bool]:
    logging.disable(logging.CRITICAL)
    from rlbudget.tasks.equality import equal  # needs sympy, which may print

    if sys.platform != "win32":
        gigabytes = 4 * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (gigabytes, gigabytes))
    equal("x", "\\frac{1}{2}")
    return equal


if __name__ == "__main__":
    serve(_prepared)
