"""The recommendation: one sentence that says what to serve, and one about the best rule."""

from __future__ import annotations

from typing import Any

import pytest

from rlbudget.evaluate.recommendation import recommended


def evaluation(verdict: str = "worse", **changes: Any) -> dict[str, Any]:
    effort = {
        "method": "policy", "effort": "medium", "max_em_loss": 0.01, "token_price": 1e-3,
        "held_out_em_loss": 0.007, "held_out_em_loss_ci95": (0.002, 0.013),
        "held_out_savings": 0.41,
    } | changes  # fmt: skip
    rule = {
        "method": "deer",
        "kind": "rule",
        "mean_oracle_gap_closed": 0.1,
        "versus": {"policy": {"verdict": verdict}},
    }
    other = {"method": "fixed", "kind": "rule", "mean_oracle_gap_closed": 0.0, "versus": {}}
    return {"held_out_questions": 60, "efforts": [effort], "summary": [other, rule]}


def test_it_says_the_effort_what_it_saves_and_may_lose_and_what_would_halve_the_interval() -> None:
    assert recommended(evaluation()) == [
        "Serve policy at effort medium: 41% fewer tokens; between 0.2 and 1.3 points of exact match"
        " lost (95%, 60 held-out questions; 180 more would halve the interval).",
        "It is better than the best rule, deer.",
    ]


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("better", "The rule deer is better than it over all prices"),
        ("cannot tell", "These questions cannot tell it from the best rule, deer."),
    ],
)
def test_it_says_where_a_rule_is_as_good_or_better(verdict: str, said: str) -> None:
    assert recommended(evaluation(verdict))[1].startswith(said)


def test_what_loses_more_than_it_may_or_never_stops_is_not_recommended() -> None:
    (said,) = recommended(evaluation(held_out_em_loss=0.02))
    assert said.startswith("Decode in full: no effort that may lose a point or less kept that")
    (said,) = recommended(evaluation(token_price=0.0))
    assert said.startswith("Decode in full: no effort that may lose a point or less was shown")


def test_efforts_that_may_lose_more_than_a_point_are_not_recommended_and_no_policy_no_word() -> (
    None
):
    assert recommended(evaluation(max_em_loss=0.03)) == []
    assert recommended({"held_out_questions": 60, "summary": []}) == []
