"""Laws of replay: return = utility, the oracle is never beaten, expectations are expectations."""

from __future__ import annotations

import numpy as np
import pytest
from frozen_nets import random_policy
from hypothesis import given
from hypothesis import strategies as st
from synthetic import make_table
from trace_makers import make_trace, trace_lists

from rlbudget.agents.rules.probing import DEER
from rlbudget.envs.replay_core import replay_columns
from rlbudget.errors import UserError
from rlbudget.policy.observation import feature_names
from rlbudget.policy.outcomes import (
    NATURAL_END,
    best_budget,
    budget_grid,
    charged_by,
    first_stop,
    fixed_stops,
    full_stops,
    oracle_gap_closed,
    oracle_stops,
    outcome,
    token_price_of,
    utility,
)
from rlbudget.policy.replay import replay
from rlbudget.traces.columns import table_of
from rlbudget.traces.table import TraceTable
from rlbudget.traces.trace import Trace

prices = st.floats(1e-6, 0.5)


def test_a_policy_at_turns_of_thought_pays_what_deer_does() -> None:
    table = make_table(200, seed=3)
    turned = np.nan_to_num(table.signals["hedges"]) > 0
    features = feature_names(table.signals, "turns")
    paid = charged_by("turns", table, features)
    assert 0 < turned.sum() < len(turned)
    np.testing.assert_array_equal(paid, np.where(turned, table.probe_tokens, 0))
    everywhere = [{**one, "threshold": 2.0} for one in DEER.grid(table) if one["most_probes"] > 40]
    deer = DEER.outcome(table, everywhere[0])
    own = outcome(table, full_stops(table), probes_charged=paid)
    np.testing.assert_array_equal(own.probe, deer.probe)


def test_whoever_sees_the_choice_among_options_pays_for_reading_them() -> None:
    table = make_table(50, seed=4)
    rows = len(table.thinking_tokens)
    table.signals.update(answer_entropy=np.full(rows, 0.5), option_tokens=np.full(rows, 5.0))
    features = feature_names(table.signals, "probe", choices=True)
    assert "answer_entropy.min" in features
    assert "answer_entropy.min" not in feature_names(table.signals, "probe")
    assert "answer_entropy.min" not in feature_names(table.signals, "free", choices=True)
    paid = charged_by("probe", table, features)
    np.testing.assert_array_equal(paid, table.probe_tokens + 5)
    columns = replay_columns(table, features=features)
    last = table.offsets[1:][table.lengths > 0] - 1
    own = outcome(table, full_stops(table), probes_charged=paid).probe[table.lengths > 0]
    np.testing.assert_array_equal(columns.probe_tokens[last], own)


def stops_for(table: TraceTable, data: st.DataObject) -> np.ndarray:
    """Any choice of stops."""
    drawn = [data.draw(st.integers(NATURAL_END, int(length) - 1)) for length in table.lengths]
    return np.array(drawn, dtype=np.int64)


def by_hand(trace: Trace, stop: int) -> tuple[float, int, int]:
    """(exact match, thinking, answer tokens) of one trace, read off the trace itself."""
    if stop == NATURAL_END:
        end = trace.final
        return end.exact_match, end.thinking_tokens, end.answer_tokens
    point = trace.checkpoints[stop]
    return point.exit.exact_match, point.thinking_tokens, point.exit.answer_tokens


@given(trace_lists(), st.data())
def test_replay_gives_what_the_trace_says(made: list[Trace], data: st.DataObject) -> None:
    table = table_of(made)
    stops = stops_for(table, data)
    replayed = outcome(table, stops, probes_charged="until_stop")
    for i, trace in enumerate(made):
        stop = int(stops[i])
        got = (replayed.exact_match[i], replayed.thinking[i], replayed.answer[i])
        assert got == by_hand(trace, stop)
        seen = trace.checkpoints if stop == NATURAL_END else trace.checkpoints[: stop + 1]
        assert replayed.probe[i] == sum(c.probe.tokens for c in seen if c.probe)


@given(trace_lists(), prices, st.data())
def test_no_choice_beats_the_oracle_on_any_trace(
    made: list[Trace], price: float, data: st.DataObject
) -> None:
    table = table_of(made)
    best = utility(outcome(table, oracle_stops(table, price)), price)
    other = utility(outcome(table, stops_for(table, data)), price)
    assert (best >= other).all()


@given(trace_lists(), prices)
def test_of_equal_stops_the_oracle_takes_the_cheapest(made: list[Trace], price: float) -> None:
    table = table_of(made)
    stops = oracle_stops(table, price)
    for i, trace in enumerate(made):
        ends = [by_hand(trace, stop) for stop in range(NATURAL_END, len(trace.checkpoints))]
        scored = [(em - price * (t + a), -(t + a)) for em, t, a in ends]
        em, thinking, answer = by_hand(trace, int(stops[i]))
        assert (em - price * (thinking + answer), -(thinking + answer)) == max(scored)


