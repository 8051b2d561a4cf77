"""Rules on the signals of the text: what a server gives that shows no log-probabilities."""

from __future__ import annotations

import numpy as np

from rlbudget.agents.rules.rule import (
    Parameters,
    Rule,
    run_length,
    threshold_rule,
)
from rlbudget.arrays import Bools
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import first_stop
from rlbudget.policy.trials import step_of_row
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


def _all_again(table: TraceTable, parameters: Parameters) -> Bools:
    """(m,) whether this checkpoint ends a repetition of that many tokens."""
    again = table.signals["text_repeats"] >= 1
    runs = run_length(table, again)
    steps = np.arange(len(again))
    # The tokens since the last checkpoint that said something new.
    before = np.where(step_of_row(table) >= runs, table.thinking_tokens[steps - runs], 0)
    said: Bools = (runs > 0) & (table.thinking_tokens - before >= parameters["tokens"])
    return said


LOOP = Rule(
    name="loop",
    needs=("text_repeats",),
    grid=lambda table: [{"tokens": float(2**k)} for k in range(3, 13)],
    stops=lambda table, parameters: first_stop(table, _all_again(table, parameters)),
)
"""Nothing but what was written before, for so many tokens (vLLM #52673): the thinking is closed and
answered. Recordings keep no token ids, so it is read from the words at checkpoints: every sequence
of three of them stood there before. Served decodes are watched token by token instead
(``rlbudget.signals.loops``)."""

RULES = (CLAIMS, CONCLUSIONS, HEDGES, REPEATS)
