"""Several policies as one: by the mean of their chances to stop, or by vote.

The members may be trained with different seeds, or be one policy at different prices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rlbudget.errors import UserError
from rlbudget.frozen import Decision
from rlbudget.policy import Policy
from rlbudget.strategies.steered import SteeredPolicy

Floats = npt.NDArray[np.float64]
Combine = Literal["mean", "vote"]
HALF = 0.5


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Members of one observation."""

    members: tuple[Policy, ...]
    price_factors: tuple[float, ...]
    """times the token price, for each member, within the member's own prices"""
    combine: Combine

    def chances(self, observations: Any, token_price: float) -> tuple[Floats, Floats]:
        """(n, n_features) -> chance to stop or share of votes for it, (n,), and zeros."""
        each = []
        for member, factor in zip(self.members, self.price_factors, strict=True):
            low, high = member.price_range
            chance = member.chances(observations, min(max(token_price * factor, low), high))[0]
            each.append(chance if self.combine == "mean" else chance > member.threshold)
        together: Floats = np.mean(each, axis=0, dtype=np.float64)
        return together, np.zeros(len(together))

    def decide(self, observation: npt.ArrayLike, token_price: float) -> Decision:
        """Stop where the mean chance, or the share of the votes, is above a half."""
        chance = float(self.chances(np.asarray(observation)[None, :], token_price)[0][0])
        return Decision(stop=chance > HALF, stop_probability=chance)


def ensemble(
    members: Sequence[Policy],
    *,
    combine: Combine = "mean",
    price_factors: Sequence[float] | None = None,
) -> SteeredPolicy:
    """Combine policies; ``price_factors`` (one a member, all 1 if left out) scale the price.

    Raises ``UserError`` for members that do not fit together, ``look`` policies and bad factors.
    """
    if not members:
        raise UserError("an ensemble needs at least one policy")
    first = members[0]
    if any(member.features != first.features for member in members):
        raise UserError("the members of an ensemble must share one observation")
    if first.preset == "look":
        raise UserError("policies of the look preset cannot be combined: each asks for its own")
    factors = (1.0,) * len(members) if price_factors is None else tuple(price_factors)
    if len(factors) != len(members) or not all(factor > 0 for factor in factors):
        raise UserError("price_factors needs a number above 0 for each member")
    low = max(member.price_range[0] for member in members)
    high = min(member.price_range[1] for member in members)
    if low > high:
        raise UserError("the members of an ensemble serve no price in common")
    return SteeredPolicy(first, Ensemble(tuple(members), factors, combine), (low, high), HALF)
