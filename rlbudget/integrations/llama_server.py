"""A client of llama.cpp's ``llama-server`` under a stop policy.

    with connect("http://127.0.0.1:8080", policy, "path/of/the/transformers/folder") as server:
        decode(server, "How much is ...?")

Two ways of stopping. ``decode`` sends token ids and asks for one checkpoint's worth of tokens at a
time; the server keeps its cache between them, so nothing is computed twice, and the exit is where
the replay's is. ``decode_chat`` reads one stream and ends its thinking by a second request; the
server has gone on by a token or more until that arrives. ``docs/llama_cpp.md`` has the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlbudget.arrays import Floats
from rlbudget.decoding.decode import Decoded
from rlbudget.errors import UserError, missing_extra
from rlbudget.integrations.numpy_signals import token_signals
from rlbudget.integrations.plan import Plan, make_plan
from rlbudget.integrations.request import Request
from rlbudget.integrations.tokenizer import read_tokenizer
from rlbudget.models.profiles import trusted_ids
from rlbudget.models.reading import ends_answer
from rlbudget.policy.observation import PROBE_SIGNALS
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.signals.looks import LOOK_SIGNALS
from rlbudget.signals.tokens import SIGNALS, TOKEN_SIGNALS, TOP_K, TOP_SIGNALS

try:
    import httpx
    import orjson
except ModuleNotFoundError as error:
    if error.name not in ("httpx", "orjson"):
        raise
    raise missing_extra("serve", error.name) from None


_FLOOR = -104.0
"""Nats; the server writes the smallest float where a probability rounds to 0."""
_ANSWER_PIECE = 8
"""Tokens of an answer asked for at a time where a text ends it."""
_PLAIN: Mapping[str, Any] = {"samplers": ["temperature"]}
"""The temperature alone: the server's own cuts would sample from another distribution."""


class ServerError(RuntimeError):
    """The server is gone or answers with nonsense: one line, without the prompt and the key."""


@dataclass(frozen=True, slots=True)
class Server:
    """A llama-server that was looked at, and what its requests share; made by ``connect``."""

    plan: Plan
    n_probs: int
    """alternatives asked for at every token of the thinking"""
    size: int
    """tokens of the vocabulary"""
    context: int
    """most tokens of prompt and completion"""
    address: str
    """without what may be secret in it"""
    client: httpx.Client = field(repr=False)

    @property
    def full(self) -> bool:
        """Whether every token's probability is known, so that all signals are exact."""
        return self.n_probs >= self.size

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The server's JSON answer; ``ServerError`` if there is none."""
        content = orjson.dumps(body)
        try:
            try:
                response = self.client.post(path, content=content)
            except httpx.RemoteProtocolError:
                # The server had closed the idle connection that was taken; the next is a new one.
                response = self.client.post(path, content=content)
            _check_status(response.status_code, self.address)
            found = orjson.loads(response.content)
        except httpx.HTTPError as error:
            raise _gone(self.address, error) from None
        except orjson.JSONDecodeError:
            raise ServerError(f"the llama-server at {self.address} sent no JSON") from None
        return dict(found)


@dataclass(frozen=True, slots=True)
class ChatDecoded:
    """A decode that was stopped through the control request."""

    text: str
    """the answer as the server shows it"""
    thinking: str
    """the thinking as the server shows it"""
    thinking_tokens: int
    """up to the decision"""
    late_tokens: int
    """decoded between the decision and the moment the server obeyed"""
    total_tokens: int
    """all that the server decoded, the end of the thinking and the answer included"""
    unseen_tokens: int
    """thinking tokens for which the server sent no probabilities"""
    stopped: bool
    """whether the policy ended the thinking"""
    stop_probability: float | None
    """at the last checkpoint; None where there was none"""
    message: str | None
    """what went wrong with the policy"""


