from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_events import curves_of, events_of
from synthetic import make_table

from rlbudget.agents.dual import NARROWEST, WIDEST, Constraint, Measured, focus
from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.monitor import HELD_CHARTS
from rlbudget.agents.ppo import PPOConfig, train
from rlbudget.errors import UserError
from rlbudget.policy.replay import replay
from rlbudget.traces.table import split_questions

BOUNDS = (1e-5, 1e-2)


def _falling(price: float) -> Measured:
    """Exact match and tokens fall with the price, from 1 and 100 to 0.5 and 10."""
    place = math.log(price / BOUNDS[0]) / math.log(BOUNDS[1] / BOUNDS[0])
    return Measured(1 - 0.5 * place, 100 - 90 * place)


@given(st.floats(0.51, 0.99))
def test_a_floor_is_met_at_the_highest_price_that_holds_it(floor: float) -> None:
    price, found = Constraint(em_floor=floor).solved(_falling, BOUNDS)
    assert found.exact_match >= floor
    assert found.exact_match == pytest.approx(floor, abs=1e-3)
    assert found == _falling(price)


@given(st.floats(11, 99))
def test_a_budget_is_met_at_the_lowest_price_that_holds_it(budget: float) -> None:
    _, found = Constraint(token_budget=budget).solved(_falling, BOUNDS)
    assert found.tokens <= budget
    assert found.tokens == pytest.approx(budget, abs=0.1)


@given(st.floats(0.51, 0.99), st.floats(1e-5, 1e-2))
def test_the_dual_price_moves_towards_the_solution_and_arrives(floor: float, price: float) -> None:
    constraint = Constraint(em_floor=floor)
    solution, _ = constraint.solved(_falling, BOUNDS)
    before = abs(math.log(price / solution))
    moved = constraint.moved(price, _falling(price), BOUNDS)
    assert BOUNDS[0] <= moved <= BOUNDS[1]
    assert abs(math.log(moved / solution)) <= max(before, 1e-3) + 0.5
    for _ in range(200):
        price = constraint.moved(price, _falling(price), BOUNDS)
    assert _falling(price).exact_match == pytest.approx(floor, abs=0.005)


@given(st.floats(1e-5, 1e-2), st.floats(0, 1))
def test_the_price_range_narrows_around_the_dual_price(price: float, progress: float) -> None:
    low, high = focus(price, BOUNDS, progress)
    assert BOUNDS[0] <= low <= price <= high <= BOUNDS[1]
    if progress == 0:
        widest = max(BOUNDS[0], price / WIDEST), min(BOUNDS[1], price * WIDEST)
        assert (low, high) == pytest.approx(widest)
    if progress == 1:
        assert high / low <= NARROWEST**2 * (1 + 1e-9)


def test_what_holds_is_better_than_what_does_not_and_cheaper_is_better() -> None:
    floor, budget = Constraint(em_floor=0.9), Constraint(token_budget=50)
    assert floor.better(Measured(0.9, 80), Measured(0.89, 10))
    assert floor.better(Measured(0.9, 60), Measured(0.95, 80))
    assert floor.better(Measured(0.89, 60), Measured(0.85, 10))
    assert budget.better(Measured(0.8, 50), Measured(0.9, 51))
    assert budget.better(Measured(0.9, 50), Measured(0.8, 20))


def test_a_trained_policy_serves_the_price_that_keeps_the_floor(tmp_path: Path) -> None:
    table = make_table(900, seed=1)
    split = split_questions(table, seed=0)
    full = float(table.final_exact_match.mean())
    floor = full - 0.05
    config = PPOConfig(em_floor=floor, total_timesteps=100_000, n_envs=256)
    train(split.train, split.validation, config, tmp_path)
    policy = policy_of_run(tmp_path)
    price = policy.default_price
    done = replay(policy, split.validation, price).outcome
    # By paired difference from the full decodes of training and validation together.
    both = np.concatenate([split.train.final_exact_match, split.validation.final_exact_match])
    change = done.exact_match.mean() - split.validation.final_exact_match.mean()
    assert both.mean() + change >= floor - 1e-6
    assert done.tokens.mean() < 0.95 * split.validation.full_tokens.mean()
    assert all(curves_of(HELD_CHARTS, events_of(tmp_path)).values())


def test_mistakes_are_named() -> None:
    for values, said in (
        ({"em_floor": 0.9, "token_budget": 10.0}, "one of the two"),
        ({"em_floor": 1.5}, "em_floor"),
        ({"token_budget": 0.0}, "token_budget"),
        ({"em_floor": 0.5, "advantages": "sampled"}, "exact advantages"),
    ):
        with pytest.raises(UserError, match=said):
            PPOConfig(**values)  # type: ignore[arg-type]


def test_a_floor_above_the_full_decodes_is_refused(tmp_path: Path) -> None:
    split = split_questions(make_table(60, seed=1), seed=0)
    with pytest.raises(UserError, match="full decodes themselves reach"):
        train(split.train, split.validation, PPOConfig(em_floor=0.999), tmp_path)
