"""A tuned rule as a policy: the network that stops where the rule does, at every price.

A rule that stops where one number of the observation has reached a threshold, tuned to each of a
grid of prices, is a tanh network with two layers: of the first, some units see whether the number
has reached the threshold of an interval of prices, others in which interval the price is; the
second takes the two together. So a rule is frozen, certified and served as a policy is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlbudget.arrays import Float32s, Floats
from rlbudget.policy.observation import observe
from rlbudget.traces.table import TraceTable

if TYPE_CHECKING:
    from rlbudget.agents.clone import TriedRule  # brings torch

OF_FEATURE: Mapping[str, tuple[str, str, float]] = {
    "fixed": ("thinking_tokens", "budget", 1.0),
    "p_end": ("p_end_max", "threshold", 1.0),
    "certain": ("entropy_mean.ema", "threshold", -1.0),
    "thinkbrake": ("end_gap_min", "tau", 1.0),
    "confidence": ("probe_confidence", "threshold", 1.0),
    "streak": ("probe_streak", "window", 1.0),
    "convergence": ("probe_streak", "window", 1.0),
    "claims": ("text_claim_streak", "window", 1.0),
    "conclusions": ("text_conclusions.sum", "threshold", 1.0),
    "hedges": ("text_hedges.sum", "threshold", 1.0),
    "repeats": ("text_repeats.ema", "threshold", 1.0),
}
"""rule -> the feature that it looks at, the name of its parameter, and 1, or -1 where the parameter
is of the feature's negative"""
_BELOW = ("certain", "thinkbrake")
"""those that stop where the feature is low"""
_WITHIN = 4.0
"""standard deviations, as the network is told, within which the training traces lie: less than what
a policy clips"""
_SHARP, _STEEP, _BOTH, _SURE = 1e4, 1e3, 20.0, 6.0


@dataclass(frozen=True, slots=True)
class TunedRule:
    """The network of a rule."""

    feature: str
    tensors: dict[str, Float32s]


def can_freeze(name: str) -> bool:
    """Whether a rule of this name can be frozen."""
    return name in OF_FEATURE


def tuned_rule(
    name: str, table: TraceTable, chosen: Sequence[TriedRule], price_inputs: Sequence[float]
) -> TunedRule:
    """The network of a rule on ``table``, where it was tuned to prices with these inputs, rising.

    ``chosen`` may hold never stopping. Raises ``KeyError`` for a rule that is no such threshold.
    """
    feature, parameter, sign = OF_FEATURE[name]
    low_stops = name in _BELOW
    seen = observe(table, (feature,))[:, 0].astype(np.float64)
    middle = (seen.max() + seen.min()) / 2
    spread = max((seen.max() - seen.min()) / (2 * _WITHIN), 1e-6)
    intervals: list[tuple[float | None, float]] = []
    for place, one in zip(price_inputs, chosen, strict=True):
        value = None if one.rule.name == "full" else sign * float(one.parameters[parameter])
        if not intervals or value != intervals[-1][0]:
            intervals.append((value, place))
    at = [None if v is None else _between(seen, v, low_stops) for v, _ in intervals]
    scaled = [None if v is None else (v - middle) / spread for v in at]
    before = dict(zip(price_inputs[1:], price_inputs, strict=False))
    borders = [(before[place] + place) / 2 for _, place in intervals[1:]]
    tensors = {
        "obs_mean": np.array([middle], dtype=np.float32),
        "obs_std": np.array([spread], dtype=np.float32),
        **_network(scaled, borders, -1.0 if low_stops else 1.0),
    }
    return TunedRule(feature, tensors)


def _between(seen: Floats, value: float, low_stops: bool) -> float:
    """A threshold between the numbers that stop and those that do not, so that rounding does not
    decide."""  # fmt: skip
    value = float(np.float32(value))  # as an observation is
    stops = seen <= value if low_stops else seen >= value
    if not stops.any():
        return value
    if stops.all():
        return value + (1.0 if low_stops else -1.0) * max(float(np.ptp(seen)), 1e-3) / 100
    ends = (seen[stops].max(), seen[~stops].min()) if low_stops else (
        seen[stops].min(), seen[~stops].max()
    )  # fmt: skip
    return float(np.mean(ends))


def _network(
    thresholds: Sequence[float | None], borders: Sequence[float], side: float
) -> dict[str, Float32s]:
    """Inputs are the feature, scaled, and the price's; ``borders`` lie between the intervals."""
    k, b = len(thresholds), len(borders)
    first, first_bias = np.zeros((k + b, 2)), np.zeros(k + b)
    for place, threshold in enumerate(thresholds):
        if threshold is None:
            first_bias[place] = -_BOTH
        else:
            first[place, 0] = side * _SHARP
            first_bias[place] = -side * _SHARP * threshold
    for place, border in enumerate(borders):
        first[k + place, 1], first_bias[k + place] = _STEEP, -_STEEP * border
    second, second_bias = np.zeros((k, k + b)), np.full(k, -2.0 * _BOTH)
    for place in range(k):
        second[place, place] = _BOTH
        # Above the border before it, below the one behind it; the first and the last have but one.
        for border, sign in ((place - 1, 1.0), (place, -1.0)):
            if 0 <= border < b:
                second[place, k + border] = sign * _BOTH
            else:
                second_bias[place] += _BOTH
    last = np.zeros((2, k))
    last[1] = _SURE
    bias = np.array([0.0, _SURE * (k - 1)])
    named: dict[str, Any] = {
        "mlp_extractor.policy_net.0.weight": first,
        "mlp_extractor.policy_net.0.bias": first_bias,
        "mlp_extractor.policy_net.2.weight": second,
        "mlp_extractor.policy_net.2.bias": second_bias,
        "action_net.weight": last,
        "action_net.bias": bias,
    }
    return {name: value.astype(np.float32) for name, value in named.items()}
