"""How long one waits for a server, and how often one asks again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TypeVar

from rlbudget.models.site import ServerError, Site

T = TypeVar("T")

_PAUSE = 0.1
"""Seconds after the first fault; twice as many after each more."""


@dataclass(slots=True)
class Clock:
    """Until when a request, with its repetitions, may go on: nothing that the server does extends
    it."""  # fmt: skip

    silence: float
    """seconds that may pass without a token"""
    total: float
    """seconds that it may take in all"""
    begun: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds."""
        return min(self.heard + self.silence, self.begun + self.total) - time.monotonic()

    def hear(self) -> None:
        """A token came."""
        self.heard = time.monotonic()

    def pause(self, patience: Patience, error: ServerError) -> float:
        """Seconds until one may ask again; raises ``ServerError`` where there is no time left."""
        pause = patience.pause(error)
        if error.wait is not None:
            self.heard += pause  # asked for: no silence
        if pause >= self.left():
            raise error
        return pause

    async def within(self, work: Awaitable[T], site: Site) -> T:
        """What ``work`` gives in time; ``ServerError`` where the time is over before."""
        try:
            async with asyncio.timeout(max(self.left(), 0.0)) as watch:
                return await work
        except TimeoutError as error:
            if watch.expired():
                raise self.over(site) from None
            raise site.fault(error) from None

    def over(self, site: Site) -> ServerError:
        """The error where no time is left."""
        if time.monotonic() >= self.begun + self.total:
            return ServerError(f"{site.name}: not done within {self.total:g} s")
        return ServerError(f"{site.name}: nothing came for {self.silence:g} s")


@dataclass(slots=True)
class Patience:
    """The faults and the seconds of waiting that one decode bears."""

    faults: int
    """how many it survives"""
    seconds: float
    """how long it waits in all for servers that ask for it"""
    waited: float = 0.0
    met: int = 0
    asked: int = 0

    def pause(self, error: ServerError) -> float:
        """Seconds until one may ask again; raises ``ServerError`` where it is enough."""
        if error.wait is None or not self.faults:
            self.met += 1
        else:
            self.asked += 1
        pause = max(error.wait or 0.0, _PAUSE * 2.0 ** (self.met + self.asked - 1))
        self.waited += pause if error.wait is not None else 0.0
        if self.met > self.faults:
            raise ServerError(f"{error} (given up after {self.met} faults)")
        if self.waited > self.seconds:
            raise ServerError(
                f"{error} (given up: it asks for {pause:.0f} s, and all waiting may take"
                f" {self.seconds:g} s)"
            )
        return pause
