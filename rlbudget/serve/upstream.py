"""The servers behind the gateway: looked at once, then asked in their own ways."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import msgspec
import orjson
from starlette.responses import Response

from rlbudget.decoding.core import Core
from rlbudget.decoding.wanted import Wanted
from rlbudget.errors import UserError
from rlbudget.integrations.engine_settings import Settings
from rlbudget.integrations.openai import Server, connect
from rlbudget.models.chat import conversation_ids, has_template
from rlbudget.models.completions import Prompt
from rlbudget.models.messages import Listing, Template, Tokens
from rlbudget.models.openai_server import find_model
from rlbudget.models.patience import Patience
from rlbudget.models.site import ServerError, find_site
from rlbudget.models.spelling import check_text, trusted_ids
from rlbudget.models.tokenizer import served_tokenizer
from rlbudget.models.wire import Endpoint, open_endpoint
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.serve.engine import OFF, XARGS, disagreement, has_processor, with_xargs, xargs_for
from rlbudget.serve.followed import Followed
from rlbudget.serve.passing import Spent, pass_through
from rlbudget.serve.rendering import Rendering, find_rendering
from rlbudget.serve.second import second_of
from rlbudget.serve.steer import Steered
from rlbudget.signals.tokens import TOP_K
from rlbudget.strategies.plan import plan_of
from rlbudget.tasks.conversations import text_of

_log = logging.getLogger("rlbudget.serve")
Cut = Literal["here", "engine"]
"""Where the thinking is ended: by the gateway, or by our logits processor in the server."""
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
    settings: Settings = field(repr=False)
    cut: Cut = "here"
    """where the thinking is ended"""
    weight: float = 1.0
    """its share of the requests, beside the others of its model"""
    rendering: Rendering | None = None
    """by which plain chats are rendered here, where the server was seen to render so too"""
    processor: bool = False
    """whether it decodes with our logits processor, which must be told what not to touch"""

    @property
    def passes(self) -> bool:
        """It is a server."""
        return True

    @property
    def cores(self) -> Mapping[str, Core]:
        """By the name of a plan."""
        return {name: server.core for name, server in self.servers.items()}

    def under(self, policy: StopPolicy) -> Upstream:
        """The same server under another policy that looks at the same."""
        plan = plan_of(policy)
        servers = {
            name: replace(server, core=replace(server.core, plan=plan))
            for name, server in self.servers.items()
        }
        return replace(self, servers=servers)

    async def models(self) -> list[dict[str, Any]]:
        """What it lists; ``ServerError`` where it does not answer."""
        listing = await self.root.ask(Listing, "v1/models", patience=Patience(0, 0.0))
        return [msgspec.json.decode(entry) for entry in listing.data or ()]

    async def forward(
        self, method: str, path: str, query: str, headers: Mapping[str, str], content: bytes,
        told: Mapping[str, str], wanted: Wanted | None = None, spent: Spent | None = None,
    ) -> Response:  # fmt: skip
        """As ``Backend.forward``; a processor is told what it may cut."""
        if self.processor and wanted is not None:
            body = orjson.loads(content)
            content = orjson.dumps(with_xargs(body, self._xargs(wanted, body)))
        return await pass_through(self.root, method, path, query, headers, content, told, spent)

    def _xargs(self, wanted: Wanted, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of a request that passes through: the engine cuts it too, where it has room to."""
        if self.cut == "here" or wanted.off:
            return OFF
        said = body.get("max_completion_tokens") or body.get("max_tokens")
        try:
            return xargs_for(wanted, self.servers[wanted.name].core, self.settings, said)
        except UserError:
            return OFF

    async def steer(
        self, wanted: Wanted, body: Mapping[str, Any], *, shadow: bool = False
    ) -> Steered | Followed:
        """A request under its plan; ``UserError`` for one that cannot be served so."""
        server = self.servers[wanted.name]
        if server.core.second is not None and "question" not in (wanted.said or {}):
            raise UserError(
                "a second model is handed single questions: send one message, or say which in"
                " rlbudget.question"
            )
        ids = await self._ids(server, body)
        room = None if server.context is None else server.context - len(ids)
        said = body.get("max_completion_tokens") or body.get("max_tokens")
        limit = min(n for n in (room, said, _MOST) if n is not None)
        text = "" if server.by_ids else server.core.vocabulary.text(ids, special=True)
        prompt = Prompt(ids, text, server.by_ids)
        fields = {name: value for name, value in body.items() if name not in _OWN}
        if self.cut == "engine":
            xargs = xargs_for(wanted, server.core, self.settings, limit)
            return Followed(
                server, server.core, wanted, prompt, limit=limit, fields=fields, xargs=xargs
            )
        if self.processor:
            fields = with_xargs(fields, OFF)
        request = wanted.request(server.core, ids, limit, shadow=shadow)
        return Steered(server, request, prompt, limit=limit, fields=fields)

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
        if self.rendering is not None and not more:
            here = self.rendering.ids(body["messages"])
            if here is not None:
                return here
        if self.renders != "here":
            return await _asked(self.root, server, self.renders, body["messages"], more)
        return _rendered(self.tokenizer, server, body["messages"], more)


