"""What an experiment shows: tokens as the success, exact match and satisfaction as guard-rails.

Arm and control are compared by inverse-propensity differences: every unit gives (y - c) / p in the
arm and -(y - c) / (1 - p) in the control, where p is the arm's chance among the two and c fixed
before the experiment; their mean is the difference whatever c is. A unit counts once, with its
first request, so that units are independent. Exact match comes from audited requests alone: drawn
by chance, so that missing feedback biases nothing; each tells what the arm's stop lost against its
own full decode. Satisfaction is that of the users who said something, and of nobody else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rlbudget.strategies.experiments.betting import Counted, counted, interval
from rlbudget.strategies.experiments.design import Arm, Design, Experiment
from rlbudget.strategies.feedback.entries import Entries
from rlbudget.strategies.feedback.harvest import audit_of, stopped_answer
from rlbudget.strategies.feedback.log import LoggedRequest

Metric = Literal["tokens", "exact match", "satisfaction"]
Verdict = Literal[
    "loses exact match", "loses satisfaction", "costs tokens", "wins", "undecided", "open"
]


@dataclass(frozen=True, slots=True)
class Value:
    """What a unit gave for a metric."""

    arm: str
    value: float


@dataclass(frozen=True, slots=True)
class Values:
    """One value a unit, in the order in which they came."""

    tokens: tuple[Value, ...]
    """of a request, capped"""
    exact_match: tuple[Value, ...]
    """less than the full decode's: -1, 0 or 1, and scores between"""
    satisfaction: tuple[Value, ...]
    """in [0, 1]"""


@dataclass(frozen=True, slots=True)
class Compared:
    """An arm's metric less the control's."""

    n: int
    """units in both"""
    mean: float
    """NaN before the first unit of each"""
    interval: tuple[float, float]
    arm_mean: float
    control_mean: float


@dataclass(frozen=True, slots=True)
class ArmResult:
    """What is known of an arm."""

    arm: str
    requests: int
    """units that it served"""
    tokens: Compared
    exact_match: Compared
    satisfaction: Compared
    verdict: Verdict

    @property
    def saving(self) -> tuple[float, float, float]:
        """Share of the control's tokens that it saves, and the ends of that; NaN before any."""
        mean = self.tokens.control_mean
        if not mean > 0:
            return (math.nan, math.nan, math.nan)
        low, high = self.tokens.interval
        return (-self.tokens.mean / mean, -high / mean, -low / mean)


def values_of(design: Design, entries: Entries) -> Values:
    """What the requests of an experiment gave; others of the log are passed over."""
    tokens: dict[str, Value] = {}
    match: dict[str, Value] = {}
    content: dict[str, Value] = {}
    names = {arm.name for arm in design.arms}
    for served in entries.decisions.values():
        unit, arm = served.unit, served.arm
        if served.experiment != design.name or unit is None or arm is None or arm not in names:
            continue
        tokens.setdefault(unit, Value(arm, min(float(served.stop.tokens), design.most_tokens)))
        if unit not in match and (gained := _gained(design, entries, served)) is not None:
            match[unit] = Value(arm, gained)
        # Who was audited saw the full answer, whatever the arm.
        rating = None if served.audited else _rating(entries, served.request_id)
        if unit not in content and rating is not None:
            content[unit] = Value(arm, rating)
    return Values(*(tuple(one.values()) for one in (tokens, match, content)))


def _gained(design: Design, entries: Entries, served: LoggedRequest) -> float | None:
    """Exact match of an audited request's stop less that of its full decode; None: not known.

    Where a verdict leaves open whether the stop was right it counts as wrong, in every arm.
    """
    trace = entries.audits.get(served.request_id) if served.audited else None
    if trace is None:
        return None
    if design.measure == "agreement":
        stopped = stopped_answer(trace, served)
        return None if stopped is None else -float(stopped != trace.final.answer)
    outcome = entries.outcomes.get(served.request_id)
    audit = None if outcome is None else audit_of(trace, served, outcome)
    return None if audit is None else -audit.loss


def _rating(entries: Entries, request_id: str) -> float | None:
    """What a user said: a rating, else a verdict."""
    rating = entries.ratings.get(request_id)
    outcome = entries.outcomes.get(request_id)
    if rating is None and outcome is not None and outcome.right is not None:
        return float(outcome.right)
    return rating


