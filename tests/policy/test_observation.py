from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_makers import make_trace, trace_lists

from rlbudget.errors import UserError
from rlbudget.policy.observation import Observer, feature_names, features_of, observe
from rlbudget.policy.row_observer import RowObserver
from rlbudget.signals.tokens import NO_SENTENCE_END, SIGNALS, Window, marker_table, markers
from rlbudget.signals.turns import TURN_SIGNALS, TURNS
from rlbudget.traces.columns import table_of
from rlbudget.traces.table import TraceTable
from rlbudget.traces.trace import Checkpoint, Exit, Final, Probe, Trace

ZERO = np.array([0])


def one_by_one(table: TraceTable, features: tuple[str, ...]) -> np.ndarray:
    """What a live request sees: one decode, one checkpoint after the other."""
    out = np.empty((len(table.thinking_tokens), len(features)), dtype=np.float32)
    for start, end in zip(table.offsets[:-1], table.offsets[1:], strict=True):
        observer = RowObserver(features)
        for row in range(start, end):
            out[row] = observer.update(
                int(table.thinking_tokens[row]),
                {name: float(column[row]) for name, column in table.signals.items()},
                int(table.probe_answer[row]),
                float(table.probe_confidence[row]),
            )
    return out


def with_probes(trace: Trace) -> Trace:
    points = tuple(
        dataclasses.replace(p, probe=p.probe or Probe("none", 0.25, 1)) for p in trace.checkpoints
    )
    return dataclasses.replace(trace, checkpoints=points)


@settings(max_examples=60, deadline=None)
@given(trace_lists(), st.sampled_from(["free", "probe", "turns"]))
def test_a_live_request_sees_what_a_replay_sees_bit_by_bit(
    traces: list[Trace], preset: str
) -> None:
    table = table_of([with_probes(trace) for trace in traces])
    features = feature_names(table.signals, preset)  # type: ignore[arg-type]
    if not table.has_probes or (preset == "turns" and not {*TURNS} & {*table.signals}):
        features = feature_names(table.signals, "free")
    replayed = observe(table, features)
    assert replayed.dtype == np.float32
    assert replayed.shape == (len(table.thinking_tokens), len(features))
    assert np.isfinite(replayed).all()
    np.testing.assert_array_equal(replayed, one_by_one(table, features))


def test_an_entropy_that_is_not_known_yet_is_not_taken_for_certainty() -> None:
    features = ("answer_entropy", "answer_entropy.min", "probe_tail")
    gone, sure = {"answer_entropy": math.nan}, {"answer_entropy": 0.25, "probe_tail": 0.5}
    every, one = Observer(features), RowObserver(features)
    seen = []
    for step, signals in enumerate((gone, {}, sure, gone), 1):
        row = one.update(8 * step, signals)
        (rows,) = every.update(
            np.zeros(1, dtype=int), [8 * step], {k: [v] for k, v in signals.items()}
        )
        np.testing.assert_array_equal(rows, row)
        seen.append(row.tolist())
    assert seen == [[1, 1, 0], [1, 1, 0], [0.25, 0.25, 0.5], [0.25, 0.25, 0.5]]


