"""The schema of an interchange line: the one description of its fields and their types.

What a type cannot say (order, ranges, what may be empty) is left to ``traces.trace.problem_of``.
A field that is null counts as left out.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Literal, NoReturn, TypeVar

import msgspec

from rlbudget.traces.trace import VERSION


class _Object(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An object whose unknown fields are refused."""


class ExitFields(_Object):
    """``exit`` of a checkpoint."""

    answer: str
    answer_tokens: int
    exact_match: int | None = None


class ProbeFields(_Object):
    """``probe`` of a checkpoint."""

    answer: str
    confidence: float
    tokens: int


class FinalFields(_Object):
    """``final`` of a trace."""

    answer: str
    thinking_tokens: int
    answer_tokens: int
    exact_match: int | None = None


class CheckpointFields(_Object):
    """One of ``checkpoints``."""

    thinking_tokens: int
    exit: ExitFields
    signals: dict[str, float | None] | None = None
    probe: ProbeFields | None = None


class TraceLine(_Object):
    """A line that is a trace."""

    version: Literal[1]
    trace_id: str
    question_id: str
    task: str
    question: str
    target: str
    model: str
    seed: int
    final: FinalFields
    checkpoints: list[CheckpointFields]
    meta: dict[str, Any] | None = None


class SampleFields(_Object):
    """One of ``samples``."""

    answer: str
    tokens: int
    exact_match: int | None = None


class SampledLine(_Object):
    """A line that is a question with samples."""

    version: Literal[1]
    question_id: str
    task: str
    question: str
    target: str
    model: str
    samples: list[SampleFields]
    meta: dict[str, Any] | None = None


class _Kind(msgspec.Struct):
    samples: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


Record = TypeVar("Record", TraceLine, SampledLine)
Kind = type[TraceLine] | type[SampledLine]

_TRACE = msgspec.json.Decoder(TraceLine)
_SAMPLED = msgspec.json.Decoder(SampledLine)
_KIND = msgspec.json.Decoder(_Kind)


class BadLineError(Exception):
    """What is wrong with a line, naming the field by its path, ``$.checkpoints[0].exit``."""


def kind_of(line: bytes) -> Kind:
    """What a line wants to be: one with ``samples`` is a question with samples."""
    try:
        return TraceLine if _KIND.decode(line).samples is msgspec.UNSET else SampledLine
    except (ValueError, RecursionError):
        return TraceLine


def decoded(line: bytes, kind: type[Record]) -> Record:
    """The fields of a line. Raises ``BadLineError``."""
    decoder: Any = _TRACE if kind is TraceLine else _SAMPLED
    try:
        found: Record = decoder.decode(line)
    except (ValueError, RecursionError) as error:
        _refuse(error, line)
    return found


def converted(record: Any, kind: type[Record]) -> Record:
    """The fields of an object that has been parsed already. Raises ``BadLineError``."""
    try:
        return msgspec.convert(record, kind)
    except (ValueError, OverflowError, RecursionError) as error:
        _refuse(error, record)


_WORDS = {
    "int": "a whole number", "float": "a number", "str": "text", "bool": "true or false",
    "object": "an object", "array": "a list", "null": "null",
}  # fmt: skip
_EXPECTED = re.compile(r"Expected `([a-z]+)(?: \| null)?`, got `([a-z]+)`")
_FIELD = re.compile(r"Object (missing required|contains unknown) field `(.*)`", re.DOTALL)
_PLACED = re.compile(r"(.*?)(?: - at `(\$.*)`)?", re.DOTALL)


def _refuse(error: Exception, source: Any) -> NoReturn:
    """Raise a parser's error again in our words."""
    if isinstance(error, msgspec.ValidationError):
        raise BadLineError(_broken_type(str(error), source)) from None
    raise BadLineError(_broken_json(error, source)) from None


def _broken_type(said: str, source: Any) -> str:
    placed = _PLACED.fullmatch(said)
    what, path = (placed[1], placed[2] or "$") if placed else (said, "$")
    if "[...]" in path:
        path = _with_key(path, source)
    if field := _FIELD.fullmatch(what):
        if field[1] == "missing required":
            return f"missing field {path}.{field[2]}"
        return f"unknown field {path}.{field[2]} (your own data may go under meta)"
    where = "the line" if path == "$" else path
    if types := _EXPECTED.fullmatch(what):
        wanted, got = (_WORDS.get(name, name) for name in types.groups())
        return f"{where} must be {wanted}, not {got}"
    if what.startswith("Invalid enum value") and path == "$.version":
        return f"unsupported $.version {what.split()[-1]}; this rlbudget reads {VERSION}"
    if "out of range" in what:
        return f"{where} is not finite: too large a number"
    return f"{where}: {what}"


def _with_key(path: str, source: Any) -> str:
    """A path whose ``[...]`` is a signal's place, with the first signal that is no number."""
    place = re.fullmatch(r"\$\.checkpoints\[(\d+)\]\.signals\[\.\.\.\]", path)
    if place is None:
        return path.replace("[...]", ".*")
    text = source if isinstance(source, bytes) else json.dumps(source, default=str)
    try:
        signals = json.loads(text, parse_int=float)["checkpoints"][int(place[1])]["signals"]
        measured = dict(signals).items()
    except (ValueError, LookupError, TypeError, RecursionError):
        return path.replace("[...]", ".*")  # the line goes on as no JSON, or says a field twice
    for name, value in measured:
        if value is not None and not (isinstance(value, float) and math.isfinite(value)):
            return f"{path.removesuffix('[...]')}.{name}"
    return path


def _broken_json(error: Exception, source: Any) -> str:
    if isinstance(error, RecursionError):
        return "invalid JSON: too many brackets"
    if not isinstance(source, bytes):
        return f"not plain JSON: {error}"
    try:
        text = source.decode()
    except UnicodeDecodeError as broken:
        return f"invalid UTF-8 at byte {broken.start + 1} of the line"
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except _ConstantError as constant:
        return f"invalid JSON: {constant} is no number (leave out what is missing)"
    except json.JSONDecodeError as broken:
        return f"invalid JSON: {broken.msg} at column {broken.colno}"
    except ValueError:
        return "invalid JSON: a number too long"
    return "not valid Unicode (it holds half of a surrogate pair)"


class _ConstantError(Exception):
    pass


def _refuse_constant(name: str) -> NoReturn:
    raise _ConstantError(name)
