"""What the recommendation of an evaluation is worth: tokens, and money and seconds at given rates.

Everything is of one way of serving, the one that the report's first sentence names, on the
held-out questions. Intervals are 95%, by question.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbudget.arrays import Floats
from rlbudget.errors import UserError
from rlbudget.evaluate.evaluation import Assessment
from rlbudget.evaluate.recommendation import POINT, pick
from rlbudget.evaluate.verdicts import mean_interval
from rlbudget.policy.bootstrap import Resampling, interval
from rlbudget.policy.folder import Policy
from rlbudget.policy.outcomes import Outcome
from rlbudget.policy.replay import replay
from rlbudget.traces.table import TraceTable

ASKED = 1000
"""questions that money is said for"""
_MONEY = re.compile(r"([^\d\s.,+\-]{0,3})\s*(\d+\.?\d*|\.\d+)\s*([^\d\s.,+\-]{0,3})")


@dataclass(frozen=True, slots=True)
class Rates:
    """What tokens cost, where that was said."""

    price_per_million: float | None = None
    """money for a million output tokens"""
    currency: str = ""
    """its sign or letters, empty where none was given"""
    tokens_per_second: float | None = None
    """of one answer as it is served"""


def rates_of(price_per_million: str | float | None, tokens_per_second: float | None) -> Rates:
    """Read what was typed: ``0.6``, ``$0.60``, ``0.60 EUR``.

    Raises ``UserError`` for what is no amount above 0.
    """
    speed = tokens_per_second
    if speed is not None and not (math.isfinite(speed) and speed > 0):
        raise UserError(f"--tokens-per-second must be a number above 0, not {speed:g}")
    if price_per_million is None:
        return Rates(tokens_per_second=speed)
    text = str(price_per_million).strip()
    found = _MONEY.fullmatch(text)
    amount = float(found[2]) if found else math.nan
    if found is None or (found[1] and found[3]) or not (math.isfinite(amount) and amount > 0):
        raise UserError(
            f"--price-per-million must be an amount above 0, such as 0.60 or $0.60, not {text!r}"
        )
    return Rates(amount, found[1] or found[3], speed)


@dataclass(frozen=True, slots=True)
class Served:
    """One way of serving, on the held-out traces."""

    method: str
    effort: str | None
    """the operating point of a policy"""
    how: str
    """in words"""
    outcome: Outcome


def served(
    evaluation: Mapping[str, Any],
    assessment: Assessment,
    policies: Mapping[str, Policy],
    held_out: TraceTable | None,
) -> Served:
    """What ``recommendation.pick`` picked: a policy at an effort, or what was tuned to lose at most
    a point on training questions."""  # fmt: skip
    way = pick(evaluation).way
    if way is None:
        return Served("full", None, "every answer decoded in full", assessment.full)
    if way.effort is None or way.token_price is None or held_out is None:
        return _tuned(assessment, way.method)
    found = replay(policies[way.method], held_out, way.token_price).outcome
    return Served(way.method, way.effort, f"{way.method} at effort {way.effort}", found)


def _tuned(assessment: Assessment, method: str) -> Served:
    found = assessment.methods[method].saving_most(POINT).held_out
    return Served(method, None, f"{method}, tuned to lose at most 1 point", found)


def worth(way: Served, full: Outcome, resampling: Resampling, rates: Rates) -> dict[str, Any]:
    """``headline`` of ``evaluation.json``, and ``money`` and ``time`` where there are rates."""
    saved, change = full.tokens - way.outcome.tokens, way.outcome.exact_match - full.exact_match
    none = way.method == "full"
    found: dict[str, Any] = {
        "headline": {
            "method": way.method,
            "effort": way.effort,
            "how": way.how,
            "tokens": float(way.outcome.tokens.mean()),
            "savings": float(saved.mean() / full.tokens.mean()),
            "savings_ci95": (0.0, 0.0) if none else interval(
                1 - resampling.means(way.outcome.tokens) / resampling.means(full.tokens),
                resampling.questions,
            ),
            "exact_match_change": float(change.mean()),
            "exact_match_change_ci95": (0.0, 0.0) if none else mean_interval(
                resampling, change, low=-1.0, high=1.0
            ),
        }
    }  # fmt: skip
    ends = (0.0, 0.0) if none else interval(resampling.means(saved), resampling.questions)
    if rates.price_per_million is not None:
        per = ASKED * rates.price_per_million / 1e6
        found["money"] = {
            "currency": rates.currency,
            "price_per_million": rates.price_per_million,
            "questions": ASKED,
            "full": per * float(full.tokens.mean()),
            "saved": per * float(saved.mean()),
            "saved_ci95": tuple(per * end for end in ends),
        }
    if rates.tokens_per_second is not None:
        speed = rates.tokens_per_second
        found["time"] = {
            "tokens_per_second": speed,
            "full": _seconds(full.tokens / speed),
            "served": _seconds(way.outcome.tokens / speed),
            "saved": float(saved.mean() / speed),
            "saved_ci95": tuple(end / speed for end in ends),
        }
    return found


def _seconds(each: Floats) -> dict[str, float]:
    return {"median": float(np.median(each)), "p95": float(np.quantile(each, 0.95))}
