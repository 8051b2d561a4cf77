"""A client of any OpenAI-compatible server that streams log-probabilities, under a stop policy.

It thinks in one stream of ``/completions``, closes it where the policy stops, and asks for the
answer after the exit text in a second one. What was thought so far is sent back as token ids
where the server gives and takes them (vLLM, llama-server, SGLang), as text elsewhere. It needs
httpx and a tokenizer, neither torch nor the openai package. ``docs/openai.md`` shows it at work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlbudget.decoding.decode import Decoded
from rlbudget.errors import UserError, missing_extra
from rlbudget.integrations.logprobs import check_features, top_signals
from rlbudget.integrations.plan import Plan, make_plan
from rlbudget.integrations.request import Request
from rlbudget.integrations.tokenizer import read_tokenizer
from rlbudget.models.profiles import trusted_ids
from rlbudget.models.reading import ends_answer
from rlbudget.policy.controller import Reason
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.signals.tokens import TOP_K

try:
    import httpx
    import orjson

    from rlbudget.integrations.completions import Endpoint, Prompt, ServerError, Stream, Token
except ModuleNotFoundError as error:
    if error.name not in ("httpx", "orjson"):
        raise
    raise missing_extra("serve", error.name) from None

__all__ = ["Server", "ServerError", "connect", "decode", "decode_once"]

_OURS = frozenset({"model", "prompt", "max_tokens", "stream", "n", "logprobs", "echo", "stop"})
_IDS: Mapping[str, Any] = {
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "skip_special_tokens": False,
}
_TEXT: Mapping[str, Any] = {"skip_special_tokens": False, "add_special_tokens": False}
_SPARE = 8192
"""Ids beyond the tokenizer's that a padded model may have."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that was looked at, and what its requests share; made by ``connect``."""

    plan: Plan
    model: str
    """the name it is asked for"""
    by_ids: bool
    """whether it gives and takes token ids"""
    approximate: bool
    """whether entropy and the chance of the end are estimated"""
    context: int | None
    """most tokens of prompt and completion, where known"""
    fields: Mapping[str, Any]
    """of every request"""
    ids_of: Mapping[str, int] = field(repr=False)
    """token texts, where the server names tokens by them"""
    endpoint: Endpoint = field(repr=False)


