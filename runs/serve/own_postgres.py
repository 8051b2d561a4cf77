"""A PostgreSQL server of Debian's, started for a check and gone after it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _program(name: str) -> str | None:
    there = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(there[-1]) if there else shutil.which(name)


MISSING = next((name for name in ("initdb", "pg_ctl") if _program(name) is None), None)


@contextmanager
def postgres() -> Iterator[str]:
    """A new server on a socket in a folder of its own; its URL."""
    folder = Path(tempfile.mkdtemp(prefix="rlbudget-pg-", dir="/tmp"))
    data = folder / "data"
    as_user: list[str] = []
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres")
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]

    def run(name: str, *words: str) -> None:
        program = _program(name)
        assert program is not None
        subprocess.run([*as_user, program, *words], check=True, capture_output=True, cwd=folder)

    settings = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=50"
    try:
        run("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync")
        run("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", settings, "start")
        try:
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fresh(url: str, name: str) -> str:
    """A new database of a server; its URL."""
    import psycopg

    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return url.replace("/postgres?", f"/{name}?")
