"""A model behind one server or several, ready to write tokens; ``rlbudget record --model URL``.

Everything is asked for by requests that are short-lived and can be repeated: tokens after a prefix,
with what the server lists beside each. Where a server gives and takes token ids the prefix is ids,
so that what it wrote is never tokenised anew and its prefix cache hits; else it is text.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from rlbudget.errors import UserError
from rlbudget.models.asking import root_of
from rlbudget.models.completions import Spelling, spelling_of
from rlbudget.models.gate import Gate
from rlbudget.models.llama_completion import ENDS
from rlbudget.models.messages import Tokens
from rlbudget.models.openai_server import look
from rlbudget.models.patience import Patience
from rlbudget.models.profiles import ChosenBy, Profile, default_profile, find_profile, trusted_ids
from rlbudget.models.served_kind import Found, Kind, find
from rlbudget.models.site import ServerError, find_site
from rlbudget.models.tokenizer import served_tokenizer
from rlbudget.models.vocabulary import Vocabulary, build_vocabulary
from rlbudget.models.wire import Endpoint, check_times, open_endpoint
from rlbudget.signals.tokens import TOP_K, TOP_SIGNALS

_LISTS = (TOP_K, 5, 1)
"""log-probabilities a token that are asked for, the most first: some servers cap them"""
_LOOKS = 3
"""Faults at the first look at a server before it is taken not to be there."""
_SPARE = 8192
"""Ids beyond the tokenizer's that a padded model may have."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How a model behind a server is asked."""

    concurrency: int = 32
    """requests at once, of each server"""
    questions: int | None = None
    """questions under way at once, of each server; by default as many as requests"""
    retries: int = 8
    """faults that one request survives"""
    timeout: float = 600.0
    """seconds that one request may take, and that it waits in all where a server asks for it"""
    system: str | None = None
    """text of a system turn"""
    template: Mapping[str, Any] = field(default_factory=dict)
    """settings of the chat template (``chat_template_kwargs``)"""

    @property
    def meta(self) -> dict[str, Any]:
        """What a trace says of it."""
        said: dict[str, Any] = {}
        if self.system is not None:
            said["system"] = self.system
        if self.template:
            said["chat_template_kwargs"] = json.dumps(dict(self.template), sort_keys=True)
        return said