@asynccontextmanager
async def connect(
    url: str,
    policy: StopPolicy,
    tokenizer: Any,
    *,
    model: str | None = None,
    key: str | None = None,
    approximate: bool = False,
    profile: str | None = None,
    token_price: float | None = None,
    stride: int | None = None,
    max_thinking_tokens: int | None = None,
    context: int | None = None,
    top_logprobs: int = TOP_K,
    retries: int = 3,
    timeout: float = 120.0,
    fields: Mapping[str, Any] | None = None,
) -> AsyncIterator[Server]:
    """Look at a server and keep its connections open: ``async with connect(...) as server``.

    ``url`` ends in ``/v1``. ``tokenizer`` is the served model's: one of transformers, or the name
    that loads it (``"embedded"``, a folder, a hub name). ``model`` left out is the first that the
    server lists; ``key`` is sent as a bearer token and never shown. With ``approximate``, signals
    that ``top_logprobs`` likeliest tokens cannot give are estimated, and exits may differ from the
    replay's. ``profile``, ``token_price`` (reward per token), ``stride`` and
    ``max_thinking_tokens`` left out are the policy's. ``context`` caps prompt and completion
    where the server does not say it. A decode survives ``retries`` faults; ``timeout`` is the
    longest silence in seconds; ``fields`` (``top_p``, ...) go into every request.

    Raises ``UserError`` for a policy that needs more than the server gives, a server without
    log-probabilities, one that refuses the request, and settings out of range; ``ServerError``
    for one that cannot be reached.
    """
    taken = sorted(_OURS & set(fields or {}))
    if taken:
        raise UserError(f"fields: {', '.join(taken)} cannot be set, the decode sets it itself")
    if not top_logprobs >= 1 or retries < 0 or not timeout > 0:
        raise UserError(
            "top_logprobs must be at least 1, retries at least 0, timeout above 0, not"
            f" {top_logprobs}, {retries}, {timeout:g}"
        )
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError("the key holds a character that a header cannot: a line break, perhaps")
    check_features(policy, top=top_logprobs, approximate=approximate)
    spelled = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
    plan = make_plan(
        policy,
        spelled,
        vocabulary_size=len(spelled) + _SPARE,
        eos_ids=[] if spelled.eos_token_id is None else [int(spelled.eos_token_id)],
        profile=profile,
        token_price=token_price,
        stride=stride,
        max_thinking_tokens=max_thinking_tokens,
        questions=True,
    )
    try:
        client = httpx.AsyncClient(
            base_url=url,
            headers={"Content-Type": "application/json"}
            | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0), pool=None),
            limits=httpx.Limits(max_connections=None),
        )
        at = client.base_url
        name = f"{at.scheme}://{at.host}{f':{at.port}' if at.port else ''}{at.path}".rstrip("/")
        if at.scheme not in ("http", "https") or not at.host:
            raise httpx.InvalidURL("")
    except (httpx.InvalidURL, UnicodeError):
        raise UserError("the server's address must look like http://HOST:PORT/v1") from None
    endpoint = Endpoint(client, name, key, retries)
    async with client:
        found, room = await _find_model(endpoint, model)
        asked: Mapping[str, Any] = {**(fields or {}), "model": found, "logprobs": top_logprobs}
        by_ids, asked, first = await _look(endpoint, asked, plan)
        got = len(first.top)
        if first.logprob is None or not got:
            raise UserError(
                f"{name} streams no log-probabilities, which every stop policy needs:"
                " switch them on there, or use another server"
            )
        check_features(policy, top=got, approximate=approximate)
        by_text = not by_ids or (approximate and isinstance(first.top[0][0], str))
        yield Server(
            plan=plan,
            model=found,
            by_ids=by_ids,
            approximate=approximate,
            context=room if context is None else context,
            fields=asked,
            ids_of=_ids_of(plan.vocabulary.tokenizer) if by_text else {},
            endpoint=endpoint,
        )


async def decode(
    server: Server,
    question: str,
    *,
    token_price: float | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
) -> Decoded:
    """Answer ``question``, thinking as long as the policy finds it worth ``token_price``.

    ``token_price`` (reward per token) left out is the server's; ``max_tokens`` caps thinking,
    exit text and answer together, with room for an answer kept; ``temperature`` is the
    thinking's, by default the profile's, and an answer after an exit is greedy, as recorded.
    Any number of decodes may run at once on one server. A policy that raises or says NaN does
    not cost the answer; the decode goes on to its natural end.

    Tokens are those that were read: a server may have made a few more before it saw the stream
    close. Raises ``UserError`` for a price the policy does not know, a cap that leaves no room
    to think, and a request that the server refuses; ``ServerError`` after too many faults.
    """
    plan = server.plan
    ids = plan.profile.prompt(question, plan.vocabulary.tokenizer)
    limit = _limit(server, max_tokens, len(ids))
    request = Request(plan, token_price=token_price, max_new_tokens=limit, question=question)
    temperature = plan.profile.temperature if temperature is None else temperature
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature must be 0 or more, not {temperature}")
    run = _Run(server, request, Prompt(ids, plan.vocabulary.text(ids, special=True), server.by_ids))
    fields = {"temperature": temperature} | ({} if seed is None else {"seed": seed})
    cap = plan.max_thinking if limit is None else min(plan.max_thinking, limit - plan.reserve)
    await run.think(cap, fields)
    return run.decoded()


