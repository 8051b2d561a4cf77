"""``math-verify``, held so that it neither raises, nor hangs, nor touches signals.

The package bounds its time with SIGALRM, which works in the main thread only and cannot
interrupt one long multiplication of big integers. So its time-outs are off; an expression
is looked at before it is handed over, and the work is done in a process that is killed when
it takes too long.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import sys
from functools import cache
from typing import Any

from rlbudget.errors import missing_extra
from rlbudget.tasks.worker import Worker

_SECONDS = 5.0
_LONGEST = 400
_LARGEST_POWER = 2000
_MOST_OPERATORS = 60
_ENDLESS = re.compile(
    r"\\?(int|sum|prod|lim|binom|gamma|factorial|iint|oint|bmod|pmod)(?![a-z])|[0-9)}\]a-z]\s*!(?!\s*=)",
    re.IGNORECASE,
)
_GROUP = r"\{(?:[^{}^*!]|\{[^{}^*!]*\})*\}|\([^()^*!]*\)"
_POWER = re.compile(
    rf"(?:\^|\*\*)\s*({_GROUP}|[+-]?[0-9]{{1,3}}(?![0-9]|,[0-9]|\{{,)|\\?[a-zA-Z]+)"
    r"(?!\s*(?:\^|\*\*))"
)
"""A power whose exponent holds no power itself."""
_MARKED = re.compile(r"(?<!\\)\$|\\boxed|\\\(")
_PROSE = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}")
_LONG_NUMBER = re.compile(r"[0-9]{41}|[0-9][eE][+-]?[0-9]{3}")


def same_mathematics(answer: str, target: str) -> bool:
    """Whether ``math-verify`` finds answer and target equal; False for what it cannot read.

    Raises ``UserError`` where the package is missing.
    """
    if not (is_tame(answer) and is_tame(target)):
        return False
    return _worker().ask(json.dumps([answer, target]), seconds=_SECONDS) == "1"


@cache
def _worker() -> Worker:
    if importlib.util.find_spec("math_verify") is None:
        raise missing_extra("models", "math-verify")
    return Worker([sys.executable, "-m", "rlbudget.tasks.mathematics"])


def is_tame(text: str) -> bool:
    """Whether working the expressions of a text out is sure to be quick."""
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


def _read(parse: Any, text: str, *, formula: bool) -> Any:
    """A formula is read as LaTeX: without a ``$`` the parser would skip most of it."""
    if formula and not _MARKED.search(text):
        found = parse(f"${text}$", parsing_timeout=None)
        if found:
            return found
    return parse(text, parsing_timeout=None)


def _compare(answer: str, target: str) -> bool:
    from math_verify import parse, verify

    try:
        wanted = _read(parse, target, formula=True)
        given = _read(parse, answer, formula=not _PROSE.search(answer))
        return bool(verify(wanted, given, timeout_seconds=None))
    except Exception:
        # The parser and sympy raise anything at all on strange text; it is then not equal.
        return False


def _serve() -> None:
    """The worker's side: a line with answer and target in, a line with 0 or 1 out."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not pass for a reply
    logging.disable(logging.CRITICAL)
    if sys.platform != "win32":
        import resource

        gigabytes = 4 * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (gigabytes, gigabytes))
    _compare("x", "\\frac{1}{2}")
    replies.write("ready\n")
    replies.flush()
    for line in sys.stdin:
        replies.write(f"{int(_compare(*json.loads(line)))}\n")
        replies.flush()


if __name__ == "__main__":
    _serve()
