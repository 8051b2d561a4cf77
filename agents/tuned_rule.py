"""A tuned rule as a policy: the network that stops where the rule does, at every price.

A rule that stops where some numbers of the observation have reached a threshold each, tuned to each
of a grid of prices, is a tanh network with two layers: of the first, some units see whether a
number has reached the threshold of an interval of prices, others in which interval the price is;
the second takes them together. So a rule is frozen, certified and served as a policy is. What a
rule remembers of a decode are features of the observation (``rlbudget.policy.own_memory``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlbudget.agents.rules import Parameters
from rlbudget.arrays import Float32s
from rlbudget.policy.observation import observe
from rlbudget.policy.own_memory import with_number
from rlbudget.policy.trials import trials_of
from rlbudget.signals.repeats import TOKEN_REPEATS
from rlbudget.traces.table import TraceTable

if TYPE_CHECKING:
    from rlbudget.agents.clone import TriedRule  # brings torch


@dataclass(frozen=True, slots=True)
class Condition:
    """A number of the observation is at least a threshold; several make a rule stop."""

    feature: str
    threshold: float
    at_most: bool = False
    """it is at most the threshold instead"""
    strict: bool = False
    """it may not be the threshold itself"""


def _one(feature: str, parameter: str, *, at_most: bool = False) -> _Conditions:
    return lambda tuned: (Condition(feature, tuned[parameter], at_most),)


def _deer(tuned: Parameters) -> tuple[Condition, ...]:
    turn = with_number("turn_here.first", tuned["most_probes"])
    sure = "probe_tail" if tuned["tail"] else "turn_confidence"
    return Condition(turn, 1.0), Condition(sure, tuned["threshold"], strict=True)


def _deepconf(tuned: Parameters) -> tuple[Condition, ...]:
    confidence = with_number("topk_mean.group", tuned["window"])
    known = Condition(confidence, 0.0, strict=True)
    below = tuned["side"] < 0
    return known, Condition(confidence, tuned["threshold"], at_most=below, strict=True)


def _dynasor(tuned: Parameters) -> tuple[Condition, ...]:
    return (Condition(with_number("probe_streak.unhedged", tuned["every"]), tuned["window"]),)


def _entropy(tuned: Parameters) -> tuple[Condition, ...]:
    return (Condition(with_number("entropy_mean.surplus", tuned["drift"]), tuned["height"]),)


def _halt(tuned: Parameters) -> tuple[Condition, ...]:
    return (Condition(with_number("answer_entropy.below", tuned["theta"]), tuned["times"]),)


def _eat(tuned: Parameters) -> tuple[Condition, ...]:
    variance = float(np.log2(tuned["delta"]))
    return (Condition("exit_entropy.settling", variance, at_most=True, strict=True),)


def _esc(tuned: Parameters) -> tuple[Condition, ...]:
    window = tuned["window"]
    return (
        Condition(with_number("samples.each", window), 1.0),
        Condition("vote_streak", window),
    )


_Conditions = Callable[[Parameters], tuple[Condition, ...]]

OF_RULE: Mapping[str, _Conditions] = {
    "fixed": _one("thinking_tokens", "budget"),
    "p_end": _one("p_end_max", "threshold"),
    "certain": lambda tuned: (Condition("entropy_mean.ema", -tuned["threshold"], at_most=True),),
    "entropy": _entropy,
    "thinkbrake": _one("end_gap_min", "tau", at_most=True),
    "deepconf": _deepconf,
    "verbatim": _one(f"{TOKEN_REPEATS}.ema", "threshold"),
    "confidence": _one("probe_confidence", "threshold"),
    "deer": _deer,
    "streak": _one("probe_streak", "window"),
    "convergence": _one("probe_streak", "window"),
    "dynasor": _dynasor,
    "eat": _eat,
    "halt": _halt,
    "loop": _one("text_repeats.again", "tokens"),
    "claims": _one("text_claim_streak", "window"),
    "conclusions": _one("text_conclusions.sum", "threshold"),
    "hedges": _one("text_hedges.sum", "threshold"),
    "repeats": _one("text_repeats.ema", "threshold"),
    "fixed-n": _one("samples", "n"),
    "ac-beta": _one("vote_lead", "threshold"),
    "esc": _esc,
}
"""rule -> where it stops"""
_BESIDE: Mapping[str, tuple[str, ...]] = {"deer": ("hedges",)}
"""what else an observation holds, to know when a trial answer is due"""
SCHEDULE: Mapping[str, tuple[str, ...]] = {"deer": ("most_probes", "tail"), "dynasor": ("every",)}
"""parameters that say where trial answers are made, and so are the same at every price"""
_NOT: Mapping[str, str] = {
    "full": "it never stops: decode without a policy",
    "random": "it tosses a coin: take another rule",
    "ac-dirichlet": "it looks at the votes of five answers at once: take ac-beta",
    "logistic": "evaluate --learners fits it, a run does not hold it: take the policy of the run",
    "zelt": "evaluate --learners fits it, a run does not hold it: take the policy of the run",
}
_WITHIN = 4.0
"""standard deviations, as the network is told, within which the training traces lie: less than what
a policy clips"""
_SHARP, _STEEP, _BOTH, _SURE = 1e6, 1e3, 20.0, 6.0


@dataclass(frozen=True, slots=True)
class TunedRule:
    """The network of a rule."""

    features: tuple[str, ...]
    tensors: dict[str, Float32s]


def can_freeze(name: str) -> bool:
    """Whether a rule of this name can be frozen."""
    return name in OF_RULE


def why_not(name: str) -> str | None:
    """Why a rule cannot be frozen and what to do instead; None where it can, or there is none of
    this name."""  # fmt: skip
    return _NOT.get(name)


def seen_by(name: str, tuned: Iterable[Parameters]) -> tuple[str, ...]:
    """The features that a rule under some parameters looks at, and the thinking tokens."""
    looked = (one.feature for each in tuned for one in OF_RULE[name](each))
    return tuple(dict.fromkeys(("thinking_tokens", *_BESIDE.get(name, ()), *looked)))


def usable(name: str, table: TraceTable, tuned: Parameters) -> bool:
    """Whether a policy sees on ``table`` all that the rule does under these parameters: of a trial
    answer's tail none may be missing where one is made."""  # fmt: skip
    if name != "deer" or not tuned["tail"]:
        return True
    made = trials_of(seen_by(name, [tuned])).of_table(table)
    return not bool(np.isnan(table.signals["probe_tail"][made]).any())


