"""What to do, in words: the sentences that an evaluation begins with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlbudget.policy.dial import EFFORTS

POINT = EFFORTS["medium"]
"""exact match that a recommended effort may lose"""


def recommended(evaluation: Mapping[str, Any]) -> list[str]:
    """Of what ``evaluation.json`` holds: the effort to serve, what it saves and may lose, and
    whether the questions can tell the policy from the best rule. Empty where no policy with
    efforts was measured."""  # fmt: skip
    rows = [row for row in evaluation.get("efforts") or () if row["max_em_loss"] <= POINT]
    if not rows:
        return []
    kept = [row for row in rows if row["token_price"] and row["held_out_em_loss"] <= POINT]
    best = max(kept, key=lambda row: float(row["held_out_savings"]), default=None)
    questions = int(evaluation["held_out_questions"])
    if best is None:
        what = "no effort that may lose a point or less"
        if any(row["token_price"] for row in rows):
            return [f"Decode in full: {what} kept that on {questions:,} held-out questions."]
        return [f"Decode in full: {what} was shown to save anything; record more questions."]
    low, high = (100 * end + 0.0 for end in best["held_out_em_loss_ci95"])
    said = (
        f"Serve {best['method']} at effort {best['effort']}: {best['held_out_savings']:.0%} fewer"
        f" tokens; between {low:.1f} and {high:.1f} points of exact match lost (95%,"
        f" {questions:,} held-out questions; {3 * questions:,} more would halve the interval)."
    )
    return [said, *_beside_rules(evaluation, best["method"])]


def _beside_rules(evaluation: Mapping[str, Any], policy: str) -> Iterator[str]:
    rules = [row for row in evaluation["summary"] if row["kind"] == "rule"]
    known = [row for row in rules if row["mean_oracle_gap_closed"] is not None]
    best = max(known, key=lambda row: float(row["mean_oracle_gap_closed"]), default=None)
    if best is None or policy not in best.get("versus", {}):
        return
    name, verdict = best["method"], best["versus"][policy]["verdict"]
    if verdict == "worse":
        yield f"It is better than the best rule, {name}."
    elif verdict == "better":
        yield f"The rule {name} is better than it over all prices: consider serving the rule."
    else:
        yield f"These questions cannot tell it from the best rule, {name}."
