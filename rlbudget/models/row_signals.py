"""The signals of one row of logits, measured before its token is chosen: in numpy, for one decode.

``rlbudget.models.sampling.Distribution`` of a batch of one, at half of the time: at that size a
call costs more than its arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rlbudget.arrays import Float32s
from rlbudget.signals.tokens import NO_SENTENCE_END, TOP_K

_LOWEST = np.float32(-200.0)
_GROUP = 192


class RowSignals:
    """``measure`` the logits, then ask for the ``signals`` of the token that was chosen.

    ``end_ids`` are the tokens with which the end of the thinking can begin. Buffers are kept from
    step to step.
    """

    __slots__ = ("_below", "_end_ids", "_mass", "_normaliser", "_others", "highest")

    def __init__(self, end_ids: Sequence[int]) -> None:
        self._end_ids = list(end_ids)
        self._below = self._mass = np.empty(0, dtype=np.float32)
        self._normaliser, self._others = 0.0, (0.0,) * 5
        self.highest = 0.0
        """of the logits"""

    def measure(self, logits: Float32s) -> None:
        """Take raw ``logits``, (vocabulary,) float32."""
        if len(self._below) != len(logits):
            self._below, self._mass = np.empty_like(logits), np.empty_like(logits)
        below, mass = self._below, self._mass
        top = _top(logits)
        first = top[-1]
        with np.errstate(invalid="ignore"):  # infinity less itself is NaN, and is seen as such
            np.subtract(logits, first, out=below)
            np.exp(below, out=mass)
            total = float(mass.sum())
            surprise = float(mass.dot(below))
            if not math.isfinite(surprise):
                # The mass is 0 long before the bound; 0 times it is 0, 0 times -inf is not.
                np.maximum(below, _LOWEST, out=below)
                surprise = float(mass.dot(below))
        end = sum(float(mass[token]) for token in self._end_ids)
        self.highest, nat = float(first), float("nan")
        self._normaliser = math.log(total) if total > 0 else nat
        mean = float(top.mean(dtype=np.float64)) - self.highest
        self._others = (
            self._normaliser - surprise / total if total > 0 else nat,
            self.highest - float(top[-2]),
            end / total if total > 0 else nat,
            mean - self._normaliser,
            min(-math.log(end), NO_SENTENCE_END) if end > 0 else NO_SENTENCE_END,
        )

    def signals(self, token: int) -> tuple[float, ...]:
        """``TOKEN_SIGNALS`` of the token that was chosen since."""
        return (float(self._below[token]) - self._normaliser, *self._others)


def _top(logits: Float32s) -> Float32s:
    """The ``TOP_K`` highest, rising; NaN is the highest of all."""
    groups = len(logits) // _GROUP
    high = logits
    if groups >= 4 * TOP_K:
        # None of them is below the lowest of the highest of as many groups.
        best = logits[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
        least = np.partition(best, groups - TOP_K)[groups - TOP_K]
        found = logits[logits >= least]
        if len(found) >= TOP_K:
            high = found
    k = min(TOP_K, len(high))
    if len(high) > 4 * k:
        high = np.partition(high, len(high) - k)[-k:]
    return np.sort(high)[-k:]
