"""The store of a running gateway: where its requests are noted, and its prices and events kept."""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Engine, insert, select
from sqlalchemy.exc import IntegrityError

from rlbudget.errors import UserError
from rlbudget.serve.store.opening import open_store
from rlbudget.serve.store.reading import knows
from rlbudget.serve.store.tables import (
    AUDITS,
    DECISIONS,
    EVENTS,
    OUTCOMES,
    PRICES,
    SECRETS,
    SHADOWS,
)
from rlbudget.serve.store.writer import Writer
from rlbudget.strategies.feedback.log import (
    Feedback,
    LoggedRequest,
    audit_line,
    decision_line,
    line_of,
    outcome_line,
)
from rlbudget.traces.trace import Trace

_log = logging.getLogger("rlbudget.serve")
_MOST_ASSIGNED = 10_000


@dataclass(frozen=True, slots=True)
class Assignment:
    """The arm of an experiment that a request was drawn into."""

    experiment: str
    arm: str
    propensity: float
    unit: str


@dataclass(eq=False)
class Store:
    """Notes requests as a decision log does (``strategies.feedback.log.Log``), by ``writer``."""

    engine: Engine
    store_text: bool = False
    writer: Writer = field(init=False)

    def __post_init__(self) -> None:
        self.writer = Writer(self.engine)
        self._assigned: dict[str, Assignment] = {}
        self._unsaid = True

    @property
    def failures(self) -> int:
        """Records that were lost."""
        return self.writer.written.lost

    def assign(self, request_id: str, assignment: Assignment) -> None:
        """The arm of a request that is about to be decoded; for the line that will note it."""
        if len(self._assigned) >= _MOST_ASSIGNED:  # of requests that were never noted
            self._assigned.pop(next(iter(self._assigned)), None)
        self._assigned[request_id] = assignment

    def forget(self, request_id: str) -> None:
        """A request is over, noted or not."""
        self._assigned.pop(request_id, None)

    def decision(self, served: LoggedRequest) -> None:
        """Note a served request."""
        with self._unharmed():
            arm = self._assigned.pop(served.request_id, None)
            if arm is not None:
                served = replace(
                    served, experiment=arm.experiment, arm=arm.arm, propensity=arm.propensity,
                    unit=arm.unit,
                )  # fmt: skip
            self.writer.add(DECISIONS, {
                "at": time.time(), "request_id": served.request_id,
                "experiment": served.experiment, "arm": served.arm, "unit": served.unit,
                "line": decision_line(served, store_text=self.store_text),
            })  # fmt: skip

    def audit(self, trace: Trace) -> None:
        """Note an audited request's full decode."""
        with self._unharmed():
            self.writer.add(
                AUDITS,
                {"at": time.time(), "request_id": trace.trace_id, "line": audit_line(trace)},
            )

    def shadow(self, request_id: str, found: Mapping[str, Any]) -> None:
        """Note what a cut in shadow would have done; the answer only where texts are kept."""
        with self._unharmed():
            cut = found.get("shadow")
            if isinstance(cut, Mapping) and not self.store_text:
                found = {**found, "shadow": {n: v for n, v in cut.items() if n != "answer"}}
            self.writer.add(
                SHADOWS, {"at": time.time(), "request_id": request_id, "line": line_of(found)}
            )

    def outcome(self, found: Feedback) -> Future[None]:
        """Note feedback; done once it is committed."""
        if not self.store_text:
            found = replace(found, comment=None)
        row = {"at": time.time(), "request_id": found.request_id, "line": outcome_line(found)}
        return self.writer.added(OUTCOMES, row)

    def event(self, kind: str, **content: Any) -> Future[None]:
        """Note an alarm, or what a command or a button did."""
        row = {"at": time.time(), "kind": kind, "content": json.dumps(content, allow_nan=False)}
        return self.writer.added(EVENTS, row)

    def set_price(self, plan: str, token_price: float | None, why: str) -> Future[None]:
        """What requests of a plan are served at from now on that say nothing; None: its own."""
        row = {"at": time.time(), "plan": plan, "token_price": token_price, "why": why}
        return self.writer.added(PRICES, row)

    def secret(self, name: str) -> bytes:
        """A random key, the same for all gateways of this store; made when first asked for."""
        found = self._secret(name)
        if found is None:
            made = {"name": name, "content": secrets.token_hex(32)}
            with contextlib.suppress(IntegrityError), self.engine.begin() as connection:
                connection.execute(insert(SECRETS), made)
            found = self._secret(name)
        assert found is not None
        return bytes.fromhex(found)

    def close(self) -> None:
        """Write what waits."""
        self.writer.close()
        self.engine.dispose()

    def _secret(self, name: str) -> str | None:
        with self.engine.connect() as connection:
            asked = select(SECRETS.c.content).where(SECRETS.c.name == name)
            found = connection.execute(asked).scalar_one_or_none()
        return None if found is None else str(found)

    @contextlib.contextmanager
    def _unharmed(self) -> Any:
        """Whatever goes wrong, the answer must come."""
        try:
            yield
        except Exception as error:
            self.writer.lose()
            if self._unsaid:
                self._unsaid = False
                _log.warning("a request could not be noted: %s", error)


def note_event(engine: Engine, kind: str, **content: Any) -> None:
    """Note what a command did; waits until it is committed."""
    row = {"at": time.time(), "kind": kind, "content": json.dumps(content, allow_nan=False)}
    with engine.begin() as connection:
        connection.execute(insert(EVENTS), row)


def tell(where: str, outcome: Feedback) -> None:
    """Note in a store what an operator found out; waits until it is committed.

    Raises ``UserError`` for a store that is not there and a request that it does not hold.
    """
    engine = open_store(where, make=False)
    try:
        if not knows(engine, outcome.request_id):
            raise UserError(f"{where} holds no request {outcome.request_id!r}")
        row = {"at": time.time(), "request_id": outcome.request_id, "line": outcome_line(outcome)}
        with engine.begin() as connection:
            connection.execute(insert(OUTCOMES), row)
    finally:
        engine.dispose()


def opened(where: str, *, store_text: bool = False) -> Store:
    """A store to write to; ``UserError`` as ``open_store`` raises it."""
    return Store(open_store(where), store_text)
