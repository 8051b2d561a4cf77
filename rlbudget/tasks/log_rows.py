"""One row of a log: where its question, its thinking and its answer stand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from rlbudget.tasks.conversations import (
    Message,
    Reply,
    holds,
    last_question,
    messages_of,
    reach,
    reply_of,
)
from rlbudget.tasks.rows import BadRowError, Row

_QUESTIONS = ("question", "prompt", "problem", "messages", "input.messages", "request.messages",
              "request.body.messages", "body.messages", "input", "request", "query")  # fmt: skip
_THOUGHTS = ("thinking", "reasoning_content", "reasoning", "thoughts")
_ANSWERS = ("answer", "final_answer", "content")
_REPLIES = ("completion", "output", "response", "choices", "generation", "generated_text", "reply",
            "text", "messages")  # fmt: skip
_IDS = ("id", "custom_id", "request_id", "trace_id")


@dataclass(frozen=True, slots=True)
class LogColumns:
    """Names of a log's columns, dots reaching into objects; None: the first of the usual ones."""

    question: str | None = None
    """a text, or a list of messages"""
    thinking: str | None = None
    answer: str | None = None
    completion: str | None = None
    """thinking and answer in one text with tags, a message, or a whole response"""
    target: str | None = None
    """the right answer; None: there is none, unless a column ``target`` is there; "" for none"""
    identity: str | None = None
    """names the rows; "" for none"""

    @property
    def named(self) -> dict[str, str]:
        """The columns that the user named, by their option."""
        given = {
            "--question-column": self.question, "--thinking-column": self.thinking,
            "--answer-column": self.answer, "--completion-column": self.completion,
            "--target-column": self.target, "--id-column": self.identity,
        }  # fmt: skip
        return {option: name for option, name in given.items() if name}


@dataclass(frozen=True, slots=True)
class Tags:
    """The texts around a thinking in a completion."""

    opens: str
    """empty where all that comes before the end is thinking"""
    closes: str


@dataclass(frozen=True, slots=True)
class Logged:
    """One row: a decode that was already done."""

    place: str
    """``FILE:LINE``"""
    identity: str
    question: str
    """the last message of the user, or the whole prompt where only that is known"""
    thinking: str
    answer: str
    """all that was written after the end of the thinking"""
    target: str | None
    messages: tuple[Message, ...] = ()
    """the conversation before the reply, where it is more than the question"""
    rendered: bool = False
    """whether the question is a prompt under the model's template"""
    closing: str = ""
    """the end of the thinking and the answer as they were written, where the log holds them"""
    cut: bool = False
    """whether a limit ended the answer"""


class LeftOutError(BadRowError):
    """A row that cannot be annotated; ``kind`` is what such rows are counted by."""

    def __init__(self, kind: str, said: str) -> None:
        super().__init__(said)
        self.kind = kind


def has_decode(row: Row) -> bool:
    """Whether a row has a column that usually holds a thinking or a completion."""
    return any(holds(row, name) for name in (*_THOUGHTS, *_REPLIES))


def logged_of(place: str, row: Row, name: str, columns: LogColumns, tags: Tags) -> Logged:
    """The decode that a row of the log ``name`` holds. Raises ``BadRowError``."""
    question, messages = _question(row, columns)
    thinking, answer, closing, cut = _decode(row, columns, tags)
    if not thinking.strip():
        raise LeftOutError("with an empty thinking", "the thinking is empty")
    if not answer.strip():
        raise LeftOutError("without an answer", "there is no answer after the thinking")
    target = _target(row, columns)
    text = "\0".join((question, *(m.content for m in messages), thinking, answer))
    try:
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        (target or "").encode()
    except UnicodeEncodeError:
        raise BadRowError("not valid Unicode (it holds half of a surrogate pair)") from None
    return Logged(
        place=place,
        identity=_identity(row, columns) or f"{name}-{digest}",
        question=question,
        thinking=thinking,
        answer=answer,
        target=target,
        messages=messages,
        rendered=bool(row.get("rendered")) and columns.question is None,
        closing=closing,
        cut=cut or row.get("finish_reason") == "length",
    )


def _first(row: Row, named: str | None, usual: tuple[str, ...]) -> Any:
    if named:
        return reach(row, named)
    return next((value for name in usual if (value := reach(row, name)) is not None), None)


