from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlbudget.errors import UserError
from rlbudget.strategies.feedback.audit import (
    Audit,
    ConfidenceSequence,
    PageHinkley,
    StreamEvaluator,
    audited,
)


@pytest.mark.parametrize(("chances", "mean"), [((0.02, 0.01), 0.01), ((0.3, 0.3), 0.0)])
def test_the_interval_misses_the_mean_no_oftener_than_it_says(
    chances: tuple[float, float], mean: float
) -> None:
    lost, gained = chances
    rng = np.random.default_rng(5)
    missed, streams = 0, 200
    for _ in range(streams):
        sequence = ConfidenceSequence(confidence=0.9, points=101)
        drawn = rng.random(300)
        ever = False
        for u in drawn:
            sequence.add(1.0 if u < lost else -1.0 if u > 1 - gained else 0.0)
            low, high = sequence.interval
            ever = ever or not low <= mean <= high
        missed += ever
    assert missed / streams <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / streams)


def test_the_interval_shrinks_to_something_useful() -> None:
    sequence = ConfidenceSequence(confidence=0.95)
    rng = np.random.default_rng(0)
    widths = []
    for i in range(2000):
        sequence.add(float(rng.random() < 0.01))
        if i + 1 in (200, 2000):
            low, high = sequence.interval
            widths.append(high - low)
    assert widths[1] < 0.04 < widths[0]
    assert sequence.mean == pytest.approx(0.01, abs=0.005)


@settings(max_examples=30)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60))
def test_the_interval_never_widens_and_the_mean_is_the_mean(values: list[float]) -> None:
    sequence = ConfidenceSequence(points=51)
    before = (-1.0, 1.0)
    for value in values:
        sequence.add(value)
        low, high = sequence.interval
        if low < high:
            assert low >= before[0] - 1e-12
            assert high <= before[1] + 1e-12
            before = (low, high)
    assert sequence.mean == pytest.approx(np.mean(values), abs=1e-9)


def test_a_rise_is_found_soon_and_steadiness_is_left_alone() -> None:
    rng = np.random.default_rng(1)
    steady, rising = PageHinkley(), PageHinkley()
    assert not any(steady.add(float(rng.random() < 0.01)) for _ in range(3000))
    alarms = [rising.add(float(rng.random() < (0.01 if i < 1000 else 0.2))) for i in range(1300)]
    assert 1000 < alarms.index(True) < 1120


def test_audits_are_drawn_by_chance_and_stay_drawn() -> None:
    ids = [f"r{i}" for i in range(20_000)]
    drawn = [audited(i, 0.1) for i in ids]
    assert np.mean(drawn) == pytest.approx(0.1, abs=0.01)
    assert drawn == [audited(i, 0.1) for i in ids]
    assert drawn != [audited(i, 0.1, key="other") for i in ids]
    assert not any(audited(i, 0.0) for i in ids)
    assert all(audited(i, 1.0) for i in ids)


def test_a_report_holds_what_the_audits_say() -> None:
    evaluator = StreamEvaluator(window=2)
    for audit in (Audit(1, 0, 100, 50), Audit(1, 1, 100, 20), Audit(0, 1, 100, 300)):
        evaluator.add(audit)
    report = evaluator.report
    assert report.audits == 3
    assert report.loss == pytest.approx(0.0)
    assert report.saving == pytest.approx((0.5 + 0.8 - 1) / 3)
    assert report.recent_loss == pytest.approx(-0.5)
    assert report.recent_saving == pytest.approx(-0.1)
    assert report.loss_interval[0] <= 0 <= report.loss_interval[1]


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="confidence"):
        ConfidenceSequence(confidence=1.0)
    with pytest.raises(UserError, match="window"):
        StreamEvaluator(window=0)
    with pytest.raises(ValueError, match="range"):
        ConfidenceSequence().add(2.0)
    with pytest.raises(ValueError, match="score"):
        Audit(2, 0, 1, 1)


def test_an_interval_is_never_a_point_even_where_a_drift_refutes_every_mean() -> None:
    sequence = ConfidenceSequence(confidence=0.9, points=101)
    for value in [-1.0] * 300 + [1.0] * 600:
        sequence.add(value)
        low, high = sequence.interval
        assert low < high