@settings(max_examples=30, deadline=None)
@given(trace_lists())
def test_what_is_remembered_of_trial_answers_is_what_it_says(traces: list[Trace]) -> None:
    table = table_of([with_probes(trace) for trace in traces])
    if not table.has_probes or "hedges" not in table.signals:
        return
    expected = []
    for start, end in zip(table.offsets[:-1].tolist(), table.offsets[1:].tolist(), strict=True):
        rows: list[int] = []
        for row in range(start, end):
            here = bool(table.signals["hedges"][row] > 0)
            rows += [row] if here else []
            if not rows:
                expected.append([0.0] * 8)
                continue
            answers, sure = table.probe_answer[rows].tolist(), table.probe_confidence[rows]
            streak = next((k for k, a in enumerate(answers[::-1]) if a != answers[-1]), len(rows))
            since = table.thinking_tokens[row] - table.thinking_tokens[rows[-1]]
            share = answers.count(answers[-1]) / len(rows)
            expected.append(
                [here, np.log1p(len(rows)), sure[-1], sure.max(), np.log1p(streak),
                 np.log1p(len(set(answers))), share, np.log1p(since)]
            )  # fmt: skip
    seen = observe(table, ("hedges", *TURN_SIGNALS))[:, 1:]
    np.testing.assert_allclose(seen, np.array(expected), rtol=1e-6, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(trace_lists(), st.integers(1, 5))
def test_no_observation_depends_on_what_comes_later(traces: list[Trace], kept: int) -> None:
    table = table_of(traces)
    features = feature_names(table.signals, "free")
    cut = table_of(
        [
            dataclasses.replace(
                trace,
                checkpoints=trace.checkpoints[:kept],
                final=Final("other", 0, 10**6, 3),
            )
            for trace in traces
        ]
    )
    whole = observe(table, features)
    rows = np.concatenate(
        [np.arange(o, o + min(n, kept)) for o, n in zip(table.offsets, table.lengths, strict=False)]
    ).astype(int)
    for name in table.signals.keys() - cut.signals.keys():
        cut.signals[name] = np.full(len(cut.thinking_tokens), np.nan)
    np.testing.assert_array_equal(observe(cut, features), whole[rows])


def test_each_transform_is_what_its_name_says() -> None:
    values = [2.0, 0.0, 5.0]
    points = tuple(
        Checkpoint(10 * (i + 1), {"x": v}, Exit("", 0, 1), Probe(a, 0.5, 1))
        for i, (v, a) in enumerate(zip(values, ["a", "b", "b"], strict=True))
    )
    trace = dataclasses.replace(make_trace(), checkpoints=points, final=Final("", 0, 99, 1))
    features = ("x", "x.ema", "x.max", "x.min", "x.mean", "x.sum", "x.delta", "x.age", "x.log",
                "x.odds", "thinking_tokens", "probe_streak", "probe_distinct",
                "probe_share")  # fmt: skip
    seen = dict(zip(features, observe(table_of([trace]), features).T, strict=True))
    wanted = {
        "x": values,
        "x.ema": [2.0, 1.4, 0.3 * 5 + 0.7 * 1.4],
        "x.max": [2, 2, 5],
        "x.min": [2, 0, 0],
        "x.mean": [2, 1, 7 / 3],
        "x.sum": [2, 2, 7],
        "x.delta": [0, -2, 5],
        "x.age": np.log1p([0, 10, 0]),
        "x.log": np.log1p(values),
        "x.odds": [np.log(1e6 - 1), -np.log(1e6 - 1), np.log(1e6 - 1)],
        "thinking_tokens": [10, 20, 30],
        "probe_streak": [1, 1, 2],
        "probe_distinct": [1, 2, 2],
        "probe_share": [1, 1 / 2, 2 / 3],
    }
    for name, column in wanted.items():
        np.testing.assert_allclose(seen[name], column, rtol=1e-6, err_msg=name)


def test_a_missing_signal_keeps_its_last_value_and_is_0_before_its_first() -> None:
    observer = Observer(("x",))
    seen = [
        float(observer.update(ZERO, [t], {"x": [value]})[0, 0])
        for t, value in enumerate([np.nan, 3.0, np.nan], 1)
    ]
    assert seen == [0, 3, 3]


def test_features_the_traces_cannot_give_are_user_errors() -> None:
    table = table_of([make_trace()])
    with pytest.raises(UserError, match="no signal wind"):
        observe(table, ("wind.max",))
    bare = table_of(
        [
            dataclasses.replace(
                make_trace(), checkpoints=(Checkpoint(8, {"x": 1.0}, Exit("", 0, 1)),)
            )
        ]
    )
    with pytest.raises(UserError, match="trial answer"):
        features_of(bare, "probe")
    with pytest.raises(UserError, match="trial answer"):
        observe(bare, ("probe_streak",))
    with pytest.raises(ValueError, match="no transform 'cube'"):
        Observer(("x.cube",))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 1000))
def test_a_window_sums_up_the_tokens_since_the_last_read(n: int, tokens: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    window = Window(n)
    ended = np.zeros(n, dtype=bool)
    for _ in range(2):
        x = rng.normal(size=(tokens, n, 6))
        flags = rng.random((tokens, n, 3)) < 0.5
        for t in range(tokens):
            window.push(x[t], flags[t])
        read = window.read()
        assert tuple(read) == SIGNALS
        np.testing.assert_allclose(read["logprob_mean"], x[:, :, 0].mean(0))
        np.testing.assert_array_equal(read["entropy_max"], x[:, :, 1].max(0))
        np.testing.assert_array_equal(read["entropy_last"], x[-1, :, 1])
        np.testing.assert_array_equal(read["margin_min"], x[:, :, 2].min(0))
        np.testing.assert_allclose(read["p_end_mean"], x[:, :, 3].mean(0))
        np.testing.assert_array_equal(read["hedges"], flags[:, :, 0].sum(0))
        np.testing.assert_array_equal(read["conclusions"], flags[:, :, 1].sum(0))
        np.testing.assert_allclose(read["topk_mean"], x[:, :, 4].mean(0))
        ended = np.concatenate([ended[None], flags[:, :, 2]])
        gaps = np.where(ended[:-1], x[:, :, 5], NO_SENTENCE_END)
        np.testing.assert_array_equal(read["end_gap_min"], gaps.min(0))
        ended = ended[-1]


def test_what_is_read_does_not_change_afterwards() -> None:
    window = Window(2)
    window.push(np.ones((2, 6)), [[1, 0, 1], [0, 1, 0]])
    kept = window.read()
    read = {name: column.copy() for name, column in kept.items()}
    window.push(np.full((2, 6), 9.0), np.ones((2, 3)))
    for name, column in read.items():
        np.testing.assert_array_equal(kept[name], column)


def test_a_window_keeps_the_rows_it_is_told_to() -> None:
    window = Window(3)
    window.push(np.arange(18.0).reshape(3, 6), [[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    window.keep(np.array([2, 1]))
    read = window.read()
    assert read["logprob_mean"].tolist() == [12, 6]
    assert read["hedges"].tolist() == [0, 1]


def test_markers_are_words_whatever_their_case_and_spacing() -> None:
    assert markers(" Wait,") == (True, False, False)
    assert markers("\u0120So") == (False, True, False)
    assert markers("waiting") == (False, False, False)
    assert marker_table(["wait", "so", "x."]).tolist() == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]


def test_sentences_end_at_stops_and_line_breaks() -> None:
    for text in (".", " done.", '?"'.rstrip('"'), "!\u0120", "\u010a", "\n\n", ".\n"):
        assert markers(text)[2], text
    for text in ("3", ",", ".5", "e.g", ""):
        assert not markers(text)[2], text
