"""Requests that pass through as they are, for what they ask cannot be had from a cut thinking."""

from __future__ import annotations

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
    if isinstance(form, Mapping) and form.get("type") not in (None, "text"):
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


def text_of(content: Any) -> str:
    """The text of a message, which may come in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def check_shape(body: Mapping[str, Any], *, chat: bool) -> None:
    """``UserError`` naming the field that has the wrong shape."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise UserError("model: a text is needed")
    if chat:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise UserError("messages: a list of at least one message is needed")
        for place, message in enumerate(messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise UserError(f"messages.{place}: an object with a role is needed")
    elif not isinstance(body.get("prompt"), str | list):
        raise UserError("prompt: a text or a list of token ids is needed")
    for name in ("max_tokens", "max_completion_tokens", "n"):
        value = body.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f"{name}: a whole number of at least 1 is needed")
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty"):
        value = body.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"{name}: a number is needed")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise UserError("stream: true or false is needed")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, Mapping):
        raise UserError("stream_options: an object is needed")
    kwargs = body.get("chat_template_kwargs")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise UserError("chat_template_kwargs: an object is needed")
