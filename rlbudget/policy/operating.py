"""Operating points: which token price each effort means, by the exact match that it may lose.

``rlbudget freeze`` chooses them on the validation questions, ``rlbudget calibrate`` certifies them;
``config.json`` of the policy folder keeps them under ``operating_points``. A token price of 0
there is a point at which nothing is ever stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbudget.arrays import Floats
from rlbudget.policy.dial import EFFORTS
from rlbudget.policy.outcomes import Outcome, full_stops, outcome
from rlbudget.traces.table import TraceTable

DOUBT = 0.5
"""standard errors that a loss is taken to be higher than it was measured"""
FEW_QUESTIONS = 30
"""below so many, points are too coarse to mean much"""


@dataclass(frozen=True, slots=True)
class Swept:
    """What one token price gave on some questions, against their full decodes."""

    token_price: float
    em_loss: float
    """exact match lost, mean over the questions; below 0 where it was gained"""
    em_loss_error: float
    """its standard error over the questions"""
    savings: float
    """1 - all tokens / all tokens of the full decodes"""


def by_question(table: TraceTable, values: Floats) -> Floats:
    """(n,) a number for each trace -> (questions,) its mean over each question's traces."""
    _, question = np.unique(table.question_ids, return_inverse=True)
    means: Floats = np.bincount(question, weights=values) / np.bincount(question)
    return means


def sweep(
    table: TraceTable, token_prices: Sequence[float], at: Callable[[float], Outcome]
) -> list[Swept]:
    """What prices give on a table; ``at`` replays a policy on it at a price."""
    full = outcome(table, full_stops(table))
    _, question = np.unique(table.question_ids, return_inverse=True)
    traces = np.bincount(question)
    found = []
    for price in token_prices:
        stopped = at(price)
        lost = full.exact_match - stopped.exact_match
        losses = np.bincount(question, weights=lost) / traces
        error = float(losses.std()) / len(losses) ** 0.5
        saved = 1 - float(stopped.tokens.mean()) / float(full.tokens.mean())
        found.append(Swept(price, float(losses.mean()), error, saved))
    return found


def doubted(swept: Swept, questions: int) -> float:
    """The loss that is reckoned with: as if one more question had been asked and its answer lost,
    and ``DOUBT`` standard errors more. Few questions that lost nothing show little."""
    mean = (swept.em_loss * questions + 1) / (questions + 1)
    return mean + DOUBT * swept.em_loss_error


def choose_points(swept: Sequence[Swept], questions: int) -> dict[str, dict[str, Any]]:
    """Each effort's point, JSON-ready: the highest price that saves something and whose ``doubted``
    loss is within the allowance; never to stop where there is none.

    Prices never fall from one effort to the next that may lose more.
    """
    points = {}
    for effort, allowed in EFFORTS.items():
        fits = [
            one for one in swept
            if one.savings > 0 and doubted(one, questions) <= allowed + 1e-12
        ]  # fmt: skip
        best = max(fits, key=lambda one: one.token_price, default=Swept(0.0, 0.0, 0.0, 0.0))
        points[effort] = point_of(best, allowed, questions)
    return points


def point_of(
    swept: Swept, max_em_loss: float, questions: int, *, certified: bool = False
) -> dict[str, Any]:
    """A point as ``config.json`` holds it."""
    return {
        "max_em_loss": max_em_loss,
        "token_price": swept.token_price,
        "em_loss": swept.em_loss,
        "savings": swept.savings,
        "questions": questions,
        "certified": certified,
    }


def certified_points(
    swept: Sequence[Swept], questions: int, certified: Mapping[float, float]
) -> dict[str, dict[str, Any]]:
    """The points where a certificate covers some: ``certified`` is loss -> token price.

    An effort whose loss could not be certified keeps what ``choose_points`` finds, at most the
    price of the next effort that is certified.
    """
    at = {one.token_price: one for one in swept}
    points: dict[str, dict[str, Any]] = {}
    above: float | None = None
    for effort, point in reversed(choose_points(swept, questions).items()):
        allowed = EFFORTS[effort]
        if allowed in certified:
            above = certified[allowed]
            point = point_of(at[above], allowed, questions, certified=True)
        elif above is not None and point["token_price"] > above:
            point = point_of(at[above], allowed, questions)
        points[effort] = point
    return dict(reversed(points.items()))


def promised(point: Mapping[str, Any]) -> str:
    """What a point means, in words."""
    if not point["token_price"]:
        return "never stopped, as no price was shown to keep the loss"
    how = "certified" if point["certified"] else "not certified"
    may = 100 * point["max_em_loss"]
    return (
        f"may lose {may:g} {'point' if may == 1 else 'points'} of exact match ({how}); on"
        f" {point['questions']} questions it lost {100 * point['em_loss'] + 0.0:.1f} and saved"
        f" {point['savings']:.0%} of the tokens"
    )
