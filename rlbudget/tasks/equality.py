"""Equality of expressions by values, run in the process of ``rlbudget.tasks.mathematics``.

The LaTeX is read by ``latex2sympy2_extended`` (the parser of math-verify). Both expressions are
evaluated to 40 digits at the same few points; nothing is simplified, since that may not terminate.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from sympy import Abs, Expr, I, Integer, Rational, Symbol

_DIGITS = 40
_CLOSE = 25
"""digits that have to agree"""
_SEVERAL = 6
"""significant digits from which on a decimal may be the rounded target"""


def equal(one: str, other: str) -> bool:
    """Whether two expressions or two equations are equal; False for what cannot be read.

    Both sides of both are moved to one side and compared at the same points.
    """
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
        # On malformed text the parser and sympy raise all kinds of errors; it is then not equal.
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
    # A decimal is exact, not the nearest binary fraction.
    exact = _DECIMAL.sub(lambda m: rf"\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}}", text)
    found = latex2sympy(exact, conversion_config=ConversionConfig(lowercase_symbols=False))
    if not isinstance(found, Expr):
        raise ValueError(text)
    return found.subs(Symbol("i"), I).doit()


def _points(symbols: Any, signs: bool = False) -> Any:
    """Values for the symbols, three times; no two the same, none special. ``signs`` adds negative
    ones: roots and logarithms have none to say, absolute values do."""  # fmt: skip
    names = sorted(symbols, key=str)
    for turn, sign in enumerate((1, 1, 1, -1) if signs else (1, 1, 1)):
        yield {
            name: sign * Rational(1009 + 613 * place + 499 * turn, 1511 - 83 * place + 211 * turn)
            for place, name in enumerate(names)
        }


def _equal_values(one: Any, other: Any) -> bool:
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
    match = re.fullmatch(r"-?([0-9]*)\.([0-9]+)", answer)
    if match is None or given.free_symbols or wanted.free_symbols:
        return False
    if len((match[1] + match[2]).lstrip("0")) < _SEVERAL:
        return False
    off = abs(Rational(answer) - wanted).evalf(_DIGITS)
    return bool(off <= Rational(1, 2 * 10 ** len(match[2])))