@contextmanager
def connect(
    url: str,
    policy: StopPolicy,
    tokenizer: Any,
    *,
    n_probs: int | None = None,
    key: str | None = None,
    eos_ids: Sequence[int] | None = None,
    profile: str | None = None,
    token_price: float | None = None,
    stride: int | None = None,
    max_thinking_tokens: int | None = None,
    timeout: float = 120.0,
) -> Iterator[Server]:
    """Look at a server and keep its connections open: ``with connect(...) as server``.

    ``url`` is its root. ``tokenizer`` is the served model's: one of transformers, or the folder
    that holds it. ``n_probs`` is how many alternatives the server lists at a token; left out, 20
    where the policy's signals follow from them, else the whole vocabulary, which is exact and
    slow. ``key`` is the server's ``--api-key``, never shown. ``eos_ids`` left out are those of
    the folder's configuration and the tokenizer. The other settings left out are the policy's;
    ``timeout`` is the longest silence in seconds.

    Raises ``UserError`` for a policy that needs more than ``n_probs`` alternatives give, a server
    with another vocabulary or a context too short for the cap, and settings out of range;
    ``ServerError`` for a server that cannot be reached.
    """
    spelled, ends = _tokenizer(tokenizer, eos_ids)
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    try:
        client = httpx.Client(base_url=url, headers=headers, timeout=timeout)
    except (httpx.InvalidURL, UnicodeError):
        raise UserError("the server's address must look like http://HOST:PORT") from None
    at = client.base_url
    if at.scheme not in ("http", "https") or not at.host:
        raise UserError("the server's address must look like http://HOST:PORT")
    address = f"{at.scheme}://{at.host}{f':{at.port}' if at.port else ''}"
    with client:
        size, context = _look(client, address)
        asked = alternatives(policy, size, n_probs)
        if len(spelled) > size:
            raise UserError(
                f"the server's model has {size} tokens, this tokenizer {len(spelled)}:"
                " name the tokenizer of the served model"
            )
        plan = make_plan(
            policy,
            spelled,
            vocabulary_size=size,
            eos_ids=ends,
            profile=profile,
            token_price=token_price,
            stride=stride,
            max_thinking_tokens=max_thinking_tokens,
            questions=True,
        )
        server = Server(plan, asked, size, context, address, client)
        _check_spelling(server)
        yield server


def alternatives(policy: StopPolicy, size: int, n_probs: int | None) -> int:
    """How many alternatives to ask for at a token, of a vocabulary of ``size``.

    Exact from ``TOP_K`` of them are the log-probability, the margin and the mean of the list, and
    what the text gives; entropy and the probability of the end need all. Raises ``UserError``
    naming the signals that ``n_probs`` do not give.
    """
    if n_probs is not None and n_probs < 2:
        raise UserError(f"n_probs must be at least 2, not {n_probs}")
    given = {*TOP_SIGNALS, *PROBE_SIGNALS, *LOOK_SIGNALS, "thinking_tokens"}
    if n_probs is not None and n_probs < TOP_K:
        given -= {"topk_mean"}
    needed = dict.fromkeys(feature.partition(".")[0] for feature in policy.features)
    missing = [signal for signal in needed if signal in SIGNALS and signal not in given]
    asked = (size if missing else TOP_K) if n_probs is None else n_probs
    if missing and asked < size:
        raise UserError(
            f"the policy needs {', '.join(missing)}, which {asked} alternatives do not give"
            " exactly: train one with --signals top, or leave n_probs out to ask for the whole"
            " vocabulary"
        )
    return min(asked, size)


