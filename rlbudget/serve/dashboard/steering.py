"""Steering by hand: on, shadow or off, and a price; kept in the store for all of its gateways."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal, get_args

from rlbudget.errors import UserError
from rlbudget.policy.dial import Dial
from rlbudget.policy.prices import check_price
from rlbudget.serve.gateway import Gateway
from rlbudget.serve.hooks import Arrival, Steering
from rlbudget.serve.store.reading import last_event, price_of
from rlbudget.serve.store.store import Store

Mode = Literal["on", "shadow", "off"]
"""requests are cut; nothing is cut and what would have been is told; all pass through"""
MODES: tuple[Mode, ...] = get_args(Mode)
_EVERY = 2.0
"""seconds between two looks at the store"""

_log = logging.getLogger("rlbudget.serve")


@dataclass(eq=False)
class ByHand:
    """What is set by hand; two parts of a gateway, for an arm's own price is not overridden."""

    gateway: Gateway
    store: Store
    mode: Mode = "on"
    price: float | None = None
    """of requests that name none; None: the plan's, or the steered one"""
    every: float = _EVERY

    def mode_part(self) -> Steering:
        """Before experiments draw an arm."""
        return Steering("mode", before=self._in_mode, running=self.running, waits=False)

    def price_part(self) -> Steering:
        """After they have."""
        return Steering("price by hand", before=self._priced, waits=False)

    @property
    def plan(self) -> str:
        """The name of the plan whose price is set."""
        return next(iter(self.gateway.settings.plans))

    async def set_mode(self, mode: str) -> None:
        """From now on; ``UserError`` for one that there is not."""
        if mode not in MODES:
            raise UserError(f"mode: one of {', '.join(MODES)}")
        await asyncio.wrap_future(self.store.event("mode", mode=mode))
        self.mode = mode

    async def set_price(self, price: float | None) -> None:
        """From now on; None gives it back. ``UserError`` for one that the policy does not know."""
        if price is not None:
            check_price(price, self.gateway.settings.served[self.plan].price_range, name="price")
        await asyncio.wrap_future(self.store.set_price(self.plan, price, "by hand"))
        self.price = price

    async def _in_mode(self, arrival: Arrival) -> Arrival:
        if self.mode == "off":
            wanted = replace(arrival.wanted, off=True)
            return replace(arrival, wanted=wanted, spot=None)
        return replace(arrival, shadow=True) if self.mode == "shadow" else arrival

    async def _priced(self, arrival: Arrival) -> Arrival:
        spot = arrival.spot
        free = arrival.wanted.dial.silent and arrival.wanted.name == self.plan
        if self.price is None or spot is None or spot.stops != "policy" or not free:
            return arrival
        wanted = replace(arrival.wanted, dial=Dial(token_price=self.price))
        return replace(arrival, wanted=wanted, spot=replace(spot, token_price=self.price))

    def refresh(self) -> None:
        """Read what was set, here or at another gateway."""
        set_by = last_event(self.store.engine, "mode")
        if set_by is not None and (mode := set_by.content.get("mode")) in MODES:
            self.mode = mode
        self.price = price_of(self.store.engine, self.plan)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Read at once, then again and again."""
        await asyncio.to_thread(self.refresh)
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.every)
            reading = asyncio.ensure_future(asyncio.to_thread(self.refresh))
            try:
                await asyncio.shield(reading)
            except asyncio.CancelledError:
                await asyncio.wait({reading})
                raise
            except Exception as error:  # the store may be back the next time
                _log.warning("what was set by hand cannot be read: %s", error)
