"""A client of any OpenAI-compatible server that streams log-probabilities, under a plan.

It thinks in one stream of ``/completions``, closes it where the policy stops, and asks for the
answer after the exit text in a second one. What was thought so far is sent back as token ids
where the server gives and takes them (vLLM, llama-server, SGLang), as text elsewhere. It needs
aiohttp and a tokenizer, neither torch nor the openai package. ``docs/openai.md`` shows it at work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from rlbudget.arrays import Floats
from rlbudget.decoding.aside import Fork, Wish
from rlbudget.decoding.core import OPENAI, VLLM, Core, HandOver, bind
from rlbudget.decoding.decoded import Decoded
from rlbudget.decoding.request import Request
from rlbudget.errors import UserError
from rlbudget.models.completions import Prompt, Spelling, Stream, Token, spelling_of
from rlbudget.models.logprobs import (
    check_features,
    exact_signals,
    lacking,
    least_entropy,
    listed_signals,
)
from rlbudget.models.openai_server import find_model, look
from rlbudget.models.patience import Patience
from rlbudget.models.reading import Continuation, ends_answer
from rlbudget.models.site import ServerError, find_site
from rlbudget.models.tokenizer import served_tokenizer
from rlbudget.models.wire import Endpoint, check_times, open_endpoint
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.signals.tokens import SIGNALS, TOP_K
from rlbudget.strategies.plan import Plan, plan_of

__all__ = ["Server", "ServerError", "connect", "decode", "decode_once"]

_OURS = frozenset({"model", "prompt", "max_tokens", "stream", "n", "logprobs", "echo", "stop"})
_GREEDY: Mapping[str, Any] = {"temperature": 0.0, "logprobs": 1}
_SPARE = 8192
"""Ids beyond the tokenizer's that a padded model may have."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that was looked at, and what its requests share; made by ``connect``."""

    core: Core
    model: str
    """the name it is asked for"""
    by_ids: bool
    """whether it gives and takes token ids"""
    approximate: bool
    """whether entropy and the chance of the end are estimated"""
    context: int | None
    """most tokens of prompt and completion, where known"""
    size: int
    """tokens of the tokenizer: a list of so many is the whole distribution"""
    least: int
    """log-probabilities without which a token has no signals"""
    fields: Mapping[str, Any]
    """of every request"""
    spelling: Spelling = field(repr=False)
    endpoint: Endpoint = field(repr=False)


@asynccontextmanager
async def connect(
    url: str,
    policy: Plan | StopPolicy,
    tokenizer: Any,
    *,
    model: str | None = None,
    key: str | None = None,
    eos_ids: Iterable[int] = (),
    approximate: bool = False,
    profile: str | None = None,
    token_price: float | None = None,
    stride: int | None = None,
    max_thinking_tokens: int | None = None,
    context: int | None = None,
    top_logprobs: int = TOP_K,
    retries: int = 3,
    timeout: float = 120.0,
    deadline: float = 3600.0,
    fields: Mapping[str, Any] | None = None,
    second: Callable[[HandOver], Decoded] | None = None,
    cuts: bool = False,
) -> AsyncIterator[Server]:
    """Look at a server and keep its connections open: ``async with connect(...) as server``.

    ``url`` ends in ``/v1``. ``tokenizer`` is the served model's: one of transformers, or the name
    that loads it (``"embedded"``, a folder, a hub name). ``model`` left out is the first that the
    server lists; ``key`` is sent as a bearer token and never shown. ``eos_ids`` are ends of
    sequence beside those that the tokenizer, the model's configuration and the server tell. With
    ``approximate``, signals that ``top_logprobs`` likeliest tokens cannot give are estimated, and
    exits may differ from the replay's; a server that lists the whole vocabulary gives all exactly.
    ``profile``, ``token_price`` (reward per token), ``stride`` and ``max_thinking_tokens`` left out
    are the policy's. ``context`` caps prompt and completion
    where the server does not say it. A decode survives ``retries`` faults; ``timeout`` is the
    longest that it waits for a token, in seconds, whatever else the server sends, and the longest
    that it waits in all where the server asks for it (``Retry-After``). ``deadline`` is the longest
    that one request may take, its repetitions included. Sampling is the model's own in every
    request; ``fields`` (``top_p``, ...) change that. ``second`` answers for a cascade or a
    correction by a second model. ``cuts`` says that the server decides by itself
    (``rlbudget.integrations.vllm``): no log-probabilities are asked for; such a server is not for
    ``decode``.

    Raises ``UserError`` for a policy that needs more than the server gives, log-probabilities for
    one that looks at them, a server that refuses the request, and settings out of range;
    ``ServerError`` for one that cannot be reached.
    """
    given = dict(fields or {})
    if taken := sorted(_OURS & set(given)):
        raise UserError(f"fields: {', '.join(taken)} cannot be set, the decode sets it itself")
    if not top_logprobs >= 1:
        raise UserError(f"top_logprobs must be at least 1, not {top_logprobs}")
    check_times(retries, timeout, deadline)
    site = find_site(url, key, "http://HOST:PORT/v1")
    spelled, ends = served_tokenizer(tokenizer, {*eos_ids, *(given.get("stop_token_ids") or ())})
    size, features = len(spelled), plan_of(policy).features
    if not cuts:
        check_features(features, top=top_logprobs, size=size, approximate=approximate)
    measures = not cuts and any(feature.partition(".")[0] in SIGNALS for feature in features)
    core = bind(
        policy,
        spelled,
        VLLM if cuts else OPENAI,
        vocabulary_size=size + _SPARE,
        eos_ids=ends,
        profile=profile,
        token_price=token_price,
        stride=stride,
        max_thinking_tokens=max_thinking_tokens,
        model=model or "",
        second=second,
    )
    opened = open_endpoint(site, retries=retries, timeout=timeout, deadline=deadline)
    async with opened as endpoint:
        found, room = await find_model(endpoint, model)
        own = {**given, "model": found, **({"logprobs": top_logprobs} if measures else {})}
        by_ids, asked, first, by_text = await look(endpoint, own, core.profile, core.vocabulary)
        got = len(first.top)
        if measures and (first.logprob is None or not got):
            raise UserError(
                f"{site.name} streams no log-probabilities, which this policy needs: switch them on"
                " there, use another server, or train with --signals text"
            )
        if measures:
            check_features(features, top=got, size=size, approximate=approximate)
        # The whole vocabulary.
        every = not cuts and bool(lacking(features, got, approximate=approximate))
        yield Server(
            core=core,
            model=found,
            by_ids=by_ids,
            approximate=approximate,
            context=room if context is None else context,
            size=size,
            least=size if every else min(got, 2),
            fields=asked,
            spelling=spelling_of(
                core.vocabulary, by_text=by_text, likeliest=approximate or every or got >= size
            ),
            endpoint=endpoint,
        )


