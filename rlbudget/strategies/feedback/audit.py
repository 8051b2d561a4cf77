"""Evaluation in production, request by request: what is saved and what is lost, with a bound.

A share of the requests, drawn by chance alone, is *audited*: they run to their natural end, and
the answer that the policy's stop would have given is kept beside the full one. Their mean savings
are therefore unbiased, and so is their mean loss where targets are known. A user's verdict tells
less: where the full answer is wrong, another one that the stop would have given may be right or
wrong. Such a request is not left out, which would favour one side: it counts as a loss of 0 for
the upper end of the interval and as a gain of 1 for the lower one. The intervals hold at all times
together, however often one looks (betting confidence sequences of Waudby-Smith & Ramdas, 2020,
https://arxiv.org/abs/2010.09686), and a Page-Hinkley test (Page, 1954,
https://doi.org/10.1093/biomet/41.1-2.100) says when the loss has risen.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from rlbudget.arrays import Floats
from rlbudget.errors import UserError

_GRID = 401
_MOST_BET = 0.5
"""largest bet, as a share of the one that could lose everything"""


def audited(request_id: str, share: float, *, key: str = "") -> bool:
    """Whether a request is audited: by chance, yet always the same for the same id and ``key``.

    ``share`` in [0, 1] is the chance. Nothing of the request's content enters.
    """
    digest = hashlib.sha256(f"{key}\0{request_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


@dataclass(frozen=True, slots=True)
class Audit:
    """An audited request: its full decode, and what the policy's stop would have given."""

    full_exact_match: float
    """0 or 1, or any score in [0, 1]"""
    stopped_exact_match: float
    full_tokens: int
    stopped_tokens: int
    may_be_right: bool = False
    """whether what the stop gave, counted as wrong, may be right: nobody knows"""

    def __post_init__(self) -> None:
        for value in (self.full_exact_match, self.stopped_exact_match):
            if not 0 <= value <= 1:
                raise ValueError(f"a score of {value}: it must lie in [0, 1]")
        if self.full_tokens < 1 or self.stopped_tokens < 0:
            raise ValueError("tokens are counted from 1")

    @property
    def loss(self) -> float:
        """Exact match lost, in [-1, 1]: the most that it can be."""
        return self.full_exact_match - self.stopped_exact_match

    @property
    def least_loss(self) -> float:
        """The least that it can be."""
        return self.full_exact_match - 1 if self.may_be_right else self.loss

    @property
    def saving(self) -> float:
        """Share of the full decode's tokens saved, in [-1, 1]: worse than -1 counts as -1."""
        return saving_of(self.full_tokens, self.stopped_tokens)


def saving_of(full_tokens: int, stopped_tokens: int) -> float:
    """Share of a full decode's tokens saved, in [-1, 1]: worse than -1 counts as -1."""
    return max(1 - stopped_tokens / max(full_tokens, 1), -1.0)


