"""A client of llama.cpp's ``llama-server`` under a plan.

    with connect("http://127.0.0.1:8080", policy, "path/of/the/transformers/folder") as server:
        decode(server, "How much is ...?")

Two ways of stopping. ``decode`` sends token ids and asks for one checkpoint's worth of tokens at a
time; the server keeps its cache between them, so nothing is computed twice, and the exit is where
the replay's is. ``decode_chat`` reads one stream and ends its thinking by a second request; the
server has gone on by a token or more until that arrives. ``docs/llama_cpp.md`` has the numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from rlbudget.arrays import Floats
from rlbudget.decoding.aside import Fork, Wish
from rlbudget.decoding.core import LLAMA_CHAT, LLAMA_SERVER, Core, HandOver, bind, refusals
from rlbudget.decoding.decoded import Decoded
from rlbudget.decoding.request import Request
from rlbudget.errors import UserError
from rlbudget.models.caller import Caller, calling
from rlbudget.models.completions import Spelling, spelling_of
from rlbudget.models.llama_completion import ENDS, PLAIN, check_spelling, complete, look
from rlbudget.models.logprobs import lacking, least_entropy, listed_signals
from rlbudget.models.messages import Choice, Chunk, Control, Listed, listed_tokens
from rlbudget.models.patience import Patience
from rlbudget.models.reading import Continuation, ends_answer
from rlbudget.models.site import ServerError, find_site
from rlbudget.models.tokenizer import served_tokenizer
from rlbudget.models.wire import BROKEN, check_times, room_for
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.signals.tokens import TOP_K
from rlbudget.strategies.plan import Plan, plan_of

__all__ = ["ChatDecoded", "Server", "ServerError", "connect", "decode", "decode_chat"]

_CHAT = "/v1/chat/completions"
_ANSWER_PIECE = 8
"""Tokens of an answer asked for at a time where a text ends it."""


@dataclass(frozen=True, slots=True)
class Server:
    """A llama-server that was looked at, and what its requests share; made by ``connect``."""

    core: Core
    n_probs: int
    """alternatives asked for at every token of the thinking"""
    size: int
    """tokens of the vocabulary"""
    context: int
    """most tokens of prompt and completion"""
    spelling: Spelling = field(repr=False)
    caller: Caller

    def signals(self, token: int, one: Listed | None) -> Floats | None:
        """Those of a token, as far as enough is listed beside it.

        Where that is not the whole vocabulary, entropy, ``p_end`` and ``end_gap`` are 0: a policy
        that reads them was refused by ``connect``.
        """
        if one is None:
            return None
        top = [(self.spelling.id(key), value) for key, value in one.top]
        ends = self.core.vocabulary.end_first_ids
        return listed_signals(token, one.logprob, top, ends, size=self.size)


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
    policy: Plan | StopPolicy,
    tokenizer: Any,
    *,
    n_probs: int | None = None,
    key: str | None = None,
    eos_ids: Sequence[int] = (),
    profile: str | None = None,
    token_price: float | None = None,
    stride: int | None = None,
    max_thinking_tokens: int | None = None,
    retries: int = 3,
    timeout: float = 120.0,
    deadline: float = 3600.0,
    second: Callable[[HandOver], Decoded] | None = None,
) -> Iterator[Server]:
    """Look at a server and keep its connections open: ``with connect(...) as server``.

    ``url`` is its root. ``tokenizer`` is the served model's: one of transformers, or the name that
    loads it (``"embedded"``, a folder, a hub name). ``n_probs`` is how many alternatives the
    server lists at a token; left out, 20 where the policy's signals follow from them, else the
    whole vocabulary, which is exact and slow. ``key`` is the server's ``--api-key``, never shown.
    ``eos_ids`` are ends of sequence beside those of the tokenizer, the model's configuration and
    llama.cpp. The other settings left out are the policy's. A decode survives ``retries`` faults;
    ``timeout`` is the longest that it waits for an answer, or for a token of a chat, in seconds,
    whatever else the server sends, and the longest that it waits in all where the server asks for
    it. ``deadline`` is the longest that one request may take, its repetitions included.

    Raises ``UserError`` for a policy that needs more than ``n_probs`` alternatives give, a server
    with another vocabulary or a context too short for the cap, and settings out of range;
    ``ServerError`` for a server that cannot be reached.
    """
    spelled, ends = served_tokenizer(tokenizer, eos_ids)
    known = spelled.get_vocab()
    ends = sorted({*ends, *(known[text] for text in ENDS if text in known)})
    site = find_site(url, key, "http://HOST:PORT")
    check_times(retries, timeout, deadline)
    with calling(site, retries=retries, timeout=timeout, deadline=deadline) as caller:
        size, context = look(caller)
        asked = alternatives(policy, size, n_probs)
        if len(spelled) > size:
            raise UserError(
                f"the server's model has {size} tokens, this tokenizer {len(spelled)}:"
                " name the tokenizer of the served model"
            )
        core = bind(
            policy,
            spelled,
            LLAMA_SERVER,
            vocabulary_size=size,
            eos_ids=ends,
            profile=profile,
            token_price=token_price,
            stride=stride,
            max_thinking_tokens=max_thinking_tokens,
            second=second,
        )
        server = Server(core, asked, size, context, spelling_of(core.vocabulary), caller)
        check_spelling(caller, core.profile, spelled)
        yield server


def alternatives(policy: Plan | StopPolicy, size: int, n_probs: int | None) -> int:
    """How many alternatives to ask for at a token, of a vocabulary of ``size``.

    Exact from ``TOP_K`` of them are the log-probability, the margin and the mean of the list, and
    what the text gives; entropy and the probability of the end need all. Raises ``UserError``
    naming the signals that ``n_probs`` do not give.
    """
    if n_probs is not None and n_probs < 2:
        raise UserError(f"n_probs must be at least 2, not {n_probs}")
    missing = lacking(plan_of(policy).features, TOP_K if n_probs is None else n_probs)
    asked = (size if missing else TOP_K) if n_probs is None else n_probs
    if missing and asked < size:
        raise UserError(
            f"the policy needs {', '.join(missing)}, which {asked} alternatives do not give"
            " exactly: train one with --signals top, or leave n_probs out to ask for the whole"
            " vocabulary"
        )
    return min(asked, size)


def decode(
    server: Server, question: str, *, temperature: float = 0.0, seed: int = 0, **said: Any
) -> Decoded:
    """Answer ``question`` with the exit that a replay of the same decode would have.

    ``temperature`` is that of the thinking, the answer is greedy. What else a request may say
    (``token_price``, ``dial``, ``task``, ``metadata``, ``max_thinking_tokens``, ``request_id``) is
    that of ``rlbudget.decoding.request.Request``. Raises ``UserError`` for a price the policy does
    not know and a question that does not fit into the context, ``ServerError`` for a server that
    fails.
    """
    core = server.core
    settings = {"temperature": temperature, "row_seed": seed}
    request = Request(core, question=question, settings=settings, **said)
    prompt = core.profile.prompt(question, core.vocabulary.tokenizer)
    needed = len(prompt) + core.max_thinking + core.reserve
    if needed > server.context:
        raise UserError(
            f"{len(prompt)} prompt tokens, {core.max_thinking} of thinking and {core.reserve} of"
            f" answer do not fit into the server's context of {server.context}: start it with a"
            " larger -c, or lower max_thinking_tokens"
        )
    paid = 0
    patience = server.caller.patience
    sampling = {"temperature": temperature, "ignore_eos": True, "n_probs": server.n_probs}
    while request.thinking:
        ids = [*prompt, *request.ids]
        asked = sampling | {"seed": seed + len(request.ids)}
        piece = request.to_checkpoint
        reply = complete(server.caller, server.spelling, ids, piece, asked, patience)
        paid += reply.paid
        for token, one in zip(reply.tokens, reply.listed, strict=True):
            if request.forced(_likeliest(one, token)) is not None:
                break
            wish = request.push(token, server.signals(token, one))
            while wish is not None:
                wish = _settle(server, request, wish, prompt, patience)
            if not request.thinking:
                break
        if reply.ended and request.thinking:
            request.forced(int(core.vocabulary.eos_ids[0]))
    while not request.done and (forced := request.forced()) is not None:
        wish = request.push(forced)
        paid += 1
        while wish is not None:
            wish = _settle(server, request, wish, prompt, patience)
    while not request.done:
        piece = _ANSWER_PIECE if core.profile.answer_stop else core.profile.max_answer_tokens
        ids = [*prompt, *request.ids]
        reply = complete(server.caller, server.spelling, ids, piece, {"temperature": 0.0}, patience)
        paid += reply.paid
        for token in reply.tokens:
            if not request.done:
                request.push(token)
        if reply.ended:
            request.finish()
    request.close(paid=paid)
    return request.decoded()


def _settle(
    server: Server, request: Request, wish: Wish, prompt: list[int], patience: Patience
) -> Wish | None:
    """Do what a request wants done aside; its next wish."""
    if isinstance(wish, HandOver):
        return request.handed_over(server.core.hand_over(wish))
    if not isinstance(wish, Fork):
        return request.forked(UserError("no options are read here"))
    return request.forked(_fork(server, wish, [*prompt, *request.ids], patience))


def _fork(
    server: Server, wish: Fork, ids: list[int], patience: Patience
) -> Continuation | Exception:
    """Continue greedily aside; a fault costs the decode nothing."""
    core = server.core
    settings = {"temperature": 0.0, "n_probs": server.n_probs}
    try:
        reply = complete(
            server.caller, server.spelling, [*ids, *wish.cue], wish.cap, settings, patience
        )
    except (ServerError, UserError) as error:
        return error
    taken: list[int] = []
    for token in reply.tokens:
        taken.append(token)
        if wish.stops and ends_answer(taken, core.vocabulary, wish.stops):
            break
    listed = reply.listed[: len(taken)]
    if any(one is None or one.logprob is None for one in listed[: len(taken) - reply.ended]):
        return ServerError("the server lists no log-probability beside a trial answer")
    first = listed[0].top if listed and listed[0] is not None else ()
    return Continuation(
        tuple(taken),
        tuple(0.0 if one is None else one.logprob or 0.0 for one in listed),
        least_entropy(sorted((v for _, v in first), reverse=True)) if first else float("nan"),
    )


def _likeliest(one: Listed | None, token: int) -> int:
    # What is shared with another token says nothing of this one.
    own = one is not None and one.key == token and one.top
    return int(one.top[0][0] or 0) if one is not None and own else token


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
    its own, not the profile's exit text. A server that does not end the thinking, or has ended it
    by itself, goes on to its own answer, and ``message`` says so. Raises as ``decode`` does.
    """
    core, patience, spent = server.core, server.caller.patience, 0
    for line in refusals(core.plan, LLAMA_CHAT):
        raise UserError(line)
    body = {
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "reasoning_control": True,
        "logprobs": True,
        "top_logprobs": server.n_probs,
        "timings_per_token": True,
        "temperature": temperature,
        "seed": seed,
        "max_tokens": core.max_thinking + core.reserve,
        **PLAIN,
    }
    clock, most = server.caller.endpoint.clock(), core.max_thinking + core.reserve
    limits = {"event": room_for(4, server.n_probs), "whole": 2 * room_for(most, server.n_probs)}
    while True:
        chat = _Chat(server, Request(core, token_price=token_price, question=question), most)
        try:
            with closing(server.caller.events(_CHAT, body, clock, **limits)) as events:
                chat.read(events)
            return chat.decoded(spent)
        except ServerError as error:
            spent += chat.total
            time.sleep(clock.pause(patience, error))


