"""The price that holds a target: deterministic, a step a request, nothing but numbers in its state.

Dual ascent on the log of the token price. Under a *floor* the price rises while the exact match
that requests are estimated to have (``estimate.py``) is above the floor by more than chance takes
from a window, and falls where it is below; with less than half of that margin to spare it stays. A
step is bounded: the price falls by at most e^4 and rises by at most e in a window. Under a
*budget* it follows the mean number of tokens alone.

An alarm (``drift.py``, or verdicts that show the floor to be missed) makes requests decode in full,
for half a window at least and until the estimate is above the floor again. What the policy would
have done is still told meanwhile, so that the price is found that the service comes back to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from rlbudget.policy.prices import PriceRange, nearest_price
from rlbudget.serve.price.estimate import Estimate, calibrated, estimated, learned, predicted
from rlbudget.strategies.online import PriceSettings

FASTEST_FALL, FASTEST_RISE = 4.0, 1.0
"""of the log price, in a window"""
GAIN = 60.0
"""log price a window for each unit of exact match to spare: a point moves it by 0.6"""
BUDGET_GAIN = 4.0
"""log price a window for each unit of the log of tokens over the budget"""
Z = 1.8
"""standard errors of a window's exact match that are kept above the floor: 1.645 would leave 5% of
the windows below it were the price right at once"""
LEAST_TOLD = 30
"""verdicts before the price moves"""
KEPT_AFTER_ALARM = 50.0
"""verdicts that the correction of the estimate is worth after an alarm"""
_BETS = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, slots=True)
class State:
    """What is known; small and plain, to be saved as it is."""

    log_price: float
    estimate: Estimate = field(default_factory=Estimate)
    tokens: float = 0.0
    """mean of the last requests"""
    requests: int = 0
    """since the start"""
    full_left: int = 0
    """requests that are yet to be decoded in full after an alarm"""
    missed: tuple[float, ...] = (0.0,) * len(_BETS)
    """evidence of verdicts that the floor is missed"""
    alarms: tuple[tuple[int, str], ...] = ()
    """the last ones: at which request, and why"""

    @property
    def price(self) -> float:
        """Reward lost per token."""
        return math.exp(self.log_price)

    @property
    def full(self) -> bool:
        """Whether requests are decoded in full."""
        return self.full_left > 0


def started(price: float, known: PriceRange, *, fitted: bool = False) -> State:
    """At a price, brought into the range of the policy; ``fitted`` says that predictions come from
    a model that was fitted to predict verdicts."""  # fmt: skip
    estimate = calibrated() if fitted else Estimate()
    return State(math.log(nearest_price(price, known)), estimate)


def margin(settings: PriceSettings) -> float:
    """What is kept above the floor, in exact match: what chance takes from a window."""
    assert settings.target is not None
    return Z * math.sqrt(settings.target * (1 - settings.target) / settings.window)


def after_request(
    settings: PriceSettings, known: PriceRange, state: State, *, tokens: float,
    predicted_right: float | None,
) -> State:  # fmt: skip
    """After a request that was served, or would have been, at the state's price.

    ``predicted_right`` is the chance that the answer of its stop is right, as some model has it.
    """
    horizon = min(state.requests + 1, settings.window / 4)
    state = replace(
        state,
        requests=state.requests + 1,
        tokens=state.tokens + (tokens - state.tokens) / horizon,
        estimate=predicted(state.estimate, predicted_right, settings.window / 4),
    )
    step = _step(settings, state)
    log_price = min(max(state.log_price + step, math.log(known[0])), math.log(known[1]))
    return _coming_back(settings, replace(state, log_price=log_price))


def after_verdict(
    settings: PriceSettings, state: State, right: float, predicted_right: float | None
) -> State:
    """After it is known how right, in [0, 1], the answer of a request's stop was."""
    state = replace(state, estimate=learned(state.estimate, right, predicted_right))
    if settings.mode != "em-floor" or state.full:
        return state
    assert settings.target is not None
    low = settings.target - right
    missed = tuple(
        (1 + evidence) * (1 + min(bet, 0.9 / (1 - settings.target)) * low)
        for evidence, bet in zip(state.missed, _BETS, strict=True)
    )
    state = replace(state, missed=missed)
    if sum(missed) / len(missed) >= settings.alarm_every:
        return alarmed(settings, state, "verdicts show the floor to be missed")
    return state


def alarmed(settings: PriceSettings, state: State, why: str) -> State:
    """Decode in full from now on, and trust the past less."""
    estimate = state.estimate
    return replace(
        state,
        full_left=settings.window // 2,
        missed=(0.0,) * len(_BETS),
        alarms=(*state.alarms, (state.requests, why))[-20:],
        estimate=replace(
            estimate,
            right=replace(estimate.right, weight=min(estimate.right.weight, KEPT_AFTER_ALARM)),
            off=replace(estimate.off, weight=min(estimate.off.weight, KEPT_AFTER_ALARM)),
        ),
    )


def to_spare(settings: PriceSettings, state: State) -> float | None:
    """Exact match above the floor and its margin, below 0 where it lacks; None: not known yet."""
    assert settings.target is not None
    estimate = state.estimate
    if max(estimate.right.weight, estimate.off.weight) < LEAST_TOLD or not state.requests:
        return None
    return estimated(estimate) - settings.target - margin(settings)


def _step(settings: PriceSettings, state: State) -> float:
    """By how much the log price moves."""
    if settings.mode == "token-budget":
        assert settings.target is not None
        wanted = BUDGET_GAIN * math.log(max(state.tokens, 1e-9) / settings.target)
    elif settings.mode == "em-floor":
        spare = to_spare(settings, state)
        if spare is None or 0 <= spare <= margin(settings) / 2:
            return 0.0
        wanted = GAIN * (spare if spare < 0 else spare - margin(settings) / 2)
    else:
        return 0.0
    return min(max(wanted, -FASTEST_FALL), FASTEST_RISE) / settings.window


def _coming_back(settings: PriceSettings, state: State) -> State:
    """Count the requests in full; go on in full where the floor is not in reach yet."""
    if not state.full:
        return state
    left = state.full_left - 1
    spare = to_spare(settings, state) if settings.mode == "em-floor" else 0.0
    if left == 0 and (spare is None or spare < -margin(settings)):
        left = max(settings.window // 10, 1)
    return replace(state, full_left=left)
