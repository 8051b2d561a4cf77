"""The queue at work in a gateway: a request is served at once, waits, or is refused."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import replace

from rlbudget.serve.hooks import Arrival, Outcome, RefusedError, Steering
from rlbudget.serve.queue.minute import Minute, after_spending
from rlbudget.serve.queue.turnstile import Refusal, Ticket, Turnstile
from rlbudget.strategies.online import QueueSettings


class Queue:
    """Lets requests through a turnstile."""

    def __init__(
        self, settings: QueueSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings = settings
        self.turnstile = Turnstile(settings)
        self.minute = Minute()
        self.refused = dict.fromkeys(settings.classes, 0)
        """requests of each class that were refused"""
        self._clock = clock
        self._turns: dict[Ticket, asyncio.Future[None]] = {}
        self._tickets: dict[str, list[Ticket]] = {}

    def part(self) -> Steering:
        """To be put around requests, before the price."""
        return Steering("queue", before=self.before, after=self.after)

    def class_of(self, arrival: Arrival) -> str:
        """What a request says in ``priority``; ``RefusedError`` for a class that is not there."""
        metadata = (arrival.wanted.said or {}).get("metadata") or {}
        said = metadata.get("priority")
        if said is None:
            return self.settings.default
        if not isinstance(said, str) or said not in self.settings.classes:
            there = ", ".join(self.settings.classes)
            raise RefusedError(400, f"priority {str(said)[:80]!r}: there are {there}")
        return said

    async def before(self, arrival: Arrival) -> Arrival:
        """Wait for the turn; ``RefusedError``, a 429, where that would take too long."""
        group = self.class_of(arrival)
        came, arrived = self._clock(), round(time.time(), 3)
        ticket, begun, refusal = self.turnstile.arrive(group, came)
        self._call(begun)
        if refusal is not None:
            self._refuse(refusal, ticket)
        if ticket.begun is None:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._turns[ticket] = turn
            try:
                await turn
            except BaseException:  # its client left, or it was refused for another
                self._turns.pop(ticket, None)
                self._call(self.turnstile.end(ticket, self._clock()))
                raise
        self._tickets.setdefault(arrival.id, []).append(ticket)
        factor = self._factor(group) if arrival.wanted.dial.silent else 1.0
        waited = round(self._clock() - came, 3)
        return replace(
            arrival,
            price_factor=arrival.price_factor * factor,
            shown={
                **arrival.shown,
                "priority": group,
                "arrived": arrived,
                "queued_seconds": waited,
            },
        )

    def after(self, outcome: Outcome) -> None:
        """Let the next one through."""
        tickets = self._tickets.get(outcome.arrival.id)
        if not tickets:
            return
        ticket = tickets.pop()
        if not tickets:
            del self._tickets[outcome.arrival.id]
        now = self._clock()
        budget = self.settings.tokens_per_minute
        if budget is not None and not self.settings.classes[ticket.group].exempt:
            self.minute = after_spending(self.minute, budget, outcome.tokens, now)
        self._call(self.turnstile.end(ticket, now))

    def _factor(self, group: str) -> float:
        one = self.settings.classes[group]
        return one.price_factor * (1.0 if one.exempt else self.minute.factor)

    def _call(self, begun: list[Ticket]) -> None:
        for ticket in begun:
            turn = self._turns.pop(ticket, None)
            if turn is not None and not turn.done():
                turn.set_result(None)

    def _refuse(self, refusal: Refusal, newcomer: Ticket) -> None:
        """Raise where it is the newcomer, else tell the one that waits."""
        self.refused[refusal.ticket.group] += 1
        error = RefusedError(429, refusal.why, retry_after=max(1, math.ceil(refusal.seconds)))
        if refusal.ticket is newcomer:
            raise error
        turn = self._turns.pop(refusal.ticket, None)
        if turn is not None and not turn.done():
            turn.set_exception(error)
