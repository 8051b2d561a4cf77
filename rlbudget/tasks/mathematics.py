"""Whether two expressions are equal, worked out by sympy in a process of its own.

The LaTeX is read by ``latex2sympy2_extended`` (the parser of math-verify). Equality is decided by
values: both expressions are worked out to 40 digits at the same few points; no simplification
is tried, which may take for ever. An expression is looked at before it is handed over, and the
process is killed when it takes too long.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import sys
from functools import cache, lru_cache
from typing import Any

from rlbudget.errors import missing_extra
from rlbudget.tasks.worker import Worker

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
_DIGITS = 40
_CLOSE = 25
"""digits that have to agree"""
_SEVERAL = 6
"""significant digits from which on a decimal may be the rounded target"""


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


def _compare(one: str, other: str) -> bool:
    """In the worker: both sides of both, moved to one side, at the same points."""
    try:
        left, right = _sides(one), _sides(other)
        if left is None or right is None:
            return False
        if (left[1] is None) != (right[1] is None):
            return False
        if left[1] is None:
            return _equal_values(left[0], right[0]) or _rounded(one, left[0], right[0])
        return _proportional(left[0] - left[1], right[0] - right[1])
    except Exception:
        # The parser and sympy raise anything at all on strange text; it is then not equal.
        return False


def _sides(text: str) -> tuple[Any, Any] | None:
    sides = text.split("=")
    if len(sides) > 2:
        return None
    parsed = [_parse(side) for side in sides]
    return parsed[0], parsed[1] if len(parsed) == 2 else None


_DECIMAL = re.compile(r"(?<![0-9a-zA-Z_{])([0-9]*)\.([0-9]+)")


@lru_cache(maxsize=4096)
def _parse(text: str) -> Any:
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from sympy import Expr, I, Symbol

    # A decimal is exact, not the nearest binary fraction.
    exact = _DECIMAL.sub(lambda m: rf"\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}}", text)
    found = latex2sympy(exact, conversion_config=ConversionConfig(lowercase_symbols=False))
    if not isinstance(found, Expr):
        raise ValueError(text)
    return found.subs(Symbol("i"), I).doit()


def _points(symbols: Any, signs: bool = False) -> Any:
    """Values for the symbols, three times; no two the same, none special. ``signs`` adds negative
    ones: roots and logarithms have none to say, absolute values do."""  # fmt: skip
    from sympy import Rational

    names = sorted(symbols, key=str)
    for turn, sign in enumerate((1, 1, 1, -1) if signs else (1, 1, 1)):
        yield {
            name: sign * Rational(1009 + 613 * place + 499 * turn, 1511 - 83 * place + 211 * turn)
            for place, name in enumerate(names)
        }


def _equal_values(one: Any, other: Any) -> bool:
    from sympy import Abs

    symbols = one.free_symbols | other.free_symbols
    if one.is_Rational and other.is_Rational:
        return bool(one == other)
    if not symbols:
        return _close(one.evalf(_DIGITS), other.evalf(_DIGITS))
    return all(
        _close(one.subs(point).evalf(_DIGITS), other.subs(point).evalf(_DIGITS))
        for point in _points(symbols, one.has(Abs) or other.has(Abs))
    )


def _close(one: Any, other: Any) -> bool:
    from sympy import Abs, Integer

    if not (one.is_number and other.is_number and one.is_finite and other.is_finite):
        return False
    size = max(Abs(one), Abs(other))
    if size == 0:
        return True
    return bool(Abs(one - other) / size < Integer(10) ** -_CLOSE)


def _proportional(one: Any, other: Any) -> bool:
    """Whether one side is a constant times the other, the constant not 0."""
    symbols = one.free_symbols | other.free_symbols
    if not symbols:
        return False
    ratios = []
    for point in _points(symbols):
        values = one.subs(point).evalf(_DIGITS), other.subs(point).evalf(_DIGITS)
        if not all(value.is_number and value.is_finite for value in values) or values[1] == 0:
            return False
        ratios.append(values[0] / values[1])
    return ratios[0] != 0 and all(_close(ratios[0], ratio) for ratio in ratios[1:])


def _rounded(answer: str, given: Any, wanted: Any) -> bool:
    """Whether the answer is a decimal of six significant digits or more that the target rounds
    to."""  # fmt: skip
    from sympy import Rational

    match = re.fullmatch(r"-?([0-9]*)\.([0-9]+)", answer)
    if match is None or given.free_symbols or wanted.free_symbols:
        return False
    if len((match[1] + match[2]).lstrip("0")) < _SEVERAL:
        return False
    off = abs(Rational(answer) - wanted).evalf(_DIGITS)
    return bool(off <= Rational(1, 2 * 10 ** len(match[2])))


def _serve() -> None:
    """The worker's side: a line with two expressions in, a line with 0 or 1 out."""
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