def tuned_rule(
    name: str, table: TraceTable, chosen: Sequence[TriedRule], price_inputs: Sequence[float]
) -> TunedRule:
    """The network of a rule on ``table``, where it was tuned to prices with these inputs, rising.

    ``chosen`` may hold never stopping. Raises ``KeyError`` for a rule that cannot be frozen.
    """
    intervals: list[tuple[Parameters | None, float]] = []
    for place, one in zip(price_inputs, chosen, strict=True):
        tuned = None if one.rule.name == "full" else one.parameters
        if not intervals or tuned != intervals[-1][0]:
            intervals.append((tuned, place))
    features = seen_by(name, [tuned for tuned, _ in intervals if tuned is not None])
    seen = observe(table, features)
    low, high = seen.min(axis=0).astype(np.float64), seen.max(axis=0).astype(np.float64)
    middle, spread = (low + high) / 2, np.maximum((high - low) / (2 * _WITHIN), 1e-6)
    asked: list[list[tuple[int, float, float]] | None] = []
    for tuned, _ in intervals:
        if tuned is None:
            asked.append(None)
            continue
        parts = []
        for part in OF_RULE[name](tuned):
            k = features.index(part.feature)
            at = (_between(seen[:, k], part) - middle[k]) / spread[k]
            parts.append((k, at, -1.0 if part.at_most else 1.0))
        asked.append(parts)
    before = dict(zip(price_inputs[1:], price_inputs, strict=False))
    borders = [(before[place] + place) / 2 for _, place in intervals[1:]]
    tensors = {
        "obs_mean": middle.astype(np.float32),
        "obs_std": spread.astype(np.float32),
        **_network(asked, borders, len(features)),
    }
    return TunedRule(features, tensors)


def _between(seen: Float32s, asked: Condition) -> float:
    """A threshold between the numbers that stop and those that do not, so that rounding does not
    decide."""  # fmt: skip
    value = np.float32(asked.threshold)  # as an observation is
    if asked.at_most:
        stops = seen < value if asked.strict else seen <= value
    else:
        stops = seen > value if asked.strict else seen >= value
    beyond = max(float(np.ptp(seen)), 1e-3) / 100 * (1.0 if asked.at_most else -1.0)
    if not stops.any():
        return float(value) - (beyond if asked.strict else 0.0)
    if stops.all():
        return float(value) + beyond
    ends = (seen[stops].max(), seen[~stops].min()) if asked.at_most else (
        seen[stops].min(), seen[~stops].max()
    )  # fmt: skip
    return float(np.mean(np.array(ends, dtype=np.float64)))


def _network(
    asked: Sequence[Sequence[tuple[int, float, float]] | None],
    borders: Sequence[float],
    n_features: int,
) -> dict[str, Float32s]:
    """Inputs are the features, scaled, and the price's; ``asked`` are conditions (feature,
    threshold, 1 or -1) of each interval, ``borders`` lie between the intervals."""
    k, b = len(asked), len(borders)
    units = [(place, *one) for place, parts in enumerate(asked) for one in parts or ()]
    u = len(units)
    width = max(u + b, 1)  # a rule that never stops has none
    first, first_bias = np.zeros((width, n_features + 1)), np.zeros(width)
    for unit, (_, feature, threshold, side) in enumerate(units):
        first[unit, feature] = side * _SHARP
        first_bias[unit] = -side * _SHARP * threshold
    for place, border in enumerate(borders):
        first[u + place, -1], first_bias[u + place] = _STEEP, -_STEEP * border
    second, second_bias = np.zeros((k, width)), np.full(k, -_BOTH)
    for place, parts in enumerate(asked):
        if parts is None:
            continue
        own = [unit for unit in range(u) if units[unit][0] == place]
        second[place, own] = _BOTH
        second_bias[place] = -_BOTH * (len(own) + 1)
        # Above the border before it, below the one behind it; the first and the last have but one.
        for border, sign in ((place - 1, 1.0), (place, -1.0)):
            if 0 <= border < b:
                second[place, u + border] = sign * _BOTH
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
