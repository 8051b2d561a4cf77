"""What the library needs of a stop policy, and the one that never stops."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rlbudget.arrays import Floats
from rlbudget.policy.network import Decision


class StopPolicy(Protocol):
    """Says at each checkpoint whether to stop; a call and a batch of one must agree.

    ``rlbudget.policy.folder.Policy`` is one, so is one under a strategy. A live decode needs
    ``features``, ``price_range`` and the call; a replay all but the call.
    """

    @property
    def preset(self) -> str:
        """``free``, ``probe`` or ``turns``: which trial answers it sees."""

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the observation's numbers, in order."""

    @property
    def price_range(self) -> tuple[float, float]:
        """Lowest and highest token price that it serves."""

    @property
    def threshold(self) -> float:
        """It stops where its chance to stop is above this."""

    def __call__(self, observation: Any, *, token_price: float) -> Decision:
        """Decide at one checkpoint: (n_features,) float32."""

    def stop_probabilities(self, observations: Any, token_price: Any) -> Floats:
        """(n, n_features) -> the chance to stop, (n,)."""


@dataclass(frozen=True, slots=True)
class Full:
    """Never stops, at any price: the full decode as a policy."""

    preset: str = "free"
    features: tuple[str, ...] = ("thinking_tokens",)
    price_range: tuple[float, float] = (0.0, math.inf)
    threshold: float = 1.0
    default_price: float = 0.0

    def __call__(self, observation: Any, *, token_price: float) -> Decision:
        """Go on."""
        return Decision(stop=False, stop_probability=0.0)

    def stop_probabilities(self, observations: Any, token_price: Any) -> Floats:
        """Zeros."""
        return np.zeros(len(observations))
