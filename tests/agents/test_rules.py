"""Every rule against a plain reading of its definition, and the law that it cannot look ahead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_table

from rlbudget.agents.rules import REPEAT_RULES, TEXT_RULES, Rule, rules_for
from rlbudget.agents.rules import RULES as PLAIN_RULES
from rlbudget.agents.rules.probing import CONVERGENCE, DEER, DYNASOR, EAT, HALT
from rlbudget.agents.rules.rule import run_length
from rlbudget.agents.rules.text import LOOP
from rlbudget.agents.rules.unprobed import (
    DEEPCONF,
    ENTROPY,
    RANDOM,
    THINKBRAKE,
    group_confidence,
)
from rlbudget.evaluate.evaluation import assess
from rlbudget.policy.outcomes import NATURAL_END, outcome
from rlbudget.traces.table import TraceTable


def rich_table(n: int = 40, seed: int = 0) -> TraceTable:
    """A synthetic table that holds what every rule needs."""
    table = make_table(n, seed=seed, stride=4)
    rng = np.random.default_rng(seed + 1)
    m = len(table.thinking_tokens)
    signals = {
        **table.signals,
        "exit_entropy": rng.gamma(0.4, 0.6, m),
        "answer_entropy": rng.gamma(0.4, 0.6, m),
        "probe_tail": rng.random(m) ** 0.1,
        "option_tokens": 1.0 + rng.integers(2, 9, m),
    }
    signals |= {
        "text_claim_streak": rng.integers(0, 5, m).astype(float),
        "text_conclusions": rng.integers(0, 2, m).astype(float),
        "text_hedges": rng.integers(0, 2, m).astype(float),
        "text_repeats": np.minimum(1.6 * rng.random(m), 1.0),
    }
    hedged = rng.random(m) < 0.15
    signals["token_repeats"] = rng.random(m)
    return replace(table, signals=signals, probe_hedged=hedged)


TABLE = rich_table()
RULES = (*PLAIN_RULES, *REPEAT_RULES, *TEXT_RULES)


def test_rules_of_repetition_and_of_the_text_apply_where_they_were_read() -> None:
    assert rules_for(TABLE) == RULES
    assert rules_for(make_table(4)) == PLAIN_RULES


def rows_of(table: TraceTable, i: int) -> range:
    return range(int(table.offsets[i]), int(table.offsets[i + 1]))


def first(says: Sequence[bool]) -> int:
    return next((k for k, stop in enumerate(says) if stop), NATURAL_END)


def cases(rule: Rule) -> list[object]:
    return [pytest.param(p, id=str(dict(p))) for p in rule.grid(TABLE)]


def test_every_rule_applies_to_the_rich_table() -> None:
    assert all(not rule.lacking(TABLE) for rule in RULES)
    assert len({rule.name for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("rule", [r for r in RULES if r.grid(TABLE)], ids=lambda r: r.name)
def test_no_rule_looks_ahead(rule: Rule) -> None:
    garbage = rich_table(seed=77)
    other = garbage.take(np.arange(len(TABLE)) % len(garbage))
    grid = rule.grid(TABLE)
    for parameters in grid[:: max(1, len(grid) // 12)]:
        stops = rule.stops(TABLE, parameters)
        if rule is RANDOM:
            continue
        # Behind every trace's stop (or its last checkpoint) lies something else altogether.
        later = np.zeros(len(TABLE.thinking_tokens), dtype=bool)
        for i, stop in enumerate(stops):
            if stop != NATURAL_END:
                later[TABLE.offsets[i] + stop + 1 : TABLE.offsets[i + 1]] = True
        pick = np.resize(np.arange(len(other.thinking_tokens)), len(later))

        def mixed(own: np.ndarray, foreign: np.ndarray) -> np.ndarray:
            return np.where(later, foreign[pick], own)  # noqa: B023

        changed = replace(
            TABLE,
            signals={n: mixed(v, other.signals[n]) for n, v in TABLE.signals.items()},
            probe_answer=mixed(TABLE.probe_answer, other.probe_answer),
            probe_confidence=mixed(TABLE.probe_confidence, other.probe_confidence),
            probe_hedged=mixed(TABLE.probe_hedged, other.probe_hedged),
        )
        np.testing.assert_array_equal(rule.stops(changed, parameters), stops)


@pytest.mark.parametrize("parameters", cases(DEER))
def test_deer(parameters: dict[str, float]) -> None:
    stops = DEER.stops(TABLE, parameters)
    paid = DEER.outcome(TABLE, parameters)
    for i in range(len(TABLE)):
        judged, says, tokens = 0, [], 0
        for row in rows_of(TABLE, i):
            look = TABLE.signals["hedges"][row] > 0 and judged < parameters["most_probes"]
            judged += look
            tokens += int(TABLE.probe_tokens[row]) if look else 0
            tail = TABLE.signals["probe_tail"][row]
            sure = tail if parameters["tail"] else TABLE.probe_confidence[row]
            says.append(look and sure > parameters["threshold"])
            if says[-1]:
                break
        assert stops[i] == first(says)
        assert paid.probe[i] == tokens


def test_deer_without_the_tail_takes_the_confidence_of_every_trace() -> None:
    signals = {n: v for n, v in TABLE.signals.items() if n != "probe_tail"}
    foreign = replace(TABLE, signals=signals)
    assert {p["tail"] for p in DEER.grid(TABLE)} == {0, 1}
    assert {p["tail"] for p in DEER.grid(foreign)} == {0}
    missing = replace(foreign, signals={**signals, "probe_tail": np.full(len(TABLE.probe_answer),
                                                                         np.nan)})  # fmt: skip
    assert DEER.grid(missing) == DEER.grid(foreign)
    differ = 0
    for parameters in DEER.grid(TABLE):
        plain = DEER.stops(TABLE, {**parameters, "tail": 0.0})
        for table in (foreign, missing):
            np.testing.assert_array_equal(DEER.stops(table, parameters), plain)
        differ += (DEER.stops(TABLE, parameters) != plain).any()
    assert differ


@pytest.mark.parametrize("parameters", cases(DYNASOR))
def test_dynasor(parameters: dict[str, float]) -> None:
    stops = DYNASOR.stops(TABLE, parameters)
    paid = DYNASOR.outcome(TABLE, parameters)
    window, every = int(parameters["window"]), int(parameters["every"])
    for i in range(len(TABLE)):
        seen: list[int] = []
        says, tokens = [], 0
        for k, row in enumerate(rows_of(TABLE, i)):
            stop = False
            if (k + 1) % every == 0:
                tokens += int(TABLE.probe_tokens[row])
                seen.append(-1 - row if TABLE.probe_hedged[row] else int(TABLE.probe_answer[row]))
                last = seen[-window:]
                stop = len(last) == window and len(set(last)) == 1 and last[0] >= 0
            says.append(stop)
            if stop:
                break
        assert stops[i] == first(says)
        assert paid.probe[i] == tokens


def test_a_hedged_answer_alone_is_no_agreement() -> None:
    hedged = replace(TABLE, probe_hedged=np.ones_like(TABLE.probe_hedged))
    for parameters in DYNASOR.grid(hedged):
        assert (DYNASOR.stops(hedged, parameters) == NATURAL_END).all()


def test_convergence_is_two_in_a_row() -> None:
    stops = CONVERGENCE.stops(TABLE, CONVERGENCE.grid(TABLE)[0])
    for i in range(len(TABLE)):
        rows = rows_of(TABLE, i)
        says = [
            k > 0 and TABLE.probe_answer[r] == TABLE.probe_answer[r - 1] for k, r in enumerate(rows)
        ]
        assert stops[i] == first(says)


@pytest.mark.parametrize("parameters", cases(EAT))
def test_eat(parameters: dict[str, float]) -> None:
    stops = EAT.stops(TABLE, parameters)
    paid = EAT.outcome(TABLE, parameters)
    for i in range(len(TABLE)):
        mean = variance = 0.0
        says = []
        for k, row in enumerate(rows_of(TABLE, i)):
            x = TABLE.signals["exit_entropy"][row] / math.log(2)
            if k == 0:
                mean, variance = x, 0.0
            else:
                mean = 0.2 * x + 0.8 * mean
                variance = 0.2 * (x - mean) ** 2 + 0.8 * variance
            says.append(k >= 20 and variance < parameters["delta"])
        assert stops[i] == first(says)
        looks = len(says) if stops[i] == NATURAL_END else stops[i] + 1
        assert paid.probe[i] == looks


@pytest.mark.parametrize("parameters", cases(HALT))
def test_halt(parameters: dict[str, float]) -> None:
    stops = HALT.stops(TABLE, parameters)
    paid = HALT.outcome(TABLE, parameters)
    for i in range(len(TABLE)):
        bits = [TABLE.signals["answer_entropy"][row] / math.log(2) for row in rows_of(TABLE, i)]
        low = [x < parameters["theta"] for x in bits]
        times = int(parameters["times"])
        says = [k + 1 >= times and all(low[k + 1 - times : k + 1]) for k in range(len(low))]
        assert stops[i] == first(says)
        looked = list(rows_of(TABLE, i))[: None if stops[i] == NATURAL_END else stops[i] + 1]
        assert paid.probe[i] == sum(TABLE.signals["option_tokens"][row] for row in looked)


def test_halt_pays_one_token_a_look_unless_told_and_none_without_options() -> None:
    signals = {n: v for n, v in TABLE.signals.items() if n != "option_tokens"}
    signals["answer_entropy"] = TABLE.signals["answer_entropy"].copy()
    signals["answer_entropy"][TABLE.offsets[0] : TABLE.offsets[1]] = np.nan
    foreign = replace(TABLE, signals=signals)
    never = {"theta": 0.0, "times": 1.0}
    paid = HALT.outcome(foreign, never).probe
    np.testing.assert_array_equal(paid, TABLE.lengths * (np.arange(len(TABLE)) > 0))


@pytest.mark.parametrize("parameters", cases(THINKBRAKE))
def test_thinkbrake(parameters: dict[str, float]) -> None:
    stops = THINKBRAKE.stops(TABLE, parameters)
    for i in range(len(TABLE)):
        gaps = [TABLE.signals["end_gap_min"][row] for row in rows_of(TABLE, i)]
        assert stops[i] == first([gap <= parameters["tau"] for gap in gaps])


@pytest.mark.parametrize("parameters", cases(LOOP))
def test_loop_counts_the_tokens_in_which_all_was_written_before(
    parameters: dict[str, float],
) -> None:
    stops = LOOP.stops(TABLE, parameters)
    for i in range(len(TABLE)):
        since, says = 0, []
        for row in rows_of(TABLE, i):
            at = int(TABLE.thinking_tokens[row])
            if TABLE.signals["text_repeats"][row] < 1:
                since = at
            says.append(at > since and at - since >= parameters["tokens"])
        assert stops[i] == first(says)


def test_loop_stops_some_and_where_no_text_was_read_it_says_so() -> None:
    assert (LOOP.stops(TABLE, {"tokens": 8.0}) != NATURAL_END).any()
    assert (LOOP.stops(TABLE, {"tokens": 4096.0}) == NATURAL_END).all()
    table = make_table(60, seed=1)
    halves = table.take(np.arange(30)), table.take(np.arange(30, 60))
    assessment = assess(*halves, {}, draws=20)
    assert assessment.not_applicable["loop"] == ("text_repeats",)


@pytest.mark.parametrize("parameters", cases(ENTROPY)[::5])
def test_entropy_is_a_cumulative_sum(parameters: dict[str, float]) -> None:
    stops = ENTROPY.stops(TABLE, parameters)
    for i in range(len(TABLE)):
        total, says = 0.0, []
        for row in rows_of(TABLE, i):
            surplus = parameters["drift"] - TABLE.signals["entropy_mean"][row]
            total = max(0.0, total + surplus)
            says.append(total >= parameters["height"])
        assert stops[i] == first(says)


@pytest.mark.parametrize("window", [4, 10, 37, 64, 4096])
def test_group_confidence_is_a_mean_over_the_last_tokens(window: float) -> None:
    found = group_confidence(TABLE, window)
    for i in range(len(TABLE)):
        tokens: list[float] = []
        before = 0
        for row in rows_of(TABLE, i):
            now = int(TABLE.thinking_tokens[row])
            tokens += [-TABLE.signals["topk_mean"][row]] * (now - before)
            before = now
            if now < window:
                assert np.isnan(found[row])
                continue
            # Checkpoints count whole: those that begin inside the window.
            whole = int(-(-(now - window) // 4) * 4)
            assert found[row] == pytest.approx(np.mean(tokens[whole:]) if whole < now else
                                               tokens[-1])  # fmt: skip


def test_deepconf_takes_percentiles_of_the_lowest_groups_in_training() -> None:
    grid = DEEPCONF.grid(TABLE)
    assert {p["percentile"] for p in grid} == {10, 90}
    for parameters in grid:
        confidence = group_confidence(TABLE, parameters["window"])
        lowest = []
        for i in range(len(TABLE)):
            own = confidence[list(rows_of(TABLE, i))]
            if not np.isnan(own).all():
                lowest.append(np.nanmin(own))
        expected = np.percentile(lowest, parameters["percentile"])
        assert parameters["threshold"] == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_runs_are_counted_within_a_trace(seed: int, share: float) -> None:
    flags = np.random.default_rng(seed).random(len(TABLE.thinking_tokens)) < share
    runs = run_length(TABLE, flags)
    for i in range(len(TABLE)):
        length = 0
        for row in rows_of(TABLE, i):
            length = length + 1 if flags[row] else 0
            assert runs[row] == length


def test_a_look_is_charged_up_to_the_stop_alone() -> None:
    charges = np.arange(len(TABLE.thinking_tokens), dtype=np.float64)
    stops = np.minimum(1, TABLE.lengths - 1)
    paid = outcome(TABLE, stops, probes_charged=charges)
    for i in range(len(TABLE)):
        assert paid.probe[i] == sum(charges[row] for row in rows_of(TABLE, i)[: stops[i] + 1])
