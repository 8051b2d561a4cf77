"""Verdicts: what few questions can prove, and that the 95% intervals hold where losses are rare."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from synthetic import make_table

from rlbudget.arrays import Floats
from rlbudget.evaluate.verdicts import (
    extremes,
    most_utility,
    paired,
    paired_by,
    questions_needed,
    verdict_of,
)
from rlbudget.policy.bootstrap import interval, resample
from rlbudget.policy.outcomes import Outcome

Population = Callable[[np.random.Generator, int], Floats]
MOST = 1.2
RUNS = 400


def ids(n: int) -> np.ndarray:
    return np.array([f"q{k:04d}" for k in range(n)])


def flips(lost: float, gained: float, saved: float) -> Population:
    """Loses and gains whole answers, and always saves tokens."""

    def draw(rng: np.random.Generator, n: int) -> Floats:
        share = [lost, 1 - lost - gained, gained]
        return saved + rng.choice([-1.0, 0.0, 1.0], n, p=share)

    return draw


POPULATIONS: dict[str, tuple[Population, float]] = {
    "rare losses": (flips(0.08, 0.0, 0.0067), -0.0733),
    "rarer losses": (flips(0.01, 0.0, 0.001), -0.009),
    "ties": (flips(0.05, 0.05, 0.0), 0.0),
    "many flips": (flips(0.3, 0.4, 0.0), 0.1),
    "constant": (lambda rng, n: np.full(n, 0.01), 0.01),
    "uniform": (lambda rng, n: rng.uniform(-1, 1, n), 0.0),
    "heavy tails": (lambda rng, n: np.clip(0.1 * rng.standard_t(2, n), -MOST, MOST), 0.0),
    "skewed": (lambda rng, n: 2 * rng.beta(0.1, 0.9, n) - 1, -0.8),
}


@pytest.mark.parametrize("name", POPULATIONS)
@pytest.mark.parametrize("n", [2, 6, 10, 20, 50, 200])
def test_an_interval_misses_the_truth_at_most_once_in_twenty(name: str, n: int) -> None:
    draw, truth = POPULATIONS[name]
    resampling = resample(ids(n), draws=1000, seed=0)
    rng = np.random.default_rng(n)
    missed = 0
    for _ in range(RUNS):
        low, high = paired_by(resampling, draw(rng, n), most=MOST).interval
        assert low < high
        missed += not low <= truth <= high
    assert missed / RUNS <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / RUNS)


@pytest.mark.parametrize("n", [6, 10, 30])
def test_an_interval_holds_for_clusters_of_traces(n: int) -> None:
    resampling = resample(np.repeat(ids(n), 5), draws=1000, seed=0)
    rng = np.random.default_rng(n)
    missed = 0
    for _ in range(RUNS):
        of_question = rng.choice([-0.5, 0.0, 0.1], n, p=[0.1, 0.4, 0.5])
        of_trace = np.repeat(of_question, 5) + rng.choice([-0.5, 0.5], 5 * n)
        low, high = paired_by(resampling, of_trace, most=MOST).interval
        missed += not low <= 0.0 <= high
    assert missed / RUNS <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / RUNS)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 10, 20, 300])
def test_a_loss_that_was_not_seen_is_bounded_as_a_binomial_share(n: int) -> None:
    low, high = paired(np.zeros(n), ids(n), most=1.0, draws=40_000).interval
    exact = binomtest(0, n).proportion_ci(0.95).high
    assert low == pytest.approx(-exact, rel=0.05)
    assert high == pytest.approx(exact, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 40))
def test_whole_differences_give_the_exact_binomial_test(n: int, better: int) -> None:
    better = min(better, n)
    signs = np.where(np.arange(n) < better, 1.0, -1.0)
    found = paired(signs, ids(n), most=1.0, draws=20_000)
    low, high = (2 * share - 1 for share in binomtest(better, n).proportion_ci(0.95))
    assert found.interval == pytest.approx((low, high), abs=0.04)
    sides = (binomtest(better, n, alternative=side).pvalue for side in ("less", "greater"))
    assert found.p_value == pytest.approx(min(1.0, 2 * min(sides)), rel=0.35, abs=0.01)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.floats(1, 3))
def test_no_p_value_is_below_that_of_signs_that_agree(values: list[float], most: float) -> None:
    n = len(values)
    found = paired(values, ids(n), most=most, draws=500)
    assert found.p_value >= 2.0 ** (1 - n)
    low, high = found.interval
    assert -most <= low < high <= most
    if n < 6:
        assert found.verdict == "cannot tell"
    back = paired([-value for value in values], ids(n), most=most, draws=500)
    assert back.interval == pytest.approx((-high, -low))


def test_many_questions_are_as_good_as_a_normal_interval() -> None:
    values = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 5000, p=[0.1, 0.75, 0.15])
    found = paired(values, ids(5000), most=1.0)
    width = found.interval[1] - found.interval[0]
    assert width == pytest.approx(2 * 1.96 * values.std() / math.sqrt(5000), rel=0.06)
    assert found.verdict == "better"
    assert "(better)" in str(found)


@pytest.mark.parametrize("n", [6, 10, 20])
def test_means_of_unbounded_values_are_tested_as_by_student(n: int) -> None:
    resampling = resample(ids(n), draws=1000, seed=0)
    rng = np.random.default_rng(n)
    ends = np.array([interval(resampling.means(rng.standard_normal(n)), n) for _ in range(2000)])
    assert 0.03 <= np.mean((ends[:, 0] > 0) | (ends[:, 1] < 0)) <= 0.07


@pytest.mark.parametrize(
    ("found", "margin", "verdict"),
    [
        ((0.001, 0.02), 0.0, "better"),
        ((-0.004, 0.02), 0.005, "not inferior"),
        ((-0.004, 0.02), 0.0, "cannot tell"),
        ((-0.02, -0.01), 0.005, "worse"),
        ((-0.004, -0.001), 0.005, "not inferior"),
        ((0.0, 0.0), 0.0, "cannot tell"),
        ((math.nan, math.nan), 0.005, "cannot tell"),
    ],
)
def test_a_verdict_is_what_the_interval_proves(
    found: tuple[float, float], margin: float, verdict: str
) -> None:
    assert verdict_of(found, margin=margin) == verdict
    assert verdict_of(found, questions=5, margin=margin) == "cannot tell"


@pytest.mark.parametrize("margin", [0.005, 0.02, 0.2])
def test_the_questions_needed_are_the_fewest_that_suffice(margin: float) -> None:
    n = questions_needed(margin)
    for questions, enough in ((int(0.93 * n), False), (math.ceil(1.07 * n), True)):
        low, _ = paired(np.zeros(questions), ids(questions), most=1.0, draws=20_000).interval
        assert (low > -margin) is enough
    with pytest.raises(ValueError, match="margin"):
        questions_needed(0.0)


def test_a_difference_out_of_range_and_no_difference_are_refused() -> None:
    with pytest.raises(ValueError, match="not all in"):
        paired([0.1, 1.5], ids(2), most=1.0)
    with pytest.raises(ValueError, match="at least one"):
        paired([], ids(0), most=1.0)


def test_the_largest_difference_is_an_answer_and_the_tokens_between() -> None:
    def of(*tokens: float) -> Outcome:
        zeros = np.zeros(len(tokens))
        return Outcome(zeros, np.array(tokens), zeros, zeros)

    assert most_utility(0.01, of(10, 30), of(50, 20)) == pytest.approx(1.4)
    assert most_utility(np.array([0.01, 0.02]), of(10, 60)) == pytest.approx(2.0)


def test_the_extremes_are_never_and_at_once() -> None:
    table = make_table(20, seed=1)
    never, at_once = extremes(table, probes=True)
    assert (never.thinking == table.final_thinking_tokens).all()
    assert never.probe.sum() == table.probe_tokens.sum()
    assert (at_once.thinking[table.lengths > 0] < never.thinking[table.lengths > 0]).all()
