"""A finding: one line for the person who ran a step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One line, plain or odd."""

    text: str
    odd: bool = False
    """whether it is a warning: it then says what to do as well"""

    def __str__(self) -> str:
        """The line as it is shown."""
        return f"warning: {self.text}" if self.odd else self.text


def fact(text: str) -> Finding:
    """What was found."""
    return Finding(text)


def odd(what: str, *, do: str) -> Finding:
    """What is odd, and what to do about it."""
    return Finding(f"{what}: {do}", odd=True)


def some(n: float, one: str, several: str | None = None) -> str:
    """A count with its noun: ``1 question``, ``2,600 questions``."""
    return f"{n:,} {one if n == 1 else several or one + 's'}"
