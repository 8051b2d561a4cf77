"""Run the gateway by uvicorn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import uvicorn

from rlbudget.console import note
from rlbudget.errors import UserError
from rlbudget.integrations.engine_settings import Settings
from rlbudget.serve.app import make_app
from rlbudget.serve.choosing import open_models
from rlbudget.serve.dashboard.part import Dashboard
from rlbudget.serve.dashboard.steering import ByHand
from rlbudget.serve.experiments.part import Experimenting
from rlbudget.serve.gateway import Gateway, Opens
from rlbudget.serve.journal import open_journal
from rlbudget.serve.keys import Key, Keyring
from rlbudget.serve.listening import bound, listen, shown
from rlbudget.serve.local import load
from rlbudget.serve.otel import otel_part
from rlbudget.serve.parts import add_parts
from rlbudget.serve.store.part import keeps_texts, noting, store_part
from rlbudget.serve.store.store import Store, opened
from rlbudget.serve.upstream import look_at
from rlbudget.serve.waits import PatientProtocol
from rlbudget.strategies.chooser.chooser import Chooser
from rlbudget.strategies.feedback.log import Feedback

_SWITCH = 5e-4
"""seconds that a thread beside the streams, such as the store's, may keep them waiting"""


def serve(
    settings: Settings, *, upstreams: Sequence[str], weights: Sequence[float],
    model: str | None, tokenizer: str | None,
    upstream_key: str | None, timeout: float, approximate: bool, top_logprobs: int,
    keys: Sequence[Key], request_log: str | None = None, log_texts: bool = False,
    otel: bool = False, admins: Sequence[Key] = (),
    shadow: bool, cut: Literal["auto", "here", "engine"], store: str | None = None,
    host: str, port: int, ssl_certfile: Path | None = None, ssl_keyfile: Path | None = None,
    chooser: Chooser | None = None,
) -> None:  # fmt: skip
    """Serve until SIGTERM or Ctrl-C: running streams end, new requests get 503.

    With ``chooser`` the plan's own models are served; else without ``upstreams`` ``model`` is
    decoded inside the gateway. Without ``store`` (a file or a URL) nothing is kept. Raises
    ``UserError`` where a model, an upstream or the store cannot be served or the port is taken.
    """
    if store is None and any(plan.experiment for plan in settings.plans.values()):
        raise UserError("an experiment needs a store: leave out --store none")
    kept = None if store is None else opened(store, store_text=keeps_texts(settings))
    if kept is not None:
        settings = noting(settings, kept)
    opens: list[Opens] = [
        partial(look_at, url, settings, model=model, tokenizer=tokenizer, key=upstream_key,
                timeout=timeout, approximate=approximate, top_logprobs=top_logprobs,
                cut="here" if shadow else cut, weight=weight)
        for url, weight in zip(upstreams, weights or [1.0] * len(upstreams), strict=True)
    ]  # fmt: skip
    if chooser is not None:
        opens = [partial(open_models, settings, chooser, key=upstream_key, timeout=timeout,
                         approximate=approximate, top_logprobs=top_logprobs)]  # fmt: skip
    elif not upstreams:
        assert model is not None
        opens = [partial(load, model, settings, key=upstream_key)]
    gateway = Gateway(settings, keys=Keyring(keys), shadow=shadow)
    if request_log is not None:
        gateway.journal = open_journal(request_log, texts=log_texts)
        gateway.steering.append(gateway.journal.part())
    if otel:
        gateway.steering.append(otel_part())
    if kept is None:
        add_parts(gateway)
    else:
        add_kept_parts(gateway, kept, admins=admins)
    run(
        gateway, opens, host=host, port=port,
        ssl_certfile=ssl_certfile, ssl_keyfile=ssl_keyfile,
    )  # fmt: skip


def add_kept_parts(gateway: Gateway, store: Store, *, admins: Sequence[Key] = ()) -> None:
    """The store, which is closed last, experiments, the dashboard, and what the plan says."""
    plan = next(iter(gateway.settings.plans.values()))
    heard: list[Callable[[Feedback], None]] = []
    by_hand = ByHand(gateway, store)
    gateway.steering += [store_part(gateway, store, heard=heard), by_hand.mode_part()]
    trying = Experimenting(gateway, store, declared=plan.experiment, keep_days=plan.store.keep_days)
    gateway.steering += [trying.part(), by_hand.price_part()]
    queue, control = add_parts(gateway)
    if control is not None:
        heard.append(control.told)
    page = Dashboard(gateway, store, by_hand, admins=admins, queue=queue, control=control)
    gateway.steering.append(page.part())


def run(
    gateway: Gateway, opens: Sequence[Opens], *, host: str, port: int,
    ssl_certfile: Path | None = None, ssl_keyfile: Path | None = None,
) -> None:  # fmt: skip
    """Serve until SIGTERM or Ctrl-C: running streams end, new requests get 503.

    Raises ``UserError`` where an upstream cannot be served or the port is taken.
    """
    sockets = bound(host, port)
    failed: list[Exception] = []
    sys.setswitchinterval(_SWITCH)

    def began() -> None:
        listen(sockets)
        scheme = "http" if ssl_certfile is None else "https"
        address = shown(host, sockets[0].getsockname()[1])
        note(f"rlbudget: serving at {scheme}://{address}/v1")

    def stop() -> None:
        server.should_exit = True

    config = uvicorn.Config(
        make_app(gateway, opens, began=began, stop=stop, failed=failed.append),
        http=PatientProtocol,
        log_level="critical", access_log=False, server_header=False, date_header=False,
        proxy_headers=False,
        timeout_keep_alive=75, h11_max_incomplete_event_size=64 << 10,
        ssl_certfile=ssl_certfile, ssl_keyfile=ssl_keyfile,
    )  # fmt: skip
    server = uvicorn.Server(config)
    try:
        server.run(sockets)
    finally:
        for one in sockets:
            one.close()
    if failed:
        raise failed[0]
