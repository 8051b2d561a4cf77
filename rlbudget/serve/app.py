"""The gateway's routes: chat completions, completions and models; all else passes through."""

from __future__ import annotations

import asyncio
import hmac
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

import orjson
from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rlbudget.errors import UserError
from rlbudget.integrations.engine_settings import Settings
from rlbudget.models.site import ServerError
from rlbudget.serve.answer import GONE, Answer, fault_of, header_text, headers_of
from rlbudget.serve.chat import Form, error_body
from rlbudget.serve.incoming import Limits, UnreadError, content_of, model_of, object_of, path_of
from rlbudget.serve.metrics import Metrics
from rlbudget.serve.pool import Backend, Pool
from rlbudget.serve.reasons import check_shape, passes_through
from rlbudget.serve.wishes import OURS, wishes_of

_log = logging.getLogger("rlbudget.serve")
_AGAIN = 2.0
"""seconds between two looks at an upstream that did not answer"""
_MOST_TOLD = 1000
"""characters of an error"""


Opens = Callable[[], AbstractAsyncContextManager[Backend]]


@dataclass(slots=True)
class Gateway:
    """A running gateway."""

    settings: Settings
    limits: Limits = field(default_factory=Limits)
    key_digests: Sequence[str] = ()
    """SHA-256 of the keys that clients may show, hexadecimal; none: no key is asked for"""
    shadow: bool = False
    """whether nothing is cut, and only told what would have been"""
    metrics: Metrics = field(default_factory=Metrics)
    backends: dict[str, Pool] = field(default_factory=dict)
    """by the name of their model"""
    running: int = 0
    draining: bool = False

    def backend(self, model: str) -> Pool:
        """That of a model; the only one, where there is one alone."""
        if len(self.backends) == 1:
            return next(iter(self.backends.values()))
        if model not in self.backends:
            raise LookupError(model)
        return self.backends[model]

    def admits(self, headers: Mapping[str, str]) -> bool:
        """Whether a request shows a key that is known, in constant time."""
        if not self.key_digests:
            return True
        given = headers.get("authorization", "")
        key = given[7:] if given[:7].lower() == "bearer " else headers.get("api-key", "")
        digest = sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        found = False
        for known in self.key_digests:
            found |= hmac.compare_digest(digest, known)
        return found


def make_app(
    gateway: Gateway, opens: Sequence[Opens], *, stop: Callable[[], None] | None = None,
    failed: Callable[[Exception], None] | None = None,
) -> Starlette:  # fmt: skip
    """The ASGI application.

    ``stop`` ends the server once it has drained after a SIGTERM; ``failed`` hears why it could
    not begin.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            try:
                await _open(gateway, stack, opens)
            except (UserError, ServerError) as error:
                if failed is not None:
                    failed(error)
                raise
            if stop is not None:
                _drain_on_term(gateway, stop)
            yield

    async def chat(http: HttpRequest) -> Response:
        return await _guarded(gateway, http, lambda: _complete(gateway, http, "chat"))

    async def completions(http: HttpRequest) -> Response:
        return await _guarded(gateway, http, lambda: _complete(gateway, http, "text"))

    async def models(http: HttpRequest) -> Response:
        return await _guarded(gateway, http, lambda: _models(gateway))

    async def others(http: HttpRequest) -> Response:
        return await _guarded(gateway, http, lambda: _forward(gateway, http, "not a completion"))

    async def health(_: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_: HttpRequest) -> Response:
        return await _ready(gateway)

    async def metrics(_: HttpRequest) -> Response:
        counted = gateway.metrics
        counted.failures.set(
            sum(core.failures.count for b in gateway.backends.values() for core in b.cores.values())
        )
        counted.running.set(gateway.running)
        return Response(generate_latest(counted.registry), media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/healthz", health),
            Route("/readyz", ready),
            Route("/metrics", metrics),
            Route("/v1/{path:path}", others, methods=["GET", "POST", "DELETE", "PUT", "PATCH"]),
        ],
        exception_handlers={HTTPException: _unrouted},
        lifespan=lifespan,
    )


async def _unrouted(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = f"{http.method} {http.url.path}: {error.detail.lower()}"
    return _error(error.status_code, said, error.headers)


async def _open(gateway: Gateway, stack: AsyncExitStack, opens: Sequence[Opens]) -> None:
    """Look at all upstreams; those that do not answer are tried again as long as one does."""
    missing: list[Opens] = []
    fault: ServerError | None = None
    for opened in opens:
        try:
            _add(gateway, await stack.enter_async_context(opened()))
        except ServerError as error:
            _log.warning("an upstream does not answer, and is tried again: %s", error)
            missing.append(opened)
            fault = error
    if fault is not None and not gateway.backends:
        raise fault
    if missing:
        task = asyncio.create_task(_open_later(gateway, missing))
        stack.callback(task.cancel)


async def _open_later(gateway: Gateway, missing: list[Opens]) -> None:
    async with AsyncExitStack() as stack:
        while missing:
            await asyncio.sleep(_AGAIN)
            for opened in [*missing]:
                try:
                    _add(gateway, await stack.enter_async_context(opened()))
                    missing.remove(opened)
                except (ServerError, UserError):
                    continue
        await asyncio.Event().wait()


def _add(gateway: Gateway, backend: Backend) -> None:
    pool = gateway.backends.get(backend.model)
    if pool is None:
        gateway.backends[backend.model] = Pool(backend)
    else:
        pool.add(backend)


async def _guarded(
    gateway: Gateway, http: HttpRequest, serve: Callable[[], Awaitable[Response]]
) -> Response:
    """A key, room, and an error in OpenAI's form whatever happens."""
    if not gateway.admits(headers_of(http.headers.raw)):
        return _error(401, "the key is not known here: send one as a bearer token")
    if gateway.draining:
        return _error(503, "the gateway is about to end: ask another", {"retry-after": "1"})
    if gateway.running >= gateway.limits.requests:
        return _error(429, "too many requests are on their way", {"retry-after": "1"})
    try:
        return await serve()
    except UnreadError as error:
        return _error(error.status, str(error), {"connection": "close"})
    except ClientDisconnect:
        return Response(status_code=GONE)
    except Exception as error:  # whatever it is, the client is told in a form that it knows
        return _error(*fault_of(error))


