"""Findings on stderr."""

from __future__ import annotations

from collections.abc import Iterable

from rlbudget.console import note
from rlbudget.findings.finding import Finding


def report(findings: Iterable[Finding]) -> None:
    """A line each: facts plainly, what is odd marked as a warning."""
    for finding in findings:
        note(str(finding))
