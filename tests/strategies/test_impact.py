from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import make_table

from rlbudget.errors import UserError
from rlbudget.evaluate.reliability import reliability
from rlbudget.policy.folder import Policy, make_policy
from rlbudget.policy.observation import feature_names, observe
from rlbudget.policy.outcomes import NATURAL_END
from rlbudget.policy.replay import replay
from rlbudget.strategies.impact import (
    ImpactModel,
    fit_impact,
    guarded,
    lost_by_stopping,
)
from rlbudget.strategies.impact_file import load_impact, save_impact
from rlbudget.traces.table import TraceTable, split_questions

PRICE = 1e-3


@pytest.fixture(scope="module")
def table() -> TraceTable:
    return make_table(1500, seed=4)


@pytest.fixture(scope="module")
def fitted(table: TraceTable) -> ImpactModel:
    split = split_questions(table, seed=0)
    features = feature_names(table.signals, "free")
    return fit_impact(split.train, split.validation, features, epochs=25)


def _eager(features: tuple[str, ...]) -> Policy:
    """A policy that would stop at the first checkpoint, whatever it sees."""
    inputs = len(features) + 1
    zeros = {
        "obs_mean": np.zeros(len(features), np.float32),
        "obs_std": np.ones(len(features), np.float32),
        "mlp_extractor.policy_net.0.weight": np.zeros((4, inputs), np.float32),
        "mlp_extractor.policy_net.0.bias": np.zeros(4, np.float32),
        "action_net.weight": np.zeros((2, 4), np.float32),
        "action_net.bias": np.array([0.0, 5.0], np.float32),
    }
    return make_policy(zeros, features=features, preset="free", price_range=(1e-5, 1e-1))


def test_what_is_lost_is_a_right_end_and_a_wrong_stop(table: TraceTable) -> None:
    lost = lost_by_stopping(table)
    for trace in range(0, len(table), 97):
        rows = slice(table.offsets[trace], table.offsets[trace + 1])
        ends_right = table.final_exact_match[trace] == 1
        expected = [ends_right and wrong == 0 for wrong in table.exit_exact_match[rows]]
        assert lost[rows].tolist() == expected


def test_risks_are_calibrated_on_questions_it_has_not_seen(
    table: TraceTable, fitted: ImpactModel
) -> None:
    held_out = split_questions(table, seed=0).held_out
    lost = lost_by_stopping(held_out)
    risk = fitted.risk(observe(held_out, fitted.features))
    found = reliability(risk, lost)
    base = lost.mean()
    assert found.ece <= 0.05
    assert found.brier < 0.9 * base * (1 - base)  # better than always saying the base rate


def test_a_guarded_policy_stops_nowhere_the_risk_is_too_high_and_live_is_replay(
    table: TraceTable, fitted: ImpactModel
) -> None:
    some = table.take(range(60))
    seen = observe(some, fitted.features)
    policy = guarded(_eager(fitted.features), fitted, max_risk=0.1)
    done = replay(policy, some, PRICE)
    risk = fitted.risk(seen)
    assert 0 < (done.stops != NATURAL_END).sum() < len(some)
    for trace, stop in enumerate(done.stops.tolist()):
        first, last = some.offsets[trace], some.offsets[trace + 1]
        live = [policy(row, token_price=PRICE).stop for row in seen[first:last]]
        assert stop == (live.index(True) if any(live) else NATURAL_END)
        if stop != NATURAL_END:
            assert risk[first + stop] <= 0.1
            assert (risk[first : first + stop] > 0.1).all()


def test_a_guard_that_allows_every_risk_changes_nothing(fitted: ImpactModel) -> None:
    some = make_table(40, seed=8)
    policy = _eager(fitted.features)
    open_guard = guarded(policy, fitted, max_risk=1.0)
    np.testing.assert_array_equal(
        replay(open_guard, some, PRICE).stops, replay(policy, some, PRICE).stops
    )
    shut = guarded(policy, fitted, max_risk=0.0)
    assert (replay(shut, some, PRICE).stops == NATURAL_END).all()


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_reliability_counts_every_checkpoint_once(rows: list[tuple[float, bool]]) -> None:
    risk = np.array([r for r, _ in rows])
    lost = np.array([y for _, y in rows])
    found = reliability(risk, lost)
    assert found.count.sum() == len(rows)
    assert 0 <= found.ece <= 1
    assert found.brier == pytest.approx(np.mean((risk - lost) ** 2))
    assert np.average(found.observed, weights=found.count) == pytest.approx(lost.mean())


def test_a_saved_model_is_the_same_model(fitted: ImpactModel, tmp_path: Path) -> None:
    save_impact(tmp_path / "impact.safetensors", fitted)
    again = load_impact(tmp_path / "impact.safetensors")
    rows = observe(make_table(20, seed=1), fitted.features)
    np.testing.assert_array_equal(again.risk(rows), fitted.risk(rows))


def test_mistakes_are_named(fitted: ImpactModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_risk"):
        guarded(_eager(fitted.features), fitted, max_risk=1.5)
    with pytest.raises(UserError, match="another observation"):
        guarded(_eager(fitted.features[:-1]), fitted, max_risk=0.1)
    with pytest.raises(UserError, match="no impact model"):
        load_impact(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="not an impact model"):
        load_impact(tmp_path / "bad.safetensors")
    never = make_table(30, seed=2)
    never.final_exact_match[:] = 0
    with pytest.raises(UserError, match="nothing to learn"):
        fit_impact(never, make_table(30, seed=3).take(range(0)), fitted.features)
