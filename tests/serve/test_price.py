"""The steered price: what moves it, what it holds, and what an alarm does."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rlbudget.serve.price.control import (
    LEAST_TOLD,
    State,
    after_request,
    after_verdict,
    alarmed,
    margin,
    started,
)
from rlbudget.serve.price.drift import (
    REFERENCE,
    after,
    nothing_seen,
    ranks_of,
    reference_of,
    strength,
)
from rlbudget.serve.price.estimate import Estimate, error_of, estimated, learned, predicted
from rlbudget.serve.price.load import EARLY, Load, after_end
from rlbudget.strategies.online import PriceSettings

KNOWN = (1e-5, 1e-2)
FLOOR = PriceSettings("em-floor", 0.85, window=1000)
Generator = np.random.Generator


def world(log_price: float) -> tuple[float, float]:
    """Exact match and tokens at a price."""
    dear = (log_price - math.log(KNOWN[0])) / math.log(KNOWN[1] / KNOWN[0])
    return 0.95 - 0.15 * dear**2, 200 - 150 * dear


def run(
    settings: PriceSettings, requests: int, generator: Generator, state: State, *,
    audits: float = 0.05, worse: float = 0.0, guess: float | None = None,
) -> tuple[State, list[float], list[float]]:  # fmt: skip
    """Serve requests; exact match and price of each."""
    rights, prices = [], []
    for _ in range(requests):
        em, tokens = world(state.log_price)
        em -= worse
        full = 0.95 - worse
        right = float(generator.random() < em)
        chance = em + worse if guess is None else guess
        rights.append(full if state.full else em)
        prices.append(state.price)
        state = after_request(
            settings, KNOWN, state, tokens=tokens * generator.uniform(0.5, 1.5),
            predicted_right=chance,
        )  # fmt: skip
        if generator.random() < audits:
            state = after_verdict(settings, state, right, chance)
    return state, rights, prices


def test_the_price_finds_what_the_floor_allows_and_no_more() -> None:
    state, rights, _ = run(FLOOR, 30_000, np.random.default_rng(0), started(2e-5, KNOWN))
    late = np.mean(rights[-10_000:])
    assert 0.85 <= late <= 0.85 + 2 * margin(FLOOR)
    assert state.alarms == ()


def test_the_same_verdicts_give_the_same_prices() -> None:
    runs = [run(FLOOR, 2000, np.random.default_rng(1), started(1e-4, KNOWN)) for _ in range(2)]
    assert runs[0][0] == runs[1][0]


def test_a_step_is_bounded_and_the_price_stays_in_its_range() -> None:
    _, _, prices = run(FLOOR, 20_000, np.random.default_rng(2), started(1e-2, KNOWN), guess=0.1)
    steps = np.diff(np.log(prices))
    assert steps.min() >= -4.0 / 1000 - 1e-12
    assert steps.max() <= 2.0 / 1000 + 1e-12
    assert min(prices) >= KNOWN[0] * (1 - 1e-12)
    assert max(prices) <= KNOWN[1] * (1 + 1e-12)


def test_nothing_moves_before_anything_is_known() -> None:
    state = started(1e-3, KNOWN)
    for _ in range(500):
        state = after_request(FLOOR, KNOWN, state, tokens=100, predicted_right=0.5)
    for _ in range(LEAST_TOLD - 1):
        state = after_verdict(FLOOR, state, 0.0, 0.5)
    state = after_request(FLOOR, KNOWN, state, tokens=100, predicted_right=0.5)
    assert state.price == pytest.approx(1e-3)


def test_a_budget_of_tokens_is_met() -> None:
    settings = PriceSettings("token-budget", 120.0, window=400)
    generator, state, tokens = np.random.default_rng(3), started(1e-5, KNOWN), []
    for _ in range(8000):
        spent = world(state.log_price)[1] * generator.uniform(0.5, 1.5)
        tokens.append(spent)
        state = after_request(settings, KNOWN, state, tokens=spent, predicted_right=None)
    assert np.mean(tokens[2000:]) == pytest.approx(120, rel=0.01)


def test_after_an_alarm_requests_are_full_for_a_window_and_until_the_floor_is_in_reach() -> None:
    generator = np.random.default_rng(4)
    state, _, _ = run(FLOOR, 5000, generator, started(1e-4, KNOWN))
    state = alarmed(FLOOR, state, "a test")
    assert state.full
    after_window, _, _ = run(FLOOR, FLOOR.window, generator, state)
    assert not after_window.full
    hopeless, _, _ = run(FLOOR, 5 * FLOOR.window, generator, state, worse=0.3)
    assert hopeless.full


def test_verdicts_that_show_the_floor_to_be_missed_are_an_alarm() -> None:
    state = replace(started(1e-2, KNOWN), requests=1000)
    settings = replace(FLOOR, alarm_every=1000)
    generator = np.random.default_rng(5)
    for _ in range(400):
        state = after_verdict(settings, state, float(generator.random() < 0.6), None)
    assert state.alarms[0][1] == "verdicts show the floor to be missed"


@pytest.mark.parametrize("bias", [0.0, 0.2])
def test_the_estimate_is_unbiased_whatever_the_predictions_are_worth(bias: float) -> None:
    generator = np.random.default_rng(6)
    ends = []
    for _ in range(60):
        estimate = Estimate()
        for n in range(4000):
            chance = generator.choice([0.7, 0.95])
            estimate = predicted(estimate, chance - bias, 500)
            if n % 20 == 0:
                right = float(generator.random() < chance)
                estimate = learned(estimate, right, chance - bias)
        ends.append((estimated(estimate), error_of(estimate)))
    means, errors = np.array(ends).T
    assert abs(means.mean() - 0.825) < 3 * means.std() / 60**0.5
    assert means.std() < 2 * errors.mean()


def openings(generator: Generator, n: int, shift: float = 0.0) -> list[dict[str, float]]:
    """Requests of six numbers, one of them with many ties."""
    found = generator.normal(shift, 1, (n, 5))
    tied = (generator.random(n) < 0.4).astype(float)
    return [
        {**{f"s{k}": float(v) for k, v in enumerate(row)}, "tied": float(tie)}
        for row, tie in zip(found, tied, strict=True)
    ]


def alarm_at(generator: Generator, seen: list[dict[str, float]], every: float) -> int | None:
    reference = reference_of(openings(generator, REFERENCE))
    evidence = nothing_seen(reference)
    for n, one in enumerate(seen):
        evidence = after(reference, evidence, ranks_of(reference, one))
        if strength(evidence) >= every:
            return n
    return None


def test_a_shift_is_noticed_and_quiet_is_not() -> None:
    generator = np.random.default_rng(7)
    shifted = alarm_at(generator, openings(generator, 2000, shift=0.5), 1e6)
    assert shifted is not None
    assert shifted < 200
    assert alarm_at(generator, openings(generator, 6000), 1e6) is None


def test_what_never_varies_and_what_is_missing_say_nothing() -> None:
    numbers = ({"a": 1.0, "b": float(n), "c": math.nan, "rare": float(n == 7)} for n in range(300))
    reference = reference_of([*numbers])
    assert reference.names == ("b",)
    assert np.isnan(ranks_of(reference, {})).all()
    assert (after(reference, nothing_seen(reference), ranks_of(reference, {})) == 1).all()
    assert strength(nothing_seen(reference_of([]))) == 0


def test_the_price_rises_before_the_latency_is_reached_and_falls_again() -> None:
    load, generator = Load(), np.random.default_rng(8)
    for _ in range(400):
        load = after_end(load, 10.0, generator.uniform(2, 4), 100)
    assert load.factor == 1.0
    for _ in range(60):  # tokens are three times as slow; the latency is not missed yet
        load = after_end(load, 10.0, generator.uniform(6, 9), 100)
    assert load.expected > EARLY * 10.0
    assert load.factor > 1.0
    for _ in range(2000):
        load = after_end(load, 10.0, generator.uniform(2, 4), 100)
    assert load.factor == 1.0
