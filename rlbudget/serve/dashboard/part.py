"""The page as a part of a gateway."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request as HttpRequest
from starlette.responses import RedirectResponse, Response

from rlbudget.errors import UserError
from rlbudget.serve.dashboard.now import Now
from rlbudget.serve.dashboard.page import live_part, login_page, whole_page
from rlbudget.serve.dashboard.sessions import COOKIE, LASTS, Sessions
from rlbudget.serve.dashboard.steering import ByHand
from rlbudget.serve.dashboard.view import View, view_of
from rlbudget.serve.experiments.kept import promote, stop
from rlbudget.serve.gateway import Gateway
from rlbudget.serve.hooks import Endpoint, Extra, Steering
from rlbudget.serve.incoming import content_of
from rlbudget.serve.keys import Key
from rlbudget.serve.price.part import PriceControl
from rlbudget.serve.queue.part import Queue
from rlbudget.serve.store.store import Store

_HERE = Path(__file__).parent
_FRESH = 2.5
"""seconds that a view is shown for, at least"""
_RARELY = 5
"""times as long as it took to read"""
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self';"
    " connect-src 'self'; img-src data:; form-action 'self'; frame-ancestors 'none';"
    " base-uri 'none'",
    "x-content-type-options": "nosniff", "referrer-policy": "same-origin",
    "cache-control": "no-store",
}  # fmt: skip

_log = logging.getLogger("rlbudget.serve")


class Dashboard:
    """The page of a gateway with a store."""

    def __init__(
        self, gateway: Gateway, store: Store, by_hand: ByHand, *,
        admins: Sequence[Key] = (), queue: Queue | None = None,
        control: PriceControl | None = None,
    ) -> None:  # fmt: skip
        self._gateway, self._store, self._by_hand = gateway, store, by_hand
        self._queue, self._control = queue, control
        self._sessions = Sessions(store.secret("session"), [key.digest for key in admins])
        self._view: View | None = None
        self._again = 0.0
        self._reading = asyncio.Lock()

    def part(self) -> Steering:
        """For ``Gateway.steering``."""
        get, post = ("GET",), ("POST",)
        return Steering("dashboard", routes=(
            Extra("/", self._page, get, public=True),
            Extra("/dashboard/live", self._live, get, public=True),
            Extra("/dashboard/login", self._login, ("GET", "POST"), public=True),
            Extra("/dashboard/logout", self._logout, post, public=True),
            Extra("/dashboard/act", self._act, post, public=True),
            Extra("/dashboard/style.css", _file("style.css", "text/css"), get, public=True),
            Extra("/dashboard/live.js", _file("live.js", "text/javascript"), get, public=True),
        ))  # fmt: skip

    def _may_look(self, http: HttpRequest) -> bool:
        """Where keys are asked for, only an admin or who shows a key sees the page."""
        keys = self._gateway.keys
        if not keys.keys and not self._sessions.digests:
            return True
        if self._sessions.admin(http.cookies) is not None:
            return True
        return keys.find(http.headers) is not None

    def _token(self, http: HttpRequest) -> str | None:
        if self._sessions.admin(http.cookies) is None:
            return None
        return self._sessions.token(http.cookies)

    async def _page(self, http: HttpRequest) -> Response:
        if not self._may_look(http):
            return RedirectResponse("/dashboard/login", 303, _HEADERS)
        told = _TOLD.get(http.query_params.get("told", ""), "")
        shown = whole_page(await self._seen(), self._now(), token=self._token(http), told=told)
        return _html(shown)

    async def _live(self, http: HttpRequest) -> Response:
        if not self._may_look(http):
            return _html("", 403)
        return _html(live_part(await self._seen(), self._now(), token=self._token(http)))

    async def _login(self, http: HttpRequest) -> Response:
        if not self._sessions.digests:
            return _html(login_page("No admin key is set: start the gateway with"
                                    " RLBUDGET_ADMIN_KEYS."), 403)  # fmt: skip
        if http.method == "GET":
            return _html(login_page())
        form = await self._form(http)
        session = None if not _same_site(http) else self._sessions.opened(form.get("key", ""))
        if session is None:
            _log.warning("a key that is not an admin's was shown to the dashboard")
            return _html(login_page("The key is not known here."), 403)
        response = RedirectResponse("/", 303, _HEADERS)
        response.set_cookie(
            COOKIE, session, max_age=LASTS, httponly=True, samesite="strict", path="/",
            secure=http.url.scheme == "https",
        )  # fmt: skip
        return response

    async def _logout(self, http: HttpRequest) -> Response:
        form = await self._form(http)
        response = RedirectResponse("/", 303, _HEADERS)
        if self._sessions.genuine(http.cookies, form.get("token", "")):
            response.delete_cookie(COOKIE, path="/")
        return response

    async def _act(self, http: HttpRequest) -> Response:
        admin = self._sessions.admin(http.cookies)
        form = await self._form(http)
        if admin is None:
            return _html(login_page("Sign in to steer."), 403)
        if not _same_site(http) or not self._sessions.genuine(http.cookies, form.get("token", "")):
            return _html(login_page("The form was not of this page: try again."), 403)
        act = form.get("act", "")
        try:
            await self._do(act, form)
        except UserError as error:
            shown = whole_page(await self._seen(), self._now(), token=self._token(http),
                               told=str(error))  # fmt: skip
            return _html(shown, 400)
        said = {name: form[name] for name in ("mode", "price", "experiment", "arm") if name in form}
        _log.warning("dashboard: %s %s by key %s", act, said, admin)
        self._store.event("button", act=act, by=admin, **said)
        self._again = 0.0
        return RedirectResponse(f"/?told={act}", 303, _HEADERS)

    async def _do(self, act: str, form: dict[str, str]) -> None:
        engine, why = self._store.engine, "by hand"
        if act == "mode":
            return await self._by_hand.set_mode(form.get("mode", ""))
        if act == "price":
            return await self._by_hand.set_price(_price(form.get("price", "")))
        name, arm = form.get("experiment", ""), form.get("arm", "") or None
        if act == "stop":
            await asyncio.to_thread(stop, engine, name, arm, why)
        elif act == "promote" and arm is not None:
            await asyncio.to_thread(promote, engine, name, arm, why)
        else:
            raise UserError("there is no such button")
        return None

    async def _form(self, http: HttpRequest) -> dict[str, str]:
        content = await content_of(http, self._gateway.limits)
        fields = parse_qs(content.decode("utf-8", "replace"), max_num_fields=20)
        return {name: values[-1] for name, values in fields.items()}

    async def _seen(self) -> View:
        """The view, read again where it is old; many readers share one reading."""
        async with self._reading:
            begun = time.monotonic()
            if self._view is None or begun > self._again:
                self._view = await asyncio.to_thread(view_of, self._store.engine)
                took = time.monotonic() - begun
                self._again = time.monotonic() + max(_FRESH, _RARELY * took)
            return self._view

    def _now(self) -> Now:
        gateway, queue, control = self._gateway, self._queue, self._control
        plan = gateway.settings.plans[self._by_hand.plan]
        mode = "shadow" if gateway.shadow and self._by_hand.mode == "on" else self._by_hand.mode
        line = None if queue is None else queue.turnstile
        return Now(
            plan=self._by_hand.plan, mode=mode, price=self._by_hand.price,
            price_range=gateway.settings.served[self._by_hand.plan].price_range,
            running=gateway.running, lost=self._store.failures, models=[*gateway.backends],
            classes={} if line is None or queue is None else {
                name: (line.waiting[name], line.running[name], queue.refused[name])
                for name in queue.settings.classes
            },
            steered=None if control is None else control.price,
            alarms=[] if control is None else [
                f"request {at}: {why}" for at, why in control.state.alarms
            ],
            full=control is not None and control.state.full,
            per_million=plan.dial.price_per_million,
        )  # fmt: skip


_TOLD = {"mode": "The mode is set.", "price": "The price is set.", "stop": "It is stopped.",
         "promote": "The arm is promoted."}  # fmt: skip


def _price(said: str) -> float | None:
    if not said.strip():
        return None
    try:
        return float(said)
    except ValueError:
        raise UserError(f"price: {said[:40]!r} is not a number") from None


def _same_site(http: HttpRequest) -> bool:
    """Whether a form comes from a page of this gateway, where its browser says so."""
    origin = http.headers.get("origin")
    if origin is None:
        return http.headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
    return urlsplit(origin).netloc == http.headers.get("host", "")


def _html(content: str, status: int = 200) -> Response:
    return Response(content, status, media_type="text/html; charset=utf-8", headers=_HEADERS)


def _file(name: str, kind: str) -> Endpoint:
    content = (_HERE / name).read_bytes()

    async def serve(_: HttpRequest) -> Response:
        headers = {**_HEADERS, "cache-control": "max-age=300"}
        return Response(content, media_type=kind, headers=headers)

    return serve
