"""What a served model writes after a prefix: thoughts, exits' answers, trial answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from rlbudget.arrays import Floats
from rlbudget.errors import UserError
from rlbudget.models.asking import ask_once, root_of
from rlbudget.models.completions import Prompt, Reader, Stream, Token
from rlbudget.models.llama_completion import PLAIN, read_reply
from rlbudget.models.logprobs import least_entropy, listed_signals
from rlbudget.models.messages import Chunk, Completion
from rlbudget.models.patience import Patience
from rlbudget.models.reading import Continuation, ends_answer
from rlbudget.models.served import ServedModel, Server
from rlbudget.models.site import ServerError
from rlbudget.models.wire import room_for

_LLAMA = ("tokens", "completion_probabilities", "stop_type", "tokens_predicted", "timings")
_LLAMA_SEEDS = 2**31
_STOPS = ("vllm", "sglang")
"""Servers that end a request at a token (``stop_token_ids``); of others the rest is thrown away."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Written:
    """The tokens that one request gave."""

    tokens: tuple[Token, ...]
    """an end of sequence among them, the last, where the model ended by one that is shown"""
    stopped: bool
    """whether it ended before its last token: by an end of sequence or a stop"""
    sent: int
    """tokens of the prefix"""
    cached: int | None
    """of these, how many the server did not compute anew; None where it does not tell"""
    seconds: float
    """from asking to having"""


@dataclass(slots=True)
class Spent:
    """What requests have cost."""

    requests: int = 0
    sent: int = 0
    """tokens of all prefixes"""
    told: int = 0
    """of these, tokens of which the server told whether they were computed anew"""
    cached: int = 0
    """of these, how many were not"""
    again: int = 0
    """tokens of prefixes that it had read before: what a cache can save at best"""
    written: int = 0
    seconds: float = 0.0
    """of all requests, one after the other"""
    faults: int = 0
    """requests that had to be asked again"""

    def add(self, one: Written, again: int) -> None:
        """Count a request, ``again`` tokens of whose prefix the server had read before."""
        self.requests += 1
        self.sent += one.sent
        self.again += again
        self.written += len(one.tokens)
        self.seconds += one.seconds
        if one.cached is not None:
            self.told += one.sent
            self.cached += one.cached


async def write(
    server: Server,
    prompt: Prompt,
    n: int,
    *,
    temperature: float = 0.0,
    seed: int | None = None,
    stops: Sequence[int] = (),
    rank: tuple[int, ...] = (0,),
    spent: Spent | None = None,
    again: int = 0,
) -> Written:
    """At most ``n`` tokens after a prefix, greedy by default; asked again on faults that pass.

    ``stops`` are tokens that end it, where the server stops at tokens. Requests of the least
    ``rank`` go first. Raises ``UserError`` where the request is refused, ``ServerError`` where
    the server's patience ends.
    """
    sampling: dict[str, Any] = {"temperature": temperature}
    if seed is not None:
        sampling["seed"] = seed % _LLAMA_SEEDS if server.found.kind == "llama-server" else seed
    patience = server.patience

    async def once() -> Written:
        if server.by_ids:
            return await _once(server, prompt, n, sampling, stops)
        return await _streamed(server, prompt, n, sampling, patience)

    found = await patiently(server, once, patience, rank=rank, spent=spent)
    if spent is not None:
        spent.add(found, again)
    return found


async def patiently(
    server: Server,
    once: Callable[[], Awaitable[T]],
    patience: Patience,
    *,
    rank: tuple[int, ...] = (0,),
    spent: Spent | None = None,
) -> T:
    """What a request gives; asked again on faults that pass. Raises as ``write`` does."""
    while True:
        try:
            async with server.gate.enter(rank):
                return await once()
        except ServerError as error:
            pause = patience.pause(error)
            if spent is not None:
                spent.faults += 1
            if error.wait is not None:
                server.gate.hold(error.wait)
            await asyncio.sleep(pause)


async def _once(
    server: Server, prompt: Prompt, n: int, sampling: Mapping[str, Any], stops: Sequence[int]
) -> Written:
    begun, most = asyncio.get_running_loop().time(), room_for(n, server.top)
    try:
        if server.found.kind == "llama-server":
            body = {"prompt": prompt.body, "n_predict": n, "cache_prompt": True,
                    "return_tokens": True, "response_fields": _LLAMA, **PLAIN, **server.fields,
                    **sampling}  # fmt: skip
            root = root_of(server.endpoint)
            said = await ask_once(root, Completion, "completion", body, most=most)
            tokens, stopped = _read_llama(server, said, n)
            cached = None if said.timings is None else said.timings.cache_n
        else:
            body = {**server.fields, "prompt": prompt.body, "max_tokens": n, "n": 1,
                    "stream": False, **sampling}  # fmt: skip
            if stops and server.found.kind in _STOPS:
                body["stop_token_ids"] = list(stops)
            found = await ask_once(server.endpoint, Chunk, "completions", body, most=most)
            tokens, stopped = _read(server, found, n)
            details = None if found.usage is None else found.usage.prompt_tokens_details
            cached = None if details is None else details.cached_tokens
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise server.endpoint.site.fault(error, sent=True) from None
    took = asyncio.get_running_loop().time() - begun
    return Written(tuple(tokens), stopped, len(prompt.ids), cached, took)


