"""A policy under a strategy: an ensemble, a guard or rules in the place of a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Floats
from rlbudget.policy.folder import Policy
from rlbudget.policy.network import Decision


class Steering(Protocol):
    """What a strategy says instead of the policy."""

    def stop_probabilities(self, observations: Any, token_price: float) -> Floats:
        """(n, n_features) -> the chance to stop, (n,)."""

    def alone(self, observation: Any, token_price: float) -> float:
        """The same at one checkpoint, (n_features,), without arrays of one."""

    def asks(self, token_price: float) -> Sequence[tuple[AnyPolicy, float]]:
        """Which policies it asks at this price, and at what prices."""


@dataclass(frozen=True, slots=True)
class SteeredPolicy:
    """Takes a policy's place in a controller, a decode and a replay."""

    base: AnyPolicy
    """whose observation it reads"""
    steering: Steering
    price_range: tuple[float, float]
    """lowest and highest token price it serves"""
    threshold: float
    """it stops where the chance to stop is above it"""

    @property
    def preset(self) -> str:
        """That of the policy."""
        return self.base.preset

    @property
    def features(self) -> tuple[str, ...]:
        """Those of the policy."""
        return self.base.features

    @property
    def recorded(self) -> dict[str, Any]:
        """That of the policy."""
        return self.base.recorded

    def asks(self, token_price: float) -> Sequence[tuple[AnyPolicy, float]]:
        """Which policies are asked at this price, and at what prices."""
        return self.steering.asks(token_price)

    def stop_probabilities(self, observations: Any, token_price: float) -> Floats:
        """(n, n_features) -> the chance to stop, (n,)."""
        return self.steering.stop_probabilities(observations, token_price)

    def alone(self, observation: Any, token_price: float) -> float:
        """``stop_probabilities`` at one checkpoint, (n_features,)."""
        return self.steering.alone(observation, token_price)

    def __call__(self, observation: npt.ArrayLike, *, token_price: float) -> Decision:
        """Decide at one checkpoint."""
        stop = self.steering.alone(np.asarray(observation), token_price)
        return Decision(stop > self.threshold, stop)


AnyPolicy: TypeAlias = Policy | SteeredPolicy
"""What a strategy can stand over: a policy, or one that is steered already."""


def steered(base: AnyPolicy, steering: Steering) -> SteeredPolicy:
    """A policy under a strategy, at the policy's own prices and threshold."""
    return SteeredPolicy(base, steering, base.price_range, base.threshold)
