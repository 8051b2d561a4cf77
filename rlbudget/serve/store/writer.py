"""Writing to a store beside the streams: one thread, a bounded queue, a transaction for many rows.

Whoever adds a row never waits. Where the queue is full the row is lost, and counted; where the
store is locked or full the thread tries again, and the queue fills. ``added`` gives a future for
what must be acknowledged: it is done when the row is committed.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, Table, insert
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from rlbudget.serve.store.opening import first_line

WAITING = 10_000
"""rows that may wait"""
_TOGETHER = 500
"""rows of a transaction"""
_GATHER = 0.02
"""seconds that rows are gathered for"""
_PAUSES = (0.05, 0.2, 1.0, 2.0)
"""seconds between two tries"""
_LAST = 5.0
"""seconds that closing gives what waits"""

_log = logging.getLogger("rlbudget.serve")


@dataclass(slots=True)
class _Row:
    table: Table
    values: Mapping[str, Any]
    done: Future[None] | None = None


@dataclass(slots=True)
class Written:
    """What became of the rows."""

    rows: int = 0
    lost: int = 0
    """because the queue was full, or the database refused them"""
    faults: int = 0
    """transactions that failed, and were tried again"""


class LostRowError(Exception):
    """A row that was to be acknowledged and could not be kept."""


@dataclass(eq=False)
class Writer:
    """Writes rows in the order in which they are added; for any number of threads."""

    engine: Engine
    waiting: int = WAITING
    written: Written = field(default_factory=Written)

    def __post_init__(self) -> None:
        self._rows: queue.Queue[_Row] = queue.Queue(self.waiting)
        self._count = threading.Lock()
        self._closing = threading.Event()
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._run, name="rlbudget-store", daemon=True)
        self._thread.start()

    def add(self, table: Table, values: Mapping[str, Any]) -> bool:
        """Write a row soon; whether there was room for it. O(1), waits for nothing."""
        return self._put(_Row(table, values))

    def added(self, table: Table, values: Mapping[str, Any]) -> Future[None]:
        """Write a row soon; the future is done once it is committed, or holds why it is not."""
        row = _Row(table, values, Future())
        assert row.done is not None
        if not self._put(row):
            row.done.set_exception(LostRowError("the store is behind: try again"))
        return row.done

    @property
    def depth(self) -> int:
        """Rows that wait."""
        return self._rows.qsize()

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until all that was added before is committed or lost; whether it is."""
        deadline = time.monotonic() + timeout
        while self._rows.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.002)
        return not self._rows.unfinished_tasks

    def close(self) -> None:
        """Write what waits, for some seconds at most; what is added from now on is lost."""
        if self._closing.is_set():
            return
        self._deadline = time.monotonic() + _LAST
        self._closing.set()
        self._thread.join(_LAST + 5.0)

    def _put(self, row: _Row) -> bool:
        if not self._closing.is_set():
            try:
                self._rows.put_nowait(row)
                return True
            except queue.Full:
                pass
        self.lose(1)
        return False

    def lose(self, rows: int = 1) -> None:
        """Count rows that are lost."""
        with self._count:
            if not self.written.lost:
                _log.warning("the store is full or locked: records are lost, answers are not")
            self.written.lost += rows

    def _run(self) -> None:
        while True:
            try:
                first = self._rows.get(timeout=0.1)
            except queue.Empty:
                if self._closing.is_set():
                    return
                continue
            batch = [first]
            if not self._closing.is_set() and first.done is None:
                time.sleep(_GATHER)
            while len(batch) < _TOGETHER:
                try:
                    batch.append(self._rows.get_nowait())
                except queue.Empty:
                    break
            try:
                self._write(batch)
            except Exception as error:  # the thread must live: later rows may be sound
                _log.error("the store's writer met a fault", exc_info=error)
                self._give_up(batch, error)
            for _ in batch:
                self._rows.task_done()

    def _write(self, batch: Sequence[_Row]) -> None:
        tries = 0
        while True:
            try:
                with self.engine.begin() as connection:
                    _insert(connection, batch)
                break
            except (DataError, IntegrityError, OverflowError, ValueError, TypeError) as error:
                if len(batch) == 1:
                    return self._give_up(batch, error)
                for row in batch:  # one of them is at fault: the others are kept
                    self._write([row])
                return None
            except SQLAlchemyError as error:
                with self._count:
                    self.written.faults += 1
                if not tries:
                    _log.warning("the store cannot be written, trying again: %s", first_line(error))
                pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
                tries += 1
                late = self._deadline is not None and time.monotonic() + pause > self._deadline
                if late:
                    return self._give_up(batch, error)
                time.sleep(pause)
        with self._count:
            self.written.rows += len(batch)
        for row in batch:
            if row.done is not None:
                row.done.set_result(None)
        return None

    def _give_up(self, batch: Sequence[_Row], error: Exception) -> None:
        self.lose(len(batch))
        for row in batch:
            if row.done is not None and not row.done.done():
                row.done.set_exception(LostRowError(first_line(error)))


def _insert(connection: Connection, batch: Sequence[_Row]) -> None:
    """Rows of one table together; those of a table stay in their order."""
    tables: dict[str, tuple[Table, list[Mapping[str, Any]]]] = {}
    for row in batch:
        tables.setdefault(row.table.name, (row.table, []))[1].append(row.values)
    for table, values in tables.values():
        connection.execute(insert(table), values)
