"""Findings on stderr."""

from __future__ import annotations

from collections.abc import Iterable

from rlbudget.cli.findings.finding import Finding
from rlbudget.console import note


def report(findings: Iterable[Finding]) -> None:
    """A line each: facts plainly, what is odd marked as a warning."""
    for finding in findings:
        note(str(finding))
