"""Money and time of the recommendation: read from what was typed, true to the outcomes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from frozen_nets import random_policy
from synthetic import make_table, renamed

from rlbudget.errors import UserError
from rlbudget.evaluate.evaluation import Assessment, as_json, assess
from rlbudget.evaluate.tiles import money, points, seconds, tiles
from rlbudget.evaluate.worth import Rates, Served, rates_of, served, worth
from rlbudget.files import json_ready
from rlbudget.policy.folder import Policy
from rlbudget.policy.outcomes import Outcome
from rlbudget.policy.replay import replay
from rlbudget.traces.table import TraceTable


@pytest.mark.parametrize(
    ("typed", "amount", "currency"),
    [
        ("0.60", 0.6, ""), ("$0.60", 0.6, "$"), ("€ 2", 2.0, "€"), ("2 EUR", 2.0, "EUR"),
        (" US$15 ", 15.0, "US$"), (".5", 0.5, ""), (3, 3.0, ""), (0.25, 0.25, ""),
    ],
)  # fmt: skip
def test_a_price_is_a_number_with_or_without_a_currency(
    typed: str | float, amount: float, currency: str
) -> None:
    assert rates_of(typed, 50.0) == Rates(amount, currency, 50.0)


@pytest.mark.parametrize(
    "typed",
    ["-1", "$-1", "-$1", "0", "nan", "inf", "", "$", "free", "1,5", "$1€", "1e999", "$1e2 ", "1 2",
     -0.5, math.nan, math.inf, 0],
)  # fmt: skip
def test_what_is_no_amount_is_refused_in_one_line(typed: str | float) -> None:
    with pytest.raises(UserError, match="--price-per-million must be an amount above 0") as said:
        rates_of(typed, None)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("speed", [0.0, -3.0, math.nan, math.inf])
def test_a_speed_is_above_0(speed: float) -> None:
    with pytest.raises(UserError, match="--tokens-per-second must be a number above 0"):
        rates_of(None, speed)


def outcome_of(tokens: list[float], exact_match: list[float]) -> Outcome:
    none = np.zeros(len(tokens))
    return Outcome(np.array(exact_match), np.array(tokens), none, none)


@pytest.fixture(scope="module")
def tables() -> tuple[TraceTable, TraceTable]:
    return renamed(make_table(120, seed=1), "a"), renamed(make_table(60, seed=2), "b")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return random_policy(seed=3)


@pytest.fixture(scope="module")
def assessment(tables: tuple[TraceTable, TraceTable], policy: Policy) -> Assessment:
    return assess(*tables, {"mine": policy}, draws=200)


def test_money_and_seconds_follow_from_tokens(assessment: Assessment) -> None:
    n = len(assessment.full)
    full = outcome_of([100.0, 300.0] * (n // 2), [1.0] * n)
    way = Served(
        "mine", "high", "mine at effort high", outcome_of([100.0, 100.0] * (n // 2), [1] * n)
    )
    found = worth(way, full, assessment.resampling, Rates(2.0, "$", 50.0))
    assert found["headline"]["savings"] == 0.5
    assert found["headline"]["tokens"] == 100
    assert found["money"]["full"] == pytest.approx(0.4)
    assert found["money"]["saved"] == pytest.approx(0.2)
    low, high = found["money"]["saved_ci95"]
    assert 0.1 < low < 0.2 < high < 0.3
    assert found["time"]["full"] == {"median": 4.0, "p95": 6.0}
    assert found["time"]["served"] == {"median": 2.0, "p95": 2.0}
    assert found["time"]["saved"] == 2.0
    low, high = found["time"]["saved_ci95"]
    assert 1.0 < low < 2.0 < high < 3.0


def test_nothing_is_said_of_money_or_time_where_no_rate_was_given(assessment: Assessment) -> None:
    way = Served("full", None, "", assessment.full)
    only = worth(way, assessment.full, assessment.resampling, Rates())
    assert set(only) == {"headline"}
    assert only["headline"]["savings_ci95"] == (0.0, 0.0)
    assert set(worth(way, assessment.full, assessment.resampling, Rates(1.0))) == {
        "headline", "money",
    }  # fmt: skip


def test_the_headline_is_what_the_first_sentence_recommends(
    assessment: Assessment, policy: Policy, tables: tuple[TraceTable, TraceTable]
) -> None:
    evaluation: dict[str, Any] = as_json(assessment)
    price = 1e-3
    effort = {
        "method": "mine", "effort": "medium", "max_em_loss": 0.01, "token_price": price,
        "held_out_em_loss": 0.0, "held_out_em_loss_ci95": (-0.01, 0.01), "held_out_savings": 0.3,
    }  # fmt: skip
    (rule,) = [row for row in evaluation["summary"] if row["method"] == "fixed"]
    rule["mean_oracle_gap_closed"], rule["held_out_em_loss"] = 9.0, {"0.01": 0.0}
    rule["savings_at_em_loss"] = {"0.01": 0.2}

    def way(verdict: str, **changes: Any) -> Served:
        rule["versus"]["mine"] = {
            "verdict": verdict, "margin": 0.0, "margin_ci95": (-0.1, 0.1)
        }  # fmt: skip
        given = {**evaluation, "efforts": [effort | changes]}
        return served(given, assessment, {"mine": policy}, tables[1])

    at = replay(policy, tables[1], price).outcome
    assert (way("worse").how, way("worse").effort) == ("mine at effort medium", "medium")
    assert np.array_equal(way("worse").outcome.tokens, at.tokens)
    for verdict in ("better", "cannot tell"):
        assert way(verdict).how == "fixed, tuned to lose at most 1 point"
    rule["savings_at_em_loss"] = {"0.01": 0.0}
    assert way("worse", held_out_savings=0.0).method == "full"


def test_without_a_policy_the_headline_is_the_best_rule(
    tables: tuple[TraceTable, TraceTable],
) -> None:
    bare = assess(*tables, {}, draws=20)
    evaluation = as_json(bare)
    known = [row for row in evaluation["summary"] if row["kind"] == "rule"]
    best = max(known, key=lambda row: row["mean_oracle_gap_closed"])
    best["savings_at_em_loss"], best["held_out_em_loss"] = {"0.01": 0.2}, {"0.01": 0.0}
    assert served(evaluation, bare, {}, None).method == best["method"]
    best["held_out_em_loss"] = {"0.01": 0.5}
    assert served(evaluation, bare, {}, None).method == "full"


def test_amounts_keep_the_digits_that_count() -> None:
    said = [money(amount, "$") for amount in (12.345, 1234.5, 0.0716, 0.0000123, 0.0, -0.5)]
    assert said == ["$12.35", "$1,234.50", "$0.072", "$0.000012", "$0.00", "−$0.50"]
    assert money(0.5, "EUR") == "0.50\u00a0EUR"
    said = [seconds(s).replace("\u00a0", " ") for s in (0.0123, 0.58, 12.34, -3.0, 119.0, 600.0)]
    assert said == ["0.012 s", "0.58 s", "12.3 s", "−3.00 s", "119.0 s", "10.0 min"]
    assert [points(v) for v in (0.0, -0.0001, 0.031, -0.031)] == ["0.0", "0.0", "+3.1", "−3.1"]


def test_the_tiles_say_what_is_served_and_money_and_time_only_at_given_rates(
    assessment: Assessment,
) -> None:
    n = len(assessment.full)
    full = outcome_of([100.0, 300.0] * (n // 2), [1.0] * n)
    half = outcome_of([100.0] * n, [1.0] * n)
    more = outcome_of([400.0] * n, [1.0] * n)
    own = as_json(assessment) | {"full": {"exact_match": 1.0, "tokens": {"total": 200.0}}}

    def shown(way: Served, rates: Rates) -> list[tuple[str, str]]:
        return tiles(own | json_ready(worth(way, full, assessment.resampling, rates)))

    rates = Rates(2.0, "$", 50.0)
    saves, same, paid, time, _ = shown(Served("mine", "high", "mine at effort high", half), rates)
    assert saves[0] == "50%"
    assert saves[1].startswith("fewer tokens with mine at effort high: 200.0 → 100.0 a question")
    assert same[0] == "0.0\u00a0pt"
    assert paid[0] == "$0.20"
    assert paid[1].startswith("less to pay for 1,000 questions: $0.40 → $0.20 (95%: $0.1")
    assert time[0] == "2.00\u00a0s"
    assert "median 4.00\u00a0s → 2.00\u00a0s, 95th percentile 6.00\u00a0s → 2.00\u00a0s" in time[1]
    assert len(shown(Served("mine", None, "mine", half), Rates())) == 3
    costs, _, paid, time, _ = shown(Served("mine", None, "mine", more), rates)
    assert (costs[0], costs[1][:11]) == ("100%", "more tokens")
    assert (paid[0], paid[1][:5]) == ("$0.40", "more ")
    assert (time[0], time[1][:6]) == ("4.00\u00a0s", "later ")
    *_, paid, time = shown(Served("full", None, "", full), rates)
    assert paid == ("$0.40", "to pay for 1,000 questions decoded in full; nothing is saved")
    assert "nothing is saved" in time[1]
