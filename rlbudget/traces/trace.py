"""A trace: one full decode with the answer that a stop at each checkpoint would have given."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from rlbudget.signals.questions import CONTEXT_SIGNALS, TASK_SIGNALS
from rlbudget.signals.turns import TURN_SIGNALS
from rlbudget.tasks.task import LONGEST_ID, LONGEST_QUESTION

RESERVED_SIGNALS = frozenset(
    {"thinking_tokens", "probe_confidence", "probe_streak", "probe_distinct", "probe_share"}
    | set(TURN_SIGNALS)
    | set(CONTEXT_SIGNALS)
    | set(TASK_SIGNALS)
)
"""Names the observation makes itself; no recorded signal may take one."""

VERSION = 1
"""of the interchange"""
LARGEST_COUNT = 10**12
LONGEST_NAME = 1000
"""characters of a task, a family of questions or a model"""
MOST_CHECKPOINTS = 20_000
"""of a trace"""
MOST_SIGNALS = 500
"""names of signals in a folder"""
LARGEST_SIGNAL = 3.4e38
"""What the observation's float32 can hold."""
PROBE_TOKENS = 8
"""length of a trial answer where nothing else is said"""
_TAIL = 24
"""characters that an id of a trace may have beyond that of its question, such as a seed"""
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Probe:
    """A trial answer from a fork of the unfinished decode, thrown away afterwards."""

    answer: str
    confidence: float
    """geometric mean of the probabilities of its tokens, in [0, 1]"""
    tokens: int
    """tokens generated for it"""


@dataclass(frozen=True, slots=True)
class Exit:
    """What a stop here gives."""

    answer: str
    exact_match: int
    answer_tokens: int
    """every token after the thinking: the end-of-thinking text, the answer, its end"""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A point of a decode where one may stop."""

    thinking_tokens: int
    signals: dict[str, float]
    exit: Exit
    probe: Probe | None = None


@dataclass(frozen=True, slots=True)
class Final:
    """The natural end of a decode: its answer and its cost."""

    answer: str
    exact_match: int
    thinking_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Trace:
    """One full decode. Checkpoints come in order, none past the natural end."""

    trace_id: str
    question_id: str
    task: str
    question: str
    target: str
    model: str
    seed: int
    final: Final
    checkpoints: tuple[Checkpoint, ...]
    meta: dict[str, Any] = field(default_factory=dict)


def family_of(trace: Trace) -> str:
    """The kind of question a trace answers: the ``family`` of its ``meta``, or else its task."""
    return str(trace.meta.get("family", trace.task))


def scorer_of(trace: Trace) -> str:
    """The name of the scorer that a trace's answers were scored by, ``auto`` where it says none."""
    return str(trace.meta.get("scorer", "auto"))


def problem_of(trace: Trace) -> str | None:
    """What is wrong with a trace, naming the field by its path, or None.

    The laws every stored trace keeps: texts are valid Unicode, ids and target are not empty,
    checkpoints come in order and not past the natural end, counts are not negative, signals are
    finite, in float32 as well.
    """
    for name in ("question", "target"):
        text = getattr(trace, name)
        if not text.strip():
            return f"{name} is empty"
        if len(text) > LONGEST_QUESTION:
            return f"{name} is {len(text):,} characters long; {LONGEST_QUESTION:,} are the most"
    for name in ("trace_id", "question_id", "task", "question", "target", "model"):
        if problem := _text_problem(name, getattr(trace, name)):
            return problem
    for name in ("trace_id", "question_id"):
        if problem := id_problem(name, getattr(trace, name)):
            return problem
    if trace.seed not in _INT64:
        return f"seed does not fit in 64 bits: {trace.seed}"
    final = trace.final
    if problem := (
        _meta_problem(trace.meta)
        or _count_problem("final.thinking_tokens", final.thinking_tokens)
        or _answer_problem("final", final)
    ):
        return problem
    for name, short in (("task", trace.task), ("model", trace.model)):
        if problem := name_problem(name, short):
            return problem
    if len(trace.checkpoints) > MOST_CHECKPOINTS:
        return f"checkpoints are {len(trace.checkpoints):,}; {MOST_CHECKPOINTS:,} are the most"
    before = -1
    for index, checkpoint in enumerate(trace.checkpoints):
        if problem := _checkpoint_problem(checkpoint, before, final.thinking_tokens):
            return f"checkpoints[{index}].{problem}"
        before = checkpoint.thinking_tokens
    return None


def id_problem(name: str, text: str) -> str | None:
    """What is wrong with an id, or None: tables hold ids in columns of one width."""
    if not text.strip():
        return f"{name} is empty"
    if "\0" in text:
        return f"{name} may not hold a NUL character"
    most = LONGEST_ID if name == "question_id" else LONGEST_ID + _TAIL
    if len(text) > most:
        return f"{name} is {len(text):,} characters long; {most} are the most"
    return None