def results_of(experiment: Experiment, values: Values) -> list[ArmResult]:
    """Each arm beside the control."""
    return [_result(experiment.design, arm, values) for arm in experiment.design.arms[1:]]


def _result(design: Design, arm: Arm, values: Values) -> ArmResult:
    found: dict[str, Compared] = {
        "tokens": _compared(design, arm, values.tokens, 0.0, design.most_tokens,
                            design.usual_tokens, most=design.most_tokens),
        "exact_match": _compared(design, arm, values.exact_match, -1.0, 1.0, 0.0, most=1.0),
        "satisfaction": _compared(design, arm, values.satisfaction, 0.0, 1.0, 0.5, most=1.0),
    }  # fmt: skip
    requests = sum(one.arm == arm.name for one in values.tokens)
    return ArmResult(arm.name, requests, **found, verdict=verdict_of(design, **found))


def _compared(
    design: Design, arm: Arm, values: Iterable[Value], low: float, high: float, usual: float, *,
    most: float,
) -> Compared:  # fmt: skip
    """``most`` is the largest difference that there can be."""
    chance = arm.weight / (arm.weight + design.control.weight)
    usual = min(max(usual, low), high)
    seen = difference_of(
        ((one.arm == arm.name, one.value) for one in values
         if one.arm in (arm.name, design.control.name)),
        chance=chance, low=low, high=high, usual=usual,
    )  # fmt: skip
    own = [one.value for one in values if one.arm == arm.name]
    other = [one.value for one in values if one.arm == design.control.name]
    means = [sum(some) / len(some) if some else math.nan for some in (own, other)]
    below, above = interval(seen, design.each)
    within = (max(below, -most), min(above, most))
    return Compared(seen.n, means[0] - means[1], within, *means)


def difference_of(
    values: Iterable[tuple[bool, float]], *, chance: float, low: float, high: float, usual: float
) -> Counted:
    """Values whose mean is that of the arm less that of the control.

    Each of ``values`` is whether the unit was in the arm (by ``chance``, else in the control) and
    what it gave, in [``low``, ``high``]; ``usual`` is fixed in this range.
    """
    above, below = high - usual, usual - low
    return counted(
        list(_weighted(values, chance, usual)),
        low=-max(below / chance, above / (1 - chance)),
        high=max(above / chance, below / (1 - chance)),
    )


def _weighted(values: Iterable[tuple[bool, float]], chance: float, usual: float) -> Iterator[float]:
    for inside, value in values:
        yield (value - usual) / chance if inside else (usual - value) / (1 - chance)


def verdict_of(
    design: Design, *, tokens: Compared, exact_match: Compared, satisfaction: Compared
) -> Verdict:
    """What the intervals prove: a guard-rail that is broken comes first.

    An arm wins where it saves tokens and loses neither exact match nor, where users said
    anything, satisfaction by more than the margins.
    """
    if exact_match.interval[1] < -design.margin:
        return "loses exact match"
    if satisfaction.interval[1] < -design.satisfaction_margin:
        return "loses satisfaction"
    if tokens.interval[0] > 0:
        return "costs tokens"
    content = satisfaction.n == 0 or satisfaction.interval[0] > -design.satisfaction_margin
    if exact_match.interval[0] > -design.margin and tokens.interval[1] < 0 and content:
        return "wins"
    return "undecided" if exact_match.n >= design.size else "open"


def as_json(result: ArmResult) -> dict[str, Any]:
    """A result as JSON, NaN as null."""
    row: dict[str, Any] = {"arm": result.arm, "requests": result.requests,
                           "verdict": result.verdict}  # fmt: skip
    for name in ("tokens", "exact_match", "satisfaction"):
        one: Compared = getattr(result, name)
        row[name] = {
            "units": one.n, "difference": _known(one.mean), "interval": list(one.interval),
            "arm": _known(one.arm_mean), "control": _known(one.control_mean),
        }  # fmt: skip
    row["saving"] = [_known(value) for value in result.saving]
    return row


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def summary(results: Mapping[str, Verdict]) -> str:
    """One line."""
    return ", ".join(f"{arm}: {verdict}" for arm, verdict in results.items())
