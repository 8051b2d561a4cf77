"""Several policies as one: by the mean of their chances to stop, by vote, or by a meta-model.

The members may be trained with different seeds, or be one policy at different prices. The
meta-model (``Blend``) weighs their chances; ``rlbudget.strategies.fit_blend`` fits it to traces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rlbudget.arrays import Floats
from rlbudget.errors import UserError
from rlbudget.policy.folder import Policy
from rlbudget.policy.prices import nearest_price
from rlbudget.strategies.steered import SteeredPolicy

Combine = Literal["mean", "vote"]
HALF = 0.5
"""it stops where the chance, or the share of the votes, is above it"""
SUREST = 12.0
"""a member's log-odds are clipped to +- this"""


@dataclass(frozen=True, slots=True)
class Blend:
    """A logistic regression on the members' log-odds and the price."""

    weights: tuple[float, ...]
    """one a member"""
    price_weight: float = 0.0
    """of log10(token price)"""
    offset: float = 0.0

    def chance(self, chances: Sequence[Floats], token_price: float) -> Floats:
        """The members' chances, (n,) each -> the chance to stop, (n,)."""
        odds = np.full(len(chances[0]), self.offset + self.price_weight * np.log10(token_price))
        for weight, chance in zip(self.weights, chances, strict=True):
            odds += weight * log_odds(chance)
        together: Floats = 1 / (1 + np.exp(-odds.clip(-700, 700)))  # exp must not overflow
        return together


def log_odds(chance: Floats) -> Floats:
    """Chances (n,) -> their log-odds, within ``SUREST``."""
    inner = np.clip(chance, 1e-9, 1 - 1e-9)
    odds: Floats = np.clip(np.log(inner / (1 - inner)), -SUREST, SUREST)
    return odds


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Members of one observation."""

    members: tuple[Policy, ...]
    price_factors: tuple[float, ...]
    """times the token price, for each member, within the member's own prices"""
    combine: Combine | Blend

    def stop_probabilities(self, observations: Any, token_price: float) -> Floats:
        """(n, n_features) -> chance to stop or share of votes for it, (n,)."""
        each = self.of_members(observations, token_price)
        if isinstance(self.combine, Blend):
            return self.combine.chance(each, token_price)
        if self.combine == "vote":
            says = [chance > m.threshold for chance, m in zip(each, self.members, strict=True)]
            share: Floats = np.mean(says, axis=0, dtype=np.float64)
            return share
        mean: Floats = np.mean(each, axis=0, dtype=np.float64)
        return mean

    def alone(self, observation: Any, token_price: float) -> float:
        """``stop_probabilities`` at one checkpoint, (n_features,)."""
        return float(self.stop_probabilities(observation[None], token_price)[0])

    def asks(self, token_price: float) -> list[tuple[Policy, float]]:
        """Each member and its price."""
        return [
            (member, nearest_price(token_price * factor, member.price_range))
            for member, factor in zip(self.members, self.price_factors, strict=True)
        ]

    def of_members(self, observations: Any, token_price: float) -> list[Floats]:
        """(n, n_features) -> each member's chance to stop, (n,)."""
        return [
            member.stop_probabilities(observations, price)
            for member, price in self.asks(token_price)
        ]


def ensemble(
    members: Sequence[Policy],
    *,
    combine: Combine | Blend = "mean",
    price_factors: Sequence[float] | None = None,
) -> SteeredPolicy:
    """Combine policies; ``price_factors`` (one a member, all 1 if left out) scale the price.

    ``combine`` is ``mean``, ``vote`` or a fitted ``Blend`` of as many members. Raises ``UserError``
    for members that do not fit together and bad factors.
    """
    if not members:
        raise UserError("an ensemble needs at least one policy")
    first = members[0]
    if any(member.features != first.features for member in members):
        raise UserError("the members of an ensemble must share one observation")
    if isinstance(combine, Blend) and len(combine.weights) != len(members):
        raise UserError(f"the blend is of {len(combine.weights)} members, not {len(members)}")
    factors = (1.0,) * len(members) if price_factors is None else tuple(price_factors)
    if len(factors) != len(members) or not all(factor > 0 for factor in factors):
        raise UserError("price_factors needs a number above 0 for each member")
    low = max(member.price_range[0] for member in members)
    high = min(member.price_range[1] for member in members)
    if low > high:
        raise UserError("the members of an ensemble serve no price in common")
    return SteeredPolicy(first, Ensemble(tuple(members), factors, combine), (low, high), HALF)
