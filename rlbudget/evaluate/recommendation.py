"""What to do, in words: the sentences that an evaluation begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlbudget.agents.tuned_rule import can_freeze
from rlbudget.policy.dial import EFFORTS

POINT = EFFORTS["medium"]
"""exact match that a recommended effort may lose"""


@dataclass(frozen=True, slots=True)
class Pick:
    """What an evaluation recommends to serve."""

    policy: str
    """the policy that was looked at"""
    effort: Mapping[str, Any] | None
    """its row of ``efforts`` that saves most within a point; None where none saves anything"""
    rule: str | None
    """the best rule; None where it was not compared with the policy"""
    verdict: str
    """of the rule against the policy: where it is ``better``, the rule is what to serve"""


def pick(evaluation: Mapping[str, Any]) -> Pick | None:
    """Of what ``evaluation.json`` holds; None where no policy with efforts was measured."""
    rows = [row for row in evaluation.get("efforts") or () if row["max_em_loss"] <= POINT]
    if not rows:
        return None
    kept = [
        row for row in rows
        if row["token_price"] and row["held_out_em_loss"] <= POINT and row["held_out_savings"] > 0
    ]  # fmt: skip
    best = max(kept, key=lambda row: float(row["held_out_savings"]), default=None)
    policy = str((best or rows[0])["method"])
    return Pick(policy, best, *_best_rule(evaluation, policy))


def recommended(evaluation: Mapping[str, Any]) -> list[str]:
    """What was picked in words: the effort to serve, what it saves and may lose, and whether the
    questions can tell the policy from the best rule; where that is better, the rule.
    Empty where no policy with efforts was measured."""
    picked = pick(evaluation)
    if picked is None:
        return []
    best, rule, verdict = picked.effort, picked.rule, picked.verdict
    policy, questions = picked.policy, int(evaluation["held_out_questions"])
    if verdict == "better":
        assert rule is not None
        return [f"Serve the rule {rule}, which is better than {policy} over all prices"
                f" ({questions:,} held-out questions): {_freezing(rule)}."]  # fmt: skip
    if best is None:
        what = "no effort that may lose a point or less"
        priced = any(row["token_price"] for row in evaluation["efforts"]
                     if row["max_em_loss"] <= POINT)  # fmt: skip
        found = "kept that and saved anything" if priced else "was shown to save anything"
        more = "" if priced else "; record more questions"
        said = [f"Decode in full: {what} {found} on {questions:,} held-out questions{more}."]
    else:
        low, high = (100 * end + 0.0 for end in best["held_out_em_loss_ci95"])
        doubt = "; a loss of more than a point is not ruled out" if high > 100 * POINT else ""
        said = [
            f"Serve {policy} at effort {best['effort']}: {best['held_out_savings']:.0%} fewer"
            f" tokens; {_between(low, high)} (95%, {questions:,} held-out questions;"
            f" {3 * questions:,} more would halve the interval{doubt})."
        ]
    if rule is not None and verdict == "worse":
        return [*said, f"It is better than the best rule, {rule}."]
    if rule is not None:
        return [*said, f"These questions cannot tell it from the best rule, {rule}:"
                       f" {_freezing(rule)}."]  # fmt: skip
    return said


def _between(low: float, high: float) -> str:
    """An interval of points lost, in words."""
    if high <= 0:
        return f"between {-high + 0.0:.1f} and {-low:.1f} points of exact match gained"
    if low < 0:
        return f"between {-low:.1f} points of exact match gained and {high:.1f} lost"
    return f"between {low:.1f} and {high:.1f} points of exact match lost"


def _freezing(rule: str) -> str:
    if can_freeze(rule):
        return f"rlbudget freeze RUN --rule {rule} makes a policy folder of the rule"
    return "no policy folder can hold this rule"


def _best_rule(evaluation: Mapping[str, Any], policy: str) -> tuple[str | None, str]:
    """The rule of the highest mean, and whether it is better or worse than a policy, or cannot be
    told from it; None where it was not compared."""
    rules = [row for row in evaluation["summary"] if row["kind"] == "rule"]
    known = [row for row in rules if row["mean_oracle_gap_closed"] is not None]
    best = max(known, key=lambda row: float(row["mean_oracle_gap_closed"]), default=None)
    if best is None or policy not in best.get("versus", {}):
        return None, "cannot tell"
    return best["method"], best["versus"][policy]["verdict"]
