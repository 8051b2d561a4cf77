"""A bound on the exact match that stopping loses, with a confidence that is kept.

*Learn then Test* (Angelopoulos et al., 2021, https://arxiv.org/abs/2110.01052): for each setting,
from the safest to the boldest, test on calibration questions the hypothesis "it loses more than
the bound"; the first one that cannot be rejected ends the walk, and the last one rejected is
certified. The order is fixed beforehand, so no correction for the number of tests is due.

Two losses. ``loss``: exact match of the full decode minus that under the setting, mean over the
questions, tested by betting (Waudby-Smith & Ramdas, 2020, https://arxiv.org/abs/2010.09686).
``harm``: share of the questions that the full decode has right and the setting wrong, tested by
the binomial distribution; it counts no gain against the harm, so it is the stricter one.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlbudget.arrays import Floats
from rlbudget.errors import UserError
from rlbudget.policy.operating import by_question
from rlbudget.policy.outcomes import Outcome
from rlbudget.traces.table import TraceTable

Mode = Literal["loss", "harm"]
MOST_QUESTIONS = 10**7


@dataclass(frozen=True, slots=True)
class Certified:
    """The end of a walk over settings."""

    questions: int
    """calibration questions"""
    certified: int | None
    """place of the boldest setting that keeps the bound, None where none does"""
    p_values: tuple[float, ...]
    """of the settings tested, up to the first that was not rejected"""


def certify(
    losses: Sequence[Floats],
    *,
    max_em_loss: float,
    confidence: float,
    mode: Mode = "loss",
) -> Certified:
    """Walk the settings from the safest to the boldest.

    ``losses``: for each setting (questions,), exact match of the full decode minus that under
    the setting, in [-1, 1]; in ``harm`` mode the share of a question's decodes that were harmed.
    The bets are placed on the questions in this order, which must not depend on the losses. Raises
    ``UserError`` for a bound or a confidence that makes no sense, and when there are too few
    questions for any setting to pass, saying how many are needed.
    """
    if not 0 < max_em_loss < 1:
        raise UserError(f"max_em_loss is {max_em_loss:g}: it must be between 0 and 1")
    if not 0 < confidence < 1:
        raise UserError(f"confidence is {confidence:g}: it must be between 0 and 1")
    n = len(losses[0])
    needed = questions_needed(max_em_loss, confidence, mode)
    if n < needed:
        raise UserError(
            f"cannot certify: an EM loss of at most {max_em_loss:g} with confidence"
            f" {confidence:g} needs at least {needed} calibration questions, even if no answer"
            f" changes; there are {n}"
        )
    p_values: list[float] = []
    for loss in losses:
        p_values.append(p_value(loss, max_em_loss, confidence, mode))
        if p_values[-1] > 1 - confidence:
            break
    passed = sum(p <= 1 - confidence for p in p_values)
    return Certified(n, passed - 1 if passed else None, tuple(p_values))


def p_value(loss: Floats, max_em_loss: float, confidence: float, mode: Mode) -> float:
    """Of the hypothesis that the mean loss is above ``max_em_loss``; ``loss`` as in ``certify``."""
    if mode == "harm":
        return harm_p_value(int((loss > 0).sum()), len(loss), max_em_loss)
    return betting_p_value((loss + 1) / 2, (max_em_loss + 1) / 2, 1 - confidence)


def betting_p_value(x: Floats, bound: float, alpha: float) -> float:
    """Of the hypothesis that the mean of ``x`` in [0, 1] is at least ``bound``.

    One minus a fortune that starts at 1 and bets before each value that it will be below the
    bound; by Ville's inequality its largest value exceeds 1 / p with probability p at most. The
    bets are those of Waudby-Smith & Ramdas for the level ``alpha``; any bet keeps the p-value
    valid.
    """
    n = len(x)
    count = np.arange(1, n + 1)
    mean = (0.5 + np.cumsum(x)) / (count + 1)
    spread = (0.25 + np.cumsum((x - mean) ** 2)) / (count + 1)
    before = np.concatenate([[0.25], spread[:-1]])
    # A bet of 1 / (1 - bound) loses everything when x is 1: stay below it.
    bet = np.minimum(np.sqrt(2 * math.log(1 / alpha) / (n * before)), 0.75 / (1 - bound))
    growth = np.cumsum(np.log1p(-bet * (x - bound)))
    return float(min(1.0, math.exp(-max(0.0, float(growth.max(initial=0.0))))))


def harm_p_value(harmed: int, n: int, max_harm: float) -> float:
    """Of the hypothesis that the chance of harm is above ``max_harm``, ``harmed`` of ``n`` seen.

    The binomial probability of as few or fewer.
    """
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        + k * math.log(max_harm) + (n - k) * math.log1p(-max_harm)
        for k in range(harmed + 1)
    ]  # fmt: skip
    largest = max(logs)
    return min(1.0, math.exp(largest) * math.fsum(math.exp(value - largest) for value in logs))


def questions_needed(max_em_loss: float, confidence: float, mode: Mode = "loss") -> int:
    """The fewest questions with which a setting that changes no answer passes."""
    if mode == "harm":
        return math.ceil(math.log(1 - confidence) / math.log1p(-max_em_loss))

    def passes(n: int) -> bool:
        return p_value(np.zeros(n), max_em_loss, confidence, mode) <= 1 - confidence

    high = 1
    while not passes(high):
        high *= 2
        if high > MOST_QUESTIONS:
            return high
    return bisect_left(range(high + 1), True, lo=high // 2 + 1, key=passes)


def losses_of(table: TraceTable, full: Outcome, stopped: Outcome, mode: Mode) -> Floats:
    """(questions,) the loss of each question, mean over its traces; see ``certify``."""
    difference = full.exact_match - stopped.exact_match
    if mode == "harm":
        difference = np.maximum(difference, 0.0)
    return by_question(table, difference)
