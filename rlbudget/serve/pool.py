"""Several servers of one model: each request goes to the least busy, and a sick one is left out."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.responses import Response

from rlbudget.decoding.core import Core
from rlbudget.decoding.request import Request
from rlbudget.decoding.wanted import Wanted
from rlbudget.models.site import ServerError
from rlbudget.serve.passing import Spent
from rlbudget.serve.shown import Piece

_log = logging.getLogger("rlbudget.serve")
_PAUSES = (1.0, 2.0, 5.0, 15.0, 30.0)
"""Seconds that a server is left out after its first, second, … fault in a row."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What other models did for a request, beside the one whose thinking is told of."""

    prompt_tokens: int = 0
    thinking_tokens: int = 0
    probe_tokens: int = 0
    answer_tokens: int = 0
    told: Mapping[str, Any] = field(default_factory=dict)
    """what the answer's ``rlbudget`` object says of them"""
    token_price: float | None = None
    """that the request was served at; None for that of its ``Request``"""

    @property
    def tokens(self) -> int:
        """All that they wrote."""
        return self.thinking_tokens + self.probe_tokens + self.answer_tokens


class Answering(Protocol):
    """A request that is being decoded."""

    @property
    def request(self) -> Request:
        """Under its plan."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Tokens that were read before the first was written."""
        ...

    @property
    def finish(self) -> str:
        """Why it ended, in OpenAI's words."""
        ...

    @property
    def beside(self) -> Beside | None:
        """What other models did; None where there are none, or a plan's second model alone."""
        ...

    def pieces(self) -> AsyncGenerator[list[Piece], None]:
        """What becomes visible, as it does."""
        ...


class Backend(Protocol):
    """What decodes: a server behind the gateway, or a model inside of it."""

    @property
    def model(self) -> str:
        """The name that requests know it by."""
        ...

    @property
    def weight(self) -> float:
        """Its share of the requests, beside that of the others of its model."""
        ...

    @property
    def passes(self) -> bool:
        """Whether there is a server that a request can pass through to; where there is none,
        ``steer`` takes those that are ``off`` too."""  # fmt: skip
        ...

    @property
    def cores(self) -> Mapping[str, Core]:
        """By the name of a plan."""
        ...

    async def steer(
        self, wanted: Wanted, body: Mapping[str, Any], *, shadow: bool = False
    ) -> Answering:
        """A request under its plan; ``UserError`` for one that cannot be served so."""
        ...

    async def models(self) -> list[dict[str, Any]]:
        """What it lists of its models; ``ServerError`` where it does not answer."""
        ...

    async def forward(
        self, method: str, path: str, query: str, headers: Mapping[str, str], content: bytes,
        told: Mapping[str, str], wanted: Wanted | None = None, spent: Spent | None = None,
    ) -> Response:  # fmt: skip
        """A request that passes through as it is; ``wanted`` is that of a completion, ``spent``
        hears of the tokens that it cost, as far as that can be seen."""  # fmt: skip
        ...


@dataclass(eq=False, slots=True)
class Member:
    """One server of a pool."""

    backend: Backend
    running: int = 0
    turn: float = 0.0
    """what it was given so far, by its weight"""
    faults: int = 0
    """in a row"""
    until: float = 0.0
    """left out until then (``time.monotonic``)"""

    def failed(self, error: ServerError) -> None:
        """Leave it out for a while."""
        pause = _PAUSES[min(self.faults, len(_PAUSES) - 1)]
        self.faults += 1
        self.until = time.monotonic() + pause
        _log.warning("an upstream is left out for %g s: %s", pause, error)

    def answered(self) -> None:
        """It is well."""
        self.faults, self.until = 0, 0.0


