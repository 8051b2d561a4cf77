"""Traces for tests: a hypothesis strategy and a plain maker."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import strategies as st

from rlbudget.signals.tokens import SIGNALS
from rlbudget.traces.table import TraceTable
from rlbudget.traces.trace import Checkpoint, Exit, Final, Probe, Trace

texts = st.text(st.characters(codec="utf-8"), max_size=6)
filled = texts.map(lambda text: "x" + text.replace("\0", ""))
finite = st.floats(-1e6, 1e6)


@st.composite
def traces(draw: st.DrawFn, trace_id: str = "t") -> Trace:
    end = draw(st.integers(1, 60))
    tokens = sorted(draw(st.sets(st.integers(0, end), max_size=5)))
    points = [
        Checkpoint(
            thinking_tokens=t,
            signals=draw(st.dictionaries(st.sampled_from(SIGNALS[:3]), finite, max_size=3)),
            exit=Exit(draw(texts), draw(st.integers(0, 1)), draw(st.integers(0, 9))),
            probe=draw(
                st.none()
                | st.builds(
                    Probe, st.sampled_from(["", "1", "2"]), st.floats(0, 1), st.integers(0, 9)
                )
            ),
        )
        for t in tokens
    ]
    return Trace(
        trace_id=trace_id,
        question_id=draw(filled),
        task=draw(texts),
        question=draw(filled),
        target=draw(filled),
        model=draw(texts),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        final=Final(draw(texts), draw(st.integers(0, 1)), end, draw(st.integers(0, 9))),
        checkpoints=tuple(points),
        meta=draw(st.dictionaries(texts, st.none() | st.booleans() | finite | texts, max_size=2)),
    )


@st.composite
def trace_lists(draw: st.DrawFn) -> list[Trace]:
    return [draw(traces(trace_id=f"t{i}")) for i in range(draw(st.integers(1, 7)))]


def make_trace(i: int = 0, *, checkpoints: int = 3, question_id: str | None = None) -> Trace:
    return Trace(
        trace_id=f"t{i}",
        question_id=question_id or f"q{i}",
        task="made",
        question=f"What is {i}?",
        target=str(i),
        model="none",
        seed=i,
        final=Final(str(i), 1, 8 * checkpoints + 8, 4),
        checkpoints=tuple(
            Checkpoint(
                thinking_tokens=8 * j + 8,
                signals=dict.fromkeys(SIGNALS, (i + 1) * (j + 2) / 7),
                exit=Exit(str(j), int(j == i), 4),
                probe=Probe(str(j % 2), 0.5, 3),
            )
            for j in range(checkpoints)
        ),
        meta={"stride": 8},
    )


def assert_same_table(left: TraceTable, right: TraceTable) -> None:
    for field in dataclasses.fields(TraceTable):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if field.name != "signals":
            a, b = {"": a}, {"": b}
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=field.name)
            assert a[name].dtype.kind == b[name].dtype.kind


def traces_of(table: TraceTable) -> list[Trace]:
    """A made-up table as traces; a right answer is ``7``, the target, another one is wrong."""
    found = []
    for i, trace_id in enumerate(table.trace_ids.tolist()):
        points = [
            Checkpoint(
                thinking_tokens=int(table.thinking_tokens[row]),
                signals={name: float(column[row]) for name, column in table.signals.items()},
                exit=Exit(
                    "7" if table.exit_exact_match[row] else "8",
                    int(table.exit_exact_match[row]),
                    int(table.exit_answer_tokens[row]),
                ),
            )
            for row in range(table.offsets[i], table.offsets[i + 1])
        ]
        right = int(table.final_exact_match[i])
        thinking, answer = int(table.final_thinking_tokens[i]), int(table.final_answer_tokens[i])
        found.append(
            Trace(
                trace_id=trace_id,
                question_id=str(table.question_ids[i]),
                task="even" if i % 2 == 0 else "odd",
                question=f"What is {i}?",
                target="7",
                model="none",
                seed=i,
                final=Final("7" if right else "8", right, thinking, answer),
                checkpoints=tuple(points),
                meta={"stride": 8},
            )
        )
    return found
