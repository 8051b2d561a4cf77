"""Traces scored the old way, scored anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trace_makers import make_trace

from rlbudget.errors import UserError
from rlbudget.traces.rescore import Changes, rescored


def test_a_right_answer_in_a_sentence_becomes_right() -> None:
    trace = make_trace(1)
    said = replace(
        trace, target="18", final=replace(trace.final, answer="It is **18**.", exact_match=0)
    )
    changes = Changes()
    (after,) = rescored([said], changes, "math")
    assert after.final.exact_match == 1
    assert after.meta["scorer"] == "math"
    assert changes.to_right == 1
    assert changes.answers == 1 + len(trace.checkpoints)


def test_scoring_twice_moves_nothing() -> None:
    traces = [make_trace(i) for i in range(3)]
    once = list(rescored(traces, Changes(), "auto"))
    again = Changes()
    assert list(rescored(once, again, None)) == once
    assert (again.to_right, again.to_wrong) == (0, 0)


def test_a_verifier_needs_what_it_verifies_by() -> None:
    with pytest.raises(UserError, match="name a --scorer"):
        list(rescored([make_trace(0)], Changes(), "verifier"))
