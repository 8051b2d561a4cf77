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
        " lost (95%, 60 held-out questions; 180 more would halve the interval; a loss of more than"
        " a point is not ruled out).",
        "It is better than the best rule, deer.",
    ]


def test_where_a_rule_is_better_the_rule_is_what_to_serve() -> None:
    (said,) = recommended(evaluation("better"))
    assert said.startswith("Serve the rule deer, which is better than policy over all prices")
    assert said.endswith("no policy folder can hold this rule.")
    frozen = evaluation("better")
    frozen["summary"][1]["method"] = "confidence"
    assert "rlbudget freeze RUN --rule confidence" in recommended(frozen)[0]


def test_where_a_rule_is_as_good_it_is_named_with_its_command() -> None:
    given = evaluation("cannot tell")
    given["summary"][1]["method"] = "confidence"
    _, said = recommended(given)
    assert said == (
        "These questions cannot tell it from the best rule, confidence:"
        " rlbudget freeze RUN --rule confidence makes a policy folder of the rule."
    )


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((-0.053, -0.009), "between 0.9 and 5.3 points of exact match gained"),
        ((-0.031, 0.031), "between 3.1 points of exact match gained and 3.1 lost"),
        ((0.0, 0.004), "between 0.0 and 0.4 points of exact match lost"),
    ],
)
def test_a_gain_is_called_a_gain(interval: tuple[float, float], said: str) -> None:
    first = recommended(evaluation(held_out_em_loss_ci95=interval))[0]
    assert said in first
    assert ("not ruled out" in first) == (interval[1] > 0.01)


def test_what_loses_more_than_it_may_saves_nothing_or_never_stops_is_not_recommended() -> None:
    for changes in ({"held_out_em_loss": 0.02}, {"held_out_savings": -0.02}):
        said, _ = recommended(evaluation(**changes))
        assert said.startswith("Decode in full: no effort that may lose a point or less kept that")
    said, _ = recommended(evaluation(token_price=0.0))
    assert said.startswith("Decode in full: no effort that may lose a point or less was shown")


def test_efforts_that_may_lose_more_than_a_point_are_not_recommended_and_no_policy_no_word() -> (
    None
):
    assert recommended(evaluation(max_em_loss=0.03)) == []
    assert recommended({"held_out_questions": 60, "summary": []}) == []
