"""The dashboard: what it shows, who may push its buttons, and how it looks in a browser."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from clients import until
from gateways import StopsAt, serving_gateway
from trace_makers import make_trace

from rlbudget.integrations.engine_settings import settings_for
from rlbudget.models import load_model
from rlbudget.serve.dashboard.sessions import COOKIE, Sessions
from rlbudget.serve.experiments import kept
from rlbudget.serve.gateway import Gateway
from rlbudget.serve.keys import Keyring, digests_of
from rlbudget.serve.run import add_kept_parts
from rlbudget.serve.store.part import noting
from rlbudget.serve.store.reading import events
from rlbudget.serve.store.store import Assignment, Store, opened
from rlbudget.serve.upstream import look_at
from rlbudget.strategies.experiments.design import Arm, Design
from rlbudget.strategies.feedback.log import Feedback, LoggedRequest, Stop, now
from rlbudget.strategies.plan import LogSettings, Plan
from rlbudget.tasks import load_task
from runs.integrations.toy_server import Toy, serving

torch.set_num_threads(1)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUESTION = load_task("embedded", n=1, seed=3).questions[0].question
STRANGE = "<b>r</b>&\"'"
ADMIN = "sk-admin"


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with serving(Toy(load_model("embedded"))) as url:
        yield url


@dataclass
class Board:
    root: str
    store: Store

    def ask(self) -> dict[str, Any]:
        body = {"model": "toy", "messages": [{"role": "user", "content": QUESTION}]}
        found = httpx.post(f"{self.root}/v1/chat/completions", json=body, timeout=120)
        ours = {} if found.status_code != 200 else found.json()["rlbudget"]
        return {"rlbudget": ours, "headers": found.headers}

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        """Signed in."""
        with httpx.Client(base_url=self.root, headers={"origin": self.root}, timeout=60) as made:
            answer = made.post("/dashboard/login", data={"key": ADMIN})
            assert answer.status_code == 303, answer.text
            yield made


@contextmanager
def board(upstream: str, folder: Path, *, admin: str = ADMIN, **more: Any) -> Iterator[Board]:
    plan = Plan({"policy": StopsAt(24)}, audit=LogSettings(None, 0.0))
    store = opened(str(folder / "store"))
    settings = noting(settings_for({"default": plan}, "embedded"), store)
    gateway = Gateway(settings, **more)
    add_kept_parts(gateway, store, admins=digests_of(admin))
    opens = partial(look_at, upstream, settings, tokenizer="embedded")
    with serving_gateway(gateway, opens) as root:
        yield Board(root, store)


def token_of(page: str) -> str:
    found = re.search(r'name="token" value="([0-9a-f]+)"', page)
    assert found is not None
    return found.group(1)


def fill(store: Store) -> None:
    """A day's requests, an experiment, shadow findings."""
    kept.start(store.engine, Design("dear", (Arm("plan"), Arm("dear", token_price=2e-3)),
                                    usual_tokens=120, most_tokens=600))  # fmt: skip
    for n in range(240):
        name, arm = f"{n:03d}{STRANGE}", ("plan", "dear")[n % 2]
        stopped = 32 + 16 * (n % 9)
        stop = Stop("policy" if n % 4 else "natural", stopped if n % 4 else None, 0.4 + n / 500,
                    stopped, 0, 12)  # fmt: skip
        store.assign(name, Assignment("dear", arm, 0.5, f"u{n}"))
        store.decision(LoggedRequest(
            name, now(), "ab" * 32, None, None, 1e-3 * (1 + (n // 40) / 4), n % 5 == 0, stop
        ))  # fmt: skip
        if n % 5 == 0:
            trace = make_trace(4)
            store.audit(replace(trace, trace_id=name, target=""))
            store.outcome(Feedback(name, now(), target=trace.final.answer))
        elif n % 3 == 0:
            store.outcome(Feedback(name, now(), rating=0.5))
        if n % 6 == 0:
            found = {"saved_tokens": 90, "same_answer": n % 12 == 0, "thinking_tokens": 110}
            store.shadow(name, {"thinking_tokens": 200, "shadow": found})
    assert store.writer.flush()


def test_the_page_shows_what_the_store_holds_and_escapes_it(upstream: str, tmp_path: Path) -> None:
    with board(upstream, tmp_path) as served, served.client() as admin:
        fill(served.store)
        until(lambda: "240" in admin.get("/").text)  # a view is shown for some seconds
        page = admin.get("/").text
        assert page.count("<h2>") >= 5
        for part in ("240", "Exact match", "dear", "natural", "in shadow", "Promote"):
            assert part in page
        assert STRANGE[:4] not in page
        assert "&lt;b&gt;" in page
        for tag in ("section", "table", "tr", "td", "th", "form", "div", "svg", "p", "ul", "main"):
            opening = len(re.findall(rf"<{tag}[\s>]", page))
            assert opening == page.count(f"</{tag}>"), tag
        live = admin.get("/dashboard/live").text
        assert live in page


def test_an_empty_store_has_a_page_too(upstream: str, tmp_path: Path) -> None:
    with board(upstream, tmp_path, admin="") as served:
        page = httpx.get(f"{served.root}/", timeout=60).text
        assert "nothing yet" in page
        assert "nan" not in page.lower()
        assert "<button" not in page


def test_the_buttons_steer_all_requests_and_are_noted(upstream: str, tmp_path: Path) -> None:
    with board(upstream, tmp_path) as served, served.client() as admin:
        token = token_of(admin.get("/").text)

        def act(**form: str) -> httpx.Response:
            return admin.post("/dashboard/act", data={"token": token, **form})

        assert served.ask()["rlbudget"]["token_price"] != 2e-3
        assert act(act="price", price="0.002").status_code == 303
        assert served.ask()["rlbudget"]["token_price"] == 2e-3
        assert act(act="price", price="").status_code == 303
        assert served.ask()["rlbudget"]["token_price"] != 2e-3
        assert act(act="mode", mode="off").status_code == 303
        assert served.ask()["headers"]["x-rlbudget-passed-through"] == "off"
        assert act(act="mode", mode="shadow").status_code == 303
        assert "shadow" in served.ask()["rlbudget"]
        assert act(act="mode", mode="on").status_code == 303
        assert served.ask()["rlbudget"]["stopped"]
        kept.start(served.store.engine, Design("e", (Arm("a"), Arm("b"), Arm("c"))))
        assert act(act="stop", experiment="e", arm="b").status_code == 303
        assert act(act="promote", experiment="e", arm="c").status_code == 303
        found = kept.find(served.store.engine, "e")
        assert {name: one.status for name, one in found.arms.items()} == {
            "a": "live", "b": "stopped", "c": "promoted"
        }  # fmt: skip
        for form, said in (
            ({"act": "price", "price": "much"}, "not a number"), ({"act": "mode"}, "one of"),
            ({"act": "price", "price": "9"}, "price"), ({"act": "price", "price": "nan"}, "price"),
            ({"act": "stop", "experiment": "none"}, "no experiment"), ({"act": "x"}, "no such"),
        ):  # fmt: skip
            answer = act(**form)
            assert answer.status_code == 400
            assert said in answer.text
        served.store.writer.flush()
        buttons = [one for one in events(served.store.engine, 50) if one.kind == "button"]
        assert len(buttons) == 7
        assert all(len(one.content["by"]) == 12 for one in buttons)
        assert ADMIN not in repr(events(served.store.engine, 50))


def test_a_mode_holds_over_a_restart(upstream: str, tmp_path: Path) -> None:
    with board(upstream, tmp_path) as served, served.client() as admin:
        form = {"token": token_of(admin.get("/").text), "act": "mode", "mode": "off"}
        assert admin.post("/dashboard/act", data=form).status_code == 303
    with board(upstream, tmp_path) as served:
        assert served.ask()["headers"]["x-rlbudget-passed-through"] == "off"


def test_nobody_else_may_push_a_button(upstream: str, tmp_path: Path) -> None:
    with board(upstream, tmp_path) as served, served.client() as admin:
        token = token_of(admin.get("/").text)
        good = {"token": token, "act": "mode", "mode": "off"}
        cookie = {"cookie": f"{COOKIE}={admin.cookies[COOKIE]}"}
        own = {"origin": served.root}
        forged: list[tuple[dict[str, str], dict[str, str]]] = [
            (good, own),
            ({**good, "token": ""}, {**cookie, **own}),
            ({**good, "token": "é"}, {**cookie, **own}),
            (good, {**cookie, "origin": "http://evil.example"}),
            (good, {**cookie, "origin": "null"}),
            (good, {**cookie, "sec-fetch-site": "cross-site"}),
            (good, {"cookie": f"{COOKIE}=9999999999.{'0' * 12}.{'0' * 64}", **own}),
        ]
        for form, headers in forged:
            answer = httpx.post(f"{served.root}/dashboard/act", data=form, headers=headers)
            assert answer.status_code == 403
        assert served.ask()["rlbudget"]["stopped"]
        assert httpx.get(f"{served.root}/dashboard/act", headers=cookie).status_code == 405
        wrong = httpx.post(f"{served.root}/dashboard/login", data={"key": "sk-wrong"})
        assert wrong.status_code == 403
        assert "set-cookie" not in wrong.headers
        assert "sk-wrong" not in wrong.text


def test_without_an_admin_key_nobody_steers(upstream: str, tmp_path: Path) -> None:
    with board(upstream, tmp_path, admin="") as served:
        answer = httpx.post(f"{served.root}/dashboard/login", data={"key": ""})
        assert answer.status_code == 403
        assert "RLBUDGET_ADMIN_KEYS" in answer.text
        assert httpx.get(f"{served.root}/", timeout=60).status_code == 200


def test_where_keys_are_asked_for_the_page_is_not_for_everybody(
    upstream: str, tmp_path: Path
) -> None:
    with board(upstream, tmp_path, keys=Keyring(digests_of("sk-client"))) as served:
        away = httpx.get(f"{served.root}/", timeout=60)
        assert (away.status_code, away.headers["location"]) == (303, "/dashboard/login")
        assert httpx.get(f"{served.root}/dashboard/live", timeout=60).status_code == 403
        shown = httpx.get(f"{served.root}/", headers={"authorization": "Bearer sk-client"})
        assert shown.status_code == 200
        assert "<button" not in shown.text
        with served.client() as admin:
            assert "<button" in admin.get("/").text


def test_a_session_ends_and_is_of_its_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(b"s", [key.digest for key in digests_of("a,b")])
    made = sessions.opened("a")
    assert made is not None
    assert sessions.opened("c") is None
    assert sessions.admin({COOKIE: made})
    assert not Sessions(b"other", [key.digest for key in digests_of("a")]).admin({COOKIE: made})
    assert not Sessions(b"s", [key.digest for key in digests_of("b")]).admin({COOKIE: made})
    later = time.time() + 9 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    assert not sessions.admin({COOKIE: made})


def test_every_answer_of_the_page_forbids_foreign_content(upstream: str, tmp_path: Path) -> None:
    with board(upstream, tmp_path, admin="") as served:
        for path in ("/", "/dashboard/live", "/dashboard/login", "/dashboard/style.css"):
            headers = httpx.get(f"{served.root}{path}").headers
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"


@contextmanager
def browsing(root: str, **look: Any) -> Iterator[tuple[Any, list[str], list[str]]]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium: install Debian's package")
    said: list[str] = []
    asked: list[str] = []
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(**look)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{root}/dashboard/login")
        page.fill("#key", ADMIN)
        page.click("button")
        page.wait_for_selector("#live")
        yield page, said, asked
        browser.close()


LOOKS: list[dict[str, Any]] = [
    {"viewport": {"width": 1200, "height": 900}, "color_scheme": "light"},
    {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
]


@pytest.mark.parametrize("look", LOOKS, ids=["desk", "phone"])
def test_it_works_in_a_browser(upstream: str, tmp_path: Path, look: dict[str, Any]) -> None:
    with board(upstream, tmp_path) as served:
        fill(served.store)
        with browsing(served.root, **look) as (page, said, asked):
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= look["viewport"]["width"]
            dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (dark == "rgb(13, 17, 23)") == (look["color_scheme"] == "dark")
            page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
            page.get_by_role("button", name="shadow").click()
            page.wait_for_selector("button[aria-pressed=true][value=shadow]")
            served.ask()
            until(lambda: "Of 41 requests" in page.locator("#live").inner_text())
            page.get_by_role("button", name="Promote").click()
            page.wait_for_selector("text=The arm is promoted.")
            assert said == []
            assert all(one.startswith(served.root) or one == "data:," for one in asked)
