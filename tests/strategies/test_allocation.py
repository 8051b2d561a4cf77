"""A budget for many requests: the hull, the optimum, and the price that meets the budget."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbudget.strategies.allocation import (
    Batch,
    Curve,
    after_spending,
    hull,
    next_price,
    optimum,
    price_for,
    tokens_at,
    unknown_curve,
)

KNOWN = (1e-5, 1e-2)
CURVES = st.lists(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 10)), min_size=1, max_size=5),
    min_size=1,
    max_size=4,
)


def recorded() -> Curve:
    prices = np.geomspace(*KNOWN, 33)
    return Curve(prices, 200 - 40 * np.log10(prices / prices[0]), np.linspace(0.9, 0.8, 33))


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 10)), min_size=1, max_size=12))
def test_the_hull_is_concave_and_above_every_point(points: list[tuple[int, int]]) -> None:
    tokens, value = np.array(points, float).T
    kept = hull(tokens, value)
    x, y = tokens[kept], value[kept]
    assert (np.diff(x) > 0).all()
    assert (np.diff(y) > 0).all()
    assert (np.diff(np.diff(y) / np.diff(x)) < 0).all()
    for one, worth in points:
        if one >= x[0]:
            assert np.interp(one, x, y) >= worth - 1e-9


@given(CURVES, st.integers(1, 200))
def test_no_allocation_within_the_budget_is_better_than_the_optimum(
    curves: list[list[tuple[int, int]]], budget: int
) -> None:
    made = [(np.array([t for t, _ in one], float), np.array([v for _, v in one], float))
            for one in curves]  # fmt: skip
    gained, spent = optimum(made, budget)
    for choice in product(*curves):
        if sum(tokens for tokens, _ in choice) <= budget:
            assert gained >= sum(value for _, value in choice) - 1e-9
            assert spent <= budget + 1e-9


def test_a_price_and_what_it_spends_are_each_others_inverse() -> None:
    curve = recorded()
    for tokens in (90.0, 123.0, 199.0):
        assert tokens_at(curve, price_for(curve, tokens)) == pytest.approx(tokens, rel=0.01)
    assert price_for(curve, 1e9) == KNOWN[0]
    assert price_for(curve, 1.0) == KNOWN[1]


@pytest.mark.parametrize("curve", [recorded(), unknown_curve(KNOWN, 140.0)])
@pytest.mark.parametrize("harder", [0.8, 1.0, 1.25])
def test_a_batch_meets_its_budget_also_where_its_questions_are_not_those_of_the_record(
    curve: Curve, harder: float
) -> None:
    generator, truth = np.random.default_rng(0), recorded()
    batch = Batch(140.0 * 400, 400)
    while batch.done < batch.requests:
        price = next_price(batch, curve, KNOWN)
        assert KNOWN[0] <= price <= KNOWN[1]
        tokens = harder * tokens_at(truth, price) * generator.uniform(0.3, 1.7)
        batch = after_spending(batch, curve, price, tokens)
    assert batch.spent == pytest.approx(batch.budget, rel=0.03)
