"""The paired Bayesian bootstrap: random weights of the questions, the same for every method.

A draw gives ``q`` questions and one that was not seen weights from a flat Dirichlet distribution
(Rubin, 1981, https://doi.org/10.1214/aos/1176345338). Means of values without known bounds leave
the unseen question out and widen the draws to Student's t. Values with known bounds give it the
worst and the best value there is, which bounds the mean as Gaffke (2005) does: exact
(Clopper-Pearson) for values of two kinds, and never without width, because what was not seen in
``q`` questions may still happen. ``rlbudget.evaluate.verdicts`` makes verdicts of the second kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Floats, Ints, Strs

FEWEST_QUESTIONS = 6
"""Fewer prove nothing at the 5% level: signs that all agree have p = 2^(1 - 5) = 0.0625 in a
two-sided test of 5 questions, 0.031 in one of 6."""


@dataclass(frozen=True, slots=True)
class Resampling:
    """Random weights of ``q`` questions and of one that was not seen."""

    question: Ints
    """(n,) the question of each trace, numbered from 0"""
    weights: Floats
    """(draws, q + 1) of each question in each draw, last that of the unseen one; each row has
    mean 1"""

    @property
    def questions(self) -> int:
        """How many there are."""
        return int(self.weights.shape[1]) - 1

    def means(self, values: npt.ArrayLike) -> Floats:
        """Weighted mean over the traces in each draw: (n,) or (n, k) -> (draws,) or (draws, k)."""
        per_trace = np.asarray(values, dtype=np.float64)
        columns = per_trace.reshape(len(per_trace), -1)
        sums = np.stack([self._sums(columns[:, k]) for k in range(columns.shape[1])], axis=1)
        seen = self.weights[:, :-1]
        means: Floats = (seen @ sums) / (seen @ self._traces())[:, None]
        return means[:, 0] if per_trace.ndim == 1 else means

    def bounds(self, values: npt.ArrayLike, *, low: float, high: float) -> tuple[Floats, Floats]:
        """Means of values (n,) in [``low``, ``high``] with the unseen question at either end.

        (draws,) with it at ``low``, (draws,) with it at ``high``; it has as many traces as the
        question with most. Raises ``ValueError`` for values out of range.
        """
        per_trace = np.asarray(values, dtype=np.float64)
        slack = 1e-9 * max(1.0, abs(low), abs(high))
        if len(per_trace) and not low - slack <= per_trace.min() <= per_trace.max() <= high + slack:
            raise ValueError(
                f"values from {per_trace.min():g} to {per_trace.max():g} are not all in"
                f" [{low:g}, {high:g}]"
            )
        sums, traces = self._sums(per_trace), self._traces()
        most = traces.max(initial=0)
        columns = np.stack([
            np.append(sums, low * most), np.append(sums, high * most), np.append(traces, most)
        ], axis=1)  # fmt: skip
        below, above, count = (self.weights @ columns).T
        return below / count, above / count

    def _sums(self, per_trace: Floats) -> Floats:
        """(q,) sum over the traces of each question."""
        return np.bincount(self.question, per_trace, self.questions).astype(np.float64)

    def _traces(self) -> Floats:
        """(q,) traces of each question."""
        return np.bincount(self.question, minlength=self.questions).astype(np.float64)


def resample(question_ids: Strs, *, draws: int, seed: int) -> Resampling:
    """Weight the questions at random, ``draws`` times; the same seed gives the same draws."""
    questions, question = np.unique(question_ids, return_inverse=True)
    shape = (draws, len(questions) + 1)
    weights = np.random.default_rng(seed).standard_exponential(shape)
    weights /= weights.mean(axis=1, keepdims=True)
    return Resampling(question.astype(np.int64), weights)


def interval(draws: Floats, questions: int, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of a number without bounds from its draws (draws,), as wide as Student's t.

    NaN for fewer than ``FEWEST_QUESTIONS`` and where the draws do not differ: without a spread and
    without bounds nothing is known of the questions not seen.
    """
    known, n = draws[~np.isnan(draws)], questions
    if n < FEWEST_QUESTIONS or not len(known) or np.ptp(known) <= 1e-12 * abs(known).max():
        return math.nan, math.nan
    # A draw's variance is (n - 1) / (n + 1) of the squared standard error of a mean.
    z = NormalDist().inv_cdf(0.5 + level / 2)
    stretch = math.sqrt((n + 1) / (n - 1)) * _student(z, n - 1) / z
    centre = float(known.mean())
    tail = (1 - level) / 2
    low, high = np.quantile(centre + stretch * (known - centre), [tail, 1 - tail])
    return float(low), float(high)


def _student(z: float, freedom: int) -> float:
    """The point of Student's t for the point ``z`` of the normal distribution (Cornish-Fisher;
    within 0.1% at 97.5% from 5 degrees on)."""  # fmt: skip
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p-values adjusted so that the chance of any false verdict among all of
    them stays below the level they are compared with."""  # fmt: skip
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
