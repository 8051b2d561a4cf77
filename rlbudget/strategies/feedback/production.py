"""What a decision log says of each policy in production: the stream evaluation of its audits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from rlbudget.errors import UserError
from rlbudget.strategies.feedback.audit import StreamEvaluator, StreamReport, saving_of
from rlbudget.strategies.feedback.entries import Entries
from rlbudget.strategies.feedback.harvest import audit_of, full_tokens, stopped_answer
from rlbudget.strategies.feedback.log import LoggedRequest


@dataclass(frozen=True, slots=True)
class Alarm:
    """A request at which the loss was found to have risen."""

    request_id: str
    time: str


@dataclass(frozen=True, slots=True)
class PolicyStream:
    """One policy's requests, in the order in which they were served."""

    policy: str
    """"version N" of a registry, else the first digits of its digest; "all" for all of them"""
    requests: int
    stopped: int
    """requests that it stopped, or would have"""
    audited: int
    waiting: int
    """audited requests without an outcome"""
    undecided: int
    """audited requests that count for nothing: what their stop would have given is not known"""
    changed: float
    """share of the audited requests whose stop would have given another answer, whichever was
    right: the loss is at most this; NaN without audits"""
    report: StreamReport
    """of the audited requests"""
    alarms: tuple[Alarm, ...]


def streams_of(
    entries: Entries, *, window: int = 200, confidence: float = 0.95
) -> list[PolicyStream]:
    """One stream for each policy, in the order in which they came, and all of them together.

    ``window`` is in audits. The intervals hold at all times at once, with ``confidence`` for a
    policy's loss and savings together. Raises ``UserError`` for settings out of range and a log
    without a request.
    """
    groups: dict[str, list[LoggedRequest]] = {}
    for served in entries.decisions.values():
        groups.setdefault(_name(served), []).append(served)
    if not groups:
        raise UserError("the log holds no request")
    if len(groups) > 1:
        groups["all"] = list(entries.decisions.values())
    return [_stream(name, group, entries, window, confidence) for name, group in groups.items()]


def _name(served: LoggedRequest) -> str:
    name = served.policy[:12]
    if served.registry_version is not None:
        name = f"version {served.registry_version}"
    return name if served.strategy is None else f"{name} + strategy {served.strategy[:6]}"


def _stream(
    name: str, group: Iterable[LoggedRequest], entries: Entries, window: int, confidence: float
) -> PolicyStream:
    evaluator = StreamEvaluator(window=window, confidence=confidence)
    requests = stopped = audited = waiting = undecided = changed = 0
    alarms = []
    for served in group:
        requests += 1
        stopped += served.stop.stopped_at is not None
        trace = entries.audits.get(served.request_id) if served.audited else None
        if trace is None:
            continue
        audited += 1
        answer = stopped_answer(trace, served)
        changed += answer != trace.final.answer
        outcome = entries.outcomes.get(served.request_id)
        waiting += outcome is None
        audit = None if outcome is None else audit_of(trace, served, outcome)
        if answer is None:
            undecided += outcome is not None
        elif audit is None:
            evaluator.saved(saving_of(full_tokens(trace), served.stop.tokens))
        elif evaluator.add(audit):
            alarms.append(Alarm(served.request_id, served.time))
    return PolicyStream(
        policy=name,
        requests=requests,
        stopped=stopped,
        audited=audited,
        waiting=waiting,
        undecided=undecided,
        changed=changed / audited if audited else math.nan,
        report=evaluator.report,
        alarms=tuple(alarms),
    )


def as_json(stream: PolicyStream) -> dict[str, Any]:
    """A stream as JSON, NaN as null."""
    row = asdict(stream) | {"report": asdict(stream.report)}
    plain: dict[str, Any] = _plain(row)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def shown(streams: Iterable[PolicyStream]) -> Table:
    """The table of ``rlbudget stream``: a column a policy, loss in points of exact match."""
    streams = list(streams)
    table = Table(header_style="", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("", no_wrap=True)
    for stream in streams:
        table.add_column(stream.policy, justify="right", no_wrap=True)

    def row(name: str, cells: Iterable[str]) -> None:
        table.add_row(name, *cells)

    row("requests", (f"{s.requests:,}" for s in streams))
    row("stopped early", (f"{s.stopped / s.requests:.1%}" for s in streams))
    row("audited", (f"{s.audited:,}" for s in streams))
    row("with an outcome", (f"{s.audited - s.waiting:,}" for s in streams))
    row("  that decides", (f"{s.report.audits - s.report.open:,}" for s in streams))
    row("answers changed", (_share(s.changed) for s in streams))
    row("EM lost, points", (_points(s.report.loss) for s in streams))
    row("  interval", (_interval(s.report.loss_interval, s, _points) for s in streams))
    row("  in the window", (_points(s.report.recent_loss) for s in streams))
    row("tokens saved", (_share(s.report.saving) for s in streams))
    row("  interval", (_interval(s.report.saving_interval, s, _share) for s in streams))
    row("  in the window", (_share(s.report.recent_saving) for s in streams))
    row("drift alarms", (_alarms(s) for s in streams))
    return table


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"


def _points(value: float) -> str:
    return "–" if math.isnan(value) else f"{round(100 * value, 1) + 0.0:+.1f}"


def _interval(ends: tuple[float, float], stream: PolicyStream, spell: Any) -> str:
    known = stream.report.audits if spell is _points else stream.report.measured
    return f"{spell(ends[0])} to {spell(ends[1])}" if known else "–"


def _alarms(stream: PolicyStream) -> str:
    if not stream.alarms:
        return "0"
    return f"{len(stream.alarms)}, last {stream.alarms[-1].time[:16]}"
