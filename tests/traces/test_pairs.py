"""Pairs: the same question in the same place, and the natural end as a checkpoint more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_table
from trace_makers import make_trace

from rlbudget.errors import UserError
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import full_stops, oracle_stops, outcome
from rlbudget.signals.questions import context_signals
from rlbudget.traces.pairs import (
    NATURAL_END_SIGNAL,
    load_pair,
    pair_tables,
    split_pair,
    with_natural_end,
)
from rlbudget.traces.store import TraceWriter
from rlbudget.traces.table import split_questions
from rlbudget.traces.trace import Trace

TABLE = make_table(40, seed=1)


def write(folder: Path, traces: list[Trace]) -> Path:
    with TraceWriter(folder) as writer:
        for trace in traces:
            writer.add(trace)
    return folder


@settings(deadline=None, max_examples=30)
@given(left=st.permutations(range(8)), right=st.lists(st.integers(0, 11), max_size=12))
def test_traces_in_the_same_place_are_of_the_same_question(
    left: list[int], right: list[int]
) -> None:
    small = TABLE.take(left)
    large = TABLE.take([r + 4 for r in right])
    common = set(small.question_ids.tolist()) & set(large.question_ids.tolist())
    if not common:
        with pytest.raises(UserError, match="no question in common"):
            pair_tables(small, large, ratio=0.5)
        return
    pair = pair_tables(small, large, ratio=0.5, tasks=small.question_ids.tolist())
    np.testing.assert_array_equal(pair.small.question_ids, pair.large.question_ids)
    np.testing.assert_array_equal(pair.tasks, pair.small.question_ids)
    assert set(pair.question_ids.tolist()) == common
    assert len(pair) == len(common)  # the small table holds each question once


def test_the_second_trace_of_a_question_goes_with_the_second() -> None:
    twice = make_table(12, seed=2, traces_per_question=2)
    pair = pair_tables(twice, twice.take([4, 5, 1, 0]), ratio=1.0)
    assert pair.small.trace_ids.tolist() == ["t0", "t1", "t4", "t5"]
    assert pair.large.trace_ids.tolist() == ["t1", "t0", "t4", "t5"]


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match="at most 1"):
        pair_tables(TABLE, TABLE, ratio=ratio)


def test_folders_give_context_tasks_and_equal_answers(tmp_path: Path) -> None:
    a, b = make_trace(1), make_trace(2)
    other = replace(b, final=replace(b.final, answer=" 1.0 "), meta={"family": "sums"})
    small = write(tmp_path / "small", [a, replace(b, meta={"family": "sums"})])
    pair = load_pair(small, write(tmp_path / "large", [other, a]), ratio=0.5)
    assert pair.tasks.tolist() == ["made", "sums"]
    assert pair.small.signals["question_words"][0] == context_signals(a.question)["question_words"]
    assert pair.answers is not None
    ends = full_stops(pair.small)
    left, right = (
        own.at(table, ends)
        for own, table in zip(pair.answers, (pair.small, pair.large), strict=True)
    )
    assert left[0] == right[0]
    assert left[1] != right[1]
    assert right[1] == left[0]  # 1.0 is 1
    backwards = pair.take([1, 0])
    assert backwards.answers is not None
    first = np.zeros(2, dtype=np.int64)
    np.testing.assert_array_equal(
        backwards.answers[0].at(backwards.small, first),
        pair.answers[0].at(pair.small, first)[::-1],
    )


def test_a_pair_is_split_as_each_of_its_tables_is() -> None:
    pair = pair_tables(TABLE, TABLE.take(range(39, -1, -1)), ratio=0.5)
    split = split_pair(pair, seed=3)
    for table in (pair.small, pair.large):
        own = split_questions(table, seed=3)
        for name in ("train", "validation", "held_out"):
            expected = set(getattr(own, name).question_ids.tolist())
            assert set(getattr(split, name).question_ids.tolist()) == expected


def test_a_stop_at_the_natural_end_is_the_full_decode() -> None:
    nodes = with_natural_end(TABLE)
    np.testing.assert_array_equal(nodes.lengths, TABLE.lengths + 1)
    at_end, full = outcome(nodes, nodes.lengths - 1), outcome(TABLE, full_stops(TABLE))
    for name in ("exact_match", "thinking", "probe", "answer"):
        np.testing.assert_array_equal(getattr(at_end, name), getattr(full, name))
    best, same = (
        outcome(TABLE, oracle_stops(TABLE, 1e-3)),
        outcome(nodes, oracle_stops(nodes, 1e-3)),
    )
    np.testing.assert_array_equal(best.exact_match, same.exact_match)
    np.testing.assert_array_equal(best.tokens, same.tokens)


def test_at_the_natural_end_signals_keep_their_last_value() -> None:
    names = ("thinking_tokens", "entropy_mean", "p_end_max.max", NATURAL_END_SIGNAL)
    nodes = with_natural_end(TABLE)
    seen, before = observe(nodes, names), observe(TABLE, names[:-1])
    ends = nodes.offsets[1:] - 1
    checkpoints = np.delete(np.arange(len(seen)), ends)
    np.testing.assert_array_equal(seen[checkpoints, :-1], before)
    np.testing.assert_array_equal(seen[ends, 0], TABLE.final_thinking_tokens)
    np.testing.assert_array_equal(seen[ends, -1], 1)
    assert not seen[checkpoints, -1].any()
    some = np.flatnonzero(TABLE.lengths)
    np.testing.assert_array_equal(seen[ends[some], 1:3], seen[ends[some] - 1, 1:3])
