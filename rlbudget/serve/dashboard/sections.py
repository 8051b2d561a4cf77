"""The sections of the page: numbers, charts and tables, escaped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from rlbudget.serve.dashboard.now import Now
from rlbudget.serve.dashboard.view import Range, View
from rlbudget.strategies.experiments.design import Experiment
from rlbudget.strategies.experiments.results import ArmResult, Compared
from rlbudget.strategies.feedback.log import LoggedRequest


def hidden(token: str, **more: str) -> str:
    """Fields of a form that nobody sees."""
    fields = {"token": token, **more}
    return "".join(
        f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">'
        for name, value in fields.items()
    )


def _tile(name: str, value: str, note: str = "") -> str:
    return (
        f'<div class="tile"><p class="quiet">{name}</p><p class="big">{value}</p>'
        f'<p class="quiet">{note}</p></div>'
    )


def tiles(view: View, now: Now) -> str:
    """The numbers that matter first."""
    saved = view.saved_tokens
    money = "say price_per_million in the plan"
    if now.per_million is not None and not math.isnan(saved.value):
        money = f"worth {saved.value * now.per_million / 1e6:,.2f}"
    stopped = view.stopped / view.requests if view.requests else math.nan
    audits = f"{view.saving.n:,} audits"
    return '<section class="tiles">' + "".join((
        _tile("Requests", f"{view.requests:,}",
              f"{_share(stopped)} stopped early, {now.running} running"),
        _tile("Tokens saved", _share(view.saving.value), f"{_ends(view.saving, _share)}, {audits}"),
        _tile("Saved so far", _count(saved.value), f"{_ends(saved, _count)}; {money}"),
        _tile("Exact match", _share(view.exact_match.value),
              f"{_ends(view.exact_match, _share)}, {view.exact_match.n:,} known"),
        _tile("Exact match lost", _points(view.loss.value), _ends(view.loss, _points, " points")),
        _tile("Records lost", f"{now.lost:,}", "by the store; answers are never"),
    )) + "</section>"  # fmt: skip


def warnings(view: View, now: Now) -> str:
    """Alarms, where there are any."""
    lines = [*view.alarms, *now.alarms]
    if now.full:
        lines.insert(0, "All requests are decoded in full after an alarm.")
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines[-6:])
    return f'<section class="card alarm"><h2>Alarms</h2><ul>{items}</ul></section>'


def prices(view: View, now: Now) -> str:
    """The price over time."""
    held = "the plan’s" if now.price is None else f"{now.price:.3g} by hand"
    if now.price is None and now.steered is not None:
        held = f"{now.steered:.3g}, steered"
    return (f'<section class="card"><h2>Price <small>{held}</small></h2>'
            f"{_line(view.served_prices, 'Price of the latest requests')}</section>")  # fmt: skip


def _line(values: Sequence[float], name: str) -> str:
    """A line chart; the newest on the right."""
    if len(values) < 2:
        return '<p class="quiet">nothing yet</p>'
    low, high = min(values), max(values)
    span = high - low or max(abs(high), 1e-12)
    bottom = low if high > low else low - span / 2
    points = " ".join(
        f"{600 * place / (len(values) - 1):.1f},{88 - 76 * (value - bottom) / span:.1f}"
        for place, value in enumerate(values)
    )
    return (
        f'<svg viewBox="0 0 600 96" role="img" aria-label="{escape(name)}" '
        f'preserveAspectRatio="none"><polyline points="{points}"/></svg>'
        f'<p class="quiet">{low:.3g} to {high:.3g}, the newest on the right</p>'
    )


def reasons(view: View) -> str:
    """What ended the thinking, by how often."""
    total = sum(view.reasons.values())
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="num">{count:,}</td>'
        f'<td class="wide"><meter min="0" max="{total}" value="{count}"></meter></td></tr>'
        for name, count in sorted(view.reasons.items(), key=lambda item: -item[1])
    )
    return _card("What ended the thinking", _table((), rows))


def classes(now: Now) -> str:
    """Who waits, by class; nothing without a queue."""
    if not now.classes:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f'<td class="num">{n:,}</td>' for n in numbers) + "</tr>"
        for name, numbers in now.classes.items()
    )  # fmt: skip
    return _card("Queue", _table(("class", "#waiting", "#running", "#refused"), rows))


def trials(view: View, token: str | None) -> str:
    """Experiments, with intervals and buttons."""
    shown = "".join(_trial(one, results, token) for one, results in view.trials)
    return _card("Experiments", shown or '<p class="quiet">none</p>')


def _trial(one: Experiment, results: Sequence[ArmResult], token: str | None) -> str:
    name = one.design.name
    rows = "".join(
        f'<tr><th scope="row">{escape(result.arm)}</th>'
        f"<td>{escape(one.arms[result.arm].status)}</td>"
        f'<td class="num">{result.requests:,}</td>'
        f'<td class="num">{_difference(result.tokens, 1, "+.0f")}</td>'
        f'<td class="num">{_difference(result.exact_match, 100, "+.1f")}</td>'
        f'<td class="num">{_difference(result.satisfaction, 100, "+.1f")}</td>'
        f"<td>{escape(result.verdict)}</td>"
        f"<td>{_arm_buttons(one, result.arm, token)}</td></tr>"
        for result in results
    )
    why = f" · {escape(one.why)}" if one.why else ""
    head = (
        "arm", "status", "#units", "#tokens", "#exact match", "#satisfaction", "verdict", ""
    )  # fmt: skip
    over = token is None or one.status == "stopped"
    end = "" if over or token is None else _act(token, "stop", "Stop all", name)
    control = escape(one.design.control.name)
    title = f"{escape(name)} <small>{escape(one.status)} · control {control}{why}</small>"
    return f"<h3>{title}</h3>{_table(head, rows)}{end}"


def _arm_buttons(one: Experiment, arm: str, token: str | None) -> str:
    if token is None or one.status != "running" or one.arms[arm].status != "live":
        return ""
    name = one.design.name
    return _act(token, "promote", "Promote", name, arm) + _act(token, "stop", "Stop", name, arm)


def _act(token: str, act: str, said: str, experiment: str, arm: str = "") -> str:
    return (f'<form method="post" action="/dashboard/act" class="inline">'
            f"{hidden(token, act=act, experiment=experiment, arm=arm)}"
            f"<button>{said}</button></form>")  # fmt: skip


def _difference(one: Compared, scale: float, spelled: str) -> str:
    if not one.n:
        return "–"
    low, high = one.interval
    mean = "–" if math.isnan(one.mean) else format(scale * one.mean, spelled)
    return f"{mean} <small>[{scale * low:{spelled}}, {scale * high:{spelled}}]</small>"


def shadow(view: View) -> str:
    """What cuts in shadow would have done."""
    found = view.shadowed
    if not found.requests:
        return ""
    said = (f"Of {found.requests:,} requests in shadow {found.cut:,} would have been cut, saving "
            f"{_share(found.saved)} of the thinking; {found.other:,} answers would have been "
            "others.")  # fmt: skip
    return _card("Shadow", f"<p>{said}</p>")


def recent(view: View) -> str:
    """The latest requests, and where they were cut."""
    most = max((one.stop.thinking_tokens for one in view.recent), default=1)
    rows = "".join(_request(one, max(most, 1)) for one in view.recent)
    head = ("time", "request", "arm", "ended by", "#thinking", "", "#sure", "#tokens")
    return _card("Recent requests", _table(head, rows))


def _request(one: LoggedRequest, most: int) -> str:
    stop = one.stop
    at = stop.thinking_tokens if stop.stopped_at is None else stop.stopped_at
    sure = "–" if stop.stop_probability is None else f"{stop.stop_probability:.2f}"
    audited = " (audited)" if one.audited else ""
    return (
        f"<tr><td>{escape(one.time[11:19])}</td>"
        f'<th scope="row">{escape(one.request_id[:12])}</th>'
        f"<td>{escape(one.arm or '–')}</td><td>{escape(stop.reason)}{audited}</td>"
        f'<td class="num">{at:,}</td>'
        f'<td class="wide"><meter min="0" max="{most}" value="{at}"></meter></td>'
        f'<td class="num">{sure}</td><td class="num">{stop.tokens:,}</td></tr>'
    )


def events(view: View) -> str:
    """What was done, and by whom."""
    if not view.happened:
        return ""
    rows = "".join(
        f"<tr><td>{datetime.fromtimestamp(one.at, UTC):%m-%d %H:%M:%S}</td>"
        f'<th scope="row">{escape(one.kind)}</th><td>'
        + escape(", ".join(f"{key} {value}" for key, value in one.content.items() if value))
        + "</td></tr>"
        for one in view.happened
    )
    return _card("What happened", _table((), rows))


def _card(name: str, content: str) -> str:
    return f'<section class="card"><h2>{name}</h2>{content}</section>'


def _table(head: Iterable[str], rows: str) -> str:
    """A ``#`` before a title: a column of numbers."""
    if not rows:
        return '<p class="quiet">nothing yet</p>'
    titles = "".join(
        f'<th scope="col"{" class=num" if name.startswith("#") else ""}>{name.lstrip("#")}</th>'
        for name in head
    )
    top = f"<thead><tr>{titles}</tr></thead>" if titles else ""
    return f'<div class="scroll" tabindex="0"><table>{top}<tbody>{rows}</tbody></table></div>'


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}%"


def _points(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:+.1f}"


def _count(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:,.0f}"


def _ends(one: Range, spelled: Callable[[float], str], unit: str = "") -> str:
    if math.isnan(one.low):
        return "no interval yet"
    return f"{spelled(one.low)} to {spelled(one.high)}{unit}"
