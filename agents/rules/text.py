"""Rules on the signals of the text: what a server gives that shows no log-probabilities."""

from __future__ import annotations

import numpy as np

from rlbudget.agents.rules.rule import Rule, threshold_rule
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import first_stop
from rlbudget.traces.table import TraceTable

CLAIMS = Rule(
    name="claims",
    needs=("text_claim_streak",),
    grid=lambda table: [{"window": float(n)} for n in range(1, 9)],
    stops=lambda table, parameters: first_stop(
        table, table.signals["text_claim_streak"] >= parameters["window"]
    ),
)
"""The last ``window`` claims of the text name one value."""


def _so_far(signal: str) -> Rule:
    name = signal.removeprefix("text_")
    return threshold_rule(
        name,
        (signal,),
        lambda table: observe(table, (f"{signal}.sum",))[:, 0].astype(np.float64),
    )


def _repeats(table: TraceTable) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return observe(table, ("text_repeats.ema",))[:, 0].astype(np.float64)


CONCLUSIONS = _so_far("text_conclusions")
HEDGES = _so_far("text_hedges")
"""So many concluding words, or words of doubt, were written."""
REPEATS = threshold_rule("repeats", ("text_repeats",), _repeats)
"""The moving average of what was written before is high."""

RULES = (CLAIMS, CONCLUSIONS, HEDGES, REPEATS)
