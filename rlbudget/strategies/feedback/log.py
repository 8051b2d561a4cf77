"""The decision log: a line for each served request, each audit and each outcome.

A folder of three files that only ever grow::

    decisions.jsonl     where each request's thinking stopped, why and at what cost
    audits.jsonl        the full decodes of audited requests, as traces that lack their target
    outcomes.jsonl      what the right answer was, told afterwards

Many threads and processes may write at once (``lines``). A line that a kill left torn is cut off
by the next writer; one at the end of a file is skipped and counted when it is read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec

from rlbudget.errors import UserError
from rlbudget.policy.controller import Reason
from rlbudget.strategies.feedback.lines import PATIENCE, add_line
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
class ModelTokens:
    """What one of several models spent on a request."""

    model: str
    thinking_tokens: int
    probe_tokens: int
    answer_tokens: int
    ratio: float = 1.0
    """what a token of it costs, in tokens that the token price is for"""


@dataclass(frozen=True, slots=True)
class GuardEntry:
    """What a guard did."""

    risk: float | None
    """of losing the answer, where it was last asked; None where it was not"""
    max_risk: float
    held: int
    """checkpoints at which it took a stop back"""


@dataclass(frozen=True, slots=True)
class CorrectionEntry:
    """What a correction did."""

    resumed: int
    """how often an exit was taken back and the thinking went on"""
    doubt: float | None
    """in the exit whose answer was given; None where there was none"""
    model: str | None = None
    """the second model that refined the exit, where one did"""


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """A request that was served.

    Of the fields with a default a line holds those that say something else.
    """

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
    engine: str | None = None
    """what decoded: transformers, hf, vllm, sglang, llama-server, llama-cpp-python, openai"""
    effort: str | None = None
    """name of the operating point that the token price stands for"""
    rules: tuple[str, ...] = ()
    """names of the rules that acted, in the order of their file"""
    members: Mapping[str, float] = field(default_factory=dict)
    """chance to stop of each policy of an ensemble, at the last checkpoint"""
    guard: GuardEntry | None = None
    correction: CorrectionEntry | None = None
    answered_by: str | None = None
    """the model whose answer was given, where there were several"""
    escalated: bool = False
    """whether a cascade handed over"""
    models: tuple[ModelTokens, ...] = ()
    """what each model spent, where there were several"""
    experiment: str | None = None
    """that the request was part of"""
    arm: str | None = None
    """of the experiment"""
    propensity: float | None = None
    """chance with which the arm was drawn"""
    unit: str | None = None
    """digest of what the arm was drawn by: a user, a conversation or the request"""


@dataclass(frozen=True, slots=True)
class Feedback:
    """What was found out about a request's answer: target, verdict or rating."""

    request_id: str
    time: str
    target: str | None = None
    """the right answer"""
    right: bool | None = None
    """whether the answer that was given is right"""
    rating: float | None = None
    """how content its user is, in [0, 1]"""
    comment: str | None = None
    """in its user's words"""

    @property
    def scores(self) -> bool:
        """Whether it says anything about exact match."""
        return self.target is not None or self.right is not None


class Log(Protocol):
    """What a request is noted in: a folder (``DecisionLog``), or the gateway's store."""

    @property
    def store_text(self) -> bool:
        """Whether question and answer of every request are kept."""
        ...

    @property
    def failures(self) -> int:
        """Lines that could not be written."""
        ...

    def decision(self, served: LoggedRequest) -> None:
        """Note a served request; raises nothing."""
        ...

    def audit(self, trace: Trace) -> None:
        """Note the full decode of an audited request; raises nothing."""
        ...


class DecisionLog:
    """Writes a log, for any number of threads and, each with its own or a forked one, processes.

    Nothing that goes wrong with it reaches the caller, who has an answer to give: the first
    failure is logged as a warning, all are counted. Each line is with the kernel when the call
    returns. ``store_text`` keeps the question and the answer of every request, and the thinking of
    audited ones. An audit keeps its question and answers either way: without them it could be
    neither scored nor learned from.
    """

    def __init__(self, folder: Path | str, *, store_text: bool = False) -> None:
        self.folder = Path(folder)
        self.store_text = store_text
        self._paths = {name: self.folder / name for name in (DECISIONS, AUDITS)}
        self._patience = PATIENCE
        # A thread counts for itself and whoever takes the word says it: no lock that a fork could
        # leave held.
        self._failed: dict[int, int] = {}
        self._unsaid = [None]

    @property
    def failures(self) -> int:
        """Lines that could not be written."""
        return sum(list(self._failed.values()))

    def decision(self, served: LoggedRequest) -> None:
        """Note a served request."""
        self._note(DECISIONS, lambda: decision_line(served, store_text=self.store_text))

    def audit(self, trace: Trace) -> None:
        """Note an audited request's full decode: a trace, not yet scored, whose id is the
        request's."""  # fmt: skip
        self._note(AUDITS, lambda: audit_line(trace))

    def _note(self, name: str, line: Callable[[], str]) -> None:
        try:
            locked = add_line(self._paths[name], line().encode(), patience=self._patience)
            # Whoever holds the lock for so long is not waited for again until it was free once.
            self._patience = PATIENCE if locked else 0.0
        except Exception as error:  # whatever it is, the answer must come
            me = threading.get_ident()
            self._failed[me] = self._failed.get(me, 0) + 1
            with contextlib.suppress(IndexError):
                self._unsaid.pop()
                _log.warning("the decision log %s cannot be written: %s", self.folder, error)


