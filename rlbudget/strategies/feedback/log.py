"""The decision log: a line for each served request, each audit and each outcome.

A folder of three files that only ever grow::

    decisions.jsonl     where each request's thinking stopped, why and at what cost
    audits.jsonl        the full decodes of audited requests, as traces that lack their target
    outcomes.jsonl      what the right answer was, told afterwards

A line is one write at the end of its file, so several processes may write at once. A line that a
kill or a full disk left torn is skipped and counted when it is read; the next one begins anew.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlbudget.errors import UserError
from rlbudget.policy.controller import Reason
from rlbudget.traces.trace import Trace, trace_to_dict

DECISIONS, AUDITS, OUTCOMES = "decisions.jsonl", "audits.jsonl", "outcomes.jsonl"
VERSION = 1

_log = logging.getLogger("rlbudget")


@dataclass(frozen=True, slots=True)
class Stop:
    """Where and why a policy ended a thinking, and what that cost."""

    reason: Reason
    stopped_at: int | None
    """thinking tokens at the stop; None where the policy did not stop it"""
    stop_probability: float | None
    """at the last checkpoint; None where there was none"""
    thinking_tokens: int
    probe_tokens: int
    answer_tokens: int

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.thinking_tokens + self.probe_tokens + self.answer_tokens


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """A request that was served."""

    request_id: str
    time: str
    """UTC, ISO 8601"""
    policy: str
    """digest of the policy"""
    registry_version: int | None
    """of the policy, where it came from a registry"""
    strategy: str | None
    """digest of what stands over the policy (an ensemble, a guard, rules); None for nothing"""
    token_price: float
    audited: bool
    stop: Stop
    """what the policy did; for an audited request what it would have done"""
    question: str | None = None
    """kept only by a log that stores texts"""
    answer: str | None = None
    """the one that was given; kept only by a log that stores texts"""


@dataclass(frozen=True, slots=True)
class Feedback:
    """What was found out about a request's answer: one of the two is there."""

    request_id: str
    time: str
    target: str | None = None
    """the right answer"""
    right: bool | None = None
    """whether the answer that was given is right"""


class DecisionLog:
    """Writes a log; nothing that goes wrong with it reaches the caller, who has an answer to give.

    The first failure is logged as a warning, the others are counted. ``store_text`` keeps the
    question and the answer of every request, and the thinking of audited ones. An audit keeps
    its question and answers either way: without them it could be neither scored nor learned from.
    """

    def __init__(self, folder: Path | str, *, store_text: bool = False) -> None:
        self.folder = Path(folder)
        self.store_text = store_text
        self.failures = 0
        """lines that could not be written"""

    def decision(self, served: LoggedRequest) -> None:
        """Note a served request."""
        row = asdict(served)
        if not self.store_text:
            del row["question"], row["answer"]
        self._note(DECISIONS, row)

    def audit(self, trace: Trace) -> None:
        """Note an audited request's full decode: a trace, not yet scored, whose id is the
        request's."""  # fmt: skip
        row = trace_to_dict(trace)
        for scored in (row["final"], *(point["exit"] for point in row["checkpoints"])):
            del scored["exact_match"]
        del row["target"]
        self._note(AUDITS, row)

    def _note(self, name: str, row: Mapping[str, Any]) -> None:
        try:
            append(self.folder / name, row)
        except (OSError, ValueError, TypeError) as error:
            if not self.failures:
                _log.warning("the decision log %s cannot be written: %s", self.folder, error)
            self.failures += 1


def now() -> str:
    """UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line in one write, on a line of its own even after a torn one.

    Raises ``OSError`` where it cannot be written whole, ``ValueError`` for what is not JSON.
    """
    line = json.dumps({"version": VERSION, **row}, allow_nan=False).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size:
            os.lseek(handle, size - 1, os.SEEK_SET)
            if os.read(handle, 1) != b"\n":
                line = b"\n" + line
        if os.write(handle, line) < len(line):
            raise OSError("no room for the whole line")
    finally:
        os.close(handle)


def feedback(
    folder: Path | str, request_id: str, *, target: str | None = None, right: bool | None = None
) -> Feedback:
    """Note what a request's right answer was, or whether the one that was given is right.

    Raises ``UserError`` unless exactly one of the two is told, for an empty target, a request
    that the log does not hold, and a log that cannot be written.
    """
    if (target is None) == (right is None):
        raise UserError("feedback takes one of: --target TEXT, --right, --wrong")
    if target is not None and not target.strip():
        raise UserError("the target is empty")
    if not any(_holds(Path(folder) / name, request_id) for name in (DECISIONS, AUDITS)):
        raise UserError(f"{folder} holds no request {request_id!r}")
    outcome = Feedback(request_id, now(), target, right)
    try:
        append(Path(folder) / OUTCOMES, asdict(outcome))
    except OSError as error:
        raise UserError(f"{folder}: cannot write here: {error.strerror or error}") from None
    return outcome


def _holds(path: Path, request_id: str) -> bool:
    """Whether a file has a line of this request; only lines that name the id are parsed."""
    if not path.is_file():
        return False
    named = json.dumps(request_id).encode()
    with path.open("rb") as lines:
        rows = (parsed(line) for line in lines if named in line)
        return any(
            row and request_id in (row.get("request_id"), row.get("trace_id")) for row in rows
        )


def parsed(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None where it is torn, or of another version."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and row.get("version") == VERSION else None