class Pool:
    """The servers of one model; a backend itself."""

    def __init__(self, first: Backend) -> None:
        self.members = [Member(first)]
        self._turn = 0.0

    def add(self, backend: Backend) -> None:
        """One more."""
        self.members.append(Member(backend))

    @property
    def model(self) -> str:
        """The name that all of them have."""
        return self.members[0].backend.model

    @property
    def passes(self) -> bool:
        """As of its servers."""
        return self.members[0].backend.passes

    @property
    def cores(self) -> Mapping[str, Core]:
        """By the number of the server and the name of a plan."""
        return {
            f"{number} {name}": core
            for number, member in enumerate(self.members)
            for name, core in member.backend.cores.items()
        }

    @property
    def weight(self) -> float:
        """Of all together."""
        return sum(member.backend.weight for member in self.members)

    def best(self, tried: set[Member] | frozenset[Member] = frozenset()) -> Member | None:
        """The least busy of those that are well, by their weights and in turns, else the one that
        is left out the shortest; None where all were ``tried``."""  # fmt: skip
        now = time.monotonic()
        left = [member for member in self.members if member not in tried]
        return min(
            left, default=None,
            key=lambda m: (max(m.until - now, 0.0), m.running / m.backend.weight, m.turn),
        )  # fmt: skip

    def next(self, tried: set[Member] | frozenset[Member] = frozenset()) -> Member | None:
        """The same, and it is its turn."""
        member = self.best(tried)
        if member is not None:
            self._turn = max(member.turn, self._turn)  # one that was away catches up with nobody
            member.turn = self._turn + 1 / member.backend.weight
        return member

    async def steer(
        self, wanted: Wanted, body: Mapping[str, Any], *, shadow: bool = False
    ) -> Answering:
        """By the best of them; the next where it fails before it has said anything."""
        pooled = Pooled(self, wanted, body, shadow)
        await pooled.begin()
        return pooled

    async def models(self) -> list[dict[str, Any]]:
        """What the first one that answers lists."""
        tried: set[Member] = set()
        while True:
            member = self.best(tried)
            assert member is not None
            tried.add(member)
            try:
                return await member.backend.models()
            except ServerError:
                if len(tried) == len(self.members):
                    raise

    async def forward(
        self, method: str, path: str, query: str, headers: Mapping[str, str], content: bytes,
        told: Mapping[str, str], wanted: Wanted | None = None, spent: Spent | None = None,
    ) -> Response:  # fmt: skip
        """To the best of them."""
        member = self.next()
        assert member is not None
        return await member.backend.forward(
            method, path, query, headers, content, told, wanted, spent
        )


class Pooled:
    """One request of a pool, at the server that has it now."""

    def __init__(self, pool: Pool, wanted: Wanted, body: Mapping[str, Any], shadow: bool) -> None:
        self._pool, self._wanted, self._body, self._shadow = pool, wanted, body, shadow
        self._tried: set[Member] = set()
        self._member = pool.members[0]
        self._now: Answering

    async def begin(self) -> None:
        """Take the next server; ``ServerError`` of the last one where all were tried."""
        fault: ServerError | None = None
        while (member := self._pool.next(self._tried)) is not None:
            self._tried.add(member)
            self._member = member
            try:
                self._now = await member.backend.steer(
                    self._wanted, self._body, shadow=self._shadow
                )
            except ServerError as error:
                member.failed(error)
                fault = error
            else:
                return
        raise fault or ServerError("no upstream is left")

    @property
    def request(self) -> Request:
        """Under its plan."""
        return self._now.request

    @property
    def prompt_tokens(self) -> int:
        """Tokens that were read before the first was written."""
        return self._now.prompt_tokens

    @property
    def finish(self) -> str:
        """Why it ended, in OpenAI's words."""
        return self._now.finish

    @property
    def beside(self) -> Beside | None:
        """What other models did."""
        return self._now.beside

    async def pieces(self) -> AsyncGenerator[list[Piece], None]:
        """What becomes visible, as it does."""
        while True:
            begun = False
            member = self._member
            member.running += 1
            try:
                async with aclosing(self._now.pieces()) as pieces:
                    async for found in pieces:
                        begun = True
                        yield found
                member.answered()
                return
            except ServerError as error:
                member.failed(error)
                if begun or len(self._tried) == len(self._pool.members):
                    raise
            finally:
                member.running -= 1
            await self.begin()
