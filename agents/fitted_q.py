"""Fitted-Q: backward induction by regression, one token price at a time.

Two regressors on the observation: the exact match of a stop here, and the return of going on.
A decode stops where stopping is predicted to be worth at least as much. The return of going on
is that of the recorded trace under the stops of the regressors before (Longstaff & Schwartz,
2001, https://doi.org/10.1093/rfs/14.1.113, with one pair of regressors for all checkpoints
instead of one a step); after a few rounds the best one by validation utility is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbudget.agents.exact import values_of
from rlbudget.arrays import Bools, Floats, Ints
from rlbudget.envs.replay_core import ReplayColumns, replay_columns
from rlbudget.errors import missing_extra
from rlbudget.policy import outcomes
from rlbudget.policy.observation import Preset, features_of
from rlbudget.traces.table import TraceTable

ROUNDS = 6


@dataclass(frozen=True, slots=True)
class FittedQ:
    """Pairs of regressors for each token price, one of each member; their mean decides."""

    features: tuple[str, ...]
    preset: Preset
    pairs: Mapping[float, tuple[tuple[Any, Any], ...]]
    """token price -> (exact match of a stop, return of going on) of each member"""

    @property
    def operating_prices(self) -> tuple[float, ...]:
        """Those it was fitted for."""
        return tuple(self.pairs)

    def stops(self, table: TraceTable, token_price: float) -> Ints:
        """(n,) the first checkpoint at which stopping looks as good as going on."""
        nearest = min(self.pairs, key=lambda price: abs(np.log(price / token_price)))
        columns = replay_columns(table, features=self.features)
        means = np.mean(
            [advantages(columns, token_price, *pair) for pair in self.pairs[nearest]], axis=0
        )
        return outcomes.first_stop(table, means >= 0)


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
    charged = outcomes.charged_by(preset, validation, features)
    columns, judged = (replay_columns(table, features=features) for table in (train, validation))
    seen = columns.inputs[:, :-1]
    right = regressor(seed).fit(seen, train.exit_exact_match)
    pairs = {}
    for price in token_prices:
        says = np.zeros(len(seen), dtype=bool)
        best, kept = -np.inf, None
        for number in range(ROUNDS):
            go_on = regressor(seed + number).fit(seen, returns_of(columns, price, says))
            says = advantages(columns, price, right, go_on) >= 0
            stops = outcomes.first_stop(validation, advantages(judged, price, right, go_on) >= 0)
            result = outcomes.outcome(validation, stops, probes_charged=charged)
            value = float(outcomes.utility(result, price).mean())
            if value > best:
                best, kept = value, go_on
        pairs[float(price)] = ((right, kept),)
    return FittedQ(features, preset, pairs)


def regressor(seed: int) -> Any:
    """Gradient boosting, unfitted. Needs scikit-learn (``UserError`` without it)."""
    try:
        from sklearn.ensemble import HistGradientBoostingRegressor
    except ImportError as missing:
        raise missing_extra("train", "scikit-learn") from missing
    return HistGradientBoostingRegressor(
        max_iter=80, learning_rate=0.08, max_leaf_nodes=15, min_samples_leaf=40,
        l2_regularization=1.0, early_stopping=False, random_state=seed,
    )  # fmt: skip


def returns_of(columns: ReplayColumns, price: float, says: Bools) -> Floats:
    """(m,) what going on gives, with a stop where ``says`` (m,) is true."""
    table = columns.table
    exits = table.exit_exact_match - price * columns.exit_tokens
    natural = table.final_exact_match - price * columns.full_tokens
    return values_of(says.astype(np.float64), exits, natural, table.offsets).go_on


def advantages(columns: ReplayColumns, price: float, right: Any, go_on: Any) -> Floats:
    """(m,) what stopping is predicted to be worth more than going on.

    ``right`` and ``go_on`` are the regressors of the exact match of a stop and of the return of
    going on.
    """
    seen = columns.inputs[:, :-1]
    found: Floats = np.clip(right.predict(seen), 0, 1) - price * columns.exit_tokens
    found -= go_on.predict(seen)
    return found
