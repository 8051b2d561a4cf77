"""The bound on lost answers: valid p-values, fixed-sequence testing, what a certificate says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frozen_nets import random_policy, write_run
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from synthetic import make_table
from trace_makers import make_trace

from rlbudget.agents.freeze import freeze
from rlbudget.cli.main import main
from rlbudget.errors import UserError
from rlbudget.evaluate.calibrate import calibrate, calibrated, calibration_questions
from rlbudget.evaluate.risk import (
    betting_p_value,
    certify,
    harm_p_value,
    losses_of,
    p_value,
    questions_needed,
)
from rlbudget.policy.folder import load_policy
from rlbudget.policy.outcomes import Outcome, full_stops, outcome
from rlbudget.policy.replay import replay
from rlbudget.traces.store import TraceWriter


def drawn(rng: np.random.Generator, n: int, lost: float, gained: float) -> Any:
    """(n,) differences: 1 with chance ``lost``, -1 with chance ``gained``."""
    u = rng.random(n)
    return np.where(u < lost, 1.0, np.where(u < lost + gained, -1.0, 0.0))


@pytest.mark.parametrize(("lost", "gained"), [(0.05, 0.0), (0.07, 0.02), (0.3, 0.25)])
@pytest.mark.parametrize("mode", ["loss", "harm"])
def test_a_setting_on_the_bound_is_certified_as_seldom_as_promised(
    lost: float, gained: float, mode: Any
) -> None:
    rng = np.random.default_rng(1)
    bound = lost - gained if mode == "loss" else lost
    runs = 2000
    wrong = sum(
        p_value(drawn(rng, 300, lost, gained), bound, 0.9, mode) <= 0.1 for _ in range(runs)
    )
    assert wrong / runs <= 0.1 + 3 * (0.1 * 0.9 / runs) ** 0.5


def test_a_good_setting_is_certified_where_it_can_be() -> None:
    rng = np.random.default_rng(2)
    found = [p_value(drawn(rng, 1000, 0.005, 0.005), 0.01, 0.9, "loss") <= 0.1 for _ in range(200)]
    assert np.mean(found) > 0.75


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.data())
def test_the_harm_p_value_is_the_binomial_distribution(n: int, data: st.DataObject) -> None:
    harmed = data.draw(st.integers(0, n))
    bound = data.draw(st.floats(1e-4, 0.9))
    assert harm_p_value(harmed, n, bound) == pytest.approx(binom.cdf(harmed, n, bound), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=60), st.floats(0.5, 0.9))
def test_a_p_value_is_a_chance_and_worse_data_do_not_make_it_smaller(
    values: list[float], bound: float
) -> None:
    x = np.array(values)
    p = betting_p_value(x, bound, 0.1)
    assert 0 <= p <= 1
    assert betting_p_value(np.ones_like(x), bound, 0.1) >= p


@pytest.mark.parametrize("mode", ["loss", "harm"])
@pytest.mark.parametrize(("loss", "confidence"), [(0.01, 0.9), (0.02, 0.95), (0.1, 0.5)])
def test_it_says_how_many_questions_are_needed(mode: Any, loss: float, confidence: float) -> None:
    needed = questions_needed(loss, confidence, mode)
    nothing_lost = [np.zeros(needed)]
    found = certify(nothing_lost, max_em_loss=loss, confidence=confidence, mode=mode)
    assert found.certified == 0
    with pytest.raises(UserError, match=f"cannot certify.* at least {needed} .* there are"):
        certify([np.zeros(needed - 1)], max_em_loss=loss, confidence=confidence, mode=mode)


def test_the_walk_ends_at_the_first_setting_that_fails() -> None:
    good, bad = np.zeros(500), np.ones(500)
    found = certify([good, good, bad, good], max_em_loss=0.02, confidence=0.9)
    assert found.certified == 1
    assert len(found.p_values) == 3
    assert certify([bad, good], max_em_loss=0.02, confidence=0.9).certified is None


@pytest.mark.parametrize(("loss", "confidence"), [(0, 0.9), (1, 0.9), (0.1, 0), (0.1, 1), (-1, 2)])
def test_bounds_that_make_no_sense_are_refused(loss: float, confidence: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        certify([np.zeros(10)], max_em_loss=loss, confidence=confidence)


def test_losses_are_means_over_the_traces_of_a_question() -> None:
    table = make_table(6, traces_per_question=2)
    zero = np.zeros(6)
    full = Outcome(np.array([1.0, 1, 0, 0, 1, 0]), zero, zero, zero)
    stopped = Outcome(np.array([0.0, 1, 1, 0, 0, 1]), zero, zero, zero)
    assert losses_of(table, full, stopped, "loss").tolist() == [0.5, -0.5, 0.0]
    assert losses_of(table, full, stopped, "harm").tolist() == [0.5, 0.0, 0.5]


def test_the_certified_price_is_the_highest_that_keeps_the_bound() -> None:
    table = make_table(1500, seed=3, informative=3.0)
    policy = random_policy()
    loose = calibrated(policy, table, max_em_loss=0.9, confidence=0.9).certificate
    assert loose["token_price"] == policy.price_range[1]
    full = outcome(table, full_stops(table))
    stopped = replay(policy, table, loose["token_price"]).outcome
    assert loose["em_loss"] == pytest.approx((full.exact_match - stopped.exact_match).mean())
    assert loose["savings"] == pytest.approx(1 - stopped.tokens.mean() / full.tokens.mean())


def record_made(folder: Path, n: int, right: bool) -> None:
    """Traces whose every exit is right, or wrong."""
    from dataclasses import replace

    with TraceWriter(folder) as writer:
        for i in range(n):
            trace = make_trace(i)
            exits = tuple(
                replace(c, exit=replace(c.exit, exact_match=int(right))) for c in trace.checkpoints
            )
            writer.add(replace(trace, checkpoints=exits))


def test_a_certificate_is_kept_in_the_policy_folder_and_honoured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_made(tmp_path / "traces", 400, right=True)
    write_run(tmp_path / "run")
    freeze(tmp_path / "run", tmp_path / "policy")
    main(["calibrate", str(tmp_path / "policy"), str(tmp_path / "traces"),
          "--out", str(tmp_path / "certified")])  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert "Certified on 400 questions" in said
    certified, plain = load_policy(tmp_path / "certified"), load_policy(tmp_path / "policy")
    certificate = certified.config["calibration"]
    assert certificate["token_price"] == certified.price_range[1]
    assert certificate["max_em_loss"] == 0.01
    assert certificate["p_value"] <= 0.1
    observations = np.zeros((3, len(plain.features)), dtype=np.float32)
    np.testing.assert_array_equal(
        plain.stop_probabilities(observations, 1e-3),
        certified.stop_probabilities(observations, 1e-3),
    )
    assert "ertified" in (tmp_path / "certified" / "README.md").read_text()


def test_a_policy_that_loses_too_much_gets_no_certificate(tmp_path: Path) -> None:
    record_made(tmp_path / "traces", 400, right=False)
    write_run(tmp_path / "run")
    freeze(tmp_path / "run", tmp_path / "policy")
    policy = load_policy(tmp_path / "policy")
    table = calibration_questions(policy, tmp_path / "traces").table
    stops = replay(policy, table, policy.price_range[0]).stops
    assert (stops >= 0).any()
    with pytest.raises(UserError, match="cannot certify: even at its lowest price"):
        calibrate(tmp_path / "policy", tmp_path / "traces", tmp_path / "certified")
    assert not (tmp_path / "certified").exists()