async def _complete(gateway: Gateway, http: HttpRequest, kind: Literal["chat", "text"]) -> Response:
    content = await content_of(http, gateway.limits)
    body = object_of(content)
    check_shape(body, chat=kind == "chat")
    wishes = wishes_of(body, headers_of(http.headers.raw), gateway.settings)
    try:
        backend = gateway.backend(str(body["model"]))
    except LookupError:
        there = ", ".join(gateway.backends)
        return _error(404, f"no model {str(body['model'])[:80]!r} here; there are: {there}")
    why = kind_of_why = "off" if wishes.wanted.off else passes_through(body)
    if why is None:
        try:
            steered = await backend.steer(wishes.wanted, wishes.body, shadow=gateway.shadow)
        except UserError as error:
            why, kind_of_why = str(error), "cannot be steered"
    if why is not None:
        content = orjson.dumps(wishes.body) if OURS in body else content
        return await _pass(gateway, backend, http, content, why, kind_of_why)
    answer = Answer(steered, wishes, Form(kind, str(body["model"])), gateway.metrics)
    return await _running(gateway, answer.respond(http, body))


async def _forward(gateway: Gateway, http: HttpRequest, why: str) -> Response:
    content = await content_of(http, gateway.limits)
    model = model_of(content) if len(gateway.backends) > 1 else ""
    try:
        backend = gateway.backend(model)
    except LookupError:
        backend = next(iter(gateway.backends.values()))
    return await _pass(gateway, backend, http, content, why, why)


async def _pass(
    gateway: Gateway, backend: Pool, http: HttpRequest, content: bytes, why: str, counted: str
) -> Response:
    path = path_of(http)
    gateway.metrics.passed.labels(counted).inc()
    told = {"x-rlbudget-passed-through": header_text(why)}
    response = await _running(
        gateway,
        backend.forward(http.method, path, http.url.query,
                        headers_of(http.headers.raw), content, told),
    )  # fmt: skip
    gateway.metrics.requests.labels("passed", str(response.status_code // 100) + "xx").inc()
    return response


async def _running(gateway: Gateway, responding: Awaitable[Response]) -> Response:
    """Count a request until its last byte is sent."""
    gateway.running += 1
    try:
        response = await responding
    except BaseException:
        gateway.running -= 1
        raise
    sent = response.__call__

    async def send_all(scope: Any, receive: Any, send: Any) -> None:
        try:
            await sent(scope, receive, send)
        finally:
            gateway.running -= 1

    return _Sent(send_all, response.status_code)


class _Sent(Response):
    """A response that tells when it is sent."""

    def __init__(self, send_all: Any, status: int) -> None:
        super().__init__(status_code=status)
        self._send_all = send_all

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._send_all(scope, receive, send)


async def _models(gateway: Gateway) -> Response:
    found: list[dict[str, Any]] = []
    for backend in gateway.backends.values():
        found += await backend.models()
    return JSONResponse({"object": "list", "data": found})


async def _ready(gateway: Gateway) -> Response:
    if gateway.draining or not gateway.backends:
        return JSONResponse({"status": "draining" if gateway.draining else "starting"}, 503)
    sick = {}
    for name, backend in gateway.backends.items():
        try:
            async with asyncio.timeout(5):
                await backend.models()
        except (ServerError, UserError, TimeoutError) as error:
            sick[name] = str(error) or "no answer within 5 s"
    if len(sick) == len(gateway.backends):
        return JSONResponse({"status": "no upstream answers", "upstreams": sick}, 503)
    plans = {name: plan.fingerprint for name, plan in gateway.settings.plans.items()}
    return JSONResponse({"status": "ready", "plans": plans, "sick": sick})


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    if len(message) > _MOST_TOLD:  # it may show what the client sent
        message = message[:_MOST_TOLD].rstrip() + "…"
    return Response(
        error_body(status, message), status, headers=headers, media_type="application/json"
    )


def _drain_on_term(gateway: Gateway, stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def drained() -> None:
        deadline = loop.time() + gateway.limits.drain
        while gateway.running and loop.time() < deadline:
            await asyncio.sleep(0.02)
        stop()

    def drain() -> None:
        if gateway.draining:
            return stop()
        gateway.draining = True
        tasks.add(loop.create_task(drained()))
        return None

    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, drain)