class ConfidenceSequence:
    """An interval for a mean that holds at all times at once with a chance of ``confidence``.

    For values in [low, high]; O(``points``) a value. The interval never widens, and never shrinks
    to a point: where a drift has refuted every mean, the last interval before stays.
    """

    def __init__(
        self, *, low: float = -1.0, high: float = 1.0, confidence: float = 0.95,
        points: int = _GRID,
    ) -> None:  # fmt: skip
        if not 0 < confidence < 1:
            raise UserError(f"confidence is {confidence:g}: it must be between 0 and 1")
        self._low, self._span = low, high - low
        self._alpha = 1 - confidence
        self._means: Floats = np.linspace(0, 1, points)
        self._over = np.zeros(points)  # log fortunes of bets that the mean is higher than each
        self._under = np.zeros(points)
        self._possible = np.ones(points, dtype=bool)
        self._sum, self._squares = 0.5, 0.25
        self.count = 0
        """values seen"""

    @property
    def mean(self) -> float:
        """Of the values; NaN before the first."""
        if not self.count:
            return math.nan
        return self._low + self._span * (self._sum - 0.5) / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Lowest and highest mean that can still be true."""
        left = self._means[self._possible]
        step = 1 / (len(self._means) - 1)
        low, high = max(float(left[0]) - step, 0.0), min(float(left[-1]) + step, 1.0)
        return self._low + self._span * low, self._low + self._span * high

    def add(self, value: float) -> None:
        """Take the next value. Raises ``ValueError`` for one out of range."""
        x = (value - self._low) / self._span
        if not -1e-12 <= x <= 1 + 1e-12:
            raise ValueError(f"{value} is out of range")
        self.count += 1
        spread = self._squares / self.count
        bet = math.sqrt(
            2 * math.log(2 / self._alpha) / (spread * self.count * math.log1p(self.count))
        )
        with np.errstate(divide="ignore"):
            over = np.minimum(bet, _MOST_BET / self._means)
            under = np.minimum(bet, _MOST_BET / (1 - self._means))
        self._over += np.log1p(over * (x - self._means))
        self._under += np.log1p(-under * (x - self._means))
        # Half of the fortune on each side: their sum is a martingale at the true mean.
        together = np.logaddexp(self._over, self._under) - math.log(2)
        possible = self._possible & (together < math.log(1 / self._alpha))
        if possible.any():  # else the values have no one mean: the last interval stays
            self._possible = possible
        self._sum += x
        mean = self._sum / (self.count + 1)
        self._squares += (x - mean) ** 2


class PageHinkley:
    """Says when the mean of a stream has risen; O(1) a value.

    ``tolerance`` is a rise that is ignored, ``threshold`` the accumulated rise above it that is an
    alarm, ``least`` the number of values before the first alarm.
    """

    def __init__(self, *, tolerance: float = 0.01, threshold: float = 5.0, least: int = 30) -> None:
        self._tolerance, self._threshold, self._least = tolerance, threshold, least
        self._restart()

    def _restart(self) -> None:
        self._count, self._mean, self._total, self._lowest = 0, 0.0, 0.0, 0.0

    def add(self, value: float) -> bool:
        """Take the next value; whether it is an alarm, after which counting begins anew."""
        self._count += 1
        self._mean += (value - self._mean) / self._count
        self._total += value - self._mean - self._tolerance
        self._lowest = min(self._lowest, self._total)
        alarm = self._count >= self._least and self._total - self._lowest > self._threshold
        if alarm:
            self._restart()
        return alarm


@dataclass(frozen=True, slots=True)
class StreamReport:
    """What is known of the stream."""

    audits: int
    """whose outcome is known"""
    open: int
    """of those, the ones whose outcome does not tell whether the stop gave a right answer"""
    loss: float
    """mean exact match lost; with ``open`` ones the most that it can be"""
    loss_interval: tuple[float, float]
    """holds at all times at once, whatever the ``open`` ones are"""
    measured: int
    """audits whose savings are known: all, with an outcome or without"""
    saving: float
    """mean share of tokens saved"""
    saving_interval: tuple[float, float]
    recent_loss: float
    """over the window"""
    recent_saving: float
    alarms: tuple[int, ...]
    """audits at which the loss was found to have risen"""


class StreamEvaluator:
    """Keeps the loss and the savings of a policy in production from its audited requests."""

    def __init__(
        self, *, confidence: float = 0.95, window: int = 200, drift: PageHinkley | None = None
    ) -> None:
        if window < 1:
            raise UserError(f"window must be at least 1 audit, not {window}")
        # All together hold with the confidence asked for: the two ends of the loss, the savings.
        each = 1 - (1 - confidence) / 3
        self._loss = ConfidenceSequence(confidence=each)
        self._least = ConfidenceSequence(confidence=each)
        self._saving = ConfidenceSequence(confidence=each)
        self._open = 0
        self._recent_loss: deque[float] = deque(maxlen=window)
        self._recent_saving: deque[float] = deque(maxlen=window)
        self._drift = drift or PageHinkley()
        self._alarms: list[int] = []

    def add(self, audit: Audit) -> bool:
        """Take an audited request; whether the loss is found to have risen."""
        self._loss.add(audit.loss)
        self._least.add(audit.least_loss)
        self._open += audit.may_be_right
        self._recent_loss.append(audit.loss)
        self.saved(audit.saving)
        alarm = self._drift.add(audit.loss)
        if alarm:
            self._alarms.append(self._loss.count)
        return alarm

    def saved(self, saving: float) -> None:
        """Take the saving of an audited request whose outcome nobody told."""
        self._saving.add(saving)
        self._recent_saving.append(saving)

    @property
    def report(self) -> StreamReport:
        """Everything so far."""
        return StreamReport(
            audits=self._loss.count,
            open=self._open,
            loss=self._loss.mean,
            loss_interval=(self._least.interval[0], self._loss.interval[1]),
            measured=self._saving.count,
            saving=self._saving.mean,
            saving_interval=self._saving.interval,
            recent_loss=_mean(self._recent_loss),
            recent_saving=_mean(self._recent_saving),
            alarms=tuple(self._alarms),
        )


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values) if values else math.nan
