"""Stores for tests: a SQLite file, and a PostgreSQL server of Debian's where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from runs.serve import own_postgres
from runs.serve.own_postgres import fresh

__all__ = ["fresh", "postgres"]


@contextmanager
def postgres() -> Iterator[str]:
    """A new server; its URL. Skips the test without one."""
    if own_postgres.MISSING is not None:
        pytest.skip(f"no PostgreSQL ({own_postgres.MISSING}): install Debian's package postgresql")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with own_postgres.postgres() as url:
        yield url
