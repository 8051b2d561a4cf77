"""The rivals cross-fitted: optima found, means of all members decide, every question trains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic import make_table, never_stop_table, tabular_stops, tabular_table

from rlbudget.agents.crossfit_rivals import crossfit_gradient, crossfit_q
from rlbudget.agents.fitted_q import FittedQ, advantages
from rlbudget.agents.members import fold_of_traces
from rlbudget.agents.rules import RULES
from rlbudget.envs.replay_core import replay_columns
from rlbudget.errors import UserError
from rlbudget.evaluate.measure import Learned, Sets, measure_learned, measure_rule
from rlbudget.policy.outcomes import NATURAL_END, first_stop, outcome, token_price_of, utility
from rlbudget.traces.table import TraceTable


@pytest.mark.parametrize("relative", [0.02, 0.5])
def test_fitted_q_finds_the_tabular_optimum(relative: float) -> None:
    table = tabular_table(60)
    price = token_price_of(relative, table)
    stops = crossfit_q(table, [price], members=3).stops(table, price)
    best = utility(outcome(table, tabular_stops(table, price)), price).mean()
    assert utility(outcome(table, stops), price).mean() == pytest.approx(best, abs=1e-3)


def test_the_gradient_stops_each_kind_at_its_own_place() -> None:
    table = tabular_table(60)
    price = token_price_of(0.2, table)
    kind = table.signals["kind"][table.offsets[:-1]]
    stops = crossfit_gradient(table, steps=600).stops(table, price)
    sure = kind < 3  # of the last kind a part is right, and the gradient leaves that where it is
    assert (stops[sure] == tabular_stops(table, price)[sure]).all()


def test_neither_stops_where_stopping_is_never_right() -> None:
    table = never_stop_table(300)
    price = token_price_of(0.5, table)
    assert (crossfit_q(table, [price]).stops(table, price) == NATURAL_END).all()
    learner = crossfit_gradient(table, steps=200, rows=512)
    assert (learner.stops(table, price) == NATURAL_END).all()


def test_fitted_q_stops_where_the_mean_of_its_members_says() -> None:
    table = make_table(80, seed=1)
    price = token_price_of(0.2, table)
    learner = crossfit_q(table, [price], members=3)
    assert len(learner.pairs[price]) == 3
    columns = replay_columns(table, features=learner.features)
    each = np.array([advantages(columns, price, *pair) for pair in learner.pairs[price]])
    assert (np.sign(each[0]) != np.sign(each[1])).any()
    expected = first_stop(table, each.mean(axis=0) >= 0)
    assert (learner.stops(table, price) == expected).all()


def test_each_member_leaves_its_fold_out_and_no_question_of_it_is_in_the_others() -> None:
    """Turning the outcomes of one fold round changes the members that trained on it alone."""
    table = make_table(60, seed=2)
    price = token_price_of(0.2, table)
    before = crossfit_q(table, [price], members=3, seed=5)
    inside = fold_of_traces(table, 3, 5)[table.trace_of_row] == 1
    right = np.where(inside, 1 - table.exit_exact_match, table.exit_exact_match)
    after = crossfit_q(replace(table, exit_exact_match=right), [price], members=3, seed=5)
    columns = replay_columns(table, features=before.features)
    seen = columns.inputs[:, :-1]
    same = [
        bool(np.array_equal(one[0].predict(seen), two[0].predict(seen)))
        for one, two in zip(before.pairs[price], after.pairs[price], strict=True)
    ]
    assert same == [False, True, False]


@pytest.mark.parametrize("preset", ["free", "probe"])
def test_where_signals_tell_both_beat_the_best_budget_and_pay_for_what_they_see(
    preset: str,
) -> None:
    table = make_table(120, seed=1, informative=2.0)
    held_out = make_table(200, seed=3, informative=2.0)
    prices = tuple(token_price_of(r, table) for r in (0.3,))
    on = Sets(table, held_out, prices)
    (fixed,) = (measure_rule(rule, on) for rule in RULES if rule.name == "fixed")
    learners: list[Learned] = [
        crossfit_q(table, prices, preset=preset, members=2),  # type: ignore[arg-type]
        crossfit_gradient(table, preset=preset, members=2, steps=300),  # type: ignore[arg-type]
    ]
    for learner in learners:
        chosen = measure_learned("one", learner, on).chosen
        for mine, theirs, price in zip(chosen, fixed.chosen, prices, strict=True):
            gain = utility(mine.held_out, price).mean() - utility(theirs.held_out, price).mean()
            assert gain > 0, type(learner).__name__
            assert (mine.held_out.probe.sum() > 0) == (preset == "probe")


def test_the_same_seed_gives_the_same_learner_and_another_one_another() -> None:
    table = make_table(60, seed=4)
    price = token_price_of(0.2, table)

    def weights(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        learner = crossfit_gradient(table, members=3, steps=20, rows=256, seed=seed)
        found: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
        found = learner.actor["action_net.weight"].numpy()
        return found

    def worths(learner: FittedQ) -> list[float]:
        columns = replay_columns(table, features=learner.features)
        return list(np.mean([advantages(columns, price, *p) for p in learner.pairs[price]], axis=0))

    assert np.array_equal(weights(1), weights(1))
    assert not np.array_equal(weights(1), weights(2))
    assert worths(crossfit_q(table, [price], seed=1)) == worths(crossfit_q(table, [price], seed=1))


def test_one_question_cannot_be_cross_fitted() -> None:
    table: TraceTable = make_table(1, seed=1)
    with pytest.raises(UserError, match="at least two questions"):
        crossfit_q(table, [1e-3])
    with pytest.raises(UserError, match="at least two questions"):
        crossfit_gradient(table)