def decode_once(
    url: str,
    question: str,
    policy: StopPolicy,
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


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a model: ``"embedded"``, a folder or a hub name.

    Raises ``UserError`` where there is none.
    """
    embedded = Path(__file__).parent.parent / "models" / "embedded"
    try:
        return read_tokenizer(embedded if name == "embedded" else name)
    except UserError:
        raise
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot load the tokenizer of {str(name)!r}: {reason}") from error


class _Run:
    """One decode: what was written, and where its parts begin."""

    def __init__(self, server: Server, request: Request, prompt: Prompt) -> None:
        self._server = server
        self._request = request
        self._prompt = prompt
        self._end_ids = frozenset(server.plan.vocabulary.end_first_ids.tolist())
        self._faults: list[str] = []
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._answer_from = 0
        self._unseen = 0  # ends of sequence that were paid for but are not in the text
        self._forced: Reason | None = None  # the end of a thinking that the server cut short
        self._exit = False

    async def think(self, cap: int, fields: Mapping[str, Any]) -> None:
        """Think, and read or force the answer."""
        room = cap + self._server.plan.profile.max_answer_tokens
        stream = self._stream(room, fields)
        async with aclosing(stream.tokens()) as tokens:
            async for token in tokens:
                take = self._think if self._request.thinking else self._answer
                if take(token):
                    break
        if self._request.thinking:
            # The server ended the stream: at an end of sequence that it does not show, or for
            # want of room.
            if stream.finish == "stop":
                self._unseen = 1
                self._request.forced(int(self._server.plan.vocabulary.eos_ids[0]))
            else:
                self._forced = "max_tokens"
            self._exit = True
        if self._exit:
            await self._write_answer()
        else:
            self._count_unseen(stream)

    def decoded(self) -> Decoded:
        """What came of it."""
        plan, outcome = self._server.plan, self._request.outcome
        thinking = outcome.thinking_tokens
        answer_ids = self._ids[self._answer_from :]
        if not self._server.by_ids:
            spelled = "".join(self._texts[self._answer_from :])
            answer_ids = trusted_ids(plan.vocabulary.tokenizer, spelled)
        after = len(self._ids) - thinking + self._unseen
        middle = plan.profile.exit_text if self._exit else ""
        reason = self._forced or outcome.reason
        assert reason is not None
        return Decoded(
            answer=plan.answer(answer_ids),
            text=self._text(0, thinking) + middle + self._text(thinking, len(self._ids)),
            thinking_tokens=thinking,
            probe_tokens=0,
            answer_tokens=after + (len(plan.vocabulary.exit_ids) if self._exit else 0),
            stopped=reason == "policy",
            stopped_at=thinking if reason == "policy" else None,
            reason=reason,
            stop_probability=outcome.stop_probability,
            message=outcome.message,
        )

    def _think(self, token: Token) -> bool:
        server, request = self._server, self._request
        token_id = self._id_of(token)
        if token_id in server.plan.vocabulary.eos_ids:
            # It ended everything without an answer; the exit takes the place of that token.
            self._unseen = 1
            request.forced(token_id)
        else:
            request.push(token_id, self._signals(token))
            self._keep(token_id, token)
        self._exit = request.forced(-1) is not None
        self._answer_from = len(self._ids)
        return self._exit

    def _answer(self, token: Token) -> bool:
        token_id = self._id_of(token)
        self._keep(token_id, token)
        plan = self._server.plan
        written, stops = self._ids[self._answer_from :], plan.profile.answer_stop
        return (
            token_id in plan.vocabulary.eos_ids
            or len(written) >= plan.profile.max_answer_tokens
            or bool(stops and ends_answer(written, plan.vocabulary, stops))
        )

    async def _write_answer(self) -> None:
        plan = self._server.plan
        self._prompt.add(plan.vocabulary.exit_ids, plan.profile.exit_text)
        stream = self._stream(plan.profile.max_answer_tokens, {"temperature": 0.0, "logprobs": 1})
        async with aclosing(stream.tokens()) as tokens:
            async for token in tokens:
                if self._answer(token):
                    break
        self._count_unseen(stream)

    def _stream(self, max_tokens: int, fields: Mapping[str, Any]) -> Stream:
        every = {**self._server.fields, **fields}
        return Stream(self._server.endpoint, self._prompt, max_tokens, every, self._faults)

    def _count_unseen(self, stream: Stream) -> None:
        shown = self._ids and self._ids[-1] in self._server.plan.vocabulary.eos_ids
        self._unseen += int(stream.finish == "stop" and not shown)

    def _keep(self, token_id: int, token: Token) -> None:
        self._ids.append(token_id)
        self._texts.append(token.text)
        self._prompt.add([token_id], token.text)

    def _id_of(self, token: Token) -> int:
        vocabulary = self._server.plan.vocabulary
        key = token.key
        if isinstance(key, str):
            key = self._server.ids_of.get(key)
        if key is None:
            key = next(iter(trusted_ids(vocabulary.tokenizer, token.text)), 0)
        if not 0 <= key < len(vocabulary.markers):
            raise UserError(f"the server's token {key} is not one of the tokenizer's: name the"
                            " tokenizer of the served model")  # fmt: skip
        return key

    def _signals(self, token: Token) -> Sequence[float] | None:
        server = self._server
        if token.logprob is None:
            return None
        top = [
            (server.ids_of.get(key) if isinstance(key, str) else key, value)
            for key, value in token.top
        ]
        try:
            return top_signals(token.logprob, top, self._end_ids, approximate=server.approximate)
        except ValueError:
            return None

    def _text(self, start: int, stop: int) -> str:
        if self._server.by_ids:
            return self._server.plan.vocabulary.text(self._ids[start:stop], special=True)
        return "".join(self._texts[start:stop])


def _limit(server: Server, max_tokens: int | None, prompt: int) -> int | None:
    """The cap on all new tokens; ``UserError`` where the server's context leaves no room."""
    if server.context is None:
        return max_tokens
    room = server.context - prompt
    if room <= server.plan.reserve:
        raise UserError(
            f"the question's {prompt} tokens leave {max(room, 0)} of the server's {server.context}:"
            f" the exit text and the answer take {server.plan.reserve} of them"
        )
    return room if max_tokens is None else min(room, max_tokens)


async def _find_model(endpoint: Endpoint, wanted: str | None) -> tuple[str, int | None]:
    """The model's name and its context, as far as the server tells."""
    try:
        response = await endpoint.client.get("models")
    except httpx.RequestError as error:
        what = endpoint.clean(str(error)) or type(error).__name__
        raise ServerError(f"cannot reach {endpoint.name}: {what}") from None
    if response.status_code != 200 and (wanted is None or response.status_code in (401, 403)):
        endpoint.refuse(response.status_code, response.content)
    listed: list[dict[str, Any]] = []
    try:
        listed = [entry for entry in orjson.loads(response.content)["data"] if "id" in entry]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        if wanted is None:
            raise UserError(
                f"{endpoint.name} lists no models: name one, and let the address end in /v1"
            ) from None
    if wanted is None and not listed:
        raise UserError(f"{endpoint.name} lists no models: name one")
    entry = next((e for e in listed if wanted in (None, e["id"])), {})
    room = entry.get("max_model_len") or (entry.get("meta") or {}).get("n_ctx")
    return str(wanted or entry["id"]), int(room) if room else None


async def _look(
    endpoint: Endpoint, fields: Mapping[str, Any], plan: Plan
) -> tuple[bool, Mapping[str, Any], Token]:
    """Ask for one token, first with everything one could wish for, then with less.

    Returns whether token ids go both ways, the fields of all requests, and the token.
    """
    ids = plan.profile.prompt("1", plan.vocabulary.tokenizer)
    text = plan.vocabulary.text(ids, special=True)
    refused: UserError | None = None
    ways: list[tuple[Mapping[str, Any], list[int] | str]] = [
        (_IDS, ids), ({}, ids), (_TEXT, text), ({}, text),
    ]  # fmt: skip
    for extra, prompt in ways:
        asked = {**extra, **fields}
        body = {**asked, "prompt": prompt, "max_tokens": 1, "temperature": 0.0}
        first: Token | None = None
        try:
            async with aclosing(endpoint.stream(body)) as chunks:
                async for tokens, _ in chunks:
                    first = first or next(iter(tokens), None)
        except UserError as error:
            refused = error
            continue
        if first is None:
            first = Token(None, "", None, ())
        by_ids = prompt is ids
        if isinstance(first.key, int) or not by_ids or first.logprob is None:
            return by_ids and isinstance(first.key, int), asked, first
    assert refused is not None
    raise refused


def _ids_of(tokenizer: Any) -> dict[str, int]:
    """Token text -> id, the lowest where several tokens have one text."""
    texts = tokenizer.batch_decode(
        [[token] for token in range(len(tokenizer))],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    found = {text: token for token, text in reversed(list(enumerate(texts)))}
    for token in tokenizer.all_special_ids:
        found[texts[token]] = token
    return found
