from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_makers import make_trace

from rlbudget.errors import UserError
from rlbudget.policy.controller import Controller
from rlbudget.policy.network import Decision
from rlbudget.policy.observation import feature_names, observe
from rlbudget.signals.questions import (
    CONTEXT_SIGNALS,
    TASK_SIGNALS,
    context_columns,
    context_signals,
    task_signals,
)
from rlbudget.traces.store import TraceWriter, load_table


@given(st.text())
def test_every_question_has_finite_numbers(question: str) -> None:
    found = context_signals(question)
    assert tuple(found) == CONTEXT_SIGNALS
    assert all(math.isfinite(value) and value >= 0 for value in found.values())


def test_the_numbers_say_what_their_names_say() -> None:
    found = context_signals("If 12 cats and 3 dogs come, how many are left? 12 - 3 =")
    counts = {name: round(math.expm1(value)) for name, value in found.items()}
    assert counts["question_words"] == 9
    assert counts["question_sentences"] == 1
    assert counts["question_clauses"] == 3  # if, and, a comma
    assert counts["question_numbers"] == 4
    assert counts["question_digits"] == 6
    assert counts["question_operators"] == 2
    assert counts["question_minus"] == 2  # left, -
    assert found["question_largest"] == pytest.approx(math.log10(13))
    assert found["question_rare"] == 0


def test_a_table_holds_them_at_every_checkpoint_when_asked(tmp_path: Path) -> None:
    asked = [replace(make_trace(i), question=f"What is {i} + {10**i}?") for i in range(5)]
    with TraceWriter(tmp_path) as writer:
        for trace in asked:
            writer.add(trace)
    assert not set(load_table(tmp_path).signals) & set(CONTEXT_SIGNALS)
    table = load_table(tmp_path, context=True)
    expected = context_columns(trace.question for trace in asked)
    for name in CONTEXT_SIGNALS:
        np.testing.assert_array_equal(table.signals[name], expected[name][table.trace_of_row])
    features = feature_names(table.signals, "free", context=True)
    assert set(CONTEXT_SIGNALS) <= set(features)
    assert not set(CONTEXT_SIGNALS) & set(feature_names(table.signals, "free"))
    seen = observe(table, features)
    np.testing.assert_allclose(
        seen[:, features.index("question_digits")], table.signals["question_digits"], rtol=1e-6
    )


class _Watching:
    """A policy that keeps what it is shown."""

    features = ("entropy_mean", "question_words")
    price_range = (1e-5, 1e-2)

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def __call__(self, observation: object, *, token_price: float) -> Decision:
        self.seen.append(np.asarray(observation).tolist())
        return Decision(stop=False, stop_probability=0.1)


def test_a_live_request_sees_the_question_as_a_replay_does() -> None:
    policy = _Watching()
    controller = Controller(policy, token_price=1e-3, question="two words")
    controller.at_checkpoint({"entropy_mean": 0.5}, 8)
    controller.at_checkpoint({"entropy_mean": 0.25}, 16)
    assert controller.failed is None
    assert policy.seen == [pytest.approx([v, math.log1p(2)]) for v in (0.5, 0.25)]


def test_a_policy_that_looks_at_the_question_must_be_given_it() -> None:
    with pytest.raises(UserError, match="question"):
        Controller(_Watching(), token_price=1e-3)


def test_tasks_are_told_apart_and_none_is_zero() -> None:
    known = {
        tuple(task_signals(name).values()) for name in ("gcd", "chain_sum", "legs", "calendar")
    }
    assert len(known) == 4
    assert set(task_signals("").values()) == {0.0}
    assert set(task_signals("never seen").values()) <= {-1.0, 1.0}


def test_a_policy_is_told_the_family_that_was_recorded(tmp_path: Path) -> None:
    traces = [
        replace(make_trace(n), meta={"family": family})
        for n, family in enumerate(("gcd", "legs", "gcd"))
    ]
    with TraceWriter(tmp_path) as writer:
        for trace in traces:
            writer.add(trace)
    table = load_table(tmp_path, context=True)
    features = ("thinking_tokens", *TASK_SIGNALS)
    seen = observe(table, features)
    first = table.offsets[:-1]
    for place, family in zip(first, ("gcd", "legs", "gcd"), strict=True):
        assert seen[place, 1:].tolist() == list(task_signals(family).values())
        controller = Controller(Noting(features), token_price=1e-3, task=family)
        controller.at_checkpoint({}, int(table.thinking_tokens[place]))
        assert controller.failed is None
        assert Noting.seen[-1].tolist() == seen[place].tolist()


class Noting:
    """Keeps what it is shown, and goes on."""

    price_range = (1e-5, 1e-2)
    seen: ClassVar[list[Any]] = []

    def __init__(self, features: tuple[str, ...]) -> None:
        self.features = features

    def __call__(self, observation: Any, *, token_price: float) -> Decision:
        self.seen.append(observation.copy())
        return Decision(stop=False, stop_probability=0.0)
