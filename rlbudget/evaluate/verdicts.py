"""Verdicts on paired differences: better, worse, not inferior or cannot tell.

The one place where an interval becomes a word. A difference is that of two ways of answering the
same question, in utility or exact match, so it lies in a known range. Its mean is bounded by
random weights of the questions *and of one that was not seen*, which has the worst difference in
the range for the lower end and the best for the upper (Gaffke, 2005, "Three test statistics for
a nonparametric one-sided hypothesis on the mean of a nonnegative variable"; studied by
Learned-Miller & Thomas, 2019, https://arxiv.org/abs/1905.06208, who conjecture the coverage that
``tests/evaluate/test_verdicts.py`` simulates). A challenger that loses 8% of the answers shows no
loss in 20 questions with a chance of 19%: the interval then still holds a loss of 17%.

The rule is one for any number of questions: what counts is how many losses are expected, so no
number is large enough for a plain bootstrap (``runs/quality/contests.py`` compares the two). With
hundreds of questions and common differences the intervals are alike: the unseen question moves an
end by about ``most`` / questions. Fewer than ``FEWEST_QUESTIONS`` = 6 never prove anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Floats, Strs
from rlbudget.policy.bootstrap import FEWEST_QUESTIONS, Resampling, resample
from rlbudget.policy.outcomes import (
    NATURAL_END,
    Outcome,
    Probing,
    full_stops,
    outcome,
    paid_tokens,
)
from rlbudget.signals.tokens import PAID_SIGNALS
from rlbudget.traces.table import TraceTable

Verdict = Literal["better", "worse", "not inferior", "cannot tell"]
LEVEL = 0.05
DRAWS = 4000


@dataclass(frozen=True, slots=True)
class Paired:
    """A mean paired difference and what is known of it."""

    difference: float
    """mean over the traces"""
    interval: tuple[float, float]
    """95%, by question"""
    p_value: float
    """two-sided, of no difference; at least 2^(1 - questions)"""
    questions: int

    @property
    def verdict(self) -> Verdict:
        """Better, worse or cannot tell."""
        return verdict_of(self.interval, questions=self.questions)

    def verdict_at(self, margin: float) -> Verdict:
        """The same where so much may be lost: it may be ``not inferior``."""
        return verdict_of(self.interval, questions=self.questions, margin=margin)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.difference:+.4f} [{low:+.4f}, {high:+.4f}] ({self.verdict})"


def verdict_of(
    interval: tuple[float, float], *, questions: int | None = None, margin: float = 0.0
) -> Verdict:
    """What a 95% interval of a difference proves.

    ``better``: it lies above 0. ``not inferior``, where a ``margin`` above 0 is declared: above
    minus the margin. ``worse``: below 0. ``cannot tell``: anything else, an end that is NaN, and
    fewer than ``FEWEST_QUESTIONS`` (where ``questions`` is given).
    """
    low, high = interval
    if questions is not None and questions < FEWEST_QUESTIONS:
        return "cannot tell"
    if low > 0:
        return "better"
    if margin > 0 and low > -margin:
        return "not inferior"
    return "worse" if high < 0 else "cannot tell"


def paired(
    difference: npt.ArrayLike,
    question_ids: Strs,
    *,
    most: float,
    draws: int = DRAWS,
    seed: int = 0,
) -> Paired:
    """The verdict on differences (n,) of traces of these questions, each in [-``most``, ``most``].

    ``most`` is what a difference *could* be, not the largest one seen. Raises ``ValueError`` for
    one out of this range, and for no differences.
    """
    if not len(question_ids):
        raise ValueError("no differences: a verdict needs at least one question")
    return paired_by(resample(question_ids, draws=draws, seed=seed), difference, most=most)


def paired_by(resampling: Resampling, difference: npt.ArrayLike, *, most: float) -> Paired:
    """``paired`` with weights that are already drawn."""
    below, above = resampling.bounds(difference, low=-most, high=most)
    n = resampling.questions
    rarer = min(int((below <= 0).sum()), int((above >= 0).sum()))
    p_value = min(1.0, max(2.0 ** (1 - n), 2 * (rarer + 1) / (len(below) + 1)))
    mean = float(np.asarray(difference, dtype=np.float64).mean())
    return Paired(mean, _ends(below, above), p_value, n)


def mean_interval(
    resampling: Resampling, values: npt.ArrayLike, *, low: float, high: float
) -> tuple[float, float]:
    """95% interval of the mean of values in [``low``, ``high``]; it lies within them."""
    return _ends(*resampling.bounds(values, low=low, high=high))


def most_utility(token_price: float | Floats, *outcomes: Outcome) -> float:
    """The largest difference in utility between two ways of answering one question.

    A whole answer and, at ``token_price`` (one, or one a trace), the tokens between the cheapest
    and the dearest of all the outcomes: hand over those of never stopping and of stopping at once.
    """
    dearest = max(float(one.tokens.max(initial=0)) for one in outcomes)
    cheapest = min(float(one.tokens.min(initial=math.inf)) for one in outcomes)
    return 1 + float(np.max(token_price)) * max(dearest - cheapest, 0.0)


def extremes(table: TraceTable, *, probes: bool = False) -> tuple[Outcome, Outcome]:
    """Never stopping, and stopping at the first checkpoint; for ``most_utility``.

    ``probes``: never stopping pays for a trial answer at every checkpoint, and for whatever else a
    policy may pay for.
    """
    at_once = np.where(table.lengths > 0, 0, NATURAL_END)
    charged: Probing = "none"
    if probes:
        charged = table.probe_tokens + paid_tokens(table, PAID_SIGNALS)
    return (
        outcome(table, full_stops(table), probes_charged=charged),
        outcome(table, at_once),
    )


def questions_needed(margin: float, *, most: float = 1.0) -> int:
    """The fewest questions on which a challenger without any difference is not inferior.

    A difference that was seen in none of ``n`` questions may be as common as 1 - 0.025^(1/n).
    """
    if not 0 < margin < most:
        raise ValueError(f"a margin of {margin:g}: it must be between 0 and {most:g}")
    alone = math.log(LEVEL / 2) / math.log1p(-margin / most)
    return max(FEWEST_QUESTIONS, math.ceil(alone))


def _ends(below: Floats, above: Floats) -> tuple[float, float]:
    return float(np.quantile(below, LEVEL / 2)), float(np.quantile(above, 1 - LEVEL / 2))
