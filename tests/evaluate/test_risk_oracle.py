"""MAPIE 1.6 as the oracle of the risk bound: the same data, the same p-values, the same choice.

MAPIE calls a setting a predict parameter (lambda), the bound alpha and the error rate delta. What
is ours and has no counterpart there: the betting p-value itself (MAPIE has the confidence bound
that belongs to it, for prediction sets) and bets for a loss that can be negative.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.risk_control import BinaryClassificationController, BinaryRisk, control_fwer
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value, get_r_hat_plus

from rlbudget.evaluate.risk import betting_p_value, certify, harm_p_value
from runs.quality.risk_bound import hoeffding_bentkus, walk

Array = Any


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 500), st.data())
def test_the_harm_p_value_is_that_of_mapie_for_a_binary_risk(n: int, data: st.DataObject) -> None:
    harmed = data.draw(st.integers(0, n - 1))
    bound = data.draw(st.floats(1e-3, 0.9))
    theirs = compute_hoeffding_bentkus_p_value(np.array([harmed / n]), n, bound, binary=True)
    # MAPIE rounds n * (harmed / n) up, and a float may lie above the whole number that it means.
    seen = int(np.ceil(n * (harmed / n)))
    assert harm_p_value(seen, n, bound) == pytest.approx(float(theirs[0, 0]), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=200),
    st.floats(0.001, 0.9),
)
def test_hoeffding_bentkus_of_the_published_comparison_is_that_of_mapie(
    values: list[float], bound: float
) -> None:
    """The loss in [-1, 1] is moved to [0, 1], where MAPIE's p-value is defined.

    Above the bound both hold no evidence: ours is 1 there, MAPIE's its Bentkus part, cut at 1.
    """
    loss = np.array(values)
    mean = float(loss.mean() + 1) / 2
    theirs = compute_hoeffding_bentkus_p_value(np.array([mean]), len(loss), (bound + 1) / 2)
    assert hoeffding_bentkus(loss, bound) == pytest.approx(min(1.0, float(theirs[0, 0])), abs=1e-9)


@pytest.mark.parametrize("seed", range(30))
def test_the_walk_over_settings_is_the_fixed_sequence_of_mapie(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p_values = np.sort(rng.random(20)) ** 2 + rng.normal(0, 0.02, 20).clip(0)
    rejected = control_fwer(p_values, 0.1, "fixed_sequence")
    assert walk(p_values.tolist(), 0.1) == (len(rejected) - 1 if len(rejected) else None)


def harms(chance: Array, wrong: Array, threshold: float) -> Array:
    """(n,) 1 where a stop is made at this threshold and its answer is a lost one."""
    return ((chance >= threshold) & (wrong == 1)).astype(np.float64)


@pytest.mark.parametrize(("bound", "confidence"), [(0.05, 0.9), (0.02, 0.9), (0.1, 0.95)])
@pytest.mark.parametrize("seed", range(8))
def test_the_certified_setting_is_the_one_that_mapie_chooses(
    seed: int, bound: float, confidence: float
) -> None:
    """Stopping at a chance of at least a threshold, as a controller of MAPIE and as ours.

    The harm is then monotone in the threshold, which MAPIE asks of a fixed sequence and ``certify``
    does not: it walks in the order it is given.
    """
    rng = np.random.default_rng(seed)
    n = 1024  # a power of two: n * (k / n) is exact, and MAPIE rounds it up
    wrong = (rng.random(n) < 0.15).astype(int)
    chance = np.clip(0.6 - 0.3 * wrong + rng.normal(0, 0.2, n), 0.001, 0.999)
    thresholds = np.linspace(0.99, 0.01, 50)
    ours = certify(
        [harms(chance, wrong, t) for t in thresholds],
        max_em_loss=bound, confidence=confidence, mode="harm",
    )  # fmt: skip
    risk = BinaryRisk(
        risk_occurrence=lambda y_true, y_pred: (y_true == 1) & (y_pred == 1),
        risk_condition=lambda y_true, y_pred: np.ones(np.shape(y_pred), dtype=bool),
        higher_is_better=False,
    )
    theirs = BinaryClassificationController(
        lambda x: np.stack([1 - x[:, 0], x[:, 0]], axis=1),
        risk,
        target_level=bound,
        confidence_level=confidence,
        best_predict_param_choice=risk,
        list_predict_params=thresholds,
        fwer_method="fixed_sequence",
    ).calibrate(chance[:, None], wrong)
    assert ours.certified is not None
    assert 0 < ours.certified < len(thresholds) - 1, "the data decide nothing"
    assert theirs.valid_predict_params.min() == pytest.approx(thresholds[ours.certified])
    np.testing.assert_allclose(
        theirs.p_values[: len(ours.p_values), 0], ours.p_values, rtol=0, atol=1e-9
    )


GRID = np.linspace(0.01, 1.0, 100)


def wsr_of_mapie(losses: Array, delta: float) -> float:
    """MAPIE's Waudby-Smith-Ramdas bound on the mean, to the next point of ``GRID``.

    MAPIE searches the bound among its predict parameters, so each gets the same losses.
    """
    repeated = np.repeat(losses[:, None], len(GRID), axis=1)
    _, bounds = get_r_hat_plus(repeated, GRID, "rcps", "wsr", delta, 0.25)
    assert np.unique(bounds).size == 1
    return float(bounds[0])


def wsr_of_ours(losses: Array, delta: float) -> float:
    """The first point of ``GRID`` that the betting p-value rejects as the mean."""
    return float(next(r for r in GRID if betting_p_value(losses, r, delta) <= delta))


def drawn_losses(seed: int) -> Array:
    """(400,) losses in [0, 1] of mean .1 to .4, spread enough that no bet meets its cap."""
    rng = np.random.default_rng(seed)
    mean = rng.uniform(0.1, 0.4)
    if seed % 2:
        return rng.choice([0.0, 0.5, 1.0], 400, p=[1 - mean, mean / 2, mean / 2])
    return (rng.random(400) < mean).astype(np.float64)


def steady_losses(seed: int) -> Array:
    """(400,) losses in [0, 1]: twenty times the same twenty, the largest first.

    The fortune against any mean worth rejecting then climbs from block to block, so that its best
    is where it ends, of the whole way and of each half.
    """
    rng = np.random.default_rng(seed)
    block = np.sort(rng.beta(0.4, 0.4 * rng.uniform(1.5, 6), 20).round(3))[::-1]
    return np.tile(block, 20)


@pytest.mark.parametrize("delta", [0.1, 0.05])
@pytest.mark.parametrize("seed", range(10))
def test_betting_rejects_a_mean_exactly_from_the_bound_of_mapie_on(seed: int, delta: float) -> None:
    """The bets are the same where neither meets its cap (MAPIE 1, ours .75 / (1 - bound)).

    MAPIE adds the best fortune of the first half to that of the second, each half from a fresh
    start ("to prevent memory issues"); ours is the best of the whole way. Where the fortune is
    best at the end of each half these are the same number, and so is the bound.
    """
    losses = steady_losses(seed)
    assert wsr_of_ours(losses, delta) == wsr_of_mapie(losses, delta)


@pytest.mark.parametrize("delta", [0.1, 0.05])
@pytest.mark.parametrize("seed", range(10))
def test_in_random_order_betting_is_close_to_mapie_and_not_bolder(seed: int, delta: float) -> None:
    """A sum of the best of two halves is at least the best of the whole (see above)."""
    losses = drawn_losses(seed)
    ours, theirs = wsr_of_ours(losses, delta), wsr_of_mapie(losses, delta)
    assert losses.mean() < theirs <= ours <= theirs + 0.03
