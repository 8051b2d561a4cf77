"""Formulas by their values: a cheap key that equal ones share, for votes.

An expression of numbers, single letters, ``+ - * / ^``, fractions and roots is evaluated at two
fixed points, exactly as long as it is rational. That takes microseconds and needs no algebra; what
is not of this kind has no key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from fractions import Fraction

LONGEST = 120
"""characters; longer formulas have no key"""
_DEEPEST = 16
_LARGEST_POWER = 64
_LARGEST = 10**40
_MOST_BITS = 8192
"""of a numerator or denominator: no formula takes long"""
_DIGITS = 10
"""significant digits that must agree where a value is not rational"""

_TOKEN = re.compile(r"\s*(\d+\.\d+|\.\d+|\d+|\\[a-zA-Z]+|[a-zA-Z]{1,}|\\[,;! ]|[-+*/^(){}\[\]])")
_SILENT = {"\\left", "\\right", "\\,", "\\;", "\\!", "\\ ", "\\displaystyle"}
_TIMES = {"*", "\\cdot", "\\times"}
_FRACTIONS = {"\\frac", "\\dfrac", "\\tfrac"}
_OPENING = {"(": ")", "[": "]", "{": "}"}
_MOST_LETTERS = 2
"""in a row: more of them are a word"""

_Value = Fraction | float


class _NoValueError(Exception):
    """It is not of this kind."""


def value_key(expression: str) -> Hashable | None:
    """What equal formulas share: the value of a rational constant, else the values at two points;
    None for what has none. Never raises."""  # fmt: skip
    try:
        tokens = _tokens(expression)
        found = [_Reader(tokens, turn).whole() for turn in (0, 1)]
    except (_NoValueError, ArithmeticError, ValueError, RecursionError):
        return None
    if not any(token.isalpha() for token in tokens) and isinstance(found[0], Fraction):
        return found[0]
    return "values", tuple(map(_rounded, found))


def _tokens(text: str) -> list[str]:
    if len(text) > LONGEST:
        raise _NoValueError
    found: list[str] = []
    place, text = 0, text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise _NoValueError
        place, token = match.end(), match[1]
        if token.isalpha():
            if len(token) > _MOST_LETTERS:
                raise _NoValueError
            found += token
        elif token not in _SILENT:
            found.append(token)
    return found


def _rounded(value: _Value) -> Hashable:
    if isinstance(value, Fraction):
        return value
    if not math.isfinite(value):
        raise _NoValueError
    return f"{value:.{_DIGITS - 1}e}"


class _Reader:
    """Reads the tokens once, at one point."""

    def __init__(self, tokens: list[str], turn: int) -> None:
        self._tokens, self._place, self._turn, self._depth = tokens, 0, turn, 0

    def whole(self) -> _Value:
        value = self._sum()
        if self._place < len(self._tokens):
            raise _NoValueError
        return value

    def _next(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        token = self._next()
        if not token or (wanted and token not in wanted):
            raise _NoValueError
        self._place += 1
        return token

    def _sum(self) -> _Value:
        value = self._signed()
        while self._next() in ("+", "-"):
            minus = self._take() == "-"
            other = self._product()
            value = value - other if minus else value + other
        return value

    def _signed(self) -> _Value:
        if self._next() in ("+", "-"):
            return -self._signed() if self._take() == "-" else self._signed()
        return self._product()

    def _product(self) -> _Value:
        value, over = self._power(), False
        while (token := self._next()) and token not in ("+", "-", ")", "]", "}"):
            if token in _TIMES:
                self._take()
                value = _bounded(value * self._factor())
            elif token == "/":
                self._take()
                value, over = _bounded(value / self._factor()), True
            else:
                # "1 1/2", "x2" and "1/2x" are read in more than one way.
                if over or token[0] in ".0123456789[" or token in _FRACTIONS:
                    raise _NoValueError
                value = _bounded(value * self._power())
        return value

    def _factor(self) -> _Value:
        if self._next() == "-":
            self._take()
            return -self._factor()
        return self._power()

    def _power(self) -> _Value:
        base = self._atom()
        if self._next() != "^":
            return base
        self._take()
        exponent = -self._atom() if self._next() == "-" and self._take() else self._atom()
        if not -_LARGEST_POWER <= exponent <= _LARGEST_POWER:
            raise _NoValueError
        if isinstance(exponent, Fraction) and exponent.denominator == 1:
            if isinstance(base, Fraction) and _bits(base) * abs(exponent) > _MOST_BITS:
                raise _NoValueError
            return _bounded(base ** int(exponent))
        if base < 0:
            raise _NoValueError
        return _bounded(float(base) ** float(exponent))

    def _atom(self) -> _Value:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _NoValueError
        value = self._bare()
        self._depth -= 1
        return value

    def _bare(self) -> _Value:
        token = self._take()
        if token in _OPENING:
            value = self._sum()
            self._take(_OPENING[token])
            return value
        if token[0].isdigit() or token[0] == ".":
            return Fraction(token)
        if token.isalpha():
            place = ord(token)
            return Fraction(1009 + 613 * (place % 64) + 499 * self._turn, 401 + 7 * (place % 59))
        if token == "\\pi":
            return math.pi
        if token in _FRACTIONS:
            above = self._argument()
            return _bounded(above / self._argument())
        if token == "\\sqrt":
            return self._root()
        raise _NoValueError

    def _argument(self) -> _Value:
        """Of a fraction: in braces, or a digit or letter alone."""
        token = self._next()
        if token == "{" or (len(token) == 1 and token.isalnum()):
            return self._atom()
        if len(token) > 1 and token.isdigit():  # \frac12 is 1/2
            self._tokens[self._place : self._place + 1] = [*token]
            return self._atom()
        raise _NoValueError

    def _root(self) -> _Value:
        degree: _Value = Fraction(2)
        if self._next() == "[":
            degree = self._atom()
        inside = self._argument()
        if not isinstance(degree, Fraction) or degree.denominator != 1 or not 2 <= degree <= 9:
            raise _NoValueError
        if inside < 0:
            raise _NoValueError
        root = float(inside) ** (1 / int(degree))
        exact = Fraction(round(root))
        return exact if exact ** int(degree) == inside else root


def _bounded(value: _Value) -> _Value:
    if not -_LARGEST <= value <= _LARGEST or (
        isinstance(value, Fraction) and _bits(value) > _MOST_BITS
    ):
        raise _NoValueError
    return value


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())