async def decode(
    server: Server,
    question: str,
    *,
    prompt: Sequence[int] | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    **said: Any,
) -> Decoded:
    """Answer ``question``, thinking as long as the plan finds it worth the price.

    ``prompt`` are the token ids up to the start of the thinking, by default the profile's;
    ``max_tokens`` caps thinking, exit text and answer together, with room for an answer kept;
    ``temperature`` is the thinking's, by default that of the policy's traces, else the profile's,
    and an answer after an exit is greedy, as recorded. What else a request may say
    (``token_price``, ``dial``, ``task``, ``metadata``, ``max_thinking_tokens``, ``request_id``) is
    that of ``rlbudget.decoding.request.Request``. Any number of decodes may run at once on one
    server. A policy that raises or says NaN does not cost the answer; the decode goes on to its
    natural end.

    Tokens are those that the server says it made, else those that were read, with those that came
    in one chunk with a stop: it may have made a few more before it saw the stream close. Raises
    ``UserError`` for a price the policy does not know, a cap that leaves no room to think, and a
    request that the server refuses; ``ServerError`` after too many faults.
    """
    core = server.core
    ids = core.profile.prompt(question, core.vocabulary.tokenizer) if prompt is None else [*prompt]
    limit = _limit(server, max_tokens, len(ids))
    if temperature is None:
        temperature = float(core.plan.recorded.get("temperature", core.profile.temperature))
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature must be 0 or more, not {temperature}")
    settings = {"temperature": temperature, "row_seed": seed or 0}
    request = Request(core, max_new_tokens=limit, question=question, settings=settings, **said)
    begun = Prompt(ids, core.vocabulary.text(ids, special=True), server.by_ids)
    run = _Run(server, request, begun)
    fields = {"temperature": temperature} | ({} if seed is None else {"seed": seed})
    await run.whole(fields)
    return request.decoded()


def decode_once(
    url: str,
    question: str,
    policy: Plan | StopPolicy,
    tokenizer: Any,
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    **settings: Any,
) -> Decoded:
    """``connect`` and ``decode`` for one question, outside of asyncio.

    ``settings`` are those of ``connect``.
    """

    async def run() -> Decoded:
        async with connect(url, policy, tokenizer, **settings) as server:
            return await decode(server, question, max_tokens=max_tokens, temperature=temperature)

    return asyncio.run(run())


