"""How many questions an interval of lost answers needs to be as narrow as one wants it.

More questions of the same kind are weights of the ones there are: what stands for ``k`` equal
questions has a weight from a Gamma(k) distribution where one has an exponential one. So the
interval of ``verdicts.mean_interval`` is computed as it would be on ``k`` times as many questions,
losses as frequent as they were, still with one that was not seen. Without any loss its width falls
as 1/n, with many as 1/sqrt(n).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlbudget.arrays import Floats
from rlbudget.evaluate.evaluation import Assessment
from rlbudget.evaluate.verdicts import mean_interval
from rlbudget.policy.bootstrap import Resampling

MATTERS = 0.005
"""half-width, in exact match, below which a narrower interval is not worth asking for"""
A_POINT = 0.01
_DRAWS, _MOST, _LARGE = 400, 256, 4000


def needed(resampling: Resampling, lost: Floats) -> dict[str, int | None]:
    """Questions in all for a 95% interval of the mean of ``lost`` (n,) half as wide as it is
    (``to_halve``; None where it is narrower than matters), and for one of a point to each side
    (``to_a_point``; None where that is more than ``_MOST`` times as many)."""  # fmt: skip
    now = _half_width(resampling, lost, 1.0)
    halved = _questions_for(resampling, lost, now, now / 2) if now > MATTERS else None
    return {
        "to_halve": halved,
        "to_a_point": _questions_for(resampling, lost, now, A_POINT),
    }


def _questions_for(resampling: Resampling, lost: Floats, now: float, wanted: float) -> int | None:
    questions = resampling.questions
    if now <= wanted:
        return questions
    if questions > _LARGE:  # what was not seen counts nothing
        times = (now / wanted) ** 2
        return math.ceil(questions * times) if times <= _MOST else None
    times, width = 1.0, now
    while times < _MOST:
        wider, times = width, 2 * times
        width = _half_width(resampling, lost, times)
        if width <= wanted:  # between the last two it falls as a power
            steepness = math.log(wider / width)
            share = math.log(wider / wanted) / steepness if steepness > 0 else 1.0
            enough: float = questions * times / 2 * 2.0**share
            return math.ceil(enough)
    return None


def _half_width(resampling: Resampling, lost: Floats, times: float) -> float:
    """Of the interval on ``times`` as many questions."""
    rng, n = np.random.default_rng(0), resampling.questions
    weights = np.empty((_DRAWS, n + 1))
    weights[:, :-1] = rng.standard_gamma(times, (_DRAWS, n))
    weights[:, -1] = rng.standard_exponential(_DRAWS)
    low, high = mean_interval(Resampling(resampling.question, weights), lost, low=-1.0, high=1.0)
    return (high - low) / 2


def add_needed(evaluation: dict[str, Any], assessment: Assessment) -> None:
    """Give the summaries of the policies and of the best rule what is ``needed`` to know their
    loss, where they were tuned to lose at most a point."""  # fmt: skip
    rules = [row for row in evaluation["summary"] if row["kind"] == "rule"]
    known = [row for row in rules if row["mean_oracle_gap_closed"] is not None]
    best = max(known, key=lambda row: float(row["mean_oracle_gap_closed"]), default=None)
    for row in evaluation["summary"]:
        if row["method"] in assessment.policies or row is best:
            spot = assessment.methods[row["method"]].saving_most(A_POINT)
            lost = assessment.full.exact_match - spot.held_out.exact_match
            row |= needed(assessment.resampling, lost)


def about(questions: float) -> str:
    """A number of questions with two digits that count."""
    if questions < 10:
        return f"{max(1, math.ceil(questions))}"
    unit = 10 ** (int(math.log10(questions)) - 1)
    return f"{math.ceil(questions / unit) * unit:,}"


def to_tell_apart(versus: Mapping[str, Any], questions: int) -> int | None:
    """Questions in all that would tell two methods apart if their difference stays what it is;
    None where it is too small to be worth asking."""  # fmt: skip
    (low, high), margin = versus["margin_ci95"], versus["margin"]
    if low is None or high is None or not margin:
        return None
    times = ((high - low) / 2 / abs(margin)) ** 2
    return math.ceil(questions * times) if 1 < times <= 16 else None