def decode(
    server: Server,
    question: str,
    *,
    token_price: float | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> Decoded:
    """Answer ``question`` with the exit that a replay of the same decode would have.

    ``token_price`` is reward lost per token; ``temperature`` that of the thinking, the answer is
    greedy. Raises ``UserError`` for a price the policy does not know and a question that does not
    fit into the context, ``ServerError`` for a server that fails.
    """
    plan = server.plan
    request = Request(plan, token_price=token_price, question=question)
    prompt = plan.profile.prompt(question, plan.vocabulary.tokenizer)
    needed = len(prompt) + plan.max_thinking + plan.reserve
    if needed > server.context:
        raise UserError(
            f"{len(prompt)} prompt tokens, {plan.max_thinking} of thinking and {plan.reserve} of"
            f" answer do not fit into the server's context of {server.context}: start it with a"
            " larger -c, or lower max_thinking_tokens"
        )
    ids: list[int] = []
    sampling = {"temperature": temperature, "ignore_eos": True, "n_probs": server.n_probs}
    last = np.zeros(len(TOKEN_SIGNALS))
    while request.thinking:
        reply = _complete(
            server, [*prompt, *ids], _piece(plan, len(ids)), sampling | {"seed": seed + len(ids)}
        )
        if not reply.tokens:
            raise ServerError(f"the llama-server at {server.address} sent no tokens")
        for token, entry in zip(reply.tokens, reply.entries, strict=True):
            if request.forced(_likeliest(entry, token)) is not None:
                break
            last = last if entry is None else measure(entry, server)
            request.push(token, last)
            ids.append(token)
            if not request.thinking:
                break
    forced = _forced(request)
    ids += forced
    answer = _answer(server, request, [*prompt, *ids])
    return _decoded(plan, request, [*ids, *answer], answer)


def measure(entry: Mapping[str, Any], server: Server) -> Floats:
    """The signals of ``TOKEN_SIGNALS``, shape (6,), from one token's listed alternatives.

    Where the list does not hold the whole vocabulary, entropy, ``p_end`` and ``end_gap`` are 0:
    a policy that reads them was refused by ``connect``.
    """
    listed = entry["top_logprobs"]
    values = np.array([one["logprob"] for one in listed], dtype=np.float64)
    np.maximum(values, _FLOOR, out=values)
    if len(listed) >= server.size:
        logprobs = np.empty(server.size, dtype=np.float32)
        logprobs[[one["id"] for one in listed]] = values
        return token_signals(logprobs, int(entry["id"]), server.plan.vocabulary.end_first_ids)
    top = values[:TOP_K]
    logprob = max(float(entry["logprob"]), _FLOOR)
    return np.array([logprob, 0.0, top[0] - top[1], 0.0, top.mean(), 0.0])


@dataclass(frozen=True, slots=True)
class _Reply:
    tokens: list[int]
    entries: list[Mapping[str, Any] | None]
    """of each token, what was listed beside it"""
    ended: bool
    """whether the model ended the sequence"""


def _complete(server: Server, ids: Sequence[int], n: int, settings: Mapping[str, Any]) -> _Reply:
    body = {
        "prompt": list(ids),
        "n_predict": n,
        "cache_prompt": True,
        "return_tokens": True,
        "response_fields": ["tokens", "completion_probabilities", "stop_type"],
        **_PLAIN,
        **settings,
    }
    found = server.post("/completion", body)
    tokens = [int(token) for token in found.get("tokens", ())]
    return _Reply(tokens, _aligned(tokens, found), found.get("stop_type") == "eos")


def _aligned(tokens: Sequence[int], found: Mapping[str, Any]) -> list[Mapping[str, Any] | None]:
    """The server lists nothing for a token that leaves a character unfinished."""
    listed = list(found.get("completion_probabilities") or ())
    entries: list[Mapping[str, Any] | None] = []
    for token in tokens:
        fits = bool(listed) and listed[0]["id"] == token
        entries.append(listed.pop(0) if fits else None)
    return entries


def _likeliest(entry: Mapping[str, Any] | None, token: int) -> int:
    return token if entry is None else int(entry["top_logprobs"][0]["id"])


def _piece(plan: Plan, thinking: int) -> int:
    """Tokens up to the next checkpoint or the cap."""
    return min(plan.stride - thinking % plan.stride, max(plan.max_thinking - thinking, 1))


def _forced(request: Request) -> list[int]:
    """The exit text, which is now part of the sequence; empty after a natural end."""
    written: list[int] = []
    while (token := request.forced(-1)) is not None:
        request.push(token)
        written.append(token)
    return written


def _answer(server: Server, request: Request, ids: list[int]) -> list[int]:
    plan = server.plan
    stops, cap = plan.profile.answer_stop, plan.profile.max_answer_tokens
    answer: list[int] = []
    while len(answer) < cap:
        n = min(_ANSWER_PIECE if stops else cap, cap - len(answer))
        reply = _complete(server, [*ids, *answer], n, {"temperature": 0.0})
        for token in reply.tokens:
            answer.append(token)
            request.push(token)
            if token in plan.vocabulary.eos_ids:
                return answer
            if stops and ends_answer(answer, plan.vocabulary, stops):
                return answer
        if reply.ended or not reply.tokens:
            return answer
    return answer


def _decoded(plan: Plan, request: Request, ids: list[int], answer: list[int]) -> Decoded:
    outcome = request.outcome
    stopped = outcome.reason == "policy"
    return Decoded(
        answer=plan.answer(answer),
        text=plan.vocabulary.text(ids, special=True),
        thinking_tokens=outcome.thinking_tokens,
        probe_tokens=0,
        answer_tokens=outcome.answer_tokens,
        stopped=stopped,
        stopped_at=outcome.thinking_tokens if stopped else None,
        reason=outcome.reason or "natural",
        stop_probability=outcome.stop_probability,
        message=outcome.message,
    )


def decode_chat(
    server: Server,
    question: str,
    *,
    token_price: float | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> ChatDecoded:
    """Answer ``question`` in one chat stream, whose thinking a control request ends.

    The server's chat template makes the prompt and must open the thinking; the end it forces is
    its own, not the profile's exit text. Raises as ``decode`` does.
    """
    plan = server.plan
    request = Request(plan, token_price=token_price, question=question)
    body = {
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "reasoning_control": True,
        "logprobs": True,
        "top_logprobs": server.n_probs,
        "timings_per_token": True,
        "temperature": temperature,
        "seed": seed,
        "max_tokens": plan.max_thinking + plan.reserve,
        **_PLAIN,
    }
    shown: dict[str, list[str]] = {"reasoning_content": [], "content": []}
    total = read = at_decision = at_end = 0
    for event in _events(server, body):
        total = max(total, int((event.get("timings") or {}).get("predicted_n", 0)))
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            for name, parts in shown.items():
                parts.append(delta.get(name) or "")
            if delta.get("reasoning_content"):
                at_end = total
            for entry in (choice.get("logprobs") or {}).get("content") or ():
                if not request.thinking or not entry["top_logprobs"]:
                    continue
                read += 1
                request.push(int(entry["id"]), measure(entry, server))
                if not request.thinking and request.outcome.reason != "natural":
                    at_decision = total
                    _end_reasoning(server, str(event.get("id", "")))
    outcome = request.outcome
    stopped = outcome.reason == "policy"
    return ChatDecoded(
        text="".join(shown["content"]),
        thinking="".join(shown["reasoning_content"]),
        thinking_tokens=at_decision or at_end,
        late_tokens=max(at_end - at_decision, 0) if at_decision else 0,
        total_tokens=total,
        unseen_tokens=max((at_decision or at_end) - read, 0),
        stopped=stopped,
        stop_probability=outcome.stop_probability,
        message=outcome.message,
    )


def _end_reasoning(server: Server, stream: str) -> None:
    found = server.post("/v1/chat/completions/control", {"id": stream, "action": "reasoning_end"})
    if not found.get("success"):
        said = found.get("message") or "its chat template does not open one that it can end"
        raise ServerError(
            f"the llama-server at {server.address} did not end the thinking: {said}; use decode"
        )


def _events(server: Server, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        with server.client.stream(
            "POST", "/v1/chat/completions", content=orjson.dumps(body)
        ) as stream:
            _check_status(stream.status_code, server.address)
            for line in stream.iter_lines():
                data = line.removeprefix("data: ")
                if data != line and data != "[DONE]":
                    yield dict(orjson.loads(data))
    except httpx.HTTPError as error:
        raise _gone(server.address, error) from None


def _look(client: httpx.Client, address: str) -> tuple[int, int]:
    """The size of the vocabulary and the context of one request."""
    try:
        response = client.get("/v1/models")
    except httpx.HTTPError as error:
        raise _gone(address, error) from None
    _check_status(response.status_code, address)
    try:
        meta = orjson.loads(response.content)["data"][0]["meta"]
        return int(meta["n_vocab"]), int(meta["n_ctx"])
    except (orjson.JSONDecodeError, LookupError, TypeError, ValueError):
        raise UserError(
            f"{address} is no llama-server of 2026 or later: for another OpenAI-compatible"
            " server use rlbudget.integrations.openai"
        ) from None


def _check_spelling(server: Server) -> None:
    """The server's tokenizer must spell the exit text as ours does."""
    profile, tokenizer = server.plan.profile, server.plan.vocabulary.tokenizer
    body = {"content": profile.exit_text, "add_special": False, "parse_special": True}
    found = server.post("/tokenize", body).get("tokens")
    if found != trusted_ids(tokenizer, profile.exit_text):
        raise UserError(
            f"the server's model spells the exit text {profile.exit_text!r} in other tokens than"
            " this tokenizer: name the tokenizer of the served model"
        )


def _check_status(status: int, address: str) -> None:
    if status == 401:
        raise UserError(f"the llama-server at {address} wants an API key, or another one")
    if status == 503:
        raise ServerError(f"the llama-server at {address} is still loading its model: try later")
    if status != 200:
        raise ServerError(f"the llama-server at {address} refused the request (HTTP {status})")


def _gone(address: str, error: Exception) -> ServerError:
    return ServerError(f"no llama-server answers at {address} ({type(error).__name__})")


def _tokenizer(given: Any, eos_ids: Sequence[int] | None) -> tuple[Any, list[int]]:
    found = set(eos_ids or ())
    if isinstance(given, str | Path):
        folder = Path(given)
        if not (folder / "tokenizer.json").is_file():
            raise UserError(
                f"{folder} holds no tokenizer.json: name the model's transformers folder"
            )
        if eos_ids is None:
            found |= _configured_eos(folder)
        given = read_tokenizer(folder)
    if eos_ids is None and given.eos_token_id is not None:
        found.add(int(given.eos_token_id))
    return given, sorted(found)


def _configured_eos(folder: Path) -> set[int]:
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            value = json.loads((folder / name).read_text()).get("eos_token_id")
            found.update([value] if isinstance(value, int) else value or ())
    return found