class _Run:
    """One decode: the streams that it takes, and what they cost."""

    def __init__(self, server: Server, request: Request, prompt: Prompt) -> None:
        self._server = server
        self._request = request
        self._prompt = prompt
        self._patience = server.endpoint.patience
        self._paid = 0

    async def whole(self, fields: Mapping[str, Any]) -> None:
        """Think, settle what the plan wants aside, read or force the answer."""
        request, core = self._request, self._server.core
        while request.thinking:
            room = request.ahead + core.profile.max_answer_tokens
            finish, wish = await self._read(self._prompt, room, fields)
            while wish is not None:
                wish = await self._settle(wish)
            if request.thinking and finish is not None and request.ahead == request.room:
                # The server ended the stream: at an end of sequence that it does not show, or for
                # want of room.
                request.gave_up() if finish == "stop" else request.cut()
        text = core.profile.exit_text
        while not request.done and (forced := request.forced()) is not None:
            self._paid += 1
            self._prompt.add([forced], text)
            wish = request.push(forced, text=self._shown(text))
            text = ""
            while wish is not None:
                wish = await self._settle(wish)
            asked = request.forced() is None
            if asked and not request.done:
                await self._read(self._prompt, core.profile.max_answer_tokens, self._greedy)
        request.finish()
        request.close(paid=self._paid)

    async def _read(
        self, prompt: Prompt, max_tokens: int, fields: Mapping[str, Any]
    ) -> tuple[str | None, Wish | None]:
        """Push what a stream says until something is to be done; why it ended, and the wish."""
        request = self._request
        stream = self._stream(prompt, max_tokens, fields)
        wish = None
        async with aclosing(stream.tokens()) as tokens:
            async for token in tokens:
                wish = self._push(token)
                if wish is not None or request.done or request.forced() is not None:
                    break
        self._paid += stream.paid
        return stream.finish, wish

    def _push(self, token: Token) -> Wish | None:
        request = self._request
        if token.end and request.thinking:
            # It ended everything without an answer; the exit takes the place of that token.
            request.gave_up()
            return None
        if token.end and token.id not in self._server.core.eos:
            request.finish()  # only the server knows it as an end: the tokenizer may show its text
            return None
        self._prompt.add([token.id], token.text)
        signals = signals_of(self._server, token) if request.thinking else None
        return request.push(token.id, signals, text=self._shown(token.text))

    @property
    def _greedy(self) -> Mapping[str, Any]:
        """Of an answer: its log-probabilities are asked for where the server gives any."""
        return _GREEDY if "logprobs" in self._server.fields else {"temperature": 0.0}

    def _shown(self, text: str) -> str | None:
        return None if self._server.by_ids else text

    def _stream(self, prompt: Prompt, max_tokens: int, fields: Mapping[str, Any]) -> Stream:
        server, every = self._server, {**self._server.fields, **fields}
        return Stream(server.endpoint, server.spelling, prompt, max_tokens, every, self._patience)

    async def _settle(self, wish: Wish) -> Wish | None:
        """Do what the request wants done aside; its next wish."""
        request, core = self._request, self._server.core
        if isinstance(wish, HandOver):
            return request.handed_over(await asyncio.to_thread(core.hand_over, wish))
        if not isinstance(wish, Fork):
            return request.forked(UserError("no options are read here"))
        try:
            found = await fork(self._server, self._prompt, wish, self._patience)
        except (ServerError, UserError) as error:  # the decode goes on without it
            return request.forked(error)
        return request.forked(found)


async def fork(server: Server, prompt: Prompt, wish: Fork, patience: Patience) -> Continuation:
    """Continue a prompt greedily aside, which stays as it is.

    Raises ``ServerError`` after too many faults, ``UserError`` where the server refuses it.
    """
    core = server.core
    here = Prompt([*prompt.ids], prompt.text, prompt.by_ids)
    here.add(wish.cue, core.vocabulary.text(wish.cue, special=True))
    ids: list[int] = []
    logprobs: list[float] = []
    entropy = float("nan")
    fields = {**server.fields, "temperature": 0.0}
    stream = Stream(server.endpoint, server.spelling, here, wish.cap, fields, patience)
    async with aclosing(stream.tokens()) as tokens:
        async for token in tokens:
            if token.end and token.id not in core.eos:
                break
            here.add([token.id], token.text)
            ids.append(token.id)
            if token.logprob is None and not token.end:
                raise ServerError("the server lists no log-probability beside a trial answer")
            logprobs.append(token.logprob or 0.0)
            if len(ids) == 1 and (best := token.best):
                entropy = least_entropy(best)
            if token.end or len(ids) >= wish.cap:
                break
            if wish.stops and ends_answer(ids, core.vocabulary, wish.stops):
                break
    return Continuation(tuple(ids), tuple(logprobs), entropy)


def signals_of(server: Server, token: Token) -> Floats | tuple[float, ...] | None:
    """The signals of a token, shape (6,), as far as the server lists enough beside it."""
    if token.nats and token.logprob is not None and len(token.nats) >= server.least:
        return exact_signals(token.logprob, token.nats)
    return listed_signals(
        token.id,
        token.logprob,
        token.top,
        server.core.vocabulary.end_first_ids,
        size=server.size,
        least=server.least,
        approximate=server.approximate,
    )


def _limit(server: Server, max_tokens: int | None, prompt: int) -> int | None:
    """The cap on all new tokens; ``UserError`` where the server's context leaves no room."""
    if server.context is None:
        return max_tokens
    room = server.context - prompt
    if room <= server.core.reserve:
        raise UserError(
            f"the question's {prompt} tokens leave {max(room, 0)} of the server's {server.context}:"
            f" the exit text and the answer take {server.core.reserve} of them"
        )
    return room if max_tokens is None else min(room, max_tokens)
