"""The page as HTML: written here, with no script but the one that asks for it again."""

from __future__ import annotations

from html import escape

from rlbudget.serve.dashboard.now import Now
from rlbudget.serve.dashboard.sections import (
    classes,
    events,
    hidden,
    prices,
    reasons,
    recent,
    shadow,
    tiles,
    trials,
    warnings,
)
from rlbudget.serve.dashboard.steering import MODES
from rlbudget.serve.dashboard.view import View


def whole_page(view: View, now: Now, *, token: str | None, told: str = "") -> str:
    """All of it; ``token`` against forged forms where its reader may push buttons."""
    notice = f'<p class="told" role="status">{escape(told)}</p>' if told else ""
    return _framed(
        f'<header><h1>rlbudget</h1><p class="quiet">{escape(", ".join(now.models))} · plan '
        f"{escape(now.plan)}</p>{_session(token)}</header>{notice}"
        f'{_buttons(now, token)}<main id="live" data-live="/dashboard/live">'
        f"{live_part(view, now, token=token)}</main>"
    )


def login_page(told: str = "") -> str:
    """Where the key is asked for."""
    notice = f'<p class="told" role="alert">{escape(told)}</p>' if told else ""
    return _framed(
        f"<header><h1>rlbudget</h1></header>{notice}"
        '<form method="post" action="/dashboard/login" class="card login"><label for="key">'
        'Admin key</label><input name="user" autocomplete="username" value="admin" hidden>'
        '<input id="key" name="key" type="password" required '
        'autocomplete="current-password"><button>Sign in</button></form>'
    )


def live_part(view: View, now: Now, *, token: str | None) -> str:
    """What is asked for again every few seconds."""
    return "".join((
        tiles(view, now), warnings(view, now), prices(view, now), reasons(view),
        classes(now), trials(view, token), shadow(view), recent(view), events(view),
    ))  # fmt: skip


def _framed(body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>rlbudget</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<link rel="stylesheet" href="/dashboard/style.css"><link rel="icon" href="data:,">'
        f'<script src="/dashboard/live.js" defer></script></head><body>{body}</body></html>'
    )


def _session(token: str | None) -> str:
    if token is None:
        return '<p><a href="/dashboard/login">Sign in to steer</a></p>'
    return (f'<form method="post" action="/dashboard/logout">{hidden(token)}'
            '<button class="plain">Sign out</button></form>')  # fmt: skip


def _buttons(now: Now, token: str | None) -> str:
    if token is None:
        said = {"on": "cutting", "shadow": "in shadow: nothing is cut", "off": "passing through"}
        mode = said.get(now.mode, now.mode)
        return f'<section class="card bar"><p>Mode: <b>{mode}</b></p></section>'
    low, high = now.price_range
    modes = "".join(
        f'<button name="mode" value="{mode}" aria-pressed="{str(mode == now.mode).lower()}">'
        f"{mode}</button>"
        for mode in MODES
    )
    shown = "" if now.price is None else f"{now.price:g}"
    return (
        f'<section class="card bar"><form method="post" action="/dashboard/act">'
        f"{hidden(token, act='mode')}<fieldset><legend>Mode</legend>{modes}</fieldset></form>"
        f'<form method="post" action="/dashboard/act">{hidden(token, act="price")}'
        f'<label for="price">Price by hand ({low:.3g} to {high:.3g})</label>'
        f'<input id="price" name="price" inputmode="decimal" value="{shown}"'
        ' placeholder="the plan’s">'
        "<button>Set</button></form></section>"
    )
