"""The evaluation: the contract's file, choices made on training questions, the bootstrap."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frozen_nets import FREE, PRICES, random_policy, write_run
from synthetic import make_table, renamed
from trace_makers import make_trace

from rlbudget.agents.freeze import freeze
from rlbudget.agents.rules import RULES
from rlbudget.agents.rules.probing import CONFIDENCE, streaks
from rlbudget.agents.rules.unprobed import FIXED, FULL
from rlbudget.errors import UserError
from rlbudget.evaluate.evaluation import (
    as_json,
    assess,
    compared,
    gap_closed,
)
from rlbudget.evaluate.folder import evaluate_folder
from rlbudget.evaluate.measure import Sets, measure_rule, never
from rlbudget.evaluate.present import table_text
from rlbudget.policy.bootstrap import holm, interval, resample
from rlbudget.policy.dial import EFFORTS
from rlbudget.policy.folder import save_policy
from rlbudget.policy.operating import Swept, choose_points
from rlbudget.policy.outcomes import (
    RELATIVE_PRICES,
    budget_grid,
    fixed_stops,
    outcome,
    token_price_of,
    utility,
)
from rlbudget.traces.columns import table_of
from rlbudget.traces.store import TraceWriter
from rlbudget.traces.table import TraceTable
from rlbudget.traces.trace import Trace

DRAWS = 200
PROBING = {"confidence", "deer", "streak", "convergence", "dynasor"}


@pytest.fixture(scope="module")
def sets() -> tuple[TraceTable, TraceTable]:
    return renamed(make_table(300, seed=1), "a"), renamed(make_table(200, seed=2), "b")


@pytest.fixture(scope="module")
def evaluation(sets: tuple[TraceTable, TraceTable]) -> dict[str, Any]:
    return as_json(assess(*sets, {"mine": random_policy()}, draws=DRAWS))


def test_the_file_is_the_contract(evaluation: dict[str, Any]) -> None:
    assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation
    assert evaluation["version"] == 1
    assert evaluation["held_out_questions"] == evaluation["held_out_traces"] == 200
    assert evaluation["train_questions"] == 300
    lacking = {entry["method"]: entry["needs"] for entry in evaluation["not_applicable"]}
    assert lacking == {
        "eat": ["the signal exit_entropy"],
        "halt": ["the signal answer_entropy"],
        "loop": ["the signal text_repeats"],
    }
    applied = [rule.name for rule in RULES if rule.name not in lacking]
    methods = [*applied, "mine", "oracle"]
    assert [row["method"] for row in evaluation["summary"]] == methods
    assert len(evaluation["results"]) == len(methods) * len(RELATIVE_PRICES)
    row = evaluation["results"][0]
    assert set(row) >= {
        "method", "kind", "relative_price", "token_price", "exact_match",
        "exact_match_delta_ci95", "tokens", "token_fraction", "utility", "oracle_gap_closed",
        "parameters",
    }  # fmt: skip
    assert set(row["tokens"]) == {"thinking", "probe", "answer", "total"}
    assert set(evaluation["summary"][0]["savings_at_em_loss"]) == {"0.005", "0.01"}
    kinds = {row["method"]: row["kind"] for row in evaluation["summary"]}
    assert (kinds["fixed"], kinds["mine"], kinds["oracle"]) == ("rule", "learned", "bound")


def test_every_row_adds_up(evaluation: dict[str, Any]) -> None:
    full = evaluation["full"]["tokens"]["total"]
    for row in evaluation["results"]:
        tokens = row["tokens"]
        parts = tokens["thinking"] + tokens["probe"] + tokens["answer"]
        assert tokens["total"] == pytest.approx(parts)
        assert row["token_fraction"] == pytest.approx(parts / full)
        expected = row["exact_match"] - row["token_price"] * parts
        assert row["utility"] == pytest.approx(expected)
        low, high = row["utility_ci95"]
        assert low <= row["utility"] <= high


def test_the_bounds_of_the_gap(evaluation: dict[str, Any]) -> None:
    for row in evaluation["results"]:
        closed = row["oracle_gap_closed"]
        if row["method"] == "oracle":
            assert closed == pytest.approx(1)
        elif row["method"] == "fixed":
            assert closed == pytest.approx(0)
        else:
            assert closed <= 1


def test_probing_rules_pay_for_probes_and_others_do_not(evaluation: dict[str, Any]) -> None:
    for row in evaluation["results"]:
        stops = row["token_fraction"] < 1 or row["tokens"]["probe"]
        pays = row["method"] in PROBING and stops
        assert (row["tokens"]["probe"] > 0) == bool(pays), row["method"]


def test_parameters_come_from_the_training_questions_alone(
    sets: tuple[TraceTable, TraceTable],
) -> None:
    train, held_out = sets
    other = renamed(make_table(150, seed=9), "c")
    prices = tuple(token_price_of(r, train) for r in RELATIVE_PRICES)
    for rule in RULES:
        if rule.lacking(train):
            continue
        first = measure_rule(rule, Sets(train, held_out, prices))
        second = measure_rule(rule, Sets(train, other, prices))
        chosen = [p.parameters for p in first.chosen]
        assert chosen == [p.parameters for p in second.chosen]
        assert first.saving_most(0.01).parameters == second.saving_most(0.01).parameters


def test_the_fixed_rule_is_the_best_constant_budget(sets: tuple[TraceTable, TraceTable]) -> None:
    train, held_out = sets
    price = token_price_of(0.3, train)
    measured = measure_rule(FIXED, Sets(train, held_out, (price,)))
    budgets = [utility(outcome(train, fixed_stops(train, b)), price).mean()
               for b in budget_grid(train)]  # fmt: skip
    assert utility(measured.chosen[0].train, price).mean() == pytest.approx(max(budgets))


def test_savings_keep_the_promise_in_training(sets: tuple[TraceTable, TraceTable]) -> None:
    on = Sets(*sets, (1e-4,))
    measured = measure_rule(CONFIDENCE, on)
    full = never(on).train.exact_match.mean()
    for loss in (0.0, 0.005, 0.01, 0.05):
        spot = measured.saving_most(loss)
        assert spot.train.exact_match.mean() >= full - loss - 1e-9
    assert measured.saving_most(1.0).train.tokens.mean() == min(
        point.train.tokens.mean() for point in measured.points
    )


def test_the_frontier_rises(sets: tuple[TraceTable, TraceTable]) -> None:
    points = measure_rule(CONFIDENCE, Sets(*sets, (1e-4,))).frontier()
    tokens = [point.train.tokens.mean() for point in points]
    matches = [point.train.exact_match.mean() for point in points]
    assert tokens == sorted(tokens)
    assert all(a < b for a, b in itertools.pairwise(matches))


def test_streaks_are_counted_within_a_trace() -> None:
    table = table_of([make_trace(0, checkpoints=4), make_trace(1, checkpoints=3)])
    answers = replace(table, probe_answer=np.array([5, 5, 5, 2, 2, 2, 5]))
    assert streaks(answers).tolist() == [1, 2, 3, 1, 1, 2, 1]


def test_rules_without_what_they_need_say_so() -> None:
    train = renamed(make_table(60, seed=1, probes=False), "a")
    held_out = renamed(make_table(60, seed=2, probes=False), "b")
    evaluation = as_json(assess(train, held_out, {}, draws=DRAWS))
    lacking = {entry["method"] for entry in evaluation["not_applicable"]}
    assert lacking == {*PROBING, "eat", "halt", "loop"}
    assert not lacking & {row["method"] for row in evaluation["summary"]}
    assert "not applicable" in table_text(evaluation)


def test_a_shared_question_is_refused(sets: tuple[TraceTable, TraceTable]) -> None:
    with pytest.raises(ValueError, match="both in the training"):
        assess(sets[0], sets[0], {})


def test_a_policy_named_like_a_rule_is_refused(sets: tuple[TraceTable, TraceTable]) -> None:
    with pytest.raises(UserError, match="rename"):
        assess(*sets, {"fixed": random_policy()})


def test_verdicts_follow_the_corrected_p_values(evaluation: dict[str, Any]) -> None:
    verdicts = {"better", "worse", "cannot tell"}
    for row in evaluation["summary"]:
        if row["method"] == "oracle":
            assert row["versus"] == {}
            continue
        assert set(row["versus"]) == {"full", "mine"} - {row["method"]}
        for found in row["versus"].values():
            assert found["verdict"] in verdicts
            assert found["measure"] == "oracle gap closed"
            low, high = found["margin_ci95"]
            if found["verdict"] == "better":
                assert 0 < low <= found["margin"]
            if found["verdict"] == "worse":
                assert found["margin"] <= high < 0
    assert "vs mine" in table_text(evaluation)


def test_holm_is_the_textbook_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_draws_without_a_spread_prove_nothing() -> None:
    spread = np.random.default_rng(0).normal(1, 1, 4000)
    assert all(math.isnan(end) for end in interval(np.full(100, 0.3), 1000))
    assert all(math.isnan(end) for end in interval(spread, 5))
    assert not any(math.isnan(end) for end in interval(spread, 6))


def test_a_comparison_of_methods_is_that_of_their_gaps(
    sets: tuple[TraceTable, TraceTable],
) -> None:
    assessment = assess(*sets, {}, draws=DRAWS)
    nothing = compared(assessment, ["fixed"], ["fixed"])
    assert nothing.difference == 0
    assert nothing.interval[0] < 0 < nothing.interval[1]
    assert nothing.verdict == "cannot tell"
    whole = compared(assessment, ["oracle"], ["fixed"])
    assert whole.difference == pytest.approx(1)
    assert whole.verdict == "better"
    full = gap_closed(assessment, "full")
    assert compared(assessment, ["full"], ["fixed"]).difference == pytest.approx(full)


@pytest.mark.parametrize("right", [0, 1])
def test_without_a_gap_the_verdict_is_on_utility_and_says_so(right: int) -> None:
    traces = [_one_checkpoint(k, right) for k in range(60)]
    train, held_out = table_of(traces[:30]), table_of(traces[30:])
    found = as_json(assess(train, held_out, {"mine": random_policy()}, draws=DRAWS))
    for row in found["summary"]:
        assert row["mean_oracle_gap_closed"] is None
        assert row["mean_oracle_gap_closed_ci95"] == [None, None]
        for versus in row["versus"].values():
            assert versus["measure"] == "utility"
            low, high = versus["margin_ci95"]
            assert low < versus["margin"] < high
    assert "mean utility" in table_text(found)


def _one_checkpoint(number: int, right: int) -> Trace:
    """The exit saves nothing: the constant budget is the oracle."""
    trace = make_trace(number, checkpoints=1)
    (point,) = trace.checkpoints
    exit_ = replace(point.exit, exact_match=right, answer_tokens=500)
    final = replace(trace.final, exact_match=right)
    return replace(trace, final=final, checkpoints=(replace(point, exit=exit_),))


def test_two_questions_give_no_verdict(sets: tuple[TraceTable, TraceTable]) -> None:
    train, held_out = sets
    few = held_out.take(np.arange(2))
    found = as_json(assess(train, few, {"mine": random_policy()}, draws=DRAWS))
    for row in found["summary"]:
        for versus in row["versus"].values():
            assert versus["verdict"] == "cannot tell"
            assert versus["p_holm"] >= 0.5
            low, high = versus["margin_ci95"]
            assert low < high
    for row in found["results"]:
        low, high = row["exact_match_delta_ci95"]
        assert (low < high) is (row["method"] != "full")
        low, high = row["utility_ci95"]
        assert low < high


def test_the_bootstrap_weighs_whole_questions() -> None:
    ids = np.array(["a", "a", "b", "c"])
    resampling = resample(ids, draws=5000, seed=0)
    values = np.array([1.0, 3.0, 0.0, 8.0])
    means = resampling.means(values)
    a, b, c, unseen = resampling.weights.T
    np.testing.assert_allclose(means, (4 * a + 8 * c) / (2 * a + b + c))
    stacked = resampling.means(np.stack([values] * 2, axis=1))
    np.testing.assert_allclose(means, stacked[:, 1])
    below, above = resampling.bounds(values, low=-1, high=9)
    whole = 2 * a + b + c + 2 * unseen
    np.testing.assert_allclose(below, (4 * a + 8 * c - 2 * unseen) / whole)
    np.testing.assert_allclose(above, (4 * a + 8 * c + 18 * unseen) / whole)
    with pytest.raises(ValueError, match="not all in"):
        resampling.bounds(values, low=-1, high=7)


def test_the_interval_of_a_mean_is_the_textbook_one() -> None:
    values = np.random.default_rng(3).normal(2, 1, 400)
    resampling = resample(np.array([f"q{i}" for i in range(400)]), draws=4000, seed=1)
    low, high = interval(resampling.means(values), 400)
    error = values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.01)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.01)


def record_made(folder: Path, n: int = 60) -> None:
    with TraceWriter(folder) as writer:
        for i in range(n):
            writer.add(make_trace(i))


def test_a_folder_is_evaluated_into_files(tmp_path: Path) -> None:
    record_made(tmp_path / "traces")
    write_run(tmp_path / "run")
    freeze(tmp_path / "run", tmp_path / "policy")
    out = tmp_path / "evaluation"
    returned = evaluate_folder(
        tmp_path / "traces", policies=[tmp_path / "policy"], out=out, draws=DRAWS
    )
    assert json.loads((out / "evaluation.json").read_text()) == returned
    assert returned["notes"] == []
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "frontier.svg").read_text()
    table = (out / "table.txt").read_text()
    assert all(rule.name in table for rule in (FULL, FIXED))
    assert max(map(len, table.splitlines())) <= 100


def test_efforts_are_measured_beside_what_they_promise(tmp_path: Path) -> None:
    record_made(tmp_path / "traces")
    points = choose_points([Swept(1e-4, 0.0, 0.0, 0.3), Swept(5e-3, 0.02, 0.0, 0.6)], 300)
    save_policy(tmp_path / "policy", random_policy(FREE, operating_points=points))
    save_policy(tmp_path / "bare", random_policy(FREE, seed=2))
    out = tmp_path / "evaluation"
    rows = evaluate_folder(
        tmp_path / "traces", policies=[tmp_path / "policy", tmp_path / "bare"], out=out, draws=DRAWS
    )["efforts"]
    assert [(row["method"], row["effort"]) for row in rows] == [("policy", e) for e in EFFORTS]
    assert {key: rows[3][key] for key in points["low"]} == points["low"]
    assert (rows[0]["token_price"], rows[0]["held_out_em_loss"], rows[0]["held_out_savings"]) == (
        0, 0, 0,
    )  # fmt: skip
    for row in rows:
        low, high = row["held_out_em_loss_ci95"]
        assert low <= row["held_out_em_loss"] <= high
    table = (out / "table.txt").read_text()
    assert "max" in table
    assert "never stops" in table
    assert max(map(len, table.splitlines())) <= 100


def test_no_draws_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1"):
        evaluate_folder(tmp_path, out=tmp_path / "out", draws=0)


def test_the_told_price_stays_in_the_range_of_the_policy(
    evaluation: dict[str, Any],
) -> None:
    for row in evaluation["results"]:
        if row["method"] == "mine":
            told = row["parameters"]["token_price"]
            assert PRICES[0] <= told <= PRICES[1]
