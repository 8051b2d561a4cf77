"""What exact match requests have now: predictions of all of them, corrected by the few verdicts.

A model predicts for every request how likely its answer is right; a verdict is known of an audited
share. The mean prediction of the last requests plus the mean of *verdict minus prediction* is
unbiased whatever the model is worth (Angelopoulos et al., 2023, "Prediction-powered inference",
https://arxiv.org/abs/2301.09633), and sharp where it is good. Where it is worth nothing, or there
is none, the verdicts alone are taken: whichever of the two varies less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

VERDICTS = 600.0
"""that are remembered"""
FITTED = 200.0
"""verdicts that the calibration of a model is worth which was fitted to predict them"""


@dataclass(frozen=True, slots=True)
class Mean:
    """Of the last values, older ones counting less."""

    value: float = 0.0
    square: float = 0.0
    """mean squared deviation"""
    weight: float = 0.0
    """values that it is worth"""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of exact match."""

    predicted: Mean = field(default_factory=Mean)
    """of the last requests"""
    right: Mean = field(default_factory=Mean)
    """verdicts"""
    off: Mean = field(default_factory=Mean)
    """verdicts minus predictions"""


def calibrated() -> Estimate:
    """Before the first request, where predictions come from a model that was fitted to verdicts."""
    return Estimate(off=Mean(0.0, 0.08, FITTED))


def with_value(mean: Mean, value: float, horizon: float) -> Mean:
    """After one more value; ``horizon`` values are remembered."""
    weight = min(mean.weight + 1, horizon)
    away = value - mean.value
    share = 1 / weight
    return Mean(mean.value + share * away,
                (1 - share) * (mean.square + share * away * away), weight)  # fmt: skip


def predicted(estimate: Estimate, right: float | None, horizon: float) -> Estimate:
    """After a request whose answer is right with a chance of ``right``."""
    if right is None:
        return estimate
    return replace(estimate, predicted=with_value(estimate.predicted, right, horizon))


def learned(estimate: Estimate, right: float, chance: float | None) -> Estimate:
    """After a verdict, on a request of which ``chance`` was predicted."""
    off = estimate.off if chance is None else with_value(estimate.off, right - chance, VERDICTS)
    return Estimate(estimate.predicted, with_value(estimate.right, right, VERDICTS), off)


def estimated(estimate: Estimate) -> float:
    """Exact match of the last requests; NaN where nothing is known."""
    return _pair(estimate)[0]


def error_of(estimate: Estimate) -> float:
    """Its standard error; infinite where nothing is known."""
    return _pair(estimate)[1]


def _pair(estimate: Estimate) -> tuple[float, float]:
    right, off, chance = estimate.right, estimate.off, estimate.predicted
    little = off.weight < right.weight / 2 or not chance.weight
    if little or not off.weight or (right.weight >= FITTED and off.square >= right.square):
        if not right.weight:
            return math.nan, math.inf
        return right.value, math.sqrt(right.square / right.weight)
    error = math.sqrt(off.square / off.weight + chance.square / chance.weight)
    return min(max(chance.value + off.value, 0.0), 1.0), error
