"""Intervals for a mean that hold at all times at once and do not depend on the order of the values.

Bets of fixed sizes are placed on the mean being higher, and others on its being lower, than each
candidate; a candidate is refuted once the average fortune of either side reaches 2/alpha (Ville's
inequality; betting confidence sequences of Waudby-Smith & Ramdas, 2020,
https://arxiv.org/abs/2010.09686). The sizes span four orders of magnitude, and one of them is near
the best for any spread: the mixture costs the logarithm of their number. They are fixed before the
first value, so a fortune is a product in which order does not matter: a few counts are enough, and
whoever computes an interval from the same records gets the same one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Floats

BETS: Floats = np.geomspace(0.9, 0.9 / 2**13, 14)
"""sizes, as shares of what could lose everything"""
_STEPS = 45
"""halvings of a range: beyond the precision of a float"""


@dataclass(frozen=True, slots=True)
class Counted:
    """Values in [``low``, ``high``], and how often each was seen; shapes (k,)."""

    values: Floats
    counts: Floats
    low: float
    high: float

    @property
    def n(self) -> int:
        """Values seen."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Of the values; NaN before the first."""
        return float(self.values @ self.counts / self.counts.sum()) if self.n else float("nan")


def counted(values: npt.ArrayLike, *, low: float, high: float) -> Counted:
    """Count values (n,). Raises ``ValueError`` for one out of the range."""
    given = np.asarray(values, dtype=np.float64).ravel()
    slack = 1e-9 * (high - low)
    if given.size and not (given.min() >= low - slack and given.max() <= high + slack):
        raise ValueError(f"a value out of [{low:g}, {high:g}]")
    distinct, counts = np.unique(np.clip(given, low, high), return_counts=True)
    return Counted(distinct, counts.astype(np.float64), low, high)


def interval(seen: Counted, confidence: float) -> tuple[float, float]:
    """Lowest and highest mean that is not refuted; the whole range before the first value.

    ``confidence`` in (0, 1) is the chance that all intervals at all times hold the true mean.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence:g}: it must be between 0 and 1")
    if not seen.n:
        return seen.low, seen.high
    needed = float(np.log(2 / (1 - confidence)))
    span = seen.high - seen.low
    shares = (seen.values - seen.low) / span
    low = _end(shares, seen.counts, needed)
    high = 1 - _end(1 - shares, seen.counts, needed)
    return seen.low + span * low, seen.low + span * max(high, low)


def _end(shares: Floats, counts: Floats, needed: float) -> float:
    """The lowest mean of values in [0, 1] that bets on a higher one do not refute."""
    if log_fortune(shares, counts, 0.0) < needed:
        return 0.0
    refuted, possible = 0.0, 1.0  # the fortune falls as the candidate rises
    for _ in range(_STEPS):
        middle = (refuted + possible) / 2
        if log_fortune(shares, counts, middle) < needed:
            possible = middle
        else:
            refuted = middle
    return refuted


def log_fortune(shares: Floats, counts: Floats, mean: float) -> float:
    """The logarithm of the average fortune of bets that values in [0, 1] exceed ``mean``."""
    each = np.log1p(BETS[:, None] * (shares - mean)[None, :]) @ counts
    most = float(each.max())
    return most + float(np.log(np.mean(np.exp(each - most))))
