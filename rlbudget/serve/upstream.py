"""The servers behind the gateway: looked at once, then asked in their own ways."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from starlette.responses import Response

from rlbudget.decoding.core import Core
from rlbudget.decoding.wanted import Wanted
from rlbudget.errors import UserError
from rlbudget.integrations.engine_settings import Settings
from rlbudget.integrations.openai import Server, connect
from rlbudget.models.chat import conversation_ids, has_template
from rlbudget.models.completions import Prompt
from rlbudget.models.messages import Listing, Template, Tokens
from rlbudget.models.patience import Patience
from rlbudget.models.site import ServerError, find_site
from rlbudget.models.spelling import check_text, trusted_ids
from rlbudget.models.tokenizer import served_tokenizer
from rlbudget.models.wire import Endpoint, open_endpoint
from rlbudget.serve.passing import pass_through
from rlbudget.serve.steer import Steered
from rlbudget.signals.tokens import TOP_K
from rlbudget.tasks.conversations import text_of

Renders = Literal["tokenize", "apply-template", "here"]
"""Who renders a chat into token ids: vLLM's and SGLang's ``/tokenize``, llama-server's
``/apply-template``, or the tokenizer of the gateway."""

_OWN = frozenset({
    "model", "messages", "prompt", "stream", "stream_options", "max_tokens",
    "max_completion_tokens", "n", "reasoning_effort", "reasoning", "thinking", "tools",
    "tool_choice", "parallel_tool_calls", "response_format", "chat_template_kwargs", "logprobs",
    "top_logprobs", "store", "metadata", "user", "service_tier", "prompt_cache_key",
    "safety_identifier", "verbosity", "thinking_token_budget", "thinking_budget",
    "thinking_budget_tokens", "reasoning_budget", "max_thinking_tokens", "include_reasoning",
})  # fmt: skip
"""Fields that the gateway reads, or that say nothing to a text completion."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """One server; made by ``look_at``."""

    url: str
    model: str
    servers: Mapping[str, Server]
    """by the name of a plan"""
    renders: Renders
    tokenizer: Any = field(repr=False)
    root: Endpoint = field(repr=False)
    """of its root, for what is not below ``/v1`` and for what passes through"""

    @property
    def cores(self) -> Mapping[str, Core]:
        """By the name of a plan."""
        return {name: server.core for name, server in self.servers.items()}

    async def models(self) -> list[dict[str, Any]]:
        """What it lists; ``ServerError`` where it does not answer."""
        listing = await self.root.ask(Listing, "v1/models", patience=Patience(0, 0.0))
        return [msgspec.json.decode(entry) for entry in listing.data or ()]

    async def forward(
        self, method: str, path: str, query: str, headers: Mapping[str, str], content: bytes,
        told: Mapping[str, str],
    ) -> Response:  # fmt: skip
        """A request that passes through as it is."""
        return await pass_through(self.root, method, path, query, headers, content, told)

    async def steer(
        self, wanted: Wanted, body: Mapping[str, Any], *, shadow: bool = False
    ) -> Steered:
        """A request under its plan; ``UserError`` for one that cannot be served so."""
        server = self.servers[wanted.name]
        ids = await self._ids(server, body)
        room = None if server.context is None else server.context - len(ids)
        said = body.get("max_completion_tokens") or body.get("max_tokens")
        limit = min(n for n in (room, said, _MOST) if n is not None)
        request = wanted.request(server.core, ids, limit, shadow=shadow)
        text = server.core.vocabulary.text(ids, special=True)
        fields = {name: value for name, value in body.items() if name not in _OWN}
        return Steered(
            server, request, Prompt(ids, text, server.by_ids), limit=limit, fields=fields
        )

    async def _ids(self, server: Server, body: Mapping[str, Any]) -> list[int]:
        if "messages" not in body:
            prompt = body["prompt"]
            if isinstance(prompt, list):
                if not _known(prompt, server):
                    raise UserError("prompt: an id that the tokenizer lacks")
                return [*prompt]
            check_text(prompt)
            return trusted_ids(self.tokenizer, prompt)
        more = body.get("chat_template_kwargs") or {}
        if self.renders == "tokenize":
            asked = {"model": self.model, "messages": body["messages"],
                     "chat_template_kwargs": more, "add_generation_prompt": True}  # fmt: skip
            return _checked(await self.root.ask(Tokens, "tokenize", asked), server)
        if self.renders == "apply-template":
            asked = {"messages": body["messages"], "chat_template_kwargs": more}
            prompt = (await self.root.ask(Template, "apply-template", asked)).prompt
            tokens = {"content": prompt, "add_special": False, "parse_special": True}
            return _checked(await self.root.ask(Tokens, "tokenize", tokens), server)
        return _rendered(self.tokenizer, server, body["messages"], more)


_MOST = 1 << 20
"""tokens of a request in a server whose context is not known"""


@asynccontextmanager
async def look_at(
    url: str, settings: Settings, *, model: str | None = None, tokenizer: Any = None,
    key: str | None = None, retries: int = 3, timeout: float = 120.0,
    deadline: float = 3600.0, approximate: bool = False, top_logprobs: int = TOP_K,
) -> AsyncIterator[Upstream]:  # fmt: skip
    """Look at the server at ``url`` (ending in ``/v1``) and keep connections to it.

    ``tokenizer`` is the served model's, by default what the server calls its model. Raises
    ``UserError`` and ``ServerError`` as ``integrations.openai.connect`` does.
    """
    async with AsyncExitStack() as stack:
        servers: dict[str, Server] = {}
        spelled, ends = served_tokenizer(tokenizer or model, ())
        for name, plan in settings.plans.items():
            servers[name] = await stack.enter_async_context(
                connect(url, plan, spelled, model=model, key=key, eos_ids=ends, retries=retries,
                        timeout=timeout, deadline=deadline, approximate=approximate,
                        top_logprobs=top_logprobs,
                        profile=settings.profile, token_price=settings.token_price)
            )  # fmt: skip
        first = next(iter(servers.values()))
        site = find_site(url.rstrip("/").removesuffix("/v1"), key, "http://HOST:PORT/v1")
        opened = open_endpoint(site, retries=retries, timeout=timeout, deadline=deadline)
        root = await stack.enter_async_context(opened)
        renders = await _renders(root, first)
        yield Upstream(url, first.model, servers, renders, spelled, root)


async def _renders(root: Endpoint, server: Server) -> Renders:
    messages = [{"role": "user", "content": "1"}]
    chat = {"model": server.model, "messages": messages, "add_generation_prompt": True}
    try:
        _checked(await root.ask(Tokens, "tokenize", chat, patience=Patience(0, 0.0)), server)
        return "tokenize"
    except (ServerError, UserError):
        pass
    try:
        asked = {"messages": messages}
        await root.ask(Template, "apply-template", asked, patience=Patience(0, 0.0))
        return "apply-template"
    except (ServerError, UserError):
        return "here"


def _known(ids: Sequence[int], server: Server) -> bool:
    size = len(server.core.vocabulary.markers)
    return all(0 <= token < size for token in ids)


def _checked(found: Tokens, server: Server) -> list[int]:
    if found.tokens and _known(found.tokens, server):
        return found.tokens
    raise ServerError(f"{server.endpoint.site.name}: tokenize gave ids that the tokenizer lacks")


def _rendered(
    tokenizer: Any, server: Server, messages: Sequence[Mapping[str, Any]], more: Mapping[str, Any]
) -> list[int]:
    """By the tokenizer's own template, or by the exit profile for a single question."""
    if "chat_template" in more:  # a program of the client's
        raise UserError("chat_template_kwargs: the template is the tokenizer's own")
    turns = [(str(message["role"]), text_of(message.get("content"))) for message in messages]
    if has_template(tokenizer):
        return conversation_ids(tokenizer, turns, more)
    if [role for role, _ in turns] != ["user"]:
        raise UserError(
            "the upstream renders no chats and its tokenizer has no template: send one message of"
            " the user"
        )
    return server.core.profile.prompt(turns[0][1], tokenizer)
