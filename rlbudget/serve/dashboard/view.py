"""What the page shows, read from the store and the running gateway."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from rlbudget.serve.experiments.kept import experiments, results
from rlbudget.serve.store.reading import Event, Price, entries, events, last_lines, prices
from rlbudget.serve.store.tables import SHADOWS
from rlbudget.strategies.experiments.betting import counted, interval
from rlbudget.strategies.experiments.design import Experiment
from rlbudget.strategies.experiments.results import ArmResult
from rlbudget.strategies.feedback.entries import Entries
from rlbudget.strategies.feedback.harvest import audit_of
from rlbudget.strategies.feedback.log import LoggedRequest
from rlbudget.strategies.feedback.production import streams_of

NEWEST = 2_000
"""requests that the page speaks of"""
_RECENT, _FINDINGS, _EVENTS = 20, 500, 12
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Range:
    """An estimate and its interval; NaN where nothing is known."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0


@dataclass(frozen=True, slots=True)
class Shadowed:
    """What cuts in shadow would have done."""

    requests: int
    cut: int
    other: int
    """answers that would have changed"""
    saved: float
    """share of the thinking tokens"""


@dataclass(frozen=True, slots=True)
class View:
    """All of it."""

    requests: int
    stopped: int
    tokens: int
    """of these requests, as they were served"""
    saving: Range
    """share of the tokens of full decodes, from audits"""
    saved_tokens: Range
    exact_match: Range
    """of the stops of audited requests whose outcome is known"""
    loss: Range
    """exact match less than the full decodes'"""
    reasons: Mapping[str, int]
    served_prices: Sequence[float]
    """the oldest first"""
    set_prices: Sequence[Price]
    recent: Sequence[LoggedRequest]
    """the newest first"""
    shadowed: Shadowed
    trials: Sequence[tuple[Experiment, Sequence[ArmResult]]]
    happened: Sequence[Event]
    alarms: Sequence[str]


def view_of(engine: Engine) -> View:
    """Read it; takes as long as some thousand lines take."""
    known = entries(engine, newest=NEWEST)
    served = list(known.decisions.values())
    saving, loss, alarms = _audited(known)
    tokens = sum(one.stop.tokens for one in served if not one.audited)
    trials = [(one, results(engine, one)) for one in experiments(engine)[:3]]
    return View(
        requests=len(served),
        stopped=sum(one.stop.stopped_at is not None for one in served),
        tokens=tokens,
        saving=saving,
        saved_tokens=_tokens_of(saving, tokens),
        exact_match=_right(known),
        loss=loss,
        reasons=Counter(one.stop.reason for one in served),
        served_prices=[one.token_price for one in served][-200:],
        set_prices=prices(engine, since=time.time() - 7 * 86_400, most=20),
        recent=served[: -_RECENT - 1 : -1],
        shadowed=_shadowed(last_lines(engine, SHADOWS, _FINDINGS)),
        trials=trials,
        happened=events(engine, _EVENTS),
        alarms=alarms,
    )


def _audited(known: Entries) -> tuple[Range, Range, list[str]]:
    nothing = Range()
    if not known.decisions:
        return nothing, nothing, []
    stream = streams_of(known)[-1]
    report = stream.report
    saving = Range(report.saving, *report.saving_interval, report.measured)
    loss = Range(report.loss, *report.loss_interval, report.audits)
    alarms = [f"{one.time[:19]}: the loss has risen" for one in stream.alarms]
    return saving if report.measured else nothing, loss if report.audits else nothing, alarms


def _tokens_of(saving: Range, tokens: int) -> Range:
    """Tokens saved by requests that were not audited: a share s of what they would have taken."""

    def saved(share: float) -> float:
        return tokens * share / (1 - share) if share < 1 else math.inf

    if math.isnan(saving.value):
        return Range()
    return Range(saved(saving.value), saved(saving.low), saved(saving.high), saving.n)


def _right(known: Entries) -> Range:
    scores = []
    for name, trace in known.audits.items():
        served, outcome = known.decisions.get(name), known.outcomes.get(name)
        audit = None if served is None or outcome is None else audit_of(trace, served, outcome)
        if audit is not None and not audit.may_be_right:
            scores.append(audit.stopped_exact_match)
    if not scores:
        return Range()
    seen = counted(scores, low=0, high=1)
    return Range(seen.mean, *interval(seen, _CONFIDENCE), seen.n)


def _shadowed(rows: Sequence[Mapping[str, Any]]) -> Shadowed:
    cuts = [row["shadow"] for row in rows if isinstance(row.get("shadow"), Mapping)]
    full = sum(row.get("thinking_tokens") or 0 for row in rows)
    saved = sum(max(cut.get("saved_tokens") or 0, 0) for cut in cuts)
    return Shadowed(
        requests=len(rows), cut=len(cuts), other=sum(not cut.get("same_answer") for cut in cuts),
        saved=saved / full if full else math.nan,
    )  # fmt: skip
