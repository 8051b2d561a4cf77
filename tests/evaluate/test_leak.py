"""The leak check: it passes an honest observation and catches planted leaks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic import make_table

from rlbudget.errors import UserError
from rlbudget.evaluate.leak import leak_check
from rlbudget.policy.observation import feature_names, observe
from rlbudget.signals.tokens import SIGNALS
from rlbudget.traces.table import TraceTable

FEATURES = feature_names(SIGNALS, "free")


def remaining(table: TraceTable) -> np.ndarray:
    """(m,) checkpoints left: what a stop rule may not know."""
    step = np.arange(len(table.thinking_tokens)) - table.offsets[:-1][table.trace_of_row]
    left: np.ndarray = table.lengths[table.trace_of_row] - step
    return left


def test_our_observation_does_not_leak() -> None:
    report = leak_check(make_table(400, seed=1), FEATURES)
    assert not report.leaks, str(report)
    assert report.gain < 0.02
    assert "no leak" in str(report)


@pytest.mark.parametrize("noise", [0.0, 2.0], ids=["plain", "blurred"])
def test_a_planted_leak_is_caught_and_named(noise: float) -> None:
    table = make_table(400, seed=1)
    seen = observe(table, FEATURES).astype(np.float64)
    place = FEATURES.index("entropy_mean.ema")
    blur = np.random.default_rng(0).normal(0, 1, len(seen))
    seen[:, place] = remaining(table) + noise * blur
    report = leak_check(table, FEATURES, observations=seen)
    assert report.leaks
    assert report.suspects[0] == "entropy_mean.ema"
    assert "entropy_mean.ema" in str(report)


def test_checkpoints_at_shares_of_the_length_are_a_leak() -> None:
    table = make_table(400, seed=1)
    kept = table.take(np.flatnonzero(table.lengths >= 2))
    step = np.arange(len(kept.thinking_tokens)) - kept.offsets[:-1][kept.trace_of_row]
    share = (step + 1) / (kept.lengths[kept.trace_of_row] + 1)
    length = kept.final_thinking_tokens[kept.trace_of_row]
    shared = replace(kept, thinking_tokens=np.maximum(1, (share * length)).astype(np.int64))
    rows = kept.offsets[:-1]
    first = replace(shared, thinking_tokens=shared.thinking_tokens.copy())
    first.thinking_tokens[rows] = np.maximum(1, kept.final_thinking_tokens // 20)
    report = leak_check(first, FEATURES)
    assert report.leaks
    assert "absolute grid" in str(report)


def test_too_few_questions_are_refused() -> None:
    with pytest.raises(UserError, match="it needs 30"):
        leak_check(make_table(12), FEATURES)


def test_observations_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="observations have shape"):
        leak_check(make_table(40), FEATURES, observations=np.zeros((3, len(FEATURES))))