class _Chat:
    """One chat stream."""

    def __init__(self, server: Server, request: Request, most: int) -> None:
        self._server, self._request, self._most = server, request, most
        self._shown: dict[str, list[str]] = {"reasoning_content": [], "content": []}
        self._waiting: list[Listed] = []  # it is not known yet whether they are thoughts
        self._read = self._at_decision = self._at_end = 0
        self._obeyed, self._refused = False, ""
        self.total = 0
        """tokens so far"""

    def read(self, events: Iterator[Chunk]) -> None:
        """Read to the end; ``ServerError`` where the stream breaks off before."""
        site, finish = self._server.caller.site, ""
        for event in events:
            if event.made <= self._most + 1:  # what it counts beyond is no count
                self.total = max(self.total, event.made)
            for choice in event.choices or ():
                finish = choice.finish or finish
                try:
                    self._take(choice, str(event.id or ""))
                except UserError:
                    raise
                except ValueError as error:
                    raise site.fault(error, sent=True) from None
        if not finish or finish in BROKEN:
            said = f"it said {finish[:40]!r}" if finish else "the stream ended in the middle"
            raise ServerError(f"{site.name}: {said}")

    def _take(self, choice: Choice, stream: str) -> None:
        delta, request = choice.delta, self._request
        if delta is not None and delta.reasoning_content:
            self._shown["reasoning_content"].append(delta.reasoning_content)
            self._at_end = self.total
        if delta is not None and delta.content:
            self._shown["content"].append(delta.content)
        self._waiting += listed_tokens(choice)
        if self._shown["content"] or not self._shown["reasoning_content"]:
            if self._shown["content"]:
                self._waiting.clear()  # tokens of the answer
            return
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            token = self._server.spelling.id(one.key)
            if token is None or not request.thinking:
                continue
            self._read += 1
            request.push(token, self._server.signals(token, one))
            if request.forced() is not None:  # not after a natural end, nor in a tool call
                self._at_decision = self.total
                self._end_reasoning(stream)

    def _end_reasoning(self, stream: str) -> None:
        body = {"id": stream, "action": "reasoning_end"}
        try:
            caller, once = self._server.caller, Patience(0, 0.0)
            found = caller.ask(Control, f"{_CHAT}/control", body, patience=once)
            self._obeyed = found.success
            said = caller.site.clean(found.message or "")
            self._refused = said or "no thinking was open that it can end"
        except (ServerError, UserError) as error:  # the answer is in the stream all the same
            self._refused = str(error)

    def decoded(self, spent: int) -> ChatDecoded:
        """What came of it; ``spent`` tokens were paid for in streams that broke off."""
        outcome = self._request.ending
        decided = self._at_decision if self._obeyed else 0
        message = outcome.message
        if self._refused and not self._obeyed:
            message = f"the server did not end the thinking: {self._refused}"
        return ChatDecoded(
            text="".join(self._shown["content"]),
            thinking="".join(self._shown["reasoning_content"]),
            thinking_tokens=decided or self._at_end,
            late_tokens=max(self._at_end - decided, 0) if decided else 0,
            total_tokens=self.total + spent,
            unseen_tokens=max((self._at_decision or self._at_end) - self._read, 0),
            stopped=self._obeyed and outcome.reason == "policy",
            stop_probability=outcome.stop_probability,
            message=message,
        )
