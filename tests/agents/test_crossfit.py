"""The cross-fitted ensemble: one network for all members, honest estimates, the same seed twice."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from frozen_nets import random_observations, write_run
from hypothesis import given, settings
from hypothesis import strategies as st
from run_events import curves_of, events_of
from synthetic import make_table, tabular_stops, tabular_table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlbudget.agents.actor import actor_stop_chances
from rlbudget.agents.clone import as_paid, best_of, imitate, try_rules
from rlbudget.agents.config import PPOConfig, ensemble_of
from rlbudget.agents.crossfit import train_crossfit
from rlbudget.agents.crossfit_log import CLOSED, LAYOUT, MEMBERS, OF_RULE, SAVED
from rlbudget.agents.curves import FRONTIER, FULL, GAP
from rlbudget.agents.doubt import DOUBTS, NEVER, choose_doubts, doubtful
from rlbudget.agents.freeze import RULES, freeze, policy_of_run
from rlbudget.agents.frozen_rules import RULE_PRICES, tuned_to
from rlbudget.agents.members import (
    Member,
    best_members,
    fold_of_traces,
    make_folds,
    merged,
    train_members,
)
from rlbudget.agents.out_of_fold import OutOfFold
from rlbudget.agents.ppo import training_columns
from rlbudget.agents.together import Actors
from rlbudget.agents.tuned_rule import can_freeze
from rlbudget.agents.validation import PriceResult, Score
from rlbudget.arrays import Floats
from rlbudget.errors import UserError
from rlbudget.evaluate.evaluation import assess
from rlbudget.policy import outcomes
from rlbudget.policy.folder import load_policy
from rlbudget.policy.prices import price_grid
from rlbudget.policy.replay import replay

TINY = replace(
    ensemble_of(PPOConfig(), 60, 3), hidden=(8,), n_envs=64, n_steps=4, batch_size=128,
    total_timesteps=24 * 256,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crossfit") / "run"
    train_crossfit(make_table(60, seed=1), TINY, folder)
    return folder


@pytest.mark.parametrize("hidden", [(8,), (8, 4)])
def test_the_merged_network_says_the_mean_of_its_members(hidden: tuple[int, ...]) -> None:
    actors = Actors([1, 2, 3], 6, replace(TINY, hidden=hidden))
    with torch.no_grad():
        actors.weights[-1].mul_(100)
    each = [actors.actor(member) for member in range(3)]
    inputs = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    odds = [np.log(c / (1 - c)) for c in (actor_stop_chances(one, inputs) for one in each)]
    both = actor_stop_chances(merged(each), inputs)
    assert np.std(odds, axis=0).max() > 0.1
    assert np.abs(np.log(both / (1 - both)) - np.mean(odds, axis=0)).max() < 1e-4


def test_every_question_is_in_one_fold_with_all_its_traces_and_folds_are_of_equal_sizes() -> None:
    table = make_table(50, seed=3)
    fold = fold_of_traces(table, 4, seed=0)
    of_question = {q: set(fold[table.question_ids == q]) for q in np.unique(table.question_ids)}
    assert all(len(folds) == 1 for folds in of_question.values())
    counts = np.bincount([folds.pop() for folds in of_question.values()])
    assert counts.max() - counts.min() <= 1


def test_members_see_nothing_of_the_fold_that_they_leave_out() -> None:
    table, few = make_table(40, seed=5), replace(TINY, total_timesteps=1024)
    columns = training_columns(table, TINY)
    fold = fold_of_traces(table, 3, seed=0)
    before = train_members(make_folds(columns, fold), few)[-1]
    turned = replace(
        table,
        exit_exact_match=np.where(fold[table.trace_of_row] == 1, 1 - table.exit_exact_match,
                                  table.exit_exact_match),
    )  # fmt: skip
    after = train_members(make_folds(training_columns(turned, TINY), fold), few)[-1]
    for one, two in zip(before, after, strict=True):
        same = all(torch.equal(one.actor[name], two.actor[name]) for name in one.actor)
        assert same == (one.fold == 1)


def test_a_clone_stops_where_the_best_rule_of_its_price_does() -> None:
    table = make_table(150, seed=2)
    config = replace(TINY, hidden=(16,))
    columns = training_columns(table, config)
    tried = try_rules(table)
    actors = Actors([7], columns.inputs.shape[1], config)
    imitate(actors, [columns], [tried], "free")
    low, high = columns.scaling.token_price
    agree = []
    for price in np.geomspace(low, high, 5):
        columns.inputs[:, -1] = columns.scaling.price(price)
        chance = actor_stop_chances(actors.actor(0), columns.inputs)
        stops = outcomes.first_stop(table, chance > 0.5)
        rule = best_of(as_paid(table, tried, "free"), price)
        agree.append(
            float(outcomes.utility(outcomes.outcome(table, stops), price).mean())
            - float(outcomes.utility(rule.outcome, price).mean())
        )
    assert min(agree) > -0.05


def test_the_known_optimum_is_found(tmp_path: Path) -> None:
    table = tabular_table(copies=40)  # so that every fold holds each kind as often
    config = replace(
        ensemble_of(PPOConfig(), 60), n_epochs=6, total_timesteps=100_000, learning_rate=1e-2
    )
    train_crossfit(table, config, tmp_path / "run")
    policy = policy_of_run(tmp_path / "run")
    for price in policy.price_range:
        stops = replay(policy, table, price).stops
        assert (stops == tabular_stops(table, price)).all()


def test_what_is_frozen_is_what_the_run_holds_and_stands_alone(run: Path, tmp_path: Path) -> None:
    policy = freeze(run, tmp_path / "policy", standalone=True)
    assert load_policy(tmp_path / "policy") == policy
    assert 2 * 3 * 8 <= policy.config["layers"][1] <= 2 * 3 * 8 + 5
    assert policy.seen is not None
    rows = random_observations(policy, 64)
    np.save(tmp_path / "rows.npy", rows)
    price = float(np.sqrt(np.prod(policy.price_range)))
    code = (
        "import numpy, policy;"
        f"print([float(p) for p in policy.stop_probabilities(numpy.load('../rows.npy'), {price})])"
    )
    alone = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "policy", capture_output=True, check=True
    )
    assert json.loads(alone.stdout) == policy.stop_probabilities(rows, price).tolist()
    assert [policy(row, token_price=price).stop_probability for row in rows] == json.loads(
        alone.stdout
    )


def test_the_same_seed_gives_the_same_policy_and_a_finished_run_is_left_alone(
    run: Path, tmp_path: Path
) -> None:
    table = make_table(60, seed=1)
    train_crossfit(table, TINY, tmp_path / "again")
    assert policy_of_run(tmp_path / "again") == policy_of_run(run)
    before = (run / "best.safetensors").stat().st_mtime_ns
    train_crossfit(table, TINY, run, resume=True)
    assert (run / "best.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="already holds a run"):
        train_crossfit(table, TINY, run)
    with pytest.raises(UserError, match="a run with another"):
        train_crossfit(table, replace(TINY, seed=5), run, resume=True)


def test_an_interrupted_training_leaves_an_unfinished_policy_and_resumes_to_the_same(
    run: Path, tmp_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    table, folder = make_table(60, seed=1), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_crossfit(table, TINY, folder, progress=stop)
    with pytest.raises(UserError, match="did not come to its end"):
        policy_of_run(folder)
    assert policy_of_run(folder, unfinished=True) != policy_of_run(run)
    train_crossfit(table, TINY, folder, resume=True)
    assert policy_of_run(folder) == policy_of_run(run)


@pytest.fixture(scope="module")
def events(run: Path) -> EventAccumulator:
    return events_of(run)


def test_tensorboard_shows_the_members_the_estimate_and_what_to_compare_it_with(
    events: EventAccumulator, run: Path
) -> None:
    # What TensorBoard calls the run.
    assert (run / "free-60-questions-seed-0").is_dir()
    found = json.loads((run / "run.json").read_text())["out_of_fold"]
    assert [event.value for event in events.Scalars(CLOSED)] == [
        pytest.approx(found["oracle_gap_closed"], abs=1e-6)
    ]
    for name, value in ((OF_RULE, found["rule"]["oracle_gap_closed"]),
                        (FULL["tokens"], found["full"]["tokens"])):  # fmt: skip
        level = events.Scalars(name)
        assert [event.value for event in level] == [pytest.approx(value, rel=1e-6)] * 2
        assert level[0].step == 0 < level[1].step
    assert set(events.Tags()["images"]) == {FRONTIER, f"{GAP}/by price"}
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    (table,) = events.Tensors("result/text_summary")
    assert "| relative price | exact match |" in table.tensor_proto.string_val[0].decode()


def test_every_curve_of_the_layout_is_logged_and_no_curve_has_a_single_point_but_results(
    events: EventAccumulator,
) -> None:
    found = curves_of(LAYOUT, events)
    assert all(found.values())
    assert [one for one, tags in found.items() if len(tags) > 1] == [f"{MEMBERS}/.*$"]
    tags = events.Tags()["scalars"]
    assert {tag for tag in tags if len(events.Scalars(tag)) < 2} == {CLOSED, SAVED}


def test_the_moment_for_a_fold_is_chosen_without_its_answers() -> None:
    rng = np.random.default_rng(0)

    def look(utilities: Floats) -> list[Member]:
        price = PriceResult(0.1, 1e-3, 0.5, 10.0, 0.0, 0.0)
        return [
            Member(k, warm, {}, Score((replace(price, utility=float(u)),), 0.0, 0.0, 0.0))
            for warm, of in zip((False, True), utilities, strict=True)
            for k, u in enumerate(of)
        ]

    given = rng.normal(size=(9, 2, 3))
    other = given.copy()
    other[:, :, 1] = rng.normal(size=(9, 2)) * 10
    one, two = ([look(u) for u in each] for each in (given, other))
    chosen = best_members(one, [5, 5, 5], np.ones(1), without=1)
    again = best_members(two, [5, 5, 5], np.ones(1), without=1)
    for mine, same in zip(chosen, again, strict=True):
        if mine.fold != 1:
            assert mine.score == same.score
    assert [m.score for m in chosen] != [m.score for m in best_members(two, [5, 5, 5], np.ones(1))]
    smooth = given[:, 0, [0, 2]].sum(axis=1)
    smooth = np.convolve(np.pad(smooth, 1, "edge"), np.ones(3), "valid")
    assert chosen[0].score.prices[0].utility == given[int(smooth.argmax()), 0, 0]


@pytest.mark.parametrize("hidden", [(8,), (8, 4)])
def test_a_doubt_lowers_the_logit_at_its_prices_alone(hidden: tuple[int, ...]) -> None:
    actor = Actors([1], 5, replace(TINY, hidden=hidden)).actor(0)
    places = [-0.7, -0.3, 0.0, 0.3, 0.5, 0.7]
    doubts = (NEVER, 2.0, 2.0, 0.5, 0.5, 0.0)
    inputs = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    for place, doubt in zip([-1.0, *places, 1.0], (doubts[0], *doubts, 0.0), strict=True):
        inputs[:, -1] = place
        plain, less = (
            actor_stop_chances(one, inputs) for one in (actor, doubtful(actor, doubts, places))
        )
        assert np.allclose(
            np.log(less / (1 - less)), np.log(plain / (1 - plain)) - doubt, atol=0.02
        )


def test_doubts_protect_the_price_where_stopping_loses_and_cost_nothing_where_it_pays() -> None:
    rng = np.random.default_rng(0)
    gained = np.zeros((6, len(DOUBTS), 200))
    for price, mean in enumerate((0.05, 0.02, 0.0, -0.02, -0.05, -0.1)):
        for doubt in range(1, len(DOUBTS)):
            gained[price, doubt] = mean * doubt / 5 + rng.normal(0, 0.05, 200)
    assert choose_doubts(gained, np.ones(6)) == (NEVER, NEVER, 0.0, 0.0, 0.0, 0.0)
    assert choose_doubts(gained[:, :, :3], np.ones(6)) == (0.0,) * 6


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_doubts_are_the_best_that_never_grow_with_the_price(seed: int) -> None:
    gained = np.random.default_rng(seed).normal(size=(3, len(DOUBTS), 8))
    gained[:, 0] = 0
    chosen = choose_doubts(gained, np.ones(3), errors=0.5)
    worth = gained.mean(axis=2) - 0.5 * gained.std(axis=2, ddof=1) / np.sqrt(8)
    every = [
        sum(worth[k, d] for k, d in enumerate(way))
        for way in itertools.product(range(len(DOUBTS)), repeat=3)
        if way[0] >= way[1] >= way[2]
    ]
    own = sum(worth[k, DOUBTS.index(doubt)] for k, doubt in enumerate(chosen))
    assert list(chosen) == sorted(chosen, reverse=True)
    assert own == pytest.approx(max(every))


def test_a_rule_out_of_fold_is_tuned_on_the_other_folds_alone() -> None:
    table = make_table(60, seed=4)
    fold = fold_of_traces(table, 3, seed=0)
    parts = [table.take(np.flatnonzero(fold != place)) for place in range(3)]
    given = OutOfFold(
        table, fold, lambda price: outcomes.outcome(table, outcomes.full_stops(table)),
        [try_rules(part) for part in parts],
    )  # fmt: skip
    price = outcomes.token_price_of(0.3, table)
    found = given.fixed(price)
    for place, part in enumerate(parts):
        own = table.take(np.flatnonzero(fold == place))
        budget = outcomes.best_budget(part, price)
        expected = outcomes.outcome(own, outcomes.fixed_stops(own, budget))
        assert (found.tokens[fold == place] == expected.tokens).all()
        assert (found.exact_match[fold == place] == expected.exact_match).all()


def test_operating_points_are_chosen_out_of_fold_where_the_policy_has_seen_the_questions(
    run: Path,
) -> None:
    policy = policy_of_run(run)
    train, other = make_table(60, seed=1), make_table(40, seed=9)
    other = replace(other, question_ids=np.array([f"h{q}" for q in other.question_ids.tolist()]))
    found = assess(train, other, {"ppo": policy}, rules=[], draws=2)
    assert policy.out_of_fold is not None
    swept = policy.out_of_fold["swept"]
    points = found.methods["ppo"].points
    full = policy.out_of_fold["full"]["exact_match"]
    assert [float(p.train.exact_match.mean()) for p in points[1:]] == pytest.approx(
        [full - lost for _, lost, _ in swept]
    )
    apart = assess(other, train, {"ppo": policy}, rules=[], draws=2).methods["ppo"].points
    assert all(len(point.train) == len(other) for point in apart)


def test_a_single_question_cannot_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least two questions"):
        train_crossfit(make_table(1, seed=0), TINY, tmp_path / "run")


def test_what_trains_a_single_policy_is_no_ensemble() -> None:
    assert ensemble_of(PPOConfig(em_floor=0.9), 60).members == 1
    with pytest.raises(UserError, match="train a single policy"):
        PPOConfig(advantages="sampled", members=5)


def test_a_frozen_rule_stops_where_the_rule_does_at_every_price_it_was_tuned_to(
    tmp_path: Path,
) -> None:
    table = make_table(80, seed=8)
    run = tmp_path / "run"
    train_crossfit(table, replace(TINY, total_timesteps=1024), run)
    grid = price_grid(policy_of_run(run).price_range, RULE_PRICES)
    tried = try_rules(table)
    held = {path.name for path in (run / RULES).iterdir()}
    assert held == {one.rule.name for one in tried if can_freeze(one.rule.name)}
    assert {"fixed", "confidence", "deer", "dynasor", "entropy", "deepconf"} <= held
    for name in sorted(held):
        policy = freeze(run, tmp_path / name, rule=name, standalone=True)
        own = tuned_to(table, tried, name, grid)
        for price, expected in zip(grid, own, strict=True):
            found = replay(policy, table, price)
            np.testing.assert_array_equal(found.stops, expected.tried.stops, err_msg=name)
            np.testing.assert_array_equal(found.outcome.tokens, expected.tried.outcome.tokens)
            assert (price < policy.stops_from) == (not expected.looks)
        assert load_policy(tmp_path / name) == policy
        assert policy.operating_points
        assert f"It is the rule `{name}`" in (tmp_path / name / "README.md").read_text()
    for rule, said in (
        ("eat", "its traces lack"), ("never", "no such rule"), ("full", "decode without a policy")
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            freeze(run, tmp_path / "none", rule=rule)


def test_a_run_of_a_single_policy_holds_no_rules(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    with pytest.raises(UserError, match="holds no rules: rlbudget train keeps"):
        freeze(tmp_path / "run", tmp_path / "policy", rule="fixed")
