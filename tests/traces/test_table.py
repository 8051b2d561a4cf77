from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_makers import assert_same_table, make_trace, trace_lists

from rlbudget.errors import UserError
from rlbudget.traces.columns import table_of
from rlbudget.traces.table import split_questions
from rlbudget.traces.trace import Trace


@settings(max_examples=60, deadline=None)
@given(traces=trace_lists(), data=st.data())
def test_taking_rows_of_a_table_is_the_table_of_those_traces(
    traces: list[Trace], data: st.DataObject
) -> None:
    rows = data.draw(st.lists(st.integers(0, len(traces) - 1), max_size=6))
    taken = table_of(traces).take(rows)
    wanted = table_of([traces[row] for row in rows])
    # A taken table keeps every signal's column, though no taken trace may hold it.
    for name in taken.signals.keys() - wanted.signals.keys():
        assert np.isnan(taken.signals.pop(name)).all()
    assert_same_table(taken, wanted)


def test_a_table_lays_a_trace_out_row_by_row() -> None:
    table = table_of([make_trace(0, checkpoints=0), make_trace(1, checkpoints=3)])
    assert table.lengths.tolist() == [0, 3]
    assert table.trace_of_row.tolist() == [1, 1, 1]
    assert table.thinking_tokens.tolist() == [8, 16, 24]
    assert table.exit_exact_match.tolist() == [0, 1, 0]
    assert table.probe_answer.tolist() == [0, 1, 0]
    assert table.full_tokens.tolist() == [12, 36]
    assert table.has_probes


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 60))
def test_a_split_shares_no_question_loses_no_trace_and_ignores_the_order(seed: int, n: int) -> None:
    traces = [make_trace(i, checkpoints=i % 3, question_id=f"q{i // 2}") for i in range(n)]
    shuffled = random.Random(seed).sample(traces, n)
    parts = []
    for order in (traces, shuffled):
        split = split_questions(table_of(order), seed=seed)
        tables = (split.train, split.validation, split.held_out)
        questions = [set(table.question_ids.tolist()) for table in tables]
        assert sum(map(len, questions)) == len(set.union(*questions)) == (n + 1) // 2
        assert sum(map(len, tables)) == n
        parts.append([sorted(table.trace_ids.tolist()) for table in tables])
    assert parts[0] == parts[1]


def test_the_seed_changes_the_split() -> None:
    table = table_of([make_trace(i) for i in range(50)])
    first, second = (split_questions(table, seed=s).held_out.trace_ids.tolist() for s in (0, 1))
    assert first != second


def test_too_few_questions_to_split_is_a_user_error() -> None:
    table = table_of([make_trace(i, question_id="q") for i in range(50)])
    with pytest.raises(UserError, match="too few to split"):
        split_questions(table)
