"""Fitting the meta-model of an ensemble of policies: a logistic regression on their chances.

What it learns at a checkpoint is whether to stop earns more than to go on. What going on earns
depends on the stops that follow, so this is policy iteration: the record gives the return of both
actions at every checkpoint under the present blend, a weighted logistic regression ("is stopping
better", weighted by how much better and by the chance to get there) gives the next blend, and the
best of all rounds on the validation questions is kept. The first is the plain mean of log-odds.
Serving it needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlbudget.agents.exact import values_of
from rlbudget.agents.validation import gap_weight
from rlbudget.arrays import Floats
from rlbudget.errors import UserError, missing_extra
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import RELATIVE_PRICES, token_price_of, utility
from rlbudget.policy.prices import in_range
from rlbudget.policy.replay import replay
from rlbudget.strategies.ensemble import Blend, Ensemble, ensemble, log_odds
from rlbudget.strategies.steered import SteeredPolicy
from rlbudget.traces.table import TraceTable

try:
    from sklearn.linear_model import LogisticRegression
except ImportError as missing:
    raise missing_extra("train", "scikit-learn") from missing

if TYPE_CHECKING:
    from rlbudget.console import Advance

ROUNDS = 4
EXPLORATION = 0.1
"""least chance of either action where it is counted who gets to a checkpoint"""


def fit_blend(
    members: Sequence[Policy],
    train: TraceTable,
    validation: TraceTable,
    *,
    price_factors: Sequence[float] | None = None,
    progress: Advance | None = None,
) -> SteeredPolicy:
    """An ensemble whose members are weighed as is best on recorded traces.

    The two tables must share no question. It is fitted at the relative prices of the training
    traces that all members serve. Raises ``UserError`` as ``ensemble`` does, for a shared question,
    for members that serve none of these prices and for the ``probe`` preset.
    """
    start = Blend((1 / max(len(members), 1),) * len(members))
    first = ensemble(members, combine=start, price_factors=price_factors)
    if first.preset != "free":
        raise UserError("a blend is fitted to policies of the free preset")
    if np.intersect1d(train.question_ids, validation.question_ids).size:
        raise UserError("a question is both in the training and in the validation traces")
    prices = [token_price_of(relative, train) for relative in RELATIVE_PRICES]
    prices = [price for price in prices if in_range(price, first.price_range)]
    if not prices:
        raise UserError("the members serve none of the relative prices of these traces")
    weigh = (
        gap_weight(train, first.price_range) if len(set(first.price_range)) > 1 else np.ones_like
    )
    weights = weigh(np.array(prices))
    assert isinstance(first.steering, Ensemble)
    seen, rows = observe(train, first.features), len(train.thinking_tokens)
    chances = [first.steering.of_members(seen, price) for price in prices]
    columns = [
        np.stack([*map(log_odds, each), np.full(rows, np.log10(price))], axis=1)
        for each, price in zip(chances, prices, strict=True)
    ]
    x = np.concatenate(columns)
    best, blend = first, start
    highest = _worth(first, validation, prices, weights)
    for done in range(ROUNDS):
        if progress is not None:
            progress(done, ROUNDS)
        gains = []
        for each, price, weight in zip(chances, prices, weights, strict=True):
            tokens = train.thinking_tokens + train.exit_answer_tokens
            exits = train.exit_exact_match - price * tokens
            natural = train.final_exact_match - price * train.full_tokens
            stop = blend.chance(each, price)
            values = values_of(stop, exits, natural, train.offsets, EXPLORATION)
            gains.append(weight * values.reach * (exits - values.go_on))
        gain = np.concatenate(gains)
        if len(np.unique(gain > 0)) < 2:
            break
        share = np.abs(gain) / np.abs(gain).mean()
        head = LogisticRegression(solver="newton-cholesky").fit(x, gain > 0, share)
        *each_weight, price_weight = head.coef_[0].tolist()
        blend = Blend(tuple(each_weight), price_weight, float(head.intercept_[0]))
        fitted = ensemble(members, combine=blend, price_factors=price_factors)
        worth = _worth(fitted, validation, prices, weights)
        if worth > highest:
            best, highest = fitted, worth
    if progress is not None:
        progress(ROUNDS, ROUNDS)
    return best


def _worth(
    policy: SteeredPolicy, table: TraceTable, prices: Sequence[float], weights: Floats
) -> float:
    """Mean utility over the prices, each weighted by what there is to gain."""
    seen = observe(table, policy.features)
    means = [
        float(utility(replay(policy, table, price, seen).outcome, price).mean()) for price in prices
    ]
    return float(np.dot(weights, means))
