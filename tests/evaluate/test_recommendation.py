"""The recommendation: what to serve with which command, what it saves and may lose, what is not
known, and how many questions would tell."""

from __future__ import annotations

import numpy as np
import pytest
from evaluations import against, evaluation

from rlbudget.evaluate.needed import about, needed, to_tell_apart
from rlbudget.evaluate.present import WIDTH, advised
from rlbudget.evaluate.recommendation import between, pick, recommended
from rlbudget.evaluate.verdicts import mean_interval
from rlbudget.policy.bootstrap import resample


def test_it_says_what_to_serve_what_that_saves_and_loses_and_how_many_more_would_help() -> None:
    assert recommended(evaluation()) == [
        "Serve policy at effort medium: rlbudget decode --model MODEL --policy policy --effort"
        ' medium, or effort = "medium" in a plan.',
        "41% fewer tokens; between 0.2 and 1.3 points of exact match lost (95% interval, 60"
        " held-out questions); a loss of more than a point is not ruled out; about 370 more"
        " recorded questions (110 held out) would halve the interval.",
        "policy is better than the best rule, deer, over all prices.",
    ]


def test_nobody_is_asked_for_more_questions_where_the_interval_is_narrower_than_matters() -> None:
    narrow = evaluation(held_out_em_loss_ci95=(0.001, 0.009))
    assert "would halve" not in recommended(narrow)[1]
    assert "not ruled out" not in recommended(narrow)[1]
    assert "would halve" not in recommended(evaluation(to_halve=None))[1]


def test_where_a_rule_is_better_the_rule_is_what_to_serve_with_a_command_that_there_is() -> None:
    for rule in ("deer", "confidence", "dynasor"):
        serve, gains, better = recommended(evaluation("better", rule))
        assert (
            serve
            == f"Serve the rule {rule}: rlbudget freeze RUN --rule {rule} --out {rule}-policy."
        )
        assert gains.startswith("30% fewer tokens; between 0.0 and 2.0 points of exact match lost")
        assert better == f"The rule {rule} is better than policy over all prices."


def test_a_rule_that_cannot_be_frozen_is_named_and_the_policy_served() -> None:
    serve, _, better = recommended(evaluation("better", "ac-dirichlet"))
    assert serve.startswith("Serve policy at effort medium")
    assert better.endswith("it looks at the votes of five answers at once: take ac-beta.")


def test_where_they_cannot_be_told_apart_the_simpler_of_both_comes_first() -> None:
    serve, _, same = recommended(evaluation("cannot tell", "confidence"))
    assert serve.startswith("Serve the rule confidence: rlbudget freeze RUN --rule confidence")
    assert same == (
        "These questions cannot tell policy from the best rule, confidence, which is the simpler of"
        " both; policy at effort medium saves 41%; about 600 more recorded questions (180 held out)"
        " may tell them apart."
    )
    # A rule that makes trial answers is not simpler than a policy that makes none.
    serve, _, same = recommended(evaluation("cannot tell", "deer"))
    assert serve.startswith("Serve policy at effort medium")
    assert "which makes trial answers, as policy does not; deer saves 30%" in same


def test_a_rule_that_lost_more_than_it_may_is_not_served_for_being_simpler() -> None:
    given = evaluation("cannot tell", "confidence")
    given["summary"][1]["held_out_em_loss"] = {"0.01": 0.04}
    serve, _, same = recommended(given)
    assert serve.startswith("Serve policy at effort medium")
    assert "tuned to lose at most a point, confidence lost 4.0 and saved 30% here" in same


def test_where_nothing_can_be_told_it_begins_with_too_few_questions_and_how_many_are_needed() -> (
    None
):
    given = evaluation("cannot tell", "confidence", from_full="cannot tell")
    few, serve, gains, same = recommended(given)
    assert few == (
        "Too few questions: 60 held-out ones cannot tell whether it pays to stop early; about"
        " 2,800 more recorded questions (840 held out) would say what is lost to a point."
    )
    assert serve.startswith("Until then decode in full or, unproven: serve the rule confidence")
    assert "would halve" not in gains
    assert "may tell them apart" not in same


def test_what_loses_more_than_it_may_saves_nothing_or_never_stops_is_not_recommended() -> None:
    worse = {"savings_at_em_loss": {"0.01": 0.0}}
    for changes, why in (
        ({"held_out_em_loss": 0.02}, "which may lose a point, lost 2.0"),
        ({"held_out_savings": -0.02}, "saves nothing"),
        ({"token_price": 0.0, "held_out_savings": 0.0}, "saves nothing"),
    ):
        given = evaluation(**changes)  # type: ignore[arg-type]
        given["summary"][1] |= worse
        (said,) = recommended(given)
        assert said.startswith("Decode in full: policy")
        assert why in said


def test_a_policy_without_operating_points_is_recommended_by_what_it_was_tuned_to() -> None:
    given = evaluation() | {"efforts": []}
    serve, gains, _ = recommended(given)
    assert serve == (
        "Serve policy at the price that may lose a point, which its folder does not name: rlbudget"
        " calibrate policy TRACES --out POLICY finds it."
    )
    assert gains.startswith("30% fewer tokens; between 0.0 and 2.0 points")


