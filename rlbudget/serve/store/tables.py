"""The store's tables. What a request was is the line of a decision log, whole, in ``line``."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

_NUMBER = BigInteger().with_variant(Integer, "sqlite")
LONGEST_NAME = 200
"""characters of the name of an experiment or an arm"""

METADATA = MetaData()


def _lines(name: str, *more: Column[str]) -> Table:
    """A table that only grows: a line of a log each, in the order in which they came."""
    return Table(
        name, METADATA,
        Column("id", _NUMBER, primary_key=True, autoincrement=True),
        Column("at", Float(53), nullable=False, index=True),
        Column("request_id", Text, nullable=False, index=True),
        *more,
        Column("line", Text, nullable=False),
    )  # fmt: skip


DECISIONS = _lines(
    "decisions",
    Column("experiment", String(LONGEST_NAME)),
    Column("arm", String(LONGEST_NAME)),
    Column("unit", String(64)),
)
Index("ix_decisions_experiment_id", DECISIONS.c.experiment, DECISIONS.c.id)
AUDITS = _lines("audits")
OUTCOMES = _lines("outcomes")
SHADOWS = _lines("shadows")
"""what cuts in shadow would have done"""

PRICES = Table(
    "prices", METADATA,
    Column("id", _NUMBER, primary_key=True, autoincrement=True),
    Column("at", Float(53), nullable=False, index=True),
    Column("plan", String(LONGEST_NAME), nullable=False),
    Column("token_price", Float(53)),
    Column("why", Text, nullable=False),
)  # fmt: skip
"""what requests of a plan are served at that say nothing; the last row holds, null: the plan's"""
EXPERIMENTS = Table(
    "experiments", METADATA,
    Column("name", String(LONGEST_NAME), primary_key=True),
    Column("at", Float(53), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("content", Text, nullable=False),
)  # fmt: skip
EVENTS = Table(
    "events", METADATA,
    Column("id", _NUMBER, primary_key=True, autoincrement=True),
    Column("at", Float(53), nullable=False, index=True),
    Column("kind", String(64), nullable=False),
    Column("content", Text, nullable=False),
)  # fmt: skip
"""alarms, and what was done by command or button"""
SECRETS = Table(
    "secrets", METADATA,
    Column("name", String(64), primary_key=True),
    Column("content", Text, nullable=False),
)  # fmt: skip

AGEING = (DECISIONS, AUDITS, OUTCOMES, SHADOWS, PRICES, EVENTS)
"""those that a retention holds for"""
