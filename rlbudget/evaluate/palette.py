"""How a method's line looks, on the report page and in the figure: one palette for both.

Hues differ, their lightness differs, and where colours come again the dashes differ: the lines can
be told apart when they are printed grey.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BEST_RULES = 5
"""rules that are drawn in colour, those of the highest mean gap closed"""


@dataclass(frozen=True, slots=True)
class Style:
    """A line of one method."""

    colour: str
    """on white"""
    dark: str
    """on a dark page"""
    dash: tuple[float, ...]
    """lengths of dash and gap, in widths of a thin line; empty for a solid line"""
    marker: str
    """of its points: o, s, ^, D or v"""
    shown: bool
    """drawn in colour; else it is there for whoever asks"""


LEARNED = (
    ("#0969da", "#58a6ff"), ("#1a2f6b", "#a5b4fc"), ("#0e8f83", "#5eead4"), ("#8c45c9", "#d8b4fe"),
    ("#52640d", "#bef264"),
)  # fmt: skip
RULES = (
    ("#b3420a", "#ff9d57"), ("#0b6b3a", "#4ade80"), ("#c2489a", "#f9a8d4"), ("#4c2889", "#c4b5fd"),
    ("#b07d00", "#fde047"), ("#8f1d2c", "#fca5a5"), ("#3b93c4", "#7dd3fc"),
)  # fmt: skip
LEARNED_DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (1.5, 1.5), (6, 2, 1.5, 2), (3, 2))
RULE_DASHES: tuple[tuple[float, ...], ...] = ((), (6, 3), (1.5, 2), (7, 2, 1.5, 2), (3, 2))
MARKERS = ("s", "^", "D", "v", "o")
INK, QUIET, FAINT = ("#1f2328", "#e6edf3"), ("#57606a", "#9ca3af"), ("#afb8c1", "#4b535d")
FIXED: Mapping[str, Style] = {
    "full": Style(*INK, (), "D", True),
    "oracle": Style(*INK, (5, 3), "o", True),
    "fixed": Style(*QUIET, (1.5, 2), "o", True),
    "random": Style(*FAINT, (), "o", False),
}


def styles(evaluation: Mapping[str, Any]) -> dict[str, Style]:
    """Method -> its style, best first within each kind, of what ``evaluation.json`` holds."""

    def gap(row: Mapping[str, Any]) -> float:
        found = row["mean_oracle_gap_closed"]
        return -math.inf if found is None else float(found)

    found = {}
    ranked = sorted(evaluation["summary"], key=gap, reverse=True)
    for kind, pairs, dashes in (
        ("learned", LEARNED, LEARNED_DASHES),
        ("rule", RULES, RULE_DASHES),
    ):
        names = [r["method"] for r in ranked if r["kind"] == kind and r["method"] not in FIXED]
        for i, name in enumerate(names):
            dash = dashes[(i + i // len(pairs)) % len(dashes)]
            marker = "o" if kind == "learned" else MARKERS[i % len(MARKERS)]
            shown = kind == "learned" or i < BEST_RULES
            found[name] = Style(*pairs[i % len(pairs)], dash, marker, shown)
    return found | {r["method"]: FIXED[r["method"]] for r in ranked if r["method"] in FIXED}
