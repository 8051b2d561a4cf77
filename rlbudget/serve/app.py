"""The gateway's routes: chat completions, completions and models; all else passes through."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rlbudget.errors import UserError
from rlbudget.models.site import ServerError
from rlbudget.serve.answer import GONE, fault_of, headers_of
from rlbudget.serve.completing import KEY, TOLD, complete, forward
from rlbudget.serve.gateway import Gateway, Opens, error, then
from rlbudget.serve.hooks import Endpoint, Extra
from rlbudget.serve.incoming import UnreadError
from rlbudget.serve.keys import Key, TooMuchError
from rlbudget.serve.openapi import description
from rlbudget.serve.pool import Backend, Pool

_log = logging.getLogger("rlbudget.serve")
_GARBAGE = 100_000
"""objects more than were freed before garbage is searched: what streams hold is none"""
_AGAIN = 2.0
"""seconds between two looks at an upstream that did not answer"""


def make_app(
    gateway: Gateway, opens: Sequence[Opens], *, began: Callable[[], None] | None = None,
    stop: Callable[[], None] | None = None, failed: Callable[[Exception], None] | None = None,
) -> ASGIApp:  # fmt: skip
    """The ASGI application.

    ``began`` is called when it can serve; ``stop`` ends the server once it has drained after a
    SIGTERM; ``failed`` hears why it could not begin.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            try:
                await _open(gateway, stack, opens)
                for part in gateway.steering:
                    if part.running is not None:
                        await stack.enter_async_context(part.running())
                if began is not None:
                    began()
            except Exception as fault:  # uvicorn would end without a word
                if failed is not None:
                    failed(fault)
                raise
            if stop is not None:  # a process of the gateway's own
                _drain_on_term(gateway, stop)
                gc.collect()
                gc.freeze()  # what was loaded is not searched for garbage again and again
                gc.set_threshold(_GARBAGE)
            yield

    async def chat(http: HttpRequest) -> Response:
        return await _guarded(gateway, http, lambda: complete(gateway, http, "chat"))

    async def completions(http: HttpRequest) -> Response:
        return await _guarded(gateway, http, lambda: complete(gateway, http, "text"))

    async def models(http: HttpRequest) -> Response:
        return await _guarded(gateway, http, lambda: _models(gateway))

    async def others(http: HttpRequest) -> Response:
        return await _guarded(gateway, http, lambda: forward(gateway, http, "not a completion"))

    async def health(_: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    async def described(_: HttpRequest) -> Response:
        return JSONResponse(description())

    async def ready(_: HttpRequest) -> Response:
        return await _ready(gateway)

    async def metrics(_: HttpRequest) -> Response:
        counted = gateway.metrics
        cores = [core for b in gateway.backends.values() for core in b.cores.values()]
        counted.failures.set(sum(core.failures.count for core in cores))
        logs = {core.log for core in cores if core.log is not None}
        counted.log_failures.set(sum(log.failures for log in logs))
        counted.running.set(gateway.running)
        return Response(generate_latest(counted.registry), media_type="text/plain; version=0.0.4")

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/healthz", health),
            Route("/readyz", ready),
            Route("/metrics", metrics),
            Route("/openapi.json", described),
            *(_route(gateway, extra) for part in gateway.steering for extra in part.routes),
            Route("/v1/{path:path}", others, methods=["GET", "POST", "DELETE", "PUT", "PATCH"]),
        ],
        exception_handlers={HTTPException: _unrouted},
        lifespan=lifespan,
    )
    return _straight(app, {"/v1/chat/completions": chat, "/v1/completions": completions})


def _straight(app: Starlette, posts: Mapping[str, Endpoint]) -> ASGIApp:
    """The application; completions go straight to their endpoints, whose answers are whole: each
    event of a stream passes a few wrappers less."""  # fmt: skip

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in posts:
            return await app(scope, receive, send)
        response = await posts[scope["path"]](HttpRequest(scope, receive, send))
        return await response(scope, receive, send)

    return serve


def _route(gateway: Gateway, extra: Extra) -> Route:
    async def serve(http: HttpRequest) -> Response:
        if extra.public:
            return await _answered(lambda: extra.endpoint(http))
        return await _guarded(gateway, http, lambda: extra.endpoint(http))

    return Route(extra.path, serve, methods=[*extra.methods])


async def _unrouted(http: HttpRequest, fault: Exception) -> Response:
    assert isinstance(fault, HTTPException)
    said = f"{http.method} {http.url.path}: {fault.detail.lower()}"
    return error(fault.status_code, said, fault.headers)


async def _open(gateway: Gateway, stack: AsyncExitStack, opens: Sequence[Opens]) -> None:
    """Look at all upstreams; those that do not answer are tried again as long as one does."""
    missing: list[Opens] = []
    fault: ServerError | None = None
    for opened in opens:
        try:
            _add(gateway, await stack.enter_async_context(opened()))
        except ServerError as found:
            _log.warning("an upstream does not answer, and is tried again: %s", found)
            missing.append(opened)
            fault = found
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
    """A key, room, and an error in OpenAI's form whatever happens; a line in the request log."""
    begun = time.monotonic()
    key: Key | None = None
    if gateway.keys.keys and (key := gateway.keys.find(headers_of(http.headers.raw))) is None:
        response = error(401, "the key is not known here: send one as a bearer token")
    elif gateway.draining:
        response = error(503, "the gateway is about to end: ask another", {"retry-after": "1"})
    elif gateway.running >= gateway.limits.requests:
        response = error(429, "too many requests are on their way", {"retry-after": "1"})
    else:
        http.scope[KEY] = None if key is None else key.name
        response = await _within_limits(gateway, key, serve)
    if gateway.journal is not None and not http.scope.get(TOLD):
        gateway.journal.line({
            "method": http.method, "path": http.url.path[:200], "status": response.status_code,
            "key": None if key is None else key.name,
            "seconds": round(time.monotonic() - begun, 6),
        })  # fmt: skip
    return response


async def _within_limits(
    gateway: Gateway, key: Key | None, serve: Callable[[], Awaitable[Response]]
) -> Response:
    """What the key allows."""
    if key is None:
        return await _answered(serve)
    try:
        gateway.keys.enter(key)
    except TooMuchError as much:
        gateway.metrics.key_refused.labels(key.name, much.limit).inc()
        return error(429, str(much), {"retry-after": str(max(math.ceil(much.after), 1))})
    try:
        response = await _answered(serve)
    except BaseException:
        gateway.keys.leave(key)
        raise
    return then(response, partial(gateway.keys.leave, key))


async def _answered(serve: Callable[[], Awaitable[Response]]) -> Response:
    try:
        return await serve()
    except UnreadError as fault:
        return error(fault.status, str(fault), {"connection": "close"})
    except ClientDisconnect:
        return Response(status_code=GONE)
    except Exception as fault:  # whatever it is, the client is told in a form that it knows
        return error(*fault_of(fault))


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
        except (ServerError, UserError, TimeoutError) as fault:
            sick[name] = str(fault) or "no answer within 5 s"
    if len(sick) == len(gateway.backends):
        return JSONResponse({"status": "no upstream answers", "upstreams": sick}, 503)
    plans = {name: plan.fingerprint for name, plan in gateway.settings.plans.items()}
    return JSONResponse({"status": "ready", "plans": plans, "sick": sick})


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
