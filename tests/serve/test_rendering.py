"""Chats rendered in the gateway: only where the server does the same, and only plain ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from rlbudget.errors import UserError
from rlbudget.models.completions import Token, let_end
from rlbudget.models.site import ServerError
from rlbudget.models.tokenizer import served_tokenizer
from rlbudget.serve.rendering import Rendering, find_rendering

TEMPLATE = (
    "{% for one in messages %}{% if one.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ one.role }}: {{ one.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<think>{% endif %}"
)


@pytest.fixture
def tokenizer() -> Any:
    found, _ = served_tokenizer("embedded")
    found.chat_template = TEMPLATE
    return found


class Asked:
    """A server that renders by a template, or refuses."""

    def __init__(self, tokenizer: Any, fault: Exception | None = None) -> None:
        self.tokenizer, self.fault = tokenizer, fault
        self.messages: list[Any] = []

    async def __call__(self, messages: Sequence[Any]) -> list[int]:
        self.messages.append(messages)
        if self.fault is not None:
            raise self.fault
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def found(tokenizer: Any, asked: Asked) -> Rendering | None:
    return asyncio.run(find_rendering(tokenizer, asked))


def test_a_chat_that_the_server_renders_alike_is_rendered_here(tokenizer: Any) -> None:
    asked = Asked(tokenizer)
    rendering = found(tokenizer, asked)
    assert rendering is not None
    messages = [{"role": "user", "content": "7 + 5 = ?"}]
    assert rendering.ids(messages) == asyncio.run(asked(messages))


def test_a_server_with_another_template_renders_itself(tokenizer: Any) -> None:
    other, _ = served_tokenizer("embedded")
    other.chat_template = TEMPLATE.replace(": ", " says ")
    assert found(tokenizer, Asked(other)) is None


@pytest.mark.parametrize("fault", [ServerError("gone"), UserError("no template")])
def test_a_server_that_refuses_a_sample_renders_itself(tokenizer: Any, fault: Exception) -> None:
    assert found(tokenizer, Asked(tokenizer, fault)) is None


def test_without_a_template_nothing_is_rendered_here(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    asked = Asked(tokenizer)
    assert found(tokenizer, asked) is None
    assert not asked.messages


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "text", "text": "1"}]}],
        [{"role": "user", "content": "1", "name": "me"}],
        [{"role": "user"}],
        [{"role": "user", "content": "say <think> twice"}],
        [{"role": "user", "content": "2 < 3"}],
        [{"role": "tool", "content": "1"}],
        [{"role": "system", "content": "the template refuses this"}],
        [{"role": "user", "content": "1" * 10_000}],
        [{"role": "user", "content": "1" * 5_000}, {"role": "user", "content": "1" * 5_000}],
    ],
)
def test_what_is_not_plain_is_the_servers_to_render(tokenizer: Any, messages: list[Any]) -> None:
    rendering = found(tokenizer, Asked(tokenizer))
    assert rendering is not None
    assert rendering.ids(messages) is None


async def blocks(*, then: float = 0.0, fault: Exception | None = None,
                 closed: list[str]) -> AsyncGenerator[list[Token], None]:  # fmt: skip
    try:
        yield [Token(1, "a", end=True)]
        await asyncio.sleep(then)
        if fault is not None:
            raise fault
        closed.append("read to its end")
    finally:
        closed.append("closed")


@pytest.mark.parametrize(
    ("then", "fault", "left"),
    [
        (0.0, None, ["read to its end", "closed"]),
        (30.0, None, ["closed"]),
        (0.0, ServerError("broken off"), ["closed"]),
    ],
)
def test_a_stream_is_let_to_its_end_but_not_waited_for(
    then: float, fault: Exception | None, left: list[str]
) -> None:
    closed: list[str] = []

    async def read() -> None:
        stream = blocks(then=then, fault=fault, closed=closed)
        assert [token.id for token in await anext(stream)] == [1]
        await let_end(stream)
        await stream.aclose()

    begun = time.monotonic()
    asyncio.run(read())
    assert closed == left
    assert time.monotonic() - begun < 20
