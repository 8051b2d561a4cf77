"""A question as the served model's prompt: rendered once, by the server's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlbudget.errors import UserError
from rlbudget.models.asking import root_of
from rlbudget.models.chat import conversation_ids, has_template
from rlbudget.models.completions import Prompt
from rlbudget.models.messages import Template
from rlbudget.models.served import ServedModel, Server, tokenized, tokens_of
from rlbudget.models.spelling import check_text, trusted_ids

_OPEN, _CLOSE = "<think>", "</think>"


async def prompt_of(model: ServedModel, server: Server, question: str) -> Prompt:
    """The prompt up to the start of the thinking, as ids and as text.

    A profile that is asked through a chat template is rendered by the server's, with the system
    turn and the template's settings of ``model.asked``; where the server does not render, by the
    tokenizer's. Raises ``UserError`` for text that is none, and for a template that closes the
    thinking, fails, or is not there although settings of it were given.
    """
    check_text(question)
    profile, asked = model.profile, model.asked
    ids = None
    if profile.asks is not None:
        messages = [{"role": "user", "content": question + profile.asks}]
        if asked.system is not None:
            messages.insert(0, {"role": "system", "content": asked.system})
        ids = await _rendered(server, messages, asked.template)
        if ids is None and (asked.system is not None or asked.template):
            ids = _locally(model.tokenizer, messages, asked.template)
        if ids is not None and profile.start_of_thinking:
            ids += _opening(model, ids, question)
    elif asked.system is not None or asked.template:
        raise UserError(
            f"the profile {profile.name} has a prompt of its own: a system turn and settings of a"
            " chat template need the profile think or plain"
        )
    if ids is None:
        ids = profile.prompt(question, model.tokenizer)
    return Prompt(ids, model.vocabulary.text(ids, special=True), server.by_ids)


async def _rendered(
    server: Server, messages: Sequence[Mapping[str, str]], template: Mapping[str, Any]
) -> list[int] | None:
    """By the server; None where it does not."""
    settings = {"chat_template_kwargs": dict(template)} if template else {}
    endpoint, found = server.endpoint, server.found
    body: dict[str, Any] = {"messages": messages, **settings}
    if found.kind == "llama-server":
        try:
            said = await root_of(endpoint).ask(Template, "apply-template", body)
        except UserError:
            return None
        return await tokens_of(endpoint, found, said.prompt)
    if found.kind != "vllm":
        return None
    body |= {"model": found.model, "add_generation_prompt": True}
    return await tokenized(endpoint, body)


def _locally(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], template: Mapping[str, Any]
) -> list[int]:
    if not has_template(tokenizer):
        raise UserError(
            "neither the server nor the tokenizer renders a chat template: leave the system turn"
            " and the template's settings out"
        )
    turns = [(message["role"], message["content"]) for message in messages]
    return conversation_ids(tokenizer, turns, template)


def _opening(model: ServedModel, ids: Sequence[int], question: str) -> list[int]:
    """What is added so that the thinking is open; ``UserError`` where the template closed it."""
    tail = model.vocabulary.text(ids, special=True).rpartition(question.strip())[2]
    opened, closed = tail.rfind(_OPEN), tail.rfind(_CLOSE)
    if opened > closed:
        return []
    if closed >= 0:
        raise UserError(
            "the server's chat template ends its prompt with a closed thinking: open it by"
            """ --chat-template-kwargs '{"enable_thinking": true}' or what the template calls it,"""
            " or choose --profile plain"
        )
    return trusted_ids(model.tokenizer, _OPEN + "\n")