async def _asked(
    root: Endpoint, server: Server, renders: Renders, messages: Sequence[Mapping[str, Any]],
    more: Mapping[str, Any],
) -> list[int]:  # fmt: skip
    """A chat's token ids by the server itself."""
    if renders == "tokenize":
        asked = {"model": server.model, "messages": messages,
                 "chat_template_kwargs": more, "add_generation_prompt": True}  # fmt: skip
        return _checked(await root.ask(Tokens, "tokenize", asked), server)
    asked = {"messages": messages, "chat_template_kwargs": more}
    prompt = (await root.ask(Template, "apply-template", asked)).prompt
    tokens = {"content": prompt, "add_special": False, "parse_special": True}
    return _checked(await root.ask(Tokens, "tokenize", tokens), server)


_WHERE = {"here": "here, by its log-probabilities", "engine": "in the engine"}
_MOST = 1 << 20
"""tokens of a request in a server whose context is not known"""


@asynccontextmanager
async def look_at(
    url: str, settings: Settings, *, model: str | None = None, tokenizer: Any = None,
    key: str | None = None, retries: int = 3, timeout: float = 120.0,
    deadline: float = 3600.0, approximate: bool = False, top_logprobs: int = TOP_K,
    cut: Literal["auto", "here", "engine"] = "auto", weight: float = 1.0,
) -> AsyncIterator[Upstream]:  # fmt: skip
    """Look at the server at ``url`` (ending in ``/v1``) and keep connections to it.

    ``weight`` is its share of the requests beside the others of its model. A plan's second model
    is asked with the same ``key``. ``tokenizer`` is the served model's, by default what the server
    calls its model. ``cut`` says where the thinking is ended: in the engine where it offers that
    (``auto``), or there or here alone. Raises ``UserError`` and ``ServerError`` as
    ``integrations.openai.connect`` does, and ``UserError`` where the engine should cut and cannot.
    """
    async with AsyncExitStack() as stack:
        opened = partial(open_endpoint, retries=retries, timeout=timeout, deadline=deadline)
        spelled, ends = served_tokenizer(tokenizer or model, ())
        site = find_site(url, key, "http://HOST:PORT/v1")
        endpoint = await stack.enter_async_context(opened(site))
        name, _ = await find_model(endpoint, model)
        processor = await has_processor(endpoint, name)
        chosen = await _chosen(endpoint, name, settings, cut, processor=processor)
        servers: dict[str, Server] = {}
        for plan_name, plan in settings.plans.items():
            second = await stack.enter_async_context(
                second_of(plan, key=key, retries=retries, timeout=timeout, deadline=deadline)
            )
            servers[plan_name] = await stack.enter_async_context(
                connect(url, plan, spelled, model=name, key=key, eos_ids=ends,
                        approximate=approximate, top_logprobs=top_logprobs,
                        profile=settings.profile, token_price=settings.token_price,
                        fields={XARGS: OFF} if processor else None, cuts=chosen == "engine",
                        second=second, retries=retries, timeout=timeout, deadline=deadline)
            )  # fmt: skip
        first = next(iter(servers.values()))
        site = find_site(url.rstrip("/").removesuffix("/v1"), key, "http://HOST:PORT/v1")
        root = await stack.enter_async_context(opened(site))
        renders = await _renders(root, first)
        rendering: Rendering | None = None
        if renders != "here":
            rendering = await find_rendering(
                spelled, partial(_asked, root, first, renders, more={})
            )
        _log.info("%s: the thinking of %s is cut %s", site.name, name, _WHERE[chosen])
        yield Upstream(
            url,
            name,
            servers,
            renders,
            spelled,
            root,
            settings,
            chosen,
            weight,
            rendering,
            processor,
        )


async def _chosen(
    endpoint: Endpoint, model: str, settings: Settings, cut: Literal["auto", "here", "engine"],
    *, processor: bool,
) -> Cut:  # fmt: skip
    """Where the thinking is ended."""
    why = "it has no processor of rlbudget" if not processor else None
    if cut != "here" and processor:
        why = await disagreement(endpoint, model, settings)
        if why is None:
            return "engine"
    if cut == "engine":
        raise UserError(f"{endpoint.site.name} cannot cut the thinking: {why}")
    if processor and why is not None:
        _log.warning("%s: its processor is not used: %s", endpoint.site.name, why)
    return "here"


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
