"""What a model gives at a token price, served by its own policy or left to its natural end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Floats, Ints
from rlbudget.policy.outcomes import Outcome
from rlbudget.policy.prices import nearest_price
from rlbudget.policy.replay import Replay, replay
from rlbudget.policy.stop_policy import Full, StopPolicy
from rlbudget.traces.table import TraceTable

GRID = 17
"""prices in a handover; over two decades, steps of a third"""


@dataclass(frozen=True, slots=True)
class Handover:
    """What the large model gives when it is asked: ``n`` traces at ``g`` token prices.

    Between two prices it is served at the nearer one, by their ratio.
    """

    token_prices: Floats
    """(g,) rising, reward per token of the large model"""
    exact_match: Floats
    """(g, n)"""
    tokens: Floats
    """(g, n) all of its tokens"""

    def place(self, token_price: npt.ArrayLike) -> Ints:
        """The nearest price of the grid for each of these: their shape, int64."""
        between = np.log(self.token_prices[1:] * self.token_prices[:-1]) / 2
        found: Ints = np.searchsorted(between, np.log(token_price)).astype(np.int64)
        return found


def served(policy: StopPolicy | None, table: TraceTable, token_price: float) -> Replay:
    """Replay a model under its policy, or its full decodes where there is none.

    ``token_price`` is per token of this model; outside the policy's range it is served at the
    nearest price inside.
    """
    policy = policy or Full()
    return replay(policy, table, nearest_price(token_price, policy.price_range))


def handover(
    policy: StopPolicy | None, large: TraceTable, token_price: tuple[float, float]
) -> Handover:
    """Replay the large model at prices from the lowest to the highest, evenly apart by ratio."""
    grid = np.geomspace(*token_price, GRID) if policy is not None else np.array([token_price[0]])
    given = [served(policy, large, float(price)).outcome for price in grid]
    return Handover(
        grid,
        np.array([outcome.exact_match for outcome in given]),
        np.array([outcome.tokens for outcome in given]),
    )


def in_large_tokens(outcome: Outcome, ratio: float) -> Outcome:
    """The small model's outcome, its tokens counted as those of the large one."""
    return Outcome(
        outcome.exact_match,
        ratio * outcome.thinking,
        ratio * outcome.probe,
        ratio * outcome.answer,
    )