@given(trace_lists(), st.floats(0, 80))
def test_a_budget_stops_at_the_first_checkpoint_that_reaches_it(
    made: list[Trace], budget: float
) -> None:
    stops = fixed_stops(table_of(made), budget)
    for stop, trace in zip(stops, made, strict=True):
        reached = [i for i, c in enumerate(trace.checkpoints) if c.thinking_tokens >= budget]
        assert stop == (reached[0] if reached else NATURAL_END)


@pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
def test_a_coin_is_counted_by_its_expectation(chance: float) -> None:
    table = make_table(60, seed=3)
    expected = outcome(table, np.full(len(table.thinking_tokens), chance))
    rng = np.random.default_rng(0)
    draws = 4000
    total = np.zeros(len(table))
    squares = np.zeros(len(table))
    for _ in range(draws):
        stops = first_stop(table, rng.random(len(table.thinking_tokens)) < chance)
        value = utility(outcome(table, stops), 1e-3)
        total += value
        squares += value**2
    mean = total / draws
    error = np.sqrt(np.maximum(squares / draws - mean**2, 0) / draws)
    assert (np.abs(utility(expected, 1e-3) - mean) <= 5 * error + 1e-9).all()


def test_charging_probes_never_helps() -> None:
    table = make_table(50, seed=1)
    stops = fixed_stops(table, 40)
    free = outcome(table, stops)
    paid = outcome(table, stops, probes_charged="until_stop")
    assert (paid.tokens >= free.tokens).all()
    assert (paid.tokens > free.tokens).any()
    mask = np.zeros(len(table.thinking_tokens), dtype=bool)
    assert (outcome(table, stops, probes_charged=mask).tokens == free.tokens).all()


def test_the_grid_holds_every_checkpoint_and_never() -> None:
    table = make_table(20, seed=2)
    grid = budget_grid(table, at_most=10_000)
    assert set(grid[:-1]) == set(table.thinking_tokens.tolist())
    assert grid[-1] == float("inf")
    assert len(budget_grid(table, at_most=5)) <= 6


def test_the_best_budget_is_the_best_of_all_budgets() -> None:
    table = make_table(200, seed=5)
    price = token_price_of(0.3, table)
    means = {
        budget: utility(outcome(table, fixed_stops(table, budget)), price).mean()
        for budget in budget_grid(table)
    }
    assert means[best_budget(table, price)] == max(means.values())


def test_gap_closed() -> None:
    assert oracle_gap_closed(0.5, 0.5, 0.9) == 0
    assert oracle_gap_closed(0.9, 0.5, 0.9) == 1
    assert oracle_gap_closed(0.3, 0.5, 0.9) == pytest.approx(-0.5)
    assert np.isnan(oracle_gap_closed(0.5, 0.5, 0.5))


def test_a_relative_price_charges_the_mean_full_decode() -> None:
    table = make_table(40, seed=7)
    assert token_price_of(0.1, table) * table.full_tokens.mean() == pytest.approx(0.1)
    with pytest.raises(UserError, match="no training traces"):
        token_price_of(0.1, table.take(np.array([], dtype=np.int64)))


def test_a_policy_stops_where_it_first_says_so() -> None:
    table = make_table(30, seed=4)
    policy = random_policy()
    price = policy.price_range[1]
    stops = replay(policy, table, price).stops
    assert (stops >= 0).any()
    from rlbudget.policy.observation import observe

    stop = policy.stop_probabilities(observe(table, policy.features), price) > policy.threshold
    for i in range(len(table)):
        said = np.flatnonzero(stop[table.offsets[i] : table.offsets[i + 1]])
        assert stops[i] == (said[0] if len(said) else NATURAL_END)


@pytest.mark.parametrize("stops", [[7, -1], [-2, 0], [0]])
def test_a_choice_the_traces_do_not_have_is_refused(stops: list[int]) -> None:
    table = table_of([make_trace(0), make_trace(1)])
    with pytest.raises(ValueError, match="stop"):
        outcome(table, np.array(stops))


def test_traces_without_checkpoints_end_naturally() -> None:
    table = table_of([make_trace(0, checkpoints=0), make_trace(1)])
    assert fixed_stops(table, 0).tolist() == [NATURAL_END, 0]
    assert oracle_stops(table, 1e-3)[0] == NATURAL_END
    assert (full_stops(table) == NATURAL_END).all()
