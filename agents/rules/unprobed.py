"""Rules that need nothing but the decode itself: budgets, a coin, and the free signals."""

from __future__ import annotations

import numpy as np

from rlbudget.agents.rules.rule import Parameters, Rule, threshold_rule
from rlbudget.arrays import Floats
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import budget_grid, first_stop, fixed_stops, full_stops
from rlbudget.signals.repeats import TOKEN_REPEATS
from rlbudget.traces.table import TraceTable

FULL = Rule(
    name="full",
    needs=(),
    grid=lambda table: (),
    stops=lambda table, parameters: full_stops(table),
)
FIXED = Rule(
    name="fixed",
    needs=(),
    grid=lambda table: [{"budget": b} for b in budget_grid(table) if np.isfinite(b)],
    stops=lambda table, parameters: fixed_stops(table, parameters["budget"]),
)
RANDOM = Rule(
    name="random",
    needs=(),
    grid=lambda table: [
        {"probability": p} for p in (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
    ],
    stops=lambda table, parameters: np.full(
        len(table.thinking_tokens), parameters["probability"], dtype=np.float64
    ),
)
P_END = threshold_rule("p_end", ("p_end_max",), lambda table: table.signals["p_end_max"])
CERTAIN = threshold_rule(
    "certain",
    ("entropy_mean",),
    lambda table: -observe(table, ("entropy_mean.ema",))[:, 0].astype(np.float64),
)


VERBATIM = threshold_rule(
    "verbatim",
    (TOKEN_REPEATS,),
    lambda table: observe(table, (f"{TOKEN_REPEATS}.ema",))[:, 0].astype(np.float64),
)
"""The moving average of the tokens that only repeat what was written before is high."""


THINKBRAKE = Rule(
    name="thinkbrake",
    needs=("end_gap_min",),
    grid=lambda table: [
        {"tau": t} for t in (0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
    ],
    stops=lambda table, parameters: first_stop(
        table, table.signals["end_gap_min"] <= parameters["tau"]
    ),
)
"""At a sentence end the end of the thinking was as likely as anything, but for ``tau`` nats."""


def _surplus(table: TraceTable, drift: float) -> Floats:
    """(m,) the cumulative sum of ``drift - entropy`` that never falls below 0."""
    entropy = np.nan_to_num(table.signals["entropy_mean"], nan=np.inf)
    out = np.zeros(len(entropy))
    held = np.zeros(len(table))
    for traces, rows in table.lockstep():
        held[traces] = np.maximum(0.0, held[traces] + drift - entropy[rows])
        out[rows] = held[traces]
    return out


def _cusum_grid(table: TraceTable) -> list[Parameters]:
    entropy = table.signals["entropy_mean"]
    drifts = np.unique(np.nanquantile(entropy, (0.25, 0.5, 0.75, 0.9)))
    return [
        {"drift": float(drift), "height": float(height)}
        for drift in drifts
        for height in np.unique(np.quantile(_surplus(table, drift), np.linspace(0.1, 1, 12)))
        if height > 0
    ]


ENTROPY = Rule(
    name="entropy",
    needs=("entropy_mean",),
    grid=_cusum_grid,
    stops=lambda table, parameters: first_stop(
        table, _surplus(table, parameters["drift"]) >= parameters["height"]
    ),
)
"""CUSUM on the entropy: it has been below ``drift`` for long enough or by enough."""


def group_confidence(table: TraceTable, window: float) -> Floats:
    """(m,) mean of minus the mean top-k log-probability over the last ``window`` thinking tokens.

    Checkpoints are counted whole; NaN until the window is full.
    """
    values = -table.signals["topk_mean"]
    tokens = table.thinking_tokens.astype(np.float64)
    first = table.offsets[:-1][table.trace_of_row]
    rows = np.arange(len(values))
    before = np.where(rows > first, np.roll(tokens, 1), 0.0)
    weight = np.where(np.isnan(values), 0.0, tokens - before)
    sums = np.concatenate([[0.0], np.cumsum(np.where(weight > 0, values, 0.0) * weight)])
    weights = np.concatenate([[0.0], np.cumsum(weight)])
    # The first row whose tokens lie in the window: tokens before it are at most t - window.
    key = table.trace_of_row * (tokens.max(initial=0) + window + 1)
    from_row = np.searchsorted(key + before, key + tokens - window, side="left")
    from_row = np.maximum(from_row, first)
    inside = weights[rows + 1] - weights[from_row]
    mean = np.divide(
        sums[rows + 1] - sums[from_row], inside, out=np.full(len(values), np.nan), where=inside > 0
    )
    return np.where(tokens >= window, mean, np.nan)


def _deepconf_grid(table: TraceTable) -> list[Parameters]:
    lengths = np.quantile(table.final_thinking_tokens, (0.1, 0.25, 0.5)).round()
    found: list[Parameters] = []
    for window in sorted({2048.0, *lengths.tolist()}):
        confidence = group_confidence(table, window)
        lowest = np.full(len(table), np.nan)
        np.fmin.at(lowest, table.trace_of_row, confidence)
        if np.isnan(lowest).all():
            continue
        for percentile in (10.0, 90.0):
            threshold = float(np.nanpercentile(lowest, percentile))
            found += [
                {"window": window, "percentile": percentile, "threshold": threshold, "side": side}
                for side in (-1.0, 1.0)
            ]
    return found


DEEPCONF = Rule(
    name="deepconf",
    needs=("topk_mean",),
    grid=_deepconf_grid,
    stops=lambda table, parameters: first_stop(
        table,
        parameters["side"]
        * (group_confidence(table, parameters["window"]) - parameters["threshold"])
        > 0,
    ),
)
"""Group confidence leaves a percentile of the lowest ones of the training traces: below it
(``side`` -1, as published) or above it (1)."""


RULES = (FULL, FIXED, RANDOM, P_END, CERTAIN, ENTROPY, THINKBRAKE, DEEPCONF)
