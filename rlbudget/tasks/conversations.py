"""Questions and replies as logs of chats hold them: texts, lists of messages, whole responses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlbudget.tasks.rows import BadRowError, NumberText, Row

_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thinking_content", "thought")
"""what a message calls its thinking"""
_NOTHING = object()


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model wrote."""

    content: str
    """the answer, or all of it with the tags of the thinking"""
    thinking: str | None = None
    """None where the log does not hold it apart"""
    cut: bool = False
    """whether a limit ended it"""


def reach(row: Row, name: str) -> Any:
    """A column's value, None for none: dots reach into objects, lists (by number) and JSON in a
    text."""  # fmt: skip
    found = _reach(row, name)
    return None if found is _NOTHING else found


def holds(row: Row, name: str) -> bool:
    """Whether a row has a column, were it empty."""
    return _reach(row, name) is not _NOTHING


def _reach(value: Any, name: str) -> Any:
    value = parsed(value)
    if isinstance(value, dict):
        if name in value:
            return value[name]
        outer, dot, inner = name.partition(".")
        if dot and outer in value:
            return _reach(value[outer], inner)
    elif isinstance(value, list):
        outer, dot, inner = name.partition(".")
        if outer.isdecimal() and int(outer) < len(value):
            found = value[int(outer)]
            return _reach(found, inner) if dot else found
    return _NOTHING


def parsed(value: Any) -> Any:
    """A text that is a JSON object or list as that; exports to CSV hold them so."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            found = json.loads(value, parse_int=NumberText, parse_float=NumberText)
        except (ValueError, RecursionError):
            return value
        return found if isinstance(found, dict | list) else value
    return value


def names_of(row: Row, *, depth: int = 3) -> list[str]:
    """The columns of a row that hold something, dotted."""
    found = []
    for name, value in row.items():
        inner = parsed(value)
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):
            found.append(name)
            inner = {"0": inner[0]}
            if name in ("messages", "input"):
                continue
        if isinstance(inner, dict) and inner and depth > 1:
            found += [f"{name}.{below}" for below in names_of(inner, depth=depth - 1)]
        elif value is not None:
            found.append(name)
    return list(dict.fromkeys(found))


def messages_of(value: Any) -> list[Message] | None:
    """The messages that a value holds; None where it holds none. Raises ``BadRowError``."""
    value = parsed(value)
    if isinstance(value, dict):
        inner = next((value[name] for name in ("messages", "body") if name in value), None)
        return None if inner is None else messages_of(inner)
    if not isinstance(value, list) or not value:
        return None
    found = []
    for place, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRowError(f"message {place} has no role")
        found.append(Message(str(message["role"]), text_of(message.get("content"))))
    return found


def text_of(content: Any) -> str:
    """The text of a message's content, which may be a list of parts. Raises ``BadRowError``."""
    if content is None:
        return ""
    if isinstance(content, str):
        return str(content)
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        if len(parts) == len(content):
            other = {str(part.get("type")) for part in parts} - {
                "text",
                "output_text",
                "input_text",
            }
            if other & {"image_url", "input_image", "input_audio", "file", "image"}:
                raise BadRowError(f"a message holds {', '.join(sorted(other))}, not text alone")
            return "".join(str(part["text"]) for part in parts if isinstance(part.get("text"), str))
    raise BadRowError("the content of a message must be text")


def reply_of(value: Any) -> Reply | None:
    """The reply that a value holds: a text, a message, a list of messages whose last it is, or a
    response with ``choices``; None where it holds none. Raises ``BadRowError``."""  # fmt: skip
    value = parsed(value)
    if isinstance(value, str):
        return Reply(str(value))
    if isinstance(value, list):
        return reply_of(value[-1]) if value else None
    if not isinstance(value, dict):
        return None
    for name in ("body", "response", "message"):
        if isinstance(value.get(name), dict):
            return reply_of(value[name])
    if isinstance(value.get("choices"), list):
        return _choice(value["choices"])
    if "content" not in value and not any(name in value for name in _THOUGHTS):
        return None
    return _message(value)


def _choice(choices: Sequence[Any]) -> Reply | None:
    if len(choices) > 1:
        raise BadRowError(f"{len(choices)} choices in one response: one a row is read")
    if not choices or not isinstance(choices[0], dict):
        return None
    choice = choices[0]
    cut = choice.get("finish_reason") == "length"
    if isinstance(choice.get("message"), dict):
        found = _message(choice["message"])
        return Reply(found.content, found.thinking, cut)
    return Reply(str(choice["text"]), None, cut) if isinstance(choice.get("text"), str) else None


def _message(message: Row) -> Reply:
    thinking = next((text for name in _THOUGHTS if (text := _thought(message.get(name)))), None)
    content = message.get("content")
    if thinking is None and isinstance(content, list):
        kinds = ("thinking", "reasoning")
        thoughts = [
            part for part in content if isinstance(part, dict) and part.get("type") in kinds
        ]
        texts = [_thought(part.get(str(part["type"]), part.get("text"))) for part in thoughts]
        thinking = "".join(text for text in texts if text) or None
        content = [part for part in content if part not in thoughts]
    return Reply(text_of(content), thinking, message.get("finish_reason") == "length")


def _thought(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content", value.get("text"))
    return str(value) if isinstance(value, str) else None


def last_question(messages: Sequence[Message]) -> str:
    """The last thing the user said. Raises ``BadRowError`` where no message is the user's."""
    asked = [message.content for message in messages if message.role == "user"]
    if not asked or not asked[-1].strip():
        raise BadRowError("no message of the user")
    return asked[-1]
