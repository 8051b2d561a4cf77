"""Drift: whether requests have become others than those of a reference, at any time.

Each number of a request is turned into its rank among those of the reference, in [0, 1]. As long
as nothing has changed ranks are uniform, so that a bet ``1 + b (2 rank - 1)`` has the mean 1, and
so has one on how far a rank is from the middle. Bets pay for what a reference, which is a sample,
gets wrong (``TOLERANCE``). The Shiryaev-Roberts sum of such bets, ``M = (1 + M) bet``, grows by 1 a
request in the mean and no faster; the mean over all bets is compared with ``alarm_every``, which is
therefore the least mean number of requests to a false alarm (Shin, Ramdas & Rinaldo, 2022,
"E-detectors", https://arxiv.org/abs/2203.03532).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Floats

BETS = (-0.8, -0.4, 0.4, 0.8)
REFERENCE = 4000
"""requests that a reference is made of"""
TOLERANCE = 0.025
"""by how much the mean of a rank, stretched to [-1, 1], may be off without being drift: 2.7
standard errors of what a reference of so many gets wrong"""
POINTS = 200
"""of the reference that are kept of each number"""
MOST_ALIKE = 0.7
"""share of a reference that may have one value"""


@dataclass(frozen=True, slots=True)
class Reference:
    """What requests are like while nothing has changed."""

    names: tuple[str, ...]
    points: Floats
    """(numbers, ``POINTS``) evenly spaced order statistics of each"""
    spread: Floats
    """(numbers,) mean distance of its own ranks from the middle, in [0, 1]: ½ but for ties"""


def reference_of(seen: Sequence[Mapping[str, float]]) -> Reference:
    """Of requests, each number by its name; those that all of them have and that vary.

    A number that is nearly always the same is left out: how often it is not cannot be known from
    so few requests, and what is off would be taken for drift.
    """
    seen = [one for one in seen if one]
    shared = set.intersection(*(set(one) for one in seen)) if seen else set()
    names, columns = [], []
    places = np.linspace(0, 1, POINTS)
    for name in sorted(shared):
        column = np.array([one[name] for one in seen], np.float64)
        if not np.isfinite(column).all():
            continue
        points = np.quantile(column, places, method="nearest")
        if np.unique(points, return_counts=True)[1].max() <= MOST_ALIKE * POINTS:
            names.append(name)
            columns.append(points)
    points = np.array(columns).reshape(len(names), POINTS)
    ranks = np.array([_ranks(row[:, None], row[None]) for row in points]).reshape(points.shape)
    return Reference(tuple(names), points, np.abs(2 * ranks - 1).mean(axis=1))


def ranks_of(reference: Reference, seen: Mapping[str, float]) -> Floats:
    """(numbers,) in [0, 1]: the share of the reference below, of equal ones half; NaN for what is
    missing."""  # fmt: skip
    values = np.array([seen.get(name, np.nan) for name in reference.names])
    ranks: Floats = np.where(np.isfinite(values), _ranks(values[:, None], reference.points), np.nan)
    return ranks


def _ranks(values: Floats, points: Floats) -> Floats:
    """(n, 1) values among (n, ``POINTS``) or (1, ``POINTS``) points -> (n,) ranks."""
    ranks: Floats = ((points < values).sum(axis=1) + (points == values).sum(axis=1) / 2) / POINTS
    return ranks


def nothing_seen(reference: Reference) -> Floats:
    """The evidence before the first request: (numbers, 2 * bets)."""
    return np.zeros((len(reference.names), 2 * len(BETS)))


def after(reference: Reference, evidence: Floats, ranks: npt.ArrayLike) -> Floats:
    """The evidence (..., numbers, 2 * bets) after a request of these ranks (..., numbers)."""
    place = 2 * np.asarray(ranks, np.float64)[..., None] - 1
    middle = reference.spread[..., None]
    apart = (np.abs(place) - middle) / np.maximum(middle, 1 - middle)
    bets = np.array(BETS)
    factors = np.concatenate([1 + bets * place, 1 + bets * apart], axis=-1)
    factors /= 1 + np.abs(np.tile(bets, 2)) * TOLERANCE
    factors = np.where(np.isnan(factors), 1.0, factors)  # nothing is known of it
    summed: Floats = np.minimum((1 + evidence) * factors, 1e200)
    return summed


def strength(evidence: Floats) -> Floats:
    """(...) what is compared with ``alarm_every``: the mean over all bets."""
    found: Floats = evidence.mean(axis=(-2, -1)) if evidence.size else np.zeros(())
    return found