def now() -> str:
    """UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def append(path: Path, row: Mapping[str, Any], *, patience: float = PATIENCE) -> bool:
    """Add a line of JSON, as ``add_line`` does.

    Raises ``OSError`` where it cannot be written whole, ``ValueError`` for what is not JSON.
    """
    return add_line(path, line_of(row).encode(), patience=patience)


def line_of(row: Mapping[str, Any]) -> str:
    """A line of a log, ASCII; ``ValueError`` for what is not JSON."""
    return _encode({"version": VERSION, **row})


def decision_line(served: LoggedRequest, *, store_text: bool) -> str:
    """The line of a served request; question and answer are in it with ``store_text`` only."""
    return line_of(_request_row(served, store_text))


def audit_line(trace: Trace) -> str:
    """The line of an audited request: its trace without its target and without scores."""
    return line_of(_audit_row(trace))


def outcome_line(outcome: Feedback) -> str:
    """The line of what was found out."""
    row = asdict(outcome)
    return line_of({n: v for n, v in row.items() if v is not None or n in ("target", "right")})


def _request_row(served: LoggedRequest, store_text: bool) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(served, name) for name in _ALWAYS}
    row["stop"] = _plain(served.stop)
    if store_text:
        row |= {"question": served.question, "answer": served.answer}
    for name, usual in _USUAL.items():
        value = getattr(served, name)
        if value != usual:
            row[name] = value
    return row


def _plain(value: Any) -> dict[str, Any]:
    """A mapping or a flat dataclass as JSON; ``asdict`` copies deeply, at ten times the price."""
    if isinstance(value, Mapping):
        return dict(value)
    return {name: getattr(value, name) for name in value.__slots__}


_ALWAYS = tuple(
    one.name
    for one in fields(LoggedRequest)
    if one.default is MISSING and one.default_factory is MISSING and one.name != "stop"
)
_USUAL = {
    one.name: one.default if one.default_factory is MISSING else one.default_factory()
    for one in fields(LoggedRequest)
    if one.name not in ("question", "answer", "stop", *_ALWAYS)
}
_encode = json.JSONEncoder(allow_nan=False, default=_plain).encode


def _audit_row(trace: Trace) -> dict[str, Any]:
    row = trace_to_dict(trace)
    for scored in (row["final"], *(point["exit"] for point in row["checkpoints"])):
        del scored["exact_match"]
    del row["target"]
    return row


def feedback(
    folder: Path | str, request_id: str, *, target: str | None = None, right: bool | None = None
) -> Feedback:
    """Note what a request's right answer was, or whether the one that was given is right.

    Raises ``UserError`` unless exactly one of the two is told, for an empty target, a request
    that the log does not hold, and a log that cannot be written.
    """
    outcome = outcome_of(request_id, target=target, right=right)
    if not any(_holds(Path(folder) / name, request_id) for name in (DECISIONS, AUDITS)):
        raise UserError(f"{folder} holds no request {request_id!r}")
    try:
        add_line(Path(folder) / OUTCOMES, outcome_line(outcome).encode())
    except OSError as error:
        raise UserError(f"{folder}: cannot write here: {error.strerror or error}") from None
    return outcome


def outcome_of(request_id: str, *, target: str | None, right: bool | None) -> Feedback:
    """What an operator told; ``UserError`` unless exactly one of the two is there."""
    if (target is None) == (right is None):
        raise UserError("feedback takes one of: --target TEXT, --right, --wrong")
    if target is not None and not target.strip():
        raise UserError("the target is empty")
    return Feedback(request_id, now(), target, right)


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


def parsed(line: bytes | str) -> dict[str, Any] | None:
    """The object of a line; None where it is torn, or of another version."""
    try:
        row = msgspec.json.decode(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(row, dict) and type(row.get("version")) is int
    return row if known and row["version"] == VERSION else None
