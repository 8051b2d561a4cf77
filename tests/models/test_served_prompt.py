"""The prompt of a served model: by the server's own template, with the thinking open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fake_servers import Handler, listening

from rlbudget.errors import UserError
from rlbudget.models.served import Asked, open_model
from rlbudget.models.served_prompt import prompt_of
from rlbudget.models.spelling import trusted_ids
from rlbudget.models.tokenizer import served_tokenizer
from runs.integrations.toy_script import choice_of

TOKENIZER, _ = served_tokenizer("embedded")
Template = Callable[[list[dict[str, str]], dict[str, Any]], str]


def plain(messages: list[dict[str, str]], settings: dict[str, Any]) -> str:
    """System turn in brackets, then the question."""
    turns = [f"({m['content']})" if m["role"] == "system" else m["content"] for m in messages]
    return " ".join(turns) + "\n" + str(settings.get("opening", ""))


@contextmanager
def rendering(template: Template, *, owner: str = "vllm") -> Iterator[str]:
    """A server that renders and tokenises, as vLLM or as llama-server does."""

    class Fake(Handler):
        def do_GET(self) -> None:  # noqa: N802
            entry = {"id": "toy", "owned_by": owner, "root": "embedded", "meta": {"n_vocab": 768}}
            self.send_json({"data": [entry]})

        def do_POST(self) -> None:  # noqa: N802
            body = self.body()
            if self.path == "/v1/completions":
                event = json.dumps({"choices": [choice_of(body)]}).encode()
                self.send_events(iter([b"data: " + event + b"\n\n", b"data: [DONE]\n\n"]))
                return
            text = str(body.get("prompt", body.get("content", "")))
            if "messages" in body:
                text = template(body["messages"], body.get("chat_template_kwargs", {}))
            if self.path == "/apply-template":
                self.send_json({"prompt": text})
            else:
                self.send_json({"tokens": trusted_ids(TOKENIZER, text)})

    with listening(Fake) as url:
        yield f"{url}/v1"


def prompt(url: str, question: str, profile: str = "think", **asked: Any) -> str:
    async def run() -> str:
        async with open_model([url], profile=profile, asked=Asked(**asked)) as model:
            found = await prompt_of(model, model.servers[0], question)
            assert found.ids == trusted_ids(TOKENIZER, found.text)
            return found.text

    return asyncio.run(run())


@pytest.mark.parametrize("owner", ["vllm", "llamacpp"])
def test_system_turn_and_settings_go_through_the_servers_template(owner: str) -> None:
    with rendering(plain, owner=owner) as url:
        text = prompt(url, "2 + 3?", system="be brief", template={"opening": "<think>"})
    assert text == "(be brief) 2 + 3?\n<think>"


def test_a_thinking_that_is_not_open_is_opened_and_a_closed_one_is_refused() -> None:
    with rendering(plain) as url:
        assert prompt(url, "2 + 3?") == "2 + 3?\n<think>\n"
        # What a question spells is no opening of the thinking.
        assert prompt(url, "what is <think>?").endswith("?\n<think>\n")
        with pytest.raises(UserError, match="closed thinking: open it by --chat-template-kwargs"):
            prompt(url, "2 + 3?", template={"opening": "<think>\n\n</think>"})


def test_a_profile_with_a_prompt_of_its_own_takes_no_system_turn() -> None:
    with rendering(plain) as url:
        assert prompt(url, "2 + 3?", profile="embedded") == "<bos>2 + 3?\n<think>"
        with pytest.raises(UserError, match="has a prompt of its own"):
            prompt(url, "2 + 3?", profile="embedded", system="be brief")
