"""Where a policy stops early and where late: by family, and by the question's length and parts.

The thirds are those of the decodes at hand: a third of the shortest questions, and so on. Questions
that are all alike in a number make no groups by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlbudget.policy.outcomes import Outcome
from rlbudget.traces.table import TraceTable

BY = {
    "length": "question_characters",
    "numbers": "question_numbers",
    "clauses": "question_clauses",
}
"""what the questions are divided by -> the signal of ``rlbudget.signals.questions``"""
THIRDS = ("low", "middle", "high")


@dataclass(frozen=True, slots=True)
class Context:
    """A group of decodes under one policy; means over the group, tokens are thinking tokens."""

    by: str
    """``family``, or what of ``BY``"""
    group: str
    traces: int
    full_tokens: float
    full_exact_match: float
    tokens: float
    exact_match: float


def contexts_of(done: Outcome, table: TraceTable, families: Sequence[str]) -> list[Context]:
    """Divide what a policy did on n traces; ``families`` has one name for each.

    The table needs the signals of ``signals.questions`` (``load_table(context=True)``) for the
    groups by length and complexity; traces without a checkpoint are left out of those.
    """

    def group(by: str, name: str, chosen: np.ndarray) -> Context:
        return Context(
            by=by,
            group=name,
            traces=len(chosen),
            full_tokens=float(table.final_thinking_tokens[chosen].mean()),
            full_exact_match=float(table.final_exact_match[chosen].mean()),
            tokens=float(done.thinking[chosen].mean()),
            exact_match=float(done.exact_match[chosen].mean()),
        )

    named = np.asarray(families, dtype=np.str_)
    found = [group("family", str(name), np.flatnonzero(named == name)) for name in np.unique(named)]
    some = np.flatnonzero(table.lengths > 0)
    for by, signal in BY.items():
        if signal not in table.signals:
            continue
        value = table.signals[signal][table.offsets[some]]
        third = np.searchsorted(np.quantile(value, [1 / 3, 2 / 3]), value, side="left")
        if len(np.unique(third)) > 1:
            found += [
                group(by, name, some[third == place])
                for place, name in enumerate(THIRDS)
                if (third == place).any()
            ]
    return found
