"""Reading a decision log: what was served, audited and found out, by request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from rlbudget.errors import UserError
from rlbudget.strategies.feedback.log import (
    AUDITS,
    DECISIONS,
    OUTCOMES,
    CorrectionEntry,
    Feedback,
    GuardEntry,
    LoggedRequest,
    ModelTokens,
    Stop,
    parsed,
)
from rlbudget.traces.interchange import trace_from_dict
from rlbudget.traces.trace import Trace

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Entries:
    """What a log holds, by request id. Of several lines of one id the last counts."""

    decisions: Mapping[str, LoggedRequest]
    """in the order in which they were served"""
    audits: Mapping[str, Trace]
    """not yet scored: no target, and every exact match is 0"""
    outcomes: Mapping[str, Feedback]
    damaged: int
    """lines that were left out: torn, of another version, or not what they should be"""


def read_log(folder: Path | str) -> Entries:
    """All that a log holds. Raises ``UserError`` for a folder that is no log."""
    folder = Path(folder)
    if not any((folder / name).is_file() for name in (DECISIONS, AUDITS)):
        raise UserError(
            f'{folder} is no decision log; one is made by a plan with [audit] log = "log"'
        )
    decisions = list(_rows(folder / DECISIONS, _served))
    audits = list(_rows(folder / AUDITS, _audit))
    outcomes = list(_rows(folder / OUTCOMES, _outcome))
    return Entries(
        decisions={row.request_id: row for row in decisions if row is not None},
        audits={row.trace_id: row for row in audits if row is not None},
        outcomes={row.request_id: row for row in outcomes if row is not None},
        damaged=sum(rows.count(None) for rows in (decisions, audits, outcomes)),
    )


def _rows(path: Path, read: Callable[[dict[str, Any]], Row]) -> Iterator[Row | None]:
    """The lines of a file, None for a damaged one."""
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for line in filter(bytes.strip, lines):
            row = parsed(line)
            try:
                yield None if row is None else read(row)
            except (AttributeError, KeyError, TypeError, UserError):
                yield None


def _served(row: Mapping[str, Any]) -> LoggedRequest:
    given = _known(row, LoggedRequest)
    given["stop"] = Stop(**_known(row["stop"], Stop))
    for name, kind in (("guard", GuardEntry), ("correction", CorrectionEntry)):
        if given.get(name) is not None:
            given[name] = kind(**_known(given[name], kind))
    given["rules"] = tuple(given.get("rules", ()))
    given["models"] = tuple(ModelTokens(**_known(m, ModelTokens)) for m in given.get("models", ()))
    return LoggedRequest(**given)


def _audit(row: dict[str, Any]) -> Trace:
    for unscored in (row["final"], *(point["exit"] for point in row["checkpoints"])):
        unscored["exact_match"] = 0
    unknown = trace_from_dict({**row, "target": "unknown"})
    return replace(unknown, target="")


def _outcome(row: Mapping[str, Any]) -> Feedback:
    return Feedback(**_known(row, Feedback))


def _known(row: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
    """The fields of a dataclass; ``TypeError`` follows where one is missing."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in row.items() if name in names}