@dataclass(frozen=True, slots=True)
class Server:
    """One address."""

    found: Found
    by_ids: bool
    """whether it gives and takes token ids"""
    top: int
    """log-probabilities that it lists beside a token, 0 for none"""
    fields: Mapping[str, Any]
    """of every request"""
    spelling: Spelling = field(repr=False)
    endpoint: Endpoint = field(repr=False)
    gate: Gate = field(repr=False)
    asked: Asked

    @property
    def name(self) -> str:
        """Its address, without anything secret."""
        return self.endpoint.site.name

    @property
    def patience(self) -> Patience:
        """That of a fresh request."""
        return Patience(self.asked.retries, self.asked.timeout)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model behind servers that all serve it alike."""

    name: str
    """as the servers call it"""
    tokenizer: Any = field(repr=False)
    profile: Profile
    vocabulary: Vocabulary = field(repr=False)
    chosen_by: ChosenBy
    """how the profile was chosen"""
    asked: Asked
    servers: tuple[Server, ...]

    @property
    def kind(self) -> Kind:
        """Of its first server."""
        return self.servers[0].found.kind

    @property
    def top(self) -> int:
        """Log-probabilities that are listed beside a token."""
        return self.servers[0].top

    @property
    def by_ids(self) -> bool:
        """Whether token ids go both ways."""
        return self.servers[0].by_ids

    @property
    def context(self) -> int | None:
        """Most tokens of prompt and completion, where told."""
        known = [s.found.context for s in self.servers if s.found.context is not None]
        return min(known, default=None)

    @property
    def signals(self) -> frozenset[str]:
        """The signals of a checkpoint that follow exactly from what is listed."""
        given = set(TOP_SIGNALS) if self.top else set()
        if self.top < TOP_K:
            given -= {"topk_mean"}
        if self.top < 2:
            given -= {"margin_mean", "margin_min"}
        return frozenset(given)


@asynccontextmanager
async def open_model(
    urls: Sequence[str],
    *,
    model: str | None = None,
    tokenizer: Any = None,
    profile: str | None = None,
    key: str | None = None,
    asked: Asked | None = None,
    texts: Sequence[str] = (),
) -> AsyncIterator[ServedModel]:
    """Look at the servers and keep their connections open.

    ``urls`` end in ``/v1``; ``model`` left out is the first that the server lists. ``tokenizer`` is
    the served model's: one of transformers, or the name that loads it; left out, what the server
    says its weights are. ``key`` is sent as a bearer token and never shown. ``texts`` are some
    questions, which the server must tokenise as ``tokenizer`` does.

    Raises ``UserError`` for an address that is no such server, a model it does not serve, another
    tokenizer than its own, servers that differ, a key that is not taken; ``ServerError`` where
    nobody answers.
    """
    asked = asked or Asked()
    if asked.concurrency < 1 or (asked.questions or 1) < 1:
        raise UserError(
            "concurrency and questions must be at least 1, not"
            f" {asked.concurrency} and {asked.questions}"
        )
    check_times(asked.retries, asked.timeout, asked.timeout)
    async with AsyncExitStack() as stack:
        sites = [find_site(url, key, "http://HOST:PORT/v1") for url in urls]
        endpoints = [
            await stack.enter_async_context(
                open_endpoint(
                    site, retries=asked.retries, timeout=asked.timeout, deadline=asked.timeout
                )
            )
            for site in sites
        ]
        found = [await _find(one, model) for one in endpoints]
        spelled, ends = _tokenizer(tokenizer, found[0], endpoints[0].site.name)
        chosen, by = _profile(profile, spelled)
        size = found[0].size or len(spelled) + _SPARE
        vocabulary = build_vocabulary(spelled, chosen, size, ends)
        servers = []
        for endpoint, one in zip(endpoints, found, strict=True):
            await _same_tokens(endpoint, one, spelled, [chosen.exit_text, *texts])
            servers.append(await _server(endpoint, one, chosen, vocabulary, asked))
        _alike(servers)
        yield ServedModel(found[0].model, spelled, chosen, vocabulary, by, asked, tuple(servers))


async def _find(endpoint: Endpoint, model: str | None) -> Found:
    """``find``, for a server that may be starting."""
    patience = Patience(_LOOKS, endpoint.timeout)
    while True:
        try:
            return await find(endpoint, model)
        except ServerError as error:
            await asyncio.sleep(patience.pause(error))


async def _server(
    endpoint: Endpoint, found: Found, profile: Profile, vocabulary: Vocabulary, asked: Asked
) -> Server:
    """What it gives, found out by asking for one token."""
    gate = Gate(asked.concurrency)
    if found.kind == "llama-server":
        spelling = spelling_of(vocabulary)
        return Server(found, True, TOP_K, {"n_probs": TOP_K}, spelling, endpoint, gate, asked)
    refused: UserError | None = None
    for n in (*_LISTS, 0):
        own: dict[str, Any] = {"model": found.model, **({"logprobs": n} if n else {})}
        try:
            by_ids, fields, first, by_text = await look(endpoint, own, profile, vocabulary)
        except UserError as error:
            refused = refused or error
            continue
        fields = {name: value for name, value in fields.items() if name != "stream_options"}
        spelling = spelling_of(vocabulary, by_text=by_text)
        top = len(first.top) if first.logprob is not None else 0
        return Server(found, by_ids, min(top, n), fields, spelling, endpoint, gate, asked)
    raise refused or UserError(f"{endpoint.site.name} gives no completions")


def _alike(servers: Sequence[Server]) -> None:
    first = servers[0]
    for other in servers[1:]:
        if (other.found.model, other.by_ids, other.top) != (
            first.found.model, first.by_ids, first.top,
        ):  # fmt: skip
            raise UserError(
                f"{first.name} serves {first.found.model!r} ({_gives(first)}), {other.name}"
                f" {other.found.model!r} ({_gives(other)}): several addresses must serve one model"
                " alike"
            )


def _gives(server: Server) -> str:
    ids = "token ids" if server.by_ids else "text"
    return f"{server.top} log-probabilities, {ids}"


def _tokenizer(given: Any, found: Found, site: str) -> tuple[Any, list[int]]:
    named = given is not None
    try:
        spelled, ends = served_tokenizer(given if named else found.weights or found.model)
    except UserError as error:
        if named:
            raise
        raise UserError(
            f"{site} does not say where the tokenizer of {found.model!r} lies ({error}): name it"
            " with --tokenizer, a folder or a hub name"
        ) from None
    known = spelled.get_vocab() if found.kind == "llama-server" else {}
    return spelled, sorted({*ends, *(known[text] for text in ENDS if text in known)})


def _profile(name: str | None, tokenizer: Any) -> tuple[Profile, ChosenBy]:
    return default_profile(tokenizer) if name is None else (find_profile(name), "name")


async def _same_tokens(
    endpoint: Endpoint, found: Found, tokenizer: Any, texts: Sequence[str]
) -> None:
    """Refuse a tokenizer that spells one of the texts otherwise than the server does."""
    for text in texts:
        theirs = await tokens_of(endpoint, found, text)
        if theirs is None:
            return  # it has no such route
        if theirs != trusted_ids(tokenizer, text):
            shown = text if len(text) <= 60 else text[:59] + "…"
            raise UserError(
                f"{endpoint.site.name} spells {shown!r} in {len(theirs)} tokens that are not those"
                f" of this tokenizer: name the tokenizer of {found.model!r} with --tokenizer"
            )


async def tokens_of(endpoint: Endpoint, found: Found, text: str) -> list[int] | None:
    """The ids of a text, by the server's own tokenizer; None where it does not tell."""
    body: dict[str, Any] = {"model": found.model, "prompt": text, "add_special_tokens": False}
    if found.kind == "llama-server":
        body = {"content": text, "add_special": False, "parse_special": True}
    return await tokenized(endpoint, body)


async def tokenized(endpoint: Endpoint, body: Mapping[str, Any]) -> list[int] | None:
    """What ``/tokenize`` gives; None where there is no such route, or it refuses."""
    try:
        return (await root_of(endpoint).ask(Tokens, "tokenize", body)).tokens
    except UserError:
        return None


async def alive(server: Server) -> bool:
    """Whether it lists its models again."""
    try:
        await find(server.endpoint, server.found.model)
    except (UserError, ServerError):
        return False
    return True
