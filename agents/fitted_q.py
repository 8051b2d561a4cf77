"""Fitted-Q: backward induction by regression, one token price at a time.

Two regressors on the observation: the exact match of a stop here, and the return of going on.
A decode stops where stopping is predicted to be worth at least as much. The return of going on
is that of the recorded trace under the stops of the regressors before (Longstaff & Schwartz,
2001, https://doi.org/10.1093/rfs/14.1.113, with one pair of regressors for all checkpoints
instead of one a step); after a few rounds the best one by validation utility is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbudget.agents.exact import values_of
from rlbudget.errors import missing_extra
from rlbudget.policy import outcomes
from rlbudget.policy.observation import Float32s, Preset, features_of, observe
from rlbudget.policy.outcomes import Bools, Floats, Ints, Probing
from rlbudget.traces.table import TraceTable

ROUNDS = 6


@dataclass(frozen=True, slots=True)
class FittedQ:
    """A pair of regressors for each token price."""

    features: tuple[str, ...]
    charged: Probing
    pairs: dict[float, tuple[Any, Any]]
    """token price -> (exact match of a stop, return of going on)"""

    @property
    def operating_prices(self) -> tuple[float, ...]:
        """Those it was fitted for."""
        return tuple(self.pairs)

    def stops(self, table: TraceTable, token_price: float) -> Ints:
        """(n,) the first checkpoint at which stopping looks as good as going on."""
        nearest = min(self.pairs, key=lambda price: abs(np.log(price / token_price)))
        seen = observe(table, self.features)
        cost = _costs(table, self.charged)
        says = _says(seen, cost, token_price, *self.pairs[nearest])
        return outcomes.first_stop(table, says)


def fit_q(
    train: TraceTable,
    validation: TraceTable,
    token_prices: Sequence[float],
    *,
    preset: Preset = "free",
    seed: int = 0,
) -> FittedQ:
    """Fit on the training traces, choose the round on the validation traces.

    Needs scikit-learn (``UserError`` without it).
    """
    features = features_of(train, preset)
    charged: Probing = "until_stop" if preset == "probe" else "none"
    seen, judged = observe(train, features), observe(validation, features)
    cost, judged_cost = _costs(train, charged), _costs(validation, charged)
    right = _regressor(seed).fit(seen, train.exit_exact_match)
    pairs = {}
    for price in token_prices:
        exits = train.exit_exact_match - price * cost
        says = np.zeros(len(exits), dtype=bool)
        best, kept = -np.inf, None
        for number in range(ROUNDS):
            returns = _returns_of_going_on(train, says, exits, price, charged)
            go_on = _regressor(seed + number).fit(seen, returns)
            says = _says(seen, cost, price, right, go_on)
            chosen = _says(judged, judged_cost, price, right, go_on)
            result = outcomes.outcome(
                validation, outcomes.first_stop(validation, chosen), probes_charged=charged
            )
            value = float(outcomes.utility(result, price).mean())
            if value > best:
                best, kept = value, go_on
        pairs[float(price)] = (right, kept)
    return FittedQ(features, charged, pairs)


def _regressor(seed: int) -> Any:
    try:
        from sklearn.ensemble import HistGradientBoostingRegressor
    except ImportError as missing:
        raise missing_extra("train", "scikit-learn") from missing
    return HistGradientBoostingRegressor(
        max_iter=80, learning_rate=0.08, max_leaf_nodes=15, min_samples_leaf=40,
        l2_regularization=1.0, early_stopping=False, random_state=seed,
    )  # fmt: skip


def _costs(table: TraceTable, charged: Probing) -> Floats:
    """(m,) all tokens of a stop at each checkpoint."""
    tokens = (table.thinking_tokens + table.exit_answer_tokens).astype(np.float64)
    if isinstance(charged, str) and charged == "none":
        return tokens
    total = np.cumsum(table.probe_tokens)
    before = np.concatenate([[0], total])[table.offsets[:-1]]
    costs: Floats = tokens + total - np.repeat(before, table.lengths)
    return costs


def _says(seen: Float32s, cost: Floats, price: float, right: Any, go_on: Any) -> Bools:
    """(m,) where stopping is predicted to be worth at least as much as going on."""
    stop = np.clip(right.predict(seen), 0, 1) - price * cost
    says: Bools = stop >= go_on.predict(seen)
    return says


def _returns_of_going_on(
    table: TraceTable, says: Bools, exits: Floats, price: float, charged: Probing
) -> Floats:
    """(m,) the recorded utility of going on from each checkpoint and stopping where ``says``."""
    full = outcomes.outcome(table, outcomes.full_stops(table), probes_charged=charged)
    natural = outcomes.utility(full, price)
    return values_of(says.astype(np.float64), exits, natural, table.offsets).go_on
