"""The learners PPO is held to: both optima, better than rules where signals tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import beta
from synthetic import make_table, never_stop_table, tabular_stops, tabular_table

from rlbudget.agents.fitted_q import fit_q
from rlbudget.agents.logistic import logistic_rule
from rlbudget.agents.rules import RULES
from rlbudget.agents.zelt import CONFIDENCE, EVERY, _at_most, probed, zelt_rule
from rlbudget.evaluate.evaluation import assess
from rlbudget.evaluate.learners import fit_learners
from rlbudget.policy.outcomes import (
    NATURAL_END,
    RELATIVE_PRICES,
    outcome,
    token_price_of,
    utility,
)
from rlbudget.traces.table import Split, TraceTable


def renamed(table: TraceTable, prefix: str) -> TraceTable:
    ids = np.array([prefix + name for name in table.question_ids.tolist()])
    return replace(table, question_ids=ids)


@pytest.mark.parametrize("relative", [0.02, 0.5])
def test_fitted_q_finds_the_tabular_optimum(relative: float) -> None:
    train, validation = renamed(tabular_table(160), "a"), renamed(tabular_table(40), "b")
    price = token_price_of(relative, train)
    fitted = fit_q(train, validation, [price])
    best = utility(outcome(train, tabular_stops(train, price)), price).mean()
    found = utility(outcome(train, fitted.stops(train, price)), price).mean()
    assert found == pytest.approx(best, abs=1e-3)


def test_fitted_q_does_not_stop_where_stopping_is_never_right() -> None:
    train, validation = renamed(never_stop_table(400), "a"), renamed(never_stop_table(60), "b")
    price = token_price_of(0.5, train)
    assert (fit_q(train, validation, [price]).stops(train, price) == NATURAL_END).all()


@pytest.mark.slow
def test_all_of_them_beat_the_best_budget_where_the_signals_tell() -> None:
    split = Split(
        train=renamed(make_table(300, seed=1, informative=2.0), "a"),
        validation=renamed(make_table(100, seed=2, informative=2.0), "b"),
        held_out=renamed(make_table(300, seed=3, informative=2.0), "c"),
    )
    seen: list[tuple[int, int]] = []
    learners = fit_learners(
        split, ["free", "probe"], steps=250, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (4, 4)
    assert set(learners) == {"fitted-q", "exact-pg", "fitted-q-probe", "exact-pg-probe"}
    logistic = logistic_rule(split.train)
    assessment = assess(
        split.train, split.held_out, {}, rules=[*RULES, logistic], learners=learners, draws=50
    )
    prices = [token_price_of(r, split.train) for r in RELATIVE_PRICES]

    def mean(name: str) -> float:
        points = assessment.methods[name].chosen
        return float(np.mean([utility(p.held_out, c).mean()
                              for p, c in zip(points, prices, strict=True)]))  # fmt: skip

    for name in (*learners, "logistic"):
        assert mean(name) > mean("fixed"), name
        assert assessment.methods[name].chosen[-1].held_out.tokens.mean() < (
            split.held_out.full_tokens.mean()
        )
    for name in ("fitted-q-probe", "exact-pg-probe", "logistic"):
        assert assessment.methods[name].chosen[-1].held_out.probe.sum() > 0
    assert assessment.methods["fitted-q"].chosen[-1].held_out.probe.sum() == 0


def test_the_head_of_traces_that_are_always_right_tells_nothing() -> None:
    table = make_table(60, seed=1)
    right = replace(table, exit_exact_match=np.ones_like(table.exit_exact_match))
    rule = logistic_rule(right)
    assert rule.grid(right) == [{"threshold": 0.0}]


def test_zelt_looks_every_48_tokens_and_pays_for_each_look() -> None:
    table = make_table(300, seed=3)
    rule = zelt_rule(table)
    looked = probed(table)
    for i in range(20):
        rows = np.arange(table.offsets[i], table.offsets[i + 1])
        at = table.thinking_tokens[rows[looked[rows]]]
        assert len(rows) == 0 or looked[rows[0]]
        assert (np.diff(at) >= EVERY).all()
    (parameters,) = rule.grid(table)
    paid = rule.outcome(table, parameters).probe
    stops = np.asarray(rule.stops(table, parameters))
    ends = np.where(stops < 0, table.lengths, stops + 1)
    for i in range(len(table)):
        rows = np.arange(table.offsets[i], table.offsets[i] + ends[i])
        assert paid[i] == table.probe_tokens[rows][looked[rows]].sum()


def test_zelt_never_stops_where_too_few_questions_bound_the_harm() -> None:
    table = make_table(100, seed=3)
    rule = zelt_rule(table)
    (parameters,) = rule.grid(table)
    assert (np.asarray(rule.stops(table, parameters)) == -1).all()


@pytest.mark.parametrize(("harmed", "n"), [(0, 114), (1, 200), (5, 400), (200, 10_000)])
def test_the_bound_on_harm_is_that_of_clopper_and_pearson(harmed: int, n: int) -> None:
    expected = beta.ppf(CONFIDENCE, harmed + 1, n - harmed)
    assert _at_most(harmed, n) == pytest.approx(expected, abs=1e-9)
