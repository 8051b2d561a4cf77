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

Floats = npt.NDArray[np.float64]
Combine = Literal["mean", "vote"]


@dataclass(frozen=True, slots=True)
class EnsemblePolicy:
    """Members of one observation; live and in a replay."""

    members: tuple[Policy, ...]
    price_factors: tuple[float, ...]
    """times the token price, for each member"""
    combine: Combine

    @property
    def preset(self) -> str:
        """That of the members."""
        return self.members[0].preset

    @property
    def features(self) -> tuple[str, ...]:
        """That of the members."""
        return self.members[0].features

    @property
    def price_range(self) -> tuple[float, float]:
        """Prices that every member serves; with factors, clipped to each member's own range."""
        return (
            max(member.price_range[0] for member in self.members),
            min(member.price_range[1] for member in self.members),
        )

    @property
    def threshold(self) -> float:
        """A half: of the mean chance, or of the votes."""
        return 0.5

    @property
    def recorded(self) -> dict[str, Any]:
        """That of the first member."""
        return self.members[0].recorded

    def chances(self, observations: npt.ArrayLike, token_price: float) -> tuple[Floats, Floats]:
        """(n, n_features) -> chance to stop or share of votes for it, (n,), and zeros."""
        each = []
        for member, factor in zip(self.members, self.price_factors, strict=True):
            low, high = member.price_range
            price = min(max(token_price * factor, low), high)
            chance = member.chances(observations, price)[0]
            each.append(chance if self.combine == "mean" else chance > member.threshold)
        together: Floats = np.mean(each, axis=0, dtype=np.float64)
        return together, np.zeros(len(together))

    def __call__(self, observation: npt.ArrayLike, *, token_price: float) -> Decision:
        """Decide at one checkpoint."""
        chance = float(self.chances(np.asarray(observation)[None, :], token_price)[0][0])
        return Decision(stop=chance > self.threshold, stop_probability=chance)


def ensemble(
    members: Sequence[Policy],
    *,
    combine: Combine = "mean",
    price_factors: Sequence[float] | None = None,
) -> EnsemblePolicy:
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
    together = EnsemblePolicy(tuple(members), factors, combine)
    low, high = together.price_range
    if low > high:
        raise UserError("the members of an ensemble serve no price in common")
    return together
