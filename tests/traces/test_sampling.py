"""Of a store too large for the memory some questions are kept, the same ones everywhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from synthetic import make_table
from trace_makers import assert_same_table, make_trace, trace_lists, traces_of

from rlbudget.traces.columns import part_of
from rlbudget.traces.contents import digests_of
from rlbudget.traces.sampling import keys_of, load_sample
from rlbudget.traces.store import TraceWriter, digest, load_table
from rlbudget.traces.table import split_questions
from rlbudget.traces.trace import Trace


def write(folder: Path, traces: list[Trace], part_size: int = 8) -> Path:
    with TraceWriter(folder, part_size=part_size) as writer:
        for trace in traces:
            writer.add(trace)
    return folder


def many(n: int = 120) -> list[Trace]:
    """Two traces a question, 1 to 7 checkpoints each."""
    return [make_trace(i, checkpoints=1 + i % 7, question_id=f"q{i // 2}") for i in range(n)]


def test_a_store_that_fits_is_kept_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write(tmp_path / "t", many())
    for context in (False, True):
        sample = load_sample(folder, context=context, most=10_000)
        assert_same_table(sample.table, load_table(folder, context=context))
    assert (sample.questions, sample.traces, sample.said) == (60, 120, None)
    assert sample.checkpoints == len(sample.table.thinking_tokens)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("most", [1, 20, 77, 300, 478])
def test_what_is_kept_fits_and_is_whole_questions(tmp_path: Path, most: int) -> None:
    """The questions of the smallest keys, until one more would be too much."""
    folder = write(tmp_path / "t", many())
    whole, sample = load_table(folder), load_sample(folder, most=most)
    questions = np.unique(whole.question_ids)
    order = questions[np.argsort(keys_of(questions.tolist()))]
    lengths = [int(whole.lengths[whole.question_ids == one].sum()) for one in order]
    fits = max(1, int((np.cumsum(lengths) <= most).sum()))
    rows = np.flatnonzero(np.isin(whole.question_ids, order[:fits]))
    assert_same_table(sample.table, whole.take(rows))
    assert (sample.questions, sample.traces, sample.checkpoints) == (60, 120, sum(lengths))


def test_the_order_of_the_traces_does_not_matter(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    traces = many()
    a = load_sample(write(tmp_path / "a", traces, 3), most=50)
    b = load_sample(write(tmp_path / "b", traces[::-1], 50), most=50)
    assert set(a.table.trace_ids) == set(b.table.trace_ids)
    told = capsys.readouterr().err.splitlines()
    assert told == [a.said, b.said]
    assert a.said == b.said
    assert "477 checkpoints of 60 questions" in told[0]


def test_a_sample_is_split_like_the_whole(tmp_path: Path) -> None:
    """Keys and splits are hashes of their own: no part of the split is kept more than another."""
    folder = write(tmp_path / "t", traces_of(make_table(2000, mean_tokens=24)), 256)
    held_out = set(split_questions(load_table(folder)).held_out.question_ids.tolist())
    kept = np.unique(load_sample(folder, most=1500).table.question_ids)
    share = np.isin(kept, list(held_out)).mean()
    assert len(kept) > 400
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / len(kept))


@settings(max_examples=60, deadline=None)
@given(trace_lists())
def test_a_trace_has_one_digest_in_whichever_part_it_stands(traces: list[Trace]) -> None:
    together = digests_of(part_of(traces))
    assert together == [digests_of(part_of([trace]))[0] for trace in traces]
    assert digests_of(part_of(traces)[1:]) == together[1:]
    assert len(set(together)) == len(traces)


@pytest.mark.parametrize(
    "change",
    [
        {"trace_id": "other"},
        {"question_id": "other"},
        {"question": "other"},
        {"target": "other"},
        {"task": "other"},
        {"model": "other"},
        {"seed": 99},
        {"meta": {"stride": 9}},
        {"final": dataclasses.replace(make_trace(3).final, answer="other")},
        {"final": dataclasses.replace(make_trace(3).final, exact_match=0)},
        {"final": dataclasses.replace(make_trace(3).final, answer_tokens=5)},
        {"checkpoints": make_trace(3).checkpoints[:2]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_digest_sees_every_field_of_a_trace(change: dict[str, object]) -> None:
    trace = make_trace(3)
    assert _one(dataclasses.replace(trace, **change)) != _one(trace)


@pytest.mark.parametrize("place", [0, 2])
def test_the_digest_sees_every_field_of_a_checkpoint(place: int) -> None:
    trace = make_trace(3)
    point = trace.checkpoints[place]
    assert point.probe is not None
    changes: list[dict[str, object]] = [
        {"thinking_tokens": point.thinking_tokens + 1},
        {"signals": {**point.signals, "hedges": 99.0}},
        {"signals": {n: v for n, v in point.signals.items() if n != "hedges"}},
        {"exit": dataclasses.replace(point.exit, answer="other")},
        {"exit": dataclasses.replace(point.exit, answer_tokens=9)},
        {"probe": None},
        {"probe": dataclasses.replace(point.probe, answer="other")},
        {"probe": dataclasses.replace(point.probe, confidence=0.25)},
        {"probe": dataclasses.replace(point.probe, tokens=4)},
    ]
    found = {_one(trace)}
    for change in changes:
        points = list(trace.checkpoints)
        points[place] = dataclasses.replace(point, **change)
        found.add(_one(dataclasses.replace(trace, checkpoints=tuple(points))))
    assert len(found) == 1 + len(changes)


def test_the_order_of_the_fields_of_meta_is_no_content(tmp_path: Path) -> None:
    a = dataclasses.replace(make_trace(), meta={"stride": 8, "note": "x"})
    b = dataclasses.replace(make_trace(), meta={"note": "x", "stride": 8})
    assert digest(write(tmp_path / "a", [a])) == digest(write(tmp_path / "b", [b]))


def _one(trace: Trace) -> bytes:
    return digests_of(part_of([trace]))[0]