def _read(server: Server, found: Chunk, n: int) -> tuple[list[Token], bool]:
    server.endpoint.site.check_error(found.error)
    reader = Reader(server.spelling, n)
    tokens = reader.take(found)
    if reader.finish is None:
        raise ServerError(f"{server.name}: the answer does not say why it ended")
    if not tokens and reader.finish != "stop":
        raise ServerError(f"{server.name}: it sent no tokens")
    return tokens, reader.finish == "stop"


def _read_llama(server: Server, found: Completion, n: int) -> tuple[list[Token], bool]:
    spelling = server.spelling
    reply = read_reply(spelling, found, n)
    tokens = []
    for token, one in zip(reply.tokens, reply.listed, strict=True):
        top = () if one is None else tuple((spelling.id(key), value) for key, value in one.top)
        logprob = None if one is None else one.logprob
        tokens.append(Token(token, "", logprob, top, token in spelling.ends))
    return tokens, reply.ended


async def _streamed(
    server: Server, prompt: Prompt, n: int, sampling: Mapping[str, Any], patience: Patience
) -> Written:
    """The same through a stream: its events are small, so the text of each token is known."""
    begun = asyncio.get_running_loop().time()
    here = Prompt([*prompt.ids], prompt.text, prompt.by_ids)
    stream = Stream(
        server.endpoint, server.spelling, here, n, {**server.fields, **sampling}, patience
    )
    found = []
    async with aclosing(stream.tokens()) as tokens:
        async for token in tokens:
            here.add([token.id], token.text)
            found.append(token)
    took = asyncio.get_running_loop().time() - begun
    return Written(tuple(found), stream.finish == "stop", len(prompt.ids), None, took)


async def answer_after(
    model: ServedModel,
    server: Server,
    prefix: Prompt,
    cue: Sequence[int],
    *,
    cap: int,
    stops: Sequence[str] = (),
    rank: tuple[int, ...] = (0,),
    spent: Spent | None = None,
) -> Continuation:
    """What the model writes greedily after ``prefix`` and ``cue``: up to ``cap`` tokens, an end of
    sequence (kept) or one of the texts ``stops``. The prefix stays as it is.

    Log-probabilities that the server does not list are 0, and so is the entropy: the least that
    what is listed of the first token allows.
    """
    vocabulary = model.vocabulary
    here = Prompt([*prefix.ids], prefix.text, prefix.by_ids)
    here.add(cue, vocabulary.text(cue, special=True))
    found = await write(server, here, cap, rank=rank, spent=spent, again=len(prefix.ids))
    return continuation(model, found.tokens, found.stopped, cap=cap, stops=stops)


def continuation(
    model: ServedModel, tokens: Sequence[Token], stopped: bool, *, cap: int,
    stops: Sequence[str] = (),
) -> Continuation:  # fmt: skip
    """Tokens as an answer, up to where it ends."""
    taken: list[Token] = []
    for token in tokens[:cap]:
        taken.append(token)
        if token.end or (stops and ends_answer([one.id for one in taken], model.vocabulary, stops)):
            break
    ids, logprobs = [one.id for one in taken], [one.logprob or 0.0 for one in taken]
    if stopped and len(taken) == len(tokens) < cap and not (taken and taken[-1].end):
        ids.append(int(model.vocabulary.eos_ids[0]))  # written, but not shown
        logprobs.append(0.0)
    first = taken[0].best if taken else []
    return Continuation(tuple(ids), tuple(logprobs), least_entropy(first) if first else 0.0)


def signals_of(model: ServedModel, token: Token) -> Floats | None:
    """The signals of a token of the thinking, shape (6,); None where too little is listed.

    Those that the list does not give exactly are 0; ``ServedModel.signals`` says which are.
    """
    return listed_signals(
        token.id,
        token.logprob,
        token.top,
        model.vocabulary.end_first_ids,
        size=len(model.tokenizer),
        # A list of ids that is shorter than at other times is somebody else's fault: one request
        # that names tokens takes the likeliest ones of all others of its batch in vLLM.
        least=model.top if model.by_ids else min(model.top, 2),
    )