def _question(row: Row, columns: LogColumns) -> tuple[str, tuple[Message, ...]]:
    value = _first(row, columns.question, _QUESTIONS)
    messages = messages_of(value)
    if messages is None:
        if isinstance(value, str) and value.strip():
            return str(value), ()
        where = f" in {columns.question}" if columns.question else ""
        raise LeftOutError("without a question", f"there is no question{where}")
    while messages and messages[-1].role == "assistant":  # the reply itself
        messages.pop()
    question = last_question(messages)
    return question, () if len(messages) == 1 else tuple(messages)


def _decode(row: Row, columns: LogColumns, tags: Tags) -> tuple[str, str, str, bool]:
    """Thinking, answer, how the thinking was closed, and whether a limit ended it."""
    apart = columns.thinking or columns.answer
    thinking = None
    if columns.completion is None:
        thinking = _first(row, columns.thinking, _THOUGHTS)
        if columns.thinking and thinking is None:
            raise LeftOutError("without a thinking", f"there is no thinking in {columns.thinking}")
    if thinking is not None:
        if not isinstance(thinking, str):
            raise BadRowError(f"the thinking must be text, not {type(thinking).__name__}")
        answer = _answer(row, columns)
        return _unwrapped(str(thinking), tags), answer, "", False
    if apart and columns.completion is None and columns.thinking:
        raise LeftOutError("without a thinking", "there is no thinking")
    reply = _reply(row, columns)
    if reply is None:
        raise LeftOutError(
            "without a thinking", "there is no thinking, and no completion that holds one"
        )
    if reply.thinking is not None:
        answer = _answer(row, columns) if columns.answer else reply.content
        return _unwrapped(reply.thinking, tags), answer, "", reply.cut
    return *_parts(reply.content, tags), reply.cut


def _reply(row: Row, columns: LogColumns) -> Reply | None:
    if columns.completion is not None:
        return reply_of(reach(row, columns.completion))
    for name in _REPLIES:
        value = reach(row, name)
        if value is None:
            continue
        found = reply_of({"choices": value} if name == "choices" else value)
        if found is not None and (found.content.strip() or found.thinking):
            return found
    return None


def _answer(row: Row, columns: LogColumns) -> str:
    value = _first(row, columns.answer, _ANSWERS)
    if value is None and columns.answer is None:
        reply = _reply(row, columns)
        return "" if reply is None else reply.content
    found = reply_of(value)
    return "" if found is None else found.content


def _parts(text: str, tags: Tags) -> tuple[str, str, str]:
    """Thinking, answer, and the closing with the answer, of a completion with tags."""
    begun = text.lstrip()
    opened = bool(tags.opens) and begun.startswith(tags.opens)
    if opened:
        text = begun.removeprefix(tags.opens)
    thinking, closed, answer = text.partition(tags.closes)
    if not closed:
        if opened:
            said = f"the thinking that {tags.opens} opens is not closed by {tags.closes}"
            raise LeftOutError("with an open thinking", said)
        raise LeftOutError(
            "without a thinking", f"there is no thinking: no {tags.closes} in the completion"
        )
    return thinking, answer, tags.closes + answer


def _unwrapped(thinking: str, tags: Tags) -> str:
    """A thinking that a log holds apart, without the tags around it."""
    if tags.opens and thinking.lstrip().startswith(tags.opens):
        thinking = thinking.lstrip().removeprefix(tags.opens)
        if tags.closes not in thinking:
            said = f"the thinking that {tags.opens} opens is not closed by {tags.closes}"
            raise LeftOutError("with an open thinking", said)
    return thinking.partition(tags.closes)[0]


def _target(row: Row, columns: LogColumns) -> str | None:
    if not columns.target:
        return None
    value = reach(row, columns.target)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise LeftOutError("without a target", f"there is no target in {columns.target}")
    if not isinstance(value, str):
        raise BadRowError("the target must be text or a number")
    return str(value).strip()


def _identity(row: Row, columns: LogColumns) -> str | None:
    if columns.identity == "":
        return None
    value = _first(row, columns.identity, _IDS)
    if value is None or value == "":
        if columns.identity:
            raise BadRowError(f"there is no id in {columns.identity}")
        return None
    if not isinstance(value, str):
        raise BadRowError("the id must be text or a number")
    if "\0" in value or not value.strip():
        raise BadRowError("the id must not be blank or hold a NUL character")
    return str(value)
