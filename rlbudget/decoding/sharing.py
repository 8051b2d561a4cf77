"""Questions shared among servers by free capacity; one that dies gives its work back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rlbudget.errors import UserError
from rlbudget.models.site import ServerError

S = TypeVar("S")
J = TypeVar("J")
R = TypeVar("R")

GIVEN_UP = 5
"""Times that a question meets a server that fails before it is left out."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


@dataclass(frozen=True, slots=True)
class Crew(Generic[S]):
    """Servers, and how they are treated."""

    servers: Sequence[S]
    width: int
    """questions under way at once, of each server"""
    alive: Callable[[S], Awaitable[bool]]
    """whether a server answers again"""
    patience: float
    """seconds without any server that answers before it is enough"""


@dataclass(frozen=True, slots=True)
class Given(Generic[J, R]):
    """What came of a question: its result, or why it is left out."""

    job: J
    result: R | UserError


async def shared(
    crew: Crew[S], jobs: Sequence[J], work: Callable[[S, J], Awaitable[R]]
) -> AsyncGenerator[Given[J, R], None]:
    """Do every job on some server; yields as they end, in no order.

    Each server takes the next question when it has room, so a fast one does more. A ``UserError``
    of a job is its result; so is a job that ``GIVEN_UP`` times met a server that failed. A server
    that fails rests until it is alive, and takes part again. Raises ``ServerError`` where for
    ``patience`` seconds none is.
    """
    office = _Office(crew, jobs, work)
    tasks = [
        asyncio.create_task(office.serve(place))
        for _ in range(min(crew.width, len(jobs)))
        for place in range(len(crew.servers))
    ]
    try:
        for _ in jobs:
            given = await office.given.get()
            if isinstance(given, BaseException):
                raise given
            yield given
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Office(Generic[S, J, R]):
    """Where the jobs lie, and what is known of the servers."""

    def __init__(
        self, crew: Crew[S], jobs: Sequence[J], work: Callable[[S, J], Awaitable[R]]
    ) -> None:
        self._crew, self._jobs, self._work = crew, jobs, work
        self._left: asyncio.PriorityQueue[int] = asyncio.PriorityQueue()
        for place in range(len(jobs)):
            self._left.put_nowait(place)
        self.given: asyncio.Queue[Given[J, R] | BaseException] = asyncio.Queue()
        self._failures = Counter[int]()
        self._resting = [asyncio.Lock() for _ in crew.servers]
        self._well = [0] * len(crew.servers)  # how often each was found alive again
        self._heard = asyncio.get_running_loop().time()

    async def serve(self, place: int) -> None:
        """Do jobs on one server, one at a time, for ever."""
        try:
            while True:
                job = await self._left.get()
                if self._resting[place].locked():
                    self._left.put_nowait(job)
                    async with self._resting[place]:
                        continue  # it is being revived
                await self._one(place, job)
        except Exception as error:  # whatever it is, the reader must hear of it
            self.given.put_nowait(error)

    async def _one(self, place: int, job: int) -> None:
        well = self._well[place]
        try:
            result: R | UserError = await self._work(self._crew.servers[place], self._jobs[job])
        except UserError as error:
            result = error
        except ServerError as error:
            self._failures[job] += 1
            if self._failures[job] < GIVEN_UP:
                self._left.put_nowait(job)  # another server may be free for it
                await self._revive(place, well, error)
                return
            result = UserError(f"{error} ({GIVEN_UP} times)")
        self._heard = asyncio.get_running_loop().time()
        self.given.put_nowait(Given(self._jobs[job], result))

    async def _revive(self, place: int, well: int, error: ServerError) -> None:
        """Wait until the server is alive, one of its workers for all."""
        async with self._resting[place]:
            pause = _FIRST_PAUSE
            while self._well[place] == well:
                await asyncio.sleep(pause)
                alive = await self._crew.alive(self._crew.servers[place])
                now = asyncio.get_running_loop().time()
                if alive or not all(lock.locked() for lock in self._resting):
                    self._heard = now
                if alive:
                    self._well[place] += 1
                elif now - self._heard > self._crew.patience:
                    raise error
                pause = min(2 * pause, _LONGEST_PAUSE)