def name_problem(name: str, text: str) -> str | None:
    """What is wrong with the name of a task, a family or a model, or None."""
    if len(text) > LONGEST_NAME:
        return f"{name} is {len(text):,} characters long; {LONGEST_NAME} are the most"
    return None


def _checkpoint_problem(point: Checkpoint, before: int, end: int) -> str | None:
    tokens, probe = point.thinking_tokens, point.probe
    if not before < tokens <= end:
        return _place_problem(tokens, before, end)
    if problem := names_problem(tuple(point.signals)):
        return problem
    # The sum of magnitudes bounds each one; only where it is too large or NaN is each checked.
    if not sum(map(abs, point.signals.values())) <= LARGEST_SIGNAL:
        for name, value in point.signals.items():
            if problem := signal_problem(name, value):
                return problem
    if (problem := _answer_problem("exit", point.exit)) or probe is None:
        return problem
    if not 0 <= probe.confidence <= 1:
        return f"probe.confidence must lie in [0, 1], got {probe.confidence}"
    return _text_problem("probe.answer", probe.answer) or _count_problem(
        "probe.tokens", probe.tokens
    )


def _place_problem(tokens: int, before: int, end: int) -> str | None:
    if problem := _count_problem("thinking_tokens", tokens):
        return problem
    if tokens <= before:
        return f"thinking_tokens must increase: {tokens} comes after {before}"
    # Equality is allowed: the next token may be the end of thinking, unknown at the stop.
    return f"thinking_tokens is {tokens}, past the natural end at {end} (final.thinking_tokens)"


def signal_problem(name: str, value: float) -> str | None:
    """What is wrong with a signal's value, or None."""
    if not math.isfinite(value):
        return f"signals.{name} is not finite: {value} (leave a missing signal out)"
    if abs(value) > LARGEST_SIGNAL:
        return (
            f"signals.{name} is {value:g}, beyond the {LARGEST_SIGNAL:g} that a float32 can hold:"
            " record its logarithm, or leave it out"
        )
    return None


@lru_cache(maxsize=1024)
def names_problem(names: tuple[str, ...]) -> str | None:
    """What is wrong with the names of a checkpoint's signals, or None; few sets ever occur."""
    if len(names) > MOST_SIGNALS:
        return f"signals are {len(names):,}; {MOST_SIGNALS} are the most"
    for name in names:
        if not name or "." in name or name in RESERVED_SIGNALS:
            return f"signals: {name!r} is no name for a signal (empty, dotted or reserved)"
        if len(name) > LONGEST_ID:
            return f"signals: a name is {len(name):,} characters long; {LONGEST_ID} are the most"
        if problem := _text_problem("signals", name):
            return problem
    return None


def _count_problem(name: str, value: int) -> str | None:
    if 0 <= value <= LARGEST_COUNT:
        return None
    return f"{name} must be a number of tokens from 0, got {value}"


def _answer_problem(name: str, given: Exit | Final) -> str | None:
    if given.exact_match not in (0, 1):
        return f"{name}.exact_match must be 0 or 1, got {given.exact_match}"
    return _text_problem(f"{name}.answer", given.answer) or _count_problem(
        f"{name}.answer_tokens", given.answer_tokens
    )


def _text_problem(name: str, text: str) -> str | None:
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"{name} is not valid Unicode (it holds half of a surrogate pair)"
    return None


plain_json = json.JSONEncoder(allow_nan=False).encode
"""A ``meta`` as text; raises ``TypeError``, ``ValueError`` or ``RecursionError`` for no JSON."""


def _meta_problem(meta: dict[str, Any]) -> str | None:
    try:
        plain_json(meta)
    except (TypeError, ValueError, RecursionError) as error:
        return f"meta is not plain JSON: {error}"
    return family_problem(meta)


def family_problem(meta: dict[str, Any]) -> str | None:
    """What is wrong with the family that a ``meta`` names, or None."""
    family = meta.get("family", "")
    if isinstance(family, dict | list):
        return "meta.family must be text: it names a kind of questions"
    return name_problem("meta.family", str(family))


_HEAD = ("trace_id", "question_id", "task", "question", "target", "model", "seed", "meta")


def trace_to_dict(trace: Trace) -> dict[str, Any]:
    """A trace as the JSON object of the interchange."""
    return {
        "version": VERSION,
        **{name: getattr(trace, name) for name in _HEAD},
        "final": _fields(trace.final),
        "checkpoints": [
            {
                "thinking_tokens": point.thinking_tokens,
                "signals": point.signals,
                **({} if point.probe is None else {"probe": _fields(point.probe)}),
                "exit": _fields(point.exit),
            }
            for point in trace.checkpoints
        ],
    }


def _fields(value: Probe | Exit | Final) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}
