"""Requests that pass through as they are, for what they ask cannot be had from a cut thinking."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rlbudget.errors import UserError


def passes_through(body: Mapping[str, Any]) -> str | None:
    """Why a request is not steered; None for one that is."""
    if (body.get("n") or 1) != 1 or (body.get("best_of") or 1) != 1:
        return "n > 1"
    if body.get("tools") and body.get("tool_choice") != "none":
        return "tools"
    if body.get("functions"):
        return "functions"
    form = body.get("response_format")
    kind = form.get("type") if isinstance(form, Mapping) else form
    if kind not in (None, "text"):
        return "response_format"
    for name in ("logprobs", "top_logprobs", "echo", "suffix", "stop", "logit_bias", "modalities",
                 "audio", "prediction", "guided_json", "guided_regex", "guided_choice",
                 "guided_grammar", "structured_outputs", "continue_final_message",
                 "use_beam_search"):  # fmt: skip
        if body.get(name) not in (None, False, [], ""):
            return name
    if "messages" in body:
        return _of_messages(body["messages"])
    prompt = body.get("prompt")
    one = isinstance(prompt, str) or (
        isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt)
    )
    return None if one else "a prompt that is not one text"


def _of_messages(messages: Any) -> str | None:
    for message in messages:
        content = message.get("content")
        if not isinstance(content, str) and not _is_text(content):
            return "a message that is not text"
        if message.get("tool_calls") or message.get("role") in ("tool", "function"):
            return "a tool call among the messages"
    return "an answer that is begun already" if messages[-1].get("role") == "assistant" else None


def _is_text(content: Any) -> bool:
    return isinstance(content, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" for part in content
    )


def check_shape(body: Mapping[str, Any], *, chat: bool) -> None:
    """``UserError`` naming the field that has the wrong shape."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise UserError("model: a text is needed")
    if chat:
        _check_messages(body.get("messages"))
    elif "messages" in body:
        raise UserError("messages: a text completion has a prompt in their place")
    else:
        _check_prompt(body.get("prompt"))
    for name in ("max_tokens", "max_completion_tokens", "n"):
        value = body.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f"{name}: a whole number of at least 1 is needed")
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty"):
        value = body.get(name)
        if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
            raise UserError(f"{name}: a number is needed")
    if (body.get("temperature") or 0) < 0:
        raise UserError("temperature: a number of at least 0 is needed")
    if type(body.get("seed")) not in (int, type(None)):
        raise UserError("seed: a whole number is needed")
    if not isinstance(body.get("stream"), bool | None):
        raise UserError("stream: true or false is needed")
    for name in ("stream_options", "chat_template_kwargs"):
        if not isinstance(body.get(name), Mapping | None):
            raise UserError(f"{name}: an object is needed")


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise UserError("messages: a list of at least one message is needed")
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UserError(f"messages.{place}: an object with a role is needed")
        content = message.get("content")
        if not isinstance(content, str | list | None):
            raise UserError(f"messages.{place}.content: a text or a list of parts is needed")
        for number, part in enumerate(content if isinstance(content, list) else ()):
            where = f"messages.{place}.content.{number}"
            if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
                raise UserError(f"{where}: an object with a type is needed")
            if part["type"] == "text" and not isinstance(part.get("text"), str):
                raise UserError(f"{where}.text: a text is needed")


def _check_prompt(prompt: Any) -> None:
    if not isinstance(prompt, str | list) or prompt == []:
        raise UserError("prompt: a text or a list of token ids is needed")
    if isinstance(prompt, list) and any(type(token) is int and token < 0 for token in prompt):
        raise UserError("prompt: a token id is at least 0")
