"""The seam for what stands around a request: a store, experiments, price control, a queue.

Each such part is one ``Steering`` in ``Gateway.steering``; the gateway knows nothing else of it::

    async def before(arrival: Arrival) -> Arrival:
        if full():
            raise RefusedError(429, "the queue is full", retry_after=2.0)
        await turn(arrival.body.get("user"))               # may wait: the client waits too
        return replace(arrival, price_factor=1.5, arm="b", shown={"queued": 0.2})

    def after(outcome: Outcome) -> None:                    # must not block: it runs in the loop
        release(outcome.arrival.id)

    gateway.steering.append(Steering("queue", before=before, after=after))

``before`` of all parts is called in their order for every chat and text completion that has the
right shape, steered or not, each with what the one before it returned. ``after`` is called exactly
once for each part whose ``before`` returned (or that has none), in the opposite order, whatever
became of the request: answered, failed, left by its client, passed through, or refused by a later
part. A ``before`` that waits when its client leaves is cancelled. A fault in a part is logged and
counted in ``rlbudget_steering_failures_total``, and never costs an answer: a ``before`` that raises
anything but ``RefusedError`` changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from rlbudget.decoding.request import Request
from rlbudget.decoding.wanted import Wanted
from rlbudget.policy.dial import Dial, Spot
from rlbudget.policy.prices import nearest_price
from rlbudget.serve.metrics import Metrics

_log = logging.getLogger("rlbudget.serve")

Ended: TypeAlias = Literal["answered", "left", "failed", "passed", "refused"]
"""How a request ended: with an answer; its client left; an error; it was passed to the upstream as
it is; a part refused it."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that came in, and what is to be done with it; parts ``replace`` its fields."""

    id: str
    """the client's ``request_id``, else one of the gateway's: what log, answer and feedback say"""
    kind: Literal["chat", "text"]
    model: str
    """the name that the client asked for"""
    wanted: Wanted
    """plan, dial, budget, ``off``, task, metadata (with ``user`` and ``priority``); a part may
    name another plan of ``Gateway.settings.plans``, or switch ``off`` on"""
    spot: Spot | None
    """where it would be served without the price factor; None where it passes through"""
    body: Mapping[str, Any] = field(repr=False)
    """the request without the gateway's own object; not to be changed"""
    headers: Mapping[str, str] = field(repr=False)
    """names in lower case; without the key"""
    key: str | None = None
    """the name of the key that was shown; None where none is asked for"""
    price_factor: float = 1.0
    """the token price is multiplied by it, and brought into the range of the policy"""
    arm: str | None = None
    """of an experiment; told to the client and in the log"""
    shadow: bool = False
    """whether nothing is cut, and only told what would have been"""
    shown: Mapping[str, Any] = field(default_factory=dict)
    """what the answer's ``rlbudget`` object tells beside the gateway's own"""

    def priced(self, known: tuple[float, float]) -> Wanted:
        """What it wants at its own price times the factor, within the range ``known``."""
        if self.price_factor == 1.0 or self.spot is None or self.spot.stops != "policy":
            return self.wanted
        price = nearest_price(self.spot.token_price * self.price_factor, known)
        return replace(self.wanted, dial=Dial(token_price=price))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request."""

    arrival: Arrival
    """as the last part left it"""
    ended: Ended
    seconds: float
    """from its arrival to its end"""
    status: int = 200
    """of the answer; 499 where the client left"""
    token_price: float | None = None
    """that it was served at; None where it was not steered, as all below"""
    reason: str | None = None
    """what ended the thinking (``policy.controller.Reason``)"""
    stop_probability: float | None = None
    """at the last checkpoint"""
    prompt_tokens: int = 0
    thinking_tokens: int = 0
    probe_tokens: int = 0
    answer_tokens: int = 0
    beside_tokens: int = 0
    """that other models wrote: a second one, or those that a chooser asked too"""
    saved_tokens: float | None = None
    """estimated thinking tokens that the stop saved; None where nothing is known"""
    audited: bool = False
    """whether it ran to its natural end and was recorded: a sample without bias"""
    shadow: Mapping[str, Any] | None = None
    """what a cut would have done: ``thinking_tokens``, ``saved_tokens``, ``reason``, ``answer``,
    ``same_answer``; None where nothing would have been cut or nothing is in shadow"""
    first_seconds: float | None = None
    """to the first text that the client saw; None where it saw none"""
    request: Request | None = field(default=None, repr=False)
    """the machine itself, over: ``decoded()`` has the answer; for reading alone"""

    @property
    def tokens(self) -> int:
        """All that were written and paid for, the prompt's left out."""
        own = self.thinking_tokens + self.probe_tokens + self.answer_tokens
        return own + self.beside_tokens


class RefusedError(Exception):
    """Raised by ``before``: the client is told ``said`` with this status; ``retry_after`` in
    seconds becomes a header."""  # fmt: skip

    def __init__(self, status: int, said: str, *, retry_after: float | None = None) -> None:
        super().__init__(said)
        self.status, self.retry_after = status, retry_after


Before: TypeAlias = Callable[[Arrival], Awaitable[Arrival]]
After: TypeAlias = Callable[[Outcome], None]
Endpoint: TypeAlias = Callable[[HttpRequest], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Extra:
    """A route of a part; it asks for a key where the gateway does, and its ``UserError`` is a 400
    in OpenAI's form."""  # fmt: skip

    path: str
    """in Starlette's form; before ``/v1/{path}``, which passes through"""
    endpoint: Endpoint
    methods: Sequence[str] = ("GET",)
    public: bool = False
    """whether it sees to keys by itself, and is there while the gateway drains"""


@dataclass(frozen=True, slots=True)
class Steering:
    """One part."""

    name: str
    """for messages and metrics"""
    before: Before | None = None
    after: After | None = None
    routes: Sequence[Extra] = ()
    running: Callable[[], AbstractAsyncContextManager[Any]] | None = None
    """entered before the gateway serves, with its upstreams known, and left after it has drained;
    a ``UserError`` ends the start in one line. Build the part with the ``Gateway`` at hand: then
    ``Gateway.backends`` and ``settings`` are there"""
    waits: bool = True
    """whether ``before`` may wait: only then its client is watched meanwhile"""


class Passage:
    """One request on its way through the parts."""

    __slots__ = ("_metrics", "_parts", "_passed", "arrival")

    def __init__(self, parts: Sequence[Steering], arrival: Arrival, metrics: Metrics) -> None:
        self.arrival = arrival
        self._parts, self._metrics = parts, metrics
        self._passed: list[Steering] | None = []

    async def enter(self) -> Arrival:
        """Ask all parts; raises ``RefusedError`` where one refuses."""
        assert self._passed is not None
        for part in self._parts:
            if part.before is not None:
                try:
                    self.arrival = await part.before(self.arrival)
                except RefusedError:
                    raise
                except Exception as error:  # whatever it is, the client gets an answer
                    self._broke(part, error)
            self._passed.append(part)
        return self.arrival

    def end(self, outcome: Outcome) -> None:
        """Tell all parts that let it in, once."""
        passed, self._passed = self._passed or (), None
        for part in reversed(passed):
            if part.after is None:
                continue
            try:
                part.after(outcome)
            except Exception as error:  # whatever it is, the answer is given
                self._broke(part, error)

    @property
    def over(self) -> bool:
        """Whether all were told."""
        return self._passed is None

    def _broke(self, part: Steering, error: Exception) -> None:
        self._metrics.steering.labels(part.name).inc()
        _log.error("%s broke down, the request goes on without it", part.name, exc_info=error)