def test_folds_recommend_the_recipe_and_count_questions_that_are_all_held_out() -> None:
    given = evaluation() | {"folds": 5}
    del given["efforts"]
    serve, gains, _ = recommended(given)
    assert "trained on all of these questions, at effort medium: rlbudget train TRACES" in serve
    assert "about 180 more questions would halve" in gains


def test_rules_alone_recommend_the_best_rule_and_the_way_to_a_policy_folder_of_it() -> None:
    given = evaluation() | {"efforts": []}
    del given["summary"][2], given["summary"][1]["versus"]["policy"]
    serve, _, more = recommended(given)
    assert serve == (
        "Serve the rule deer: rlbudget train TRACES --out RUN, then rlbudget freeze RUN --rule deer"
        " --out deer-policy."
    )
    assert more == "A trained policy may do better: rlbudget train TRACES --out RUN."
    given["summary"][1]["method"] = "full"
    assert recommended(given)[0].startswith("Decode in full: no rule is better")


def test_where_a_constant_budget_is_as_good_as_the_oracle_what_saves_most_is_served() -> None:
    given = evaluation("cannot tell", "confidence")
    for row in given["summary"]:
        row["mean_oracle_gap_closed"] = None
    given["summary"][1]["savings_at_em_loss"] = {"0.01": 0.4}
    found = [pick(given).rule]
    given["summary"][1]["held_out_em_loss"] = {"0.01": 0.04}
    found.append(pick(given).rule)
    given["summary"][0]["savings_at_em_loss"] = {"0.01": 0.0}
    assert [way and way.method for way in found] == ["confidence", "fixed"]
    assert pick(given).rule is None


def test_a_policy_of_samples_is_served_where_they_are_drawn() -> None:
    given = evaluation()
    given["summary"][0]["method"] = "fixed-n"
    assert recommended(given)[0] == (
        "Serve policy at effort medium, token price 0.001, in the loop that draws the samples."
    )


def test_a_frozen_rule_is_not_compared_with_itself() -> None:
    given = evaluation("cannot tell") | {"frozen_rules": {"policy": "deer"}}
    assert pick(given).rule is None
    assert len(recommended(given)) == 2


def test_efforts_that_may_lose_more_than_a_point_are_not_recommended() -> None:
    given = evaluation(max_em_loss=0.03)
    assert pick(given).way is not None
    assert "effort" not in recommended(given)[0].replace("--effort", "").split("(")[0]


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((-0.053, -0.009), "between 0.9 and 5.3 points of exact match gained"),
        ((-0.031, 0.031), "between 3.1 points of exact match gained and 3.1 lost"),
        ((0.0, 0.004), "between 0.0 and 0.4 points of exact match lost"),
        ((-1e-5, 0.0), "between 0.0 and 0.0 points of exact match lost"),
    ],
)
def test_a_gain_is_called_a_gain(interval: tuple[float, float], said: str) -> None:
    assert between(*interval) == said


def test_its_lines_are_no_wider_than_a_terminal() -> None:
    for verdict in ("better", "worse", "cannot tell"):
        given = evaluation(verdict)
        lines = advised(given | {"recommendation": recommended(given)})
        assert max(map(len, lines)) <= WIDTH
        assert " ".join(map(str.strip, lines)) == " ".join(recommended(given))


@pytest.mark.parametrize("lossy", [0.0, 0.03, 0.1])
def test_so_many_questions_halve_the_interval_whether_answers_are_lost_or_not(lossy: float) -> None:
    rng = np.random.default_rng(3)
    lost = (rng.random(120) < lossy).astype(float) - (rng.random(120) < lossy / 2)

    def half(values: np.ndarray) -> float:
        drawn = resample(np.arange(len(values)).astype(str), draws=2000, seed=1)
        low, high = mean_interval(drawn, values, low=-1.0, high=1.0)
        return (high - low) / 2

    found = needed(resample(np.arange(120).astype(str), draws=2000, seed=0), lost)
    more = found["to_halve"]
    assert more is not None
    times = more / 120
    assert (times < 2.3) if not lossy else (2.3 < times < 4.8)
    # The same shares of losses and gains among so many.
    gained, gone = (round(more * float((lost == sign).mean())) for sign in (-1, 1))
    values = np.zeros(more)
    values[:gone], values[gone : gone + gained] = 1.0, -1.0
    assert half(values) == pytest.approx(half(lost) / 2, rel=0.25)


def test_questions_are_said_with_two_digits_and_none_are_asked_for_what_is_too_small() -> None:
    assert [about(n) for n in (0.2, 7.1, 43.2, 117, 1234)] == ["1", "8", "44", "120", "1,300"]
    assert to_tell_apart(against("cannot tell", 0.02, 0.04), 60) == 240
    assert to_tell_apart(against("cannot tell", 1e-4, 0.04), 60) is None
    assert to_tell_apart({"margin": 0.1, "margin_ci95": (None, None)}, 60) is None
