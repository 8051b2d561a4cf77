"""The paired bootstrap: questions are drawn with replacement, the same for every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Resampling:
    """Draws of ``q`` questions out of ``q``, as counts."""

    question: Ints
    """(n,) the question of each trace, numbered from 0"""
    counts: Floats
    """(draws, q) how often a draw holds each question"""

    def means(self, values: npt.ArrayLike) -> Floats:
        """Mean over the traces in each draw: (n,) or (n, k) -> (draws,) or (draws, k)."""
        per_trace = np.asarray(values, dtype=np.float64)
        columns = per_trace.reshape(len(per_trace), -1)
        n_questions = self.counts.shape[1]
        sums = np.empty((n_questions, columns.shape[1]))
        for column in range(columns.shape[1]):
            sums[:, column] = np.bincount(self.question, columns[:, column], n_questions)
        n_traces = self.counts @ np.bincount(self.question, minlength=n_questions)
        means = (self.counts @ sums) / n_traces[:, None]
        return means[:, 0] if per_trace.ndim == 1 else means


def resample(question_ids: npt.NDArray[np.str_], *, draws: int, seed: int) -> Resampling:
    """Draw questions with replacement, ``draws`` times; the same seed gives the same draws."""
    questions, question = np.unique(question_ids, return_inverse=True)
    n = len(questions)
    drawn = np.random.default_rng(seed).integers(0, n, (draws, n))
    drawn += n * np.arange(draws)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n)
    return Resampling(question.astype(np.int64), counts.astype(np.float64))


def p_value(draws: Floats) -> float:
    """Two-sided, of the hypothesis that what the draws are of is 0; never 0 itself."""
    known = draws[~np.isnan(draws)]
    if not len(known):
        return 1.0
    below, above = (known <= 0).sum(), (known >= 0).sum()
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(known) + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p-values adjusted so that the chance of any false verdict among all of
    them stays below the level they are compared with."""  # fmt: skip
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def interval(draws: Floats) -> tuple[float, float]:
    """The central 95% of the draws that are numbers; NaN where none is."""
    if np.isnan(draws).all():
        return float("nan"), float("nan")
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)
