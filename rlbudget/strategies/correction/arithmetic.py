"""Plain arithmetic, worked out exactly and without ``eval``.

Numbers (none that begins with a zero, as in dates), ``+ - * /`` and parentheses, over fractions.
"""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST = 400
"""characters; of a longer text nothing is worked out"""
SPELLED = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00d7": "*", "\u00b7": "*", "\u00f7": "/"})
"""other spellings of the signs -> ours"""
_TOKEN = re.compile(r"\s*(?:((?!0\d)\d{1,30}(?:\.\d{1,30})?)(?![\d.]*\d)|([-+*/()]))")
_DEEPEST = 50


def value_of(text: str) -> Fraction | None:
    """What an expression of numbers comes to; None for any other text and a division by 0."""
    if len(text) > LONGEST:
        return None
    try:
        reader = _Reader(_tokens(text))
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

    def __init__(self, tokens: list[str]) -> None:
        self._tokens, self._place = tokens, 0

    def finish(self) -> None:
        if self._next() != "":
            raise _UnreadableError

    def sum(self, depth: int) -> Fraction:
        total = self._product(depth)
        while (sign := self._next()) in ("+", "-"):
            self._place += 1
            right = self._product(depth)
            total += right if sign == "+" else -right
        return total

    def _product(self, depth: int) -> Fraction:
        product = self._signed(depth)
        while (sign := self._next()) in ("*", "/"):
            self._place += 1
            right = self._signed(depth)
            product = product * right if sign == "*" else product / right
        return product

    def _signed(self, depth: int) -> Fraction:
        negative = False
        while (sign := self._next()) in ("+", "-"):
            self._place += 1
            negative ^= sign == "-"
        value = self._atom(depth)
        return -value if negative else value

    def _atom(self, depth: int) -> Fraction:
        token = self._next()
        self._place += 1
        if token == "(" and depth < _DEEPEST:
            inside = self.sum(depth + 1)
            if self._next() != ")":
                raise _UnreadableError
            self._place += 1
            return inside
        if token[:1].isdigit():
            return Fraction(token)
        raise _UnreadableError

    def _next(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""
