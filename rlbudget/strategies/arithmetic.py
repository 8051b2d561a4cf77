"""Plain arithmetic, worked out exactly and without ``eval``.

Numbers (none that begins with a zero, as in dates), ``+ - * /``, parentheses and at most one
unknown, which may stand in linear terms only: an expression becomes ``constant + slope * unknown``
over fractions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 400
"""characters; of a longer text nothing is worked out"""
SPELLED = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00d7": "*", "\u00b7": "*", "\u00f7": "/"})
"""other spellings of the signs -> ours"""
_TOKEN = re.compile(
    r"\s*(?:((?!0\d)\d{1,30}(?:\.\d{1,30})?)(?![\d.]*\d)|([A-Za-z])(?![A-Za-z])|([-+*/()]))"
)
_DEEPEST = 50


@dataclass(frozen=True, slots=True)
class Linear:
    """``constant + slope * unknown``."""

    constant: Fraction
    slope: Fraction = Fraction(0)

    def at(self, value: Fraction) -> Fraction:
        """Its value where the unknown has this one."""
        return self.constant + self.slope * value


def value_of(text: str) -> Fraction | None:
    """What an expression of numbers comes to; None for any other text and a division by 0."""
    found = linear(text)
    return None if found is None else found.constant


def linear(text: str, unknown: str | None = None) -> Linear | None:
    """An expression with one unknown, a letter; ``5*n`` and ``5n`` are the same.

    None for any other text, a division by 0, an unknown in a divisor or a product of unknowns.
    """
    if len(text) > LONGEST:
        return None
    try:
        reader = _Reader(_tokens(text), unknown)
        found = reader.sum(0)
        reader.finish()
    except (_UnreadableError, ZeroDivisionError):
        return None
    return found


class _UnreadableError(Exception):
    """The text is no such expression."""


def _tokens(text: str) -> list[str]:
    text = text.translate(SPELLED).strip()
    tokens, place = [], 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise _UnreadableError
        tokens.append(match[match.lastindex or 0])
        place = match.end()
    return tokens


class _Reader:
    """Recursive descent: sum, product, sign, atom."""

    def __init__(self, tokens: list[str], unknown: str | None) -> None:
        self._tokens, self._unknown, self._place = tokens, unknown, 0

    def finish(self) -> None:
        if self._next() != "":
            raise _UnreadableError

    def sum(self, depth: int) -> Linear:
        left = self._product(depth)
        while (sign := self._next()) in ("+", "-"):
            self._place += 1
            right = self._product(depth)
            factor = 1 if sign == "+" else -1
            left = Linear(
                left.constant + factor * right.constant, left.slope + factor * right.slope
            )
        return left

    def _product(self, depth: int) -> Linear:
        left = self._signed(depth)
        while True:
            sign = self._next()
            if sign == "*" or sign == self._unknown:
                self._place += sign == "*"
                left = _times(left, self._signed(depth))
            elif sign == "/":
                self._place += 1
                right = self._signed(depth)
                if right.slope:
                    raise _UnreadableError
                left = Linear(left.constant / right.constant, left.slope / right.constant)
            else:
                return left

    def _signed(self, depth: int) -> Linear:
        factor = 1
        while (sign := self._next()) in ("+", "-"):
            self._place += 1
            factor = -factor if sign == "-" else factor
        found = self._atom(depth)
        return Linear(factor * found.constant, factor * found.slope)

    def _atom(self, depth: int) -> Linear:
        token = self._next()
        self._place += 1
        if token == "(" and depth < _DEEPEST:
            inside = self.sum(depth + 1)
            if self._next() != ")":
                raise _UnreadableError
            self._place += 1
            return inside
        if token[:1].isdigit():
            return Linear(Fraction(token))
        if token and token == self._unknown:
            return Linear(Fraction(0), Fraction(1))
        raise _UnreadableError

    def _next(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""


def _times(left: Linear, right: Linear) -> Linear:
    if left.slope and right.slope:
        raise _UnreadableError
    return Linear(
        left.constant * right.constant,
        left.slope * right.constant + right.slope * left.constant,
    )
