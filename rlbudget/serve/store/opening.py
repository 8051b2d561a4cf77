"""Opening a store: SQLite by a path, PostgreSQL by a URL; its tables are made or mended.

A SQLite file is in WAL mode: readers never wait for the writer, and what was committed outlives the
process. Two processes may open a new store at once; one of them makes the tables.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from rlbudget.errors import UserError
from rlbudget.files.folders import locked

PATIENCE = 2.0
"""seconds that a statement waits for a locked SQLite file"""
_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
_MIGRATIONS = Path(__file__).with_name("migrations")
_ADVISORY = 7_241_530
"""key of the lock under which PostgreSQL's tables are made"""


def open_store(where: str | Path, *, make: bool = True) -> Engine:
    """The store at ``where``: a file, or ``postgresql://USER@HOST/NAME``.

    PostgreSQL's password is taken from PGPASSWORD where the URL has none. Raises ``UserError``
    where it cannot be opened, for a database of another kind, and without
    ``make`` for a file that is not there.
    """
    url = _url(where)
    file = None if url.database is None or url.drivername != "sqlite" else Path(url.database)
    if file is not None:
        if not make and not file.is_file():
            raise UserError(f"{where}: no such store")
        if file.is_dir():
            raise UserError(f"{where} is a folder, not a store")
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        engine = create_engine(url, pool_pre_ping=file is None, connect_args=_arguments(file))
    except ModuleNotFoundError:
        raise UserError('PostgreSQL needs: pip install "rlbudget[postgres]"') from None
    if file is not None:
        event.listen(engine, "connect", _begin_sqlite)
    try:
        _bring_up_to_date(engine, file)
    except (SQLAlchemyError, CommandError, OSError) as error:
        engine.dispose()
        raise UserError(f"{shown(url)}: {first_line(error)}") from None
    return engine


def shown(url: URL) -> str:
    """Where a store is, without its password."""
    if url.drivername == "sqlite":
        return str(url.database)
    return url.render_as_string(hide_password=True)


def first_line(error: Exception) -> str:
    """What an error of the database says, without the statement."""
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().partition("\n")[0] or type(error).__name__


def _url(where: str | Path) -> URL:
    said = str(where)
    if not said.strip() or "\0" in said:
        raise UserError(f"{said!r} is no place for a store")
    if "://" not in said:
        return URL.create("sqlite", database=said)
    try:
        url = make_url(said)
    except (ArgumentError, ValueError):
        raise UserError("the store's URL cannot be read: postgresql://USER@HOST/NAME") from None
    if url.drivername == "sqlite":
        if not url.database:
            raise UserError("sqlite:// needs a file: sqlite:///FILE")
        return URL.create("sqlite", database=url.database)
    if url.drivername not in _POSTGRES:
        raise UserError(f"a store is a file or postgresql://…, not {url.drivername}://")
    return url.set(drivername="postgresql+psycopg")


def _arguments(file: Path | None) -> dict[str, Any]:
    if file is not None:
        return {"timeout": PATIENCE}
    return {"connect_timeout": 5, "options": "-c statement_timeout=10000 -c lock_timeout=5000"}


def _begin_sqlite(connection: Any, _: Any) -> None:
    for said in ("journal_mode=WAL", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {said}").close()


def _bring_up_to_date(engine: Engine, file: Path | None) -> None:
    with _alone(engine, file) as connection:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        quiet = logging.getLogger("alembic")
        quiet.setLevel(max(quiet.level, logging.WARNING))
        command.upgrade(config, "head")


@contextmanager
def _alone(engine: Engine, file: Path | None) -> Iterator[Connection]:
    """One process at a time."""
    if file is not None:
        name = f".{file.name}.lock"
        with locked(file.absolute().parent, name=name, wait=60.0), engine.begin() as connection:
            yield connection
        return
    with engine.begin() as connection:
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY})"))
        yield connection
