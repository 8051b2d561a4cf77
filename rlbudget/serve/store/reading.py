"""Reading a store: the same entries that a decision log gives, and what is shown of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Engine, Table, delete, func, select

from rlbudget.errors import UserError
from rlbudget.serve.store.opening import open_store
from rlbudget.serve.store.tables import (
    AGEING,
    AUDITS,
    DECISIONS,
    EVENTS,
    OUTCOMES,
    PRICES,
    SHADOWS,
)
from rlbudget.strategies.feedback.entries import Entries, entries_of

_DAY = 86_400.0
_AT_ONCE = 1_000
_BREATH = 0.005
"""seconds between two times: who reads or prunes much leaves the gateway its processor"""


def read_entries(where: str | Path) -> Entries:
    """What a store holds; ``UserError`` for what is none."""
    engine = open_store(where, make=False)
    try:
        return entries(engine)
    finally:
        engine.dispose()


def entries(engine: Engine, *, experiment: str | None = None, newest: int | None = None) -> Entries:
    """All that a store holds, or what it holds of an experiment, or of the newest requests."""
    of = None
    if experiment is not None:
        of = DECISIONS.c.experiment == experiment
    elif newest is not None:
        with engine.connect() as connection:
            last = int(connection.execute(select(func.max(DECISIONS.c.id))).scalar() or 0)
        of = DECISIONS.c.id > last - newest
    return entries_of(*(_lines(engine, one, of) for one in (DECISIONS, AUDITS, OUTCOMES)))


def _lines(engine: Engine, table: Table, of: ColumnElement[bool] | None) -> Iterator[str]:
    """In the order in which they came, some at a time: a reader never holds the store up."""
    last = 0
    while True:
        asked = select(table.c.id, table.c.line).where(table.c.id > last)
        if of is not None:
            own = of if table is DECISIONS else table.c.request_id.in_(
                select(DECISIONS.c.request_id).where(of)
            )  # fmt: skip
            asked = asked.where(own)
        with engine.connect() as connection:
            rows = connection.execute(asked.order_by(table.c.id).limit(_AT_ONCE)).all()
        if not rows:
            return
        last = rows[-1][0]
        yield from (str(line) for _, line in rows)
        if len(rows) < _AT_ONCE:
            return
        time.sleep(_BREATH)


def last_lines(engine: Engine, table: Table, n: int) -> list[dict[str, Any]]:
    """The newest ``n`` lines of a table as objects, the newest first."""
    with engine.connect() as connection:
        asked = select(table.c.line).order_by(table.c.id.desc()).limit(n)
        return [json.loads(line) for line in connection.execute(asked).scalars()]


@dataclass(frozen=True, slots=True)
class Price:
    """A price that holds for a plan."""

    at: float
    plan: str
    token_price: float | None
    """None: the plan's own"""
    why: str


def prices(engine: Engine, *, since: float = 0.0, most: int = 1_000) -> list[Price]:
    """The newest ``most`` of them since then (seconds since 1970), the oldest first."""
    columns = (PRICES.c.at, PRICES.c.plan, PRICES.c.token_price, PRICES.c.why)
    asked = select(*columns).where(PRICES.c.at >= since).order_by(PRICES.c.id.desc()).limit(most)
    with engine.connect() as connection:
        return [Price(*row) for row in reversed(connection.execute(asked).all())]


def price_of(engine: Engine, plan: str) -> float | None:
    """The one that holds for a plan now; None: its own."""
    asked = select(PRICES.c.token_price).where(PRICES.c.plan == plan)
    with engine.connect() as connection:
        return connection.execute(asked.order_by(PRICES.c.id.desc()).limit(1)).scalar()


@dataclass(frozen=True, slots=True)
class Event:
    """An alarm, or what was done by command or button."""

    at: float
    kind: str
    content: dict[str, Any]


def events(engine: Engine, n: int) -> list[Event]:
    """The newest ``n``, the newest first."""
    asked = select(EVENTS.c.at, EVENTS.c.kind, EVENTS.c.content).order_by(EVENTS.c.id.desc())
    with engine.connect() as connection:
        rows = connection.execute(asked.limit(n)).all()
    return [Event(at, kind, json.loads(content)) for at, kind, content in rows]


def last_event(engine: Engine, kind: str) -> Event | None:
    """The newest of a kind; None where there is none."""
    asked = select(EVENTS.c.at, EVENTS.c.content).where(EVENTS.c.kind == kind)
    with engine.connect() as connection:
        row = connection.execute(asked.order_by(EVENTS.c.id.desc()).limit(1)).first()
    return None if row is None else Event(row[0], kind, json.loads(row[1]))


def knows(engine: Engine, request_id: str) -> bool:
    """Whether a request is in the store."""
    with engine.connect() as connection:
        return any(
            connection.execute(
                select(table.c.id).where(table.c.request_id == request_id).limit(1)
            ).first()
            for table in (DECISIONS, AUDITS, SHADOWS)
        )


def counts(engine: Engine) -> dict[str, int]:
    """Rows of each table that grows."""
    with engine.connect() as connection:
        return {
            table.name: int(
                connection.execute(select(func.count()).select_from(table)).scalar_one()
            )
            for table in AGEING
        }


def prune(engine: Engine, *, days: float, running: tuple[str, ...] = ()) -> dict[str, int]:
    """Delete what is older than so many days; the rows deleted from each table.

    Requests of ``running`` experiments are kept, with what was found out about them, and the last
    price of each plan. Raises ``UserError`` for a negative number.
    """
    if not 0 <= days < 1e6:
        raise UserError(f"a retention of {days:g} days: at least 0")
    before = time.time() - days * _DAY
    kept = select(DECISIONS.c.request_id).where(DECISIONS.c.experiment.in_(running))
    last = select(func.max(PRICES.c.id)).group_by(PRICES.c.plan)
    done = {}
    for table in (AUDITS, OUTCOMES, SHADOWS, DECISIONS, PRICES, EVENTS):  # decisions are asked for
        old = table.c.at < before
        if table is PRICES:
            old &= table.c.id.not_in(last)
        elif table is EVENTS:  # the mode holds until another is set
            old &= EVENTS.c.kind != "mode"
        elif table is DECISIONS:
            old &= table.c.experiment.is_(None) | table.c.experiment.not_in(running)
        elif running:
            old &= table.c.request_id.not_in(kept)
        done[table.name] = _delete(engine, table, old)
    return done


def _delete(engine: Engine, table: Table, old: ColumnElement[bool]) -> int:
    """Some at a time: whoever writes beside it never waits for long."""
    total = 0
    while True:
        some = select(table.c.id).where(old).limit(_AT_ONCE)
        with engine.begin() as connection:
            gone = int(connection.execute(delete(table).where(table.c.id.in_(some))).rowcount)
        total += gone
        if gone < _AT_ONCE:
            return total
        time.sleep(_BREATH)
