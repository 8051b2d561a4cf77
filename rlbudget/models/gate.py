"""A bounded number of requests at once, the more urgent first, all held back where it is asked."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Lets ``width`` in at once. Of those who wait the least ``rank`` goes first, then the first
    who came; one event loop."""  # fmt: skip

    __slots__ = ("_inside", "_order", "_until", "_waiting", "width")

    def __init__(self, width: int) -> None:
        self.width = width
        self._inside = 0
        self._order = itertools.count()
        self._waiting: list[tuple[tuple[int, ...], int, asyncio.Future[None]]] = []
        self._until = 0.0

    @property
    def free(self) -> int:
        """Places that nobody has or waits for; below 0 where some wait."""
        return self.width - self._inside - len(self._waiting)

    def hold(self, seconds: float) -> None:
        """Let nobody in for so long: the server asked to be left alone."""
        self._until = max(self._until, asyncio.get_running_loop().time() + seconds)

    @asynccontextmanager
    async def enter(self, rank: tuple[int, ...]) -> AsyncIterator[None]:
        """Wait for a place and leave it in the end."""
        await self._wait(rank)
        try:
            while (pause := self._until - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(pause)
            yield
        finally:
            self._leave()

    async def _wait(self, rank: tuple[int, ...]) -> None:
        if self._inside < self.width and not self._waiting:
            self._inside += 1
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (rank, next(self._order), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()  # the place was given in the same moment
            else:
                self._waiting = [one for one in self._waiting if one[2] is not turn]
                heapq.heapify(self._waiting)
            raise

    def _leave(self) -> None:
        """The place goes to the next who still waits."""
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.cancelled():
                turn.set_result(None)
                return
        self._inside -= 1
