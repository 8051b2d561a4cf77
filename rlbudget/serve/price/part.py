"""The steered price at work in a gateway: a part around each request.

A request that names its own price, effort or money is served as it says. Any other is served at
the price of ``control.py``; after an alarm it is decoded in full, as in shadow: nothing is cut, and
what would have been is told and learned from.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rlbudget.arrays import Floats
from rlbudget.decoding.request import Request
from rlbudget.policy.prices import PriceRange, nearest_price
from rlbudget.serve.hooks import Arrival, Outcome, Steering
from rlbudget.serve.price.control import State, after_request, after_verdict, alarmed, started
from rlbudget.serve.price.drift import (
    REFERENCE,
    Reference,
    nothing_seen,
    ranks_of,
    reference_of,
    strength,
)
from rlbudget.serve.price.drift import (
    after as evidence_after,
)
from rlbudget.serve.price.estimate import estimated
from rlbudget.serve.price.load import Load, after_end
from rlbudget.strategies.feedback.log import Feedback
from rlbudget.strategies.online import PriceSettings

_log = logging.getLogger("rlbudget.serve")
REMEMBERED = 10_000
"""requests whose verdict may still come"""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request whose verdict may come."""

    answer: str
    """that was given"""
    stopped: str | None
    """the answer of its stop, where the request was held; None where it was not"""
    held: bool
    """whether it was decoded in full"""
    audited: bool
    predicted: float | None


class PriceControl:
    """Steers the price of the requests of one plan.

    ``state`` is what it knows, to be saved and set again.
    """

    def __init__(self, settings: PriceSettings, known: PriceRange, price: float) -> None:
        self.settings, self.known = settings, known
        self.state: State = started(price, known, fitted=settings.predictor is not None)
        self.load = Load()
        self._seen: list[Mapping[str, float]] = []
        self._reference: Reference | None = None
        self._evidence: Floats | None = None
        self._waiting: OrderedDict[str, Waiting] = OrderedDict()

    def part(self) -> Steering:
        """To be put around requests."""
        return Steering("price", before=self.before, after=self.after, waits=False)

    @property
    def price(self) -> float:
        """Reward lost per token, load included."""
        return nearest_price(self.state.price * self.load.factor, self.known)

    @property
    def exact_match(self) -> float:
        """Of the last requests, estimated; NaN where nothing is known."""
        return estimated(self.state.estimate)

    async def before(self, arrival: Arrival) -> Arrival:
        """Set the price of a request that names none."""
        spot = arrival.spot
        if spot is None or spot.stops != "policy" or not arrival.wanted.dial.silent:
            return arrival
        if spot.token_price <= 0:
            return arrival
        steered = replace(
            arrival, price_factor=arrival.price_factor * self.price / spot.token_price
        )
        if not self.state.full:
            return steered
        told = {**arrival.shown, "fallback": "full decoding after an alarm"}
        return replace(steered, shadow=True, shown=told)

    def after(self, outcome: Outcome) -> None:
        """Learn from a request that was answered."""
        arrival, request = outcome.arrival, outcome.request
        if outcome.ended != "answered":
            return
        self.load = after_end(self.load, self.settings.latency, outcome.seconds, outcome.tokens)
        if request is None or not arrival.wanted.dial.silent or arrival.spot is None:
            return
        would = request.would
        held = outcome.audited or arrival.shadow
        tokens: float = outcome.tokens
        if held and would is not None:
            tokens = would[0].tokens
        chance = self._chance(request)
        self._remember(
            arrival.id, Waiting(request.answer, would and would[1], held, outcome.audited, chance)
        )
        self.state = after_request(
            self.settings, self.known, self.state, tokens=tokens, predicted_right=chance
        )
        self._look_for_drift(request.opening)

    def told(self, feedback: Feedback) -> None:
        """Learn from what was found out about an answer.

        What is told of a request that was not audited counts only where the plan says so.
        """
        waiting = self._waiting.pop(feedback.request_id, None)
        if waiting is None:
            return
        if not waiting.audited and (waiting.held or not self.settings.feedback):
            return  # a user of a whole answer says nothing of the one that a cut would have given
        right = _right(waiting, feedback)
        if right is not None:
            self._steered(after_verdict(self.settings, self.state, right, waiting.predicted))

    def _chance(self, request: Request) -> float | None:
        """That the answer of its stop is right, or, by a guard, that it is not lost."""
        model, seen = self.settings.predictor, request.observation
        if model is None:
            return request.confidence
        return None if seen is None else 1 - model.alone(seen)

    def _remember(self, request_id: str, waiting: Waiting) -> None:
        self._waiting[request_id] = waiting
        if len(self._waiting) > REMEMBERED:
            self._waiting.popitem(last=False)

    def _look_for_drift(self, opening: Mapping[str, float]) -> None:
        """The first requests are the reference; an alarm begins a new one."""
        if self.settings.mode != "em-floor" or not opening:
            return
        if self._reference is None or self._evidence is None:
            self._seen.append(opening)
            if len(self._seen) >= REFERENCE:
                self._reference = reference_of(self._seen)
                self._evidence = nothing_seen(self._reference)
                self._seen = []
            return
        ranks = ranks_of(self._reference, opening)
        self._evidence = evidence_after(self._reference, self._evidence, ranks)
        if strength(self._evidence) >= self.settings.alarm_every:
            self._reference = self._evidence = None
            self._steered(alarmed(self.settings, self.state, "requests are not what they were"))

    def _steered(self, state: State) -> None:
        if state.alarms != self.state.alarms:
            _log.warning("price: %s; decoding in full for %d requests", state.alarms[-1][1],
                         state.full_left)  # fmt: skip
        self.state = state


def _right(waiting: Waiting, feedback: Feedback) -> float | None:
    """How right the answer of the stop was; None where what is told does not say.

    Under doubt it is taken to be wrong: where the full answer is wrong, and the stop's another.
    """
    if feedback.right is None:
        return None
    if not waiting.held or waiting.stopped in (None, waiting.answer):
        return float(feedback.right)
    return 0.0
