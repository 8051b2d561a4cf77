"""Reading a decision log: what was served, audited and found out, by request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from rlbudget.errors import UserError
from rlbudget.strategies.feedback.log import (
    AUDITS,
    DECISIONS,
    OUTCOMES,
    Feedback,
    LoggedRequest,
    parsed,
)
from rlbudget.traces.interchange import trace_from_dict
from rlbudget.traces.trace import Trace

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Entries:
    """What a log holds, by request id. Of several lines of one id the last counts; of outcomes the
    last target, and a verdict only where no target was told: it tells less."""

    decisions: Mapping[str, LoggedRequest]
    """in the order in which they were served"""
    audits: Mapping[str, Trace]
    """not yet scored: no target, and every exact match is 0"""
    outcomes: Mapping[str, Feedback]
    damaged: int
    """lines that were left out: torn, of another version, or not what they should be"""
    ratings: Mapping[str, float] = field(default_factory=dict)
    """how content the users are, in [0, 1], where they said so"""


def read_log(folder: Path | str) -> Entries:
    """All that a log holds. Raises ``UserError`` for a folder that is no log."""
    folder = Path(folder)
    if not any((folder / name).is_file() for name in (DECISIONS, AUDITS)):
        raise UserError(
            f'{folder} is no decision log; one is made by a plan with [audit] log = "log"'
        )
    return entries_of(*(_lines(folder / name) for name in (DECISIONS, AUDITS, OUTCOMES)))


def entries_of(
    decisions: Iterable[bytes | str], audits: Iterable[bytes | str], outcomes: Iterable[bytes | str]
) -> Entries:
    """What the lines of a log say, whatever they are kept in."""
    served = list(_rows(decisions, served_of))
    traces = list(_rows(audits, _audit))
    told = list(_rows(outcomes, _outcome))
    known = [row for row in told if row is not None]
    return Entries(
        decisions={row.request_id: row for row in served if row is not None},
        audits={row.trace_id: row for row in traces if row is not None},
        outcomes=_told(row for row in known if row.scores),
        damaged=sum(rows.count(None) for rows in (served, traces, told)),
        ratings={row.request_id: row.rating for row in known if row.rating is not None},
    )


def _lines(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with path.open("rb") as lines:
            yield from filter(bytes.strip, lines)


def _rows(
    lines: Iterable[bytes | str], read: Callable[[dict[str, Any]], Row]
) -> Iterator[Row | None]:
    """The lines of a file, None for a damaged one."""
    for line in lines:
        row = parsed(line)
        try:
            yield None if row is None else read(row)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            yield None


MOST_TOKENS = 10**9
_HIGHEST_PRICE = 1e6


def _told(rows: Iterable[Feedback]) -> dict[str, Feedback]:
    """The outcome of each request."""
    found: dict[str, Feedback] = {}
    for row in rows:
        before = found.get(row.request_id)
        if before is None or before.target is None or row.target is not None:
            found[row.request_id] = row
    return found


def served_of(row: Mapping[str, Any]) -> LoggedRequest:
    """A line of a decision; raises ``ValueError`` or ``TypeError`` for what is none."""
    served = msgspec.convert(row, LoggedRequest)
    stop, spent = served.stop, served.models
    counts = [stop.thinking_tokens, stop.probe_tokens, stop.answer_tokens, stop.stopped_at or 0]
    counts += [n for m in spent for n in (m.thinking_tokens, m.probe_tokens, m.answer_tokens)]
    shares = [stop.stop_probability, *served.members.values()]
    shares += [] if served.guard is None else [served.guard.risk, served.guard.max_risk]
    shares += [] if served.correction is None else [served.correction.doubt]
    shares.append(served.propensity)
    prices = [served.token_price, *(one.ratio for one in spent)]
    lawful = (
        all(0 <= count <= MOST_TOKENS for count in counts)
        and all(share is None or 0 <= share <= 1 for share in shares)
        and all(0 <= price <= _HIGHEST_PRICE for price in prices)
    )
    if not lawful:
        raise ValueError("a number beyond what it can be")
    return served


def _audit(row: dict[str, Any]) -> Trace:
    for unscored in (row["final"], *(point["exit"] for point in row["checkpoints"])):
        unscored["exact_match"] = 0
    unknown = trace_from_dict({**row, "target": "unknown"})
    return replace(unknown, target="")


def _outcome(row: Mapping[str, Any]) -> Feedback:
    outcome = msgspec.convert(row, Feedback)
    if outcome.target is not None and outcome.right is not None:
        raise ValueError("a target makes a verdict idle")
    if not outcome.scores and outcome.rating is None and outcome.comment is None:
        raise ValueError("it says nothing")
    if outcome.rating is not None and not 0 <= outcome.rating <= 1:  # false for NaN
        raise ValueError("a rating out of [0, 1]")
    if outcome.target is not None and not outcome.target.strip():
        raise ValueError("an empty target")
    return outcome
