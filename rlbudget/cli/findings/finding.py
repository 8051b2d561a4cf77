"""A finding is one line of text for the person who ran a step."""

from __future__ import annotations

from collections.abc import Iterable

from rlbudget.console import note


def odd(what: str, *, do: str) -> str:
    """A warning: what is odd, and what to do about it."""
    return f"warning: {what}: {do}"


def report(findings: Iterable[str]) -> None:
    """A line each on stderr."""
    for finding in findings:
        note(finding)


def some(n: float, one: str) -> str:
    """A count with its noun: ``1 question``, ``2,600 questions``."""
    return f"{n:,} {one if n == 1 else one + 's'}"
