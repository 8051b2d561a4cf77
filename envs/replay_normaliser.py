"""The normaliser: raw observation and token price to what the network sees.

The frozen policy (``rlbudget.policy.network``) has the same formula; a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Float32s, Floats
from rlbudget.errors import UserError
from rlbudget.policy.prices import check_price_range

CLIP = 5.0


@dataclass(frozen=True, slots=True)
class Normaliser:
    """Mean and deviation of every feature, and the price range."""

    mean: Float32s
    """(n_features,)"""
    std: Float32s
    """(n_features,) never 0"""
    token_price: tuple[float, float]
    """lowest and highest, in reward per token"""
    clip: float = CLIP
    """standard deviations beyond which a feature is cut off"""

    def features(self, observations: Float32s) -> Float32s:
        """(n, n_features) raw -> (n, n_features) float32 in [-clip, clip]."""
        scaled: Float32s = np.clip((observations - self.mean) / self.std, -self.clip, self.clip)
        return scaled

    def price(self, token_price: npt.ArrayLike) -> Floats:
        """Token prices -> -1 at the lowest of the range, 1 at the highest, log scale between."""
        low, high = np.log(self.token_price)
        place: Floats = (np.log(np.asarray(token_price, dtype=np.float64)) - low) / (high - low)
        return place * 2 - 1

    def inputs(self, observations: Float32s, token_price: npt.ArrayLike) -> Float32s:
        """The network's input: float32, shape (n, n_features + 1).

        ``observations`` are raw, (n, n_features); ``token_price`` is one number or (n,).
        """
        out = np.empty((len(observations), observations.shape[1] + 1), dtype=np.float32)
        out[:, :-1] = self.features(observations)
        out[:, -1] = self.price(token_price)
        return out


def fit_normaliser(observations: Float32s, token_price: tuple[float, float]) -> Normaliser:
    """Fit on the observations at every checkpoint of the training traces, (m, n_features).

    A feature that never varies keeps deviation 1, so that it stays 0 instead of exploding.
    """
    if not len(observations):
        raise UserError("the training traces hold no checkpoint: record with a smaller stride")
    mean = observations.mean(axis=0, dtype=np.float64)
    std = observations.std(axis=0, dtype=np.float64)
    std = np.where(std > 1e-6 * np.maximum(1.0, np.abs(mean)), std, 1.0)
    return Normaliser(
        mean=mean.astype(np.float32),
        std=std.astype(np.float32),
        token_price=check_price_range(token_price),
    )
