"""The HTTP client for a thread that waits: it runs in an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rlbudget.models.messages import Chunk
from rlbudget.models.patience import Clock, Patience
from rlbudget.models.site import Site
from rlbudget.models.wire import Endpoint, open_endpoint

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Caller:
    """A server that is asked by a thread; made by ``calling``."""

    endpoint: Endpoint
    loop: asyncio.AbstractEventLoop = field(repr=False)

    @property
    def site(self) -> Site:
        """Its address."""
        return self.endpoint.site

    @property
    def patience(self) -> Patience:
        """That of a fresh decode."""
        return self.endpoint.patience

    def ask(
        self, kind: type[T], path: str, body: Mapping[str, Any] | None = None, **limits: Any
    ) -> T:
        """As ``Endpoint.ask``."""
        return _wait(self.loop, self.endpoint.ask(kind, path, body, **limits))

    def events(
        self, path: str, body: Mapping[str, Any], clock: Clock, *, event: int, whole: int
    ) -> Generator[Chunk, None, None]:
        """As ``Endpoint.stream``, chunk by chunk."""
        blocks = self.endpoint.stream(path, body, clock, event=event, whole=whole)

        async def following() -> list[Chunk] | None:
            return await anext(blocks, None)

        try:
            while (block := _wait(self.loop, following())) is not None:
                yield from block
        finally:
            _wait(self.loop, blocks.aclose())


@contextmanager
def calling(site: Site, *, retries: int, timeout: float, deadline: float) -> Iterator[Caller]:
    """A server's connections, kept open; the settings are those of ``open_endpoint``."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="rlbudget-http", daemon=True)
    thread.start()
    try:
        opened = open_endpoint(site, retries=retries, timeout=timeout, deadline=deadline)
        endpoint = _wait(loop, opened.__aenter__())
        try:
            yield Caller(endpoint, loop)
        finally:
            _wait(loop, opened.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _wait(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` gives; an interrupt of the waiting thread cancels it."""
    done = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return done.result()
    except BaseException:
        done.cancel()
        raise
