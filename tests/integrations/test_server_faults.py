"""What servers do beside the plain way, and what a decode makes of it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
from fake_servers import (
    Handler,
    Play,
    completions_server,
    event,
    listening,
    llama_chunk,
    vllm_chunk,
)
from tiny_model import tiny_tokenizer

from rlbudget.arrays import Float32s
from rlbudget.decoding.decode import Decoded
from rlbudget.errors import UserError
from rlbudget.integrations import llama_server, openai
from rlbudget.models.profiles import trusted_ids
from rlbudget.models.site import ServerError
from rlbudget.models.wire import NEUTRAL
from rlbudget.policy.network import Decision

TOKENIZER = tiny_tokenizer(320)
PAD, EOS, END = (TOKENIZER.convert_tokens_to_ids(t) for t in ("<pad>", "<eos>", "</think>"))
THOUGHT, ANSWER = "so 7", "12"


class Scripted:
    """A policy that stops from ``at`` thinking tokens on; None for never."""

    price_range = (1e-5, 1e-2)
    features = ("thinking_tokens", "logprob_mean", "margin_mean")

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.seen: list[list[float]] = []

    def __call__(self, observation: Float32s, *, token_price: float) -> Decision:
        self.seen.append([float(value) for value in observation])
        stop = self.at is not None and float(observation[0]) >= self.at
        return Decision(stop=stop, stop_probability=0.5)


def ids(text: str) -> list[int]:
    return trusted_ids(TOKENIZER, text)


def spelled(text: str) -> Iterator[dict[str, Any]]:
    return (vllm_chunk(token, TOKENIZER.decode([token])) for token in ids(text))


def thinks(body: dict[str, Any]) -> bool:
    return END not in body["prompt"]


def looks(body: dict[str, Any]) -> bool:
    """Whether it is the one token that a client asks for when it connects."""
    return bool(body["max_tokens"] == 1)


FIRST = vllm_chunk(ids("s")[0], "s", "length")


def whole(body: dict[str, Any]) -> Iterator[Any]:
    """The plain server: a thought, the end of the thinking, an answer, the end."""
    written = [*ids(THOUGHT), END, *ids(ANSWER), EOS]
    place = 0
    if not looks(body) and not thinks(body):
        place = len(written) - 1 - len(ids(ANSWER))
    for token in written[place:]:
        yield vllm_chunk(token, "" if token == EOS else TOKENIZER.decode([token]), None)
    yield {"text": "", "logprobs": None, "finish_reason": "stop"}


async def of_one(server: openai.Server) -> Decoded:
    return await openai.decode(server, "1 + 1?")


def ask(
    play: Play,
    policy: Scripted,
    what: Callable[[openai.Server], Awaitable[Any]] = of_one,
    asked: list[dict[str, Any]] | None = None,
    **settings: Any,
) -> Any:
    given = {"profile": "embedded", "token_price": 1e-3, "stride": 4, "max_thinking_tokens": 64}

    async def run(url: str) -> Any:
        async with openai.connect(url, policy, TOKENIZER, **(given | settings)) as server:
            return await what(server)

    with completions_server(play, [] if asked is None else asked) as url:
        return asyncio.run(run(url))


PLAIN = Decoded(
    answer=ANSWER, text=f"{THOUGHT}</think>{ANSWER}<eos>", thinking_tokens=len(ids(THOUGHT)),
    probe_tokens=0, answer_tokens=2 + len(ids(ANSWER)), stopped=False, stopped_at=None,
    reason="natural", stop_probability=0.5, message=None,
)  # fmt: skip


def test_a_plain_server_is_read() -> None:
    assert ask(whole, Scripted()) == PLAIN


@pytest.mark.parametrize("own_chunk", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_an_end_that_only_the_server_knows_is_no_thought(own_chunk: bool, told: bool) -> None:
    second = ids("\n")[0] if told else PAD
    stop_reason = {"stop_reason": second} if told else {}

    def play(body: dict[str, Any]) -> Iterator[Any]:
        if looks(body):
            yield FIRST
            return
        yield from spelled(THOUGHT if thinks(body) else ANSWER)
        if own_chunk:
            yield vllm_chunk(second, "")
            yield {"text": "", "logprobs": None, "finish_reason": "stop", **stop_reason}
        else:
            yield vllm_chunk(second, "", "stop") | stop_reason

    asked: list[dict[str, Any]] = []
    found = ask(play, Scripted(), asked=asked)
    assert asked[-1]["prompt"][-len(ids(THOUGHT)) - 1 :] == [*ids(THOUGHT), END]
    assert (found.thinking_tokens, found.reason) == (len(ids(THOUGHT)), "natural")
    assert found.answer == ANSWER
    # An end of the thinking, the exit text, the answer, its end.
    assert found.answer_tokens == 1 + 1 + len(ids(ANSWER)) + 1


def test_ends_that_the_call_names_are_ends() -> None:
    named = ids("!")[0]

    def play(body: dict[str, Any]) -> Iterator[Any]:
        yield from spelled(THOUGHT if thinks(body) else ANSWER)
        yield vllm_chunk(named, "!")
        yield from spelled("never read")

    for settings in ({"eos_ids": [named]}, {"fields": {"stop_token_ids": [named]}}):
        found = ask(play, Scripted(), **settings)
        assert (found.thinking_tokens, found.reason) == (len(ids(THOUGHT)), "natural")
        assert found.answer == ANSWER


def test_padding_after_an_end_is_not_counted() -> None:
    def play(body: dict[str, Any]) -> Iterator[Any]:
        if looks(body):
            yield FIRST
            return
        tokens = [*ids(THOUGHT), END, *ids(ANSWER), EOS, EOS, PAD, PAD]
        chunks = [vllm_chunk(token, "") for token in tokens]
        logprobs = {
            name: [value for chunk in chunks for value in chunk["logprobs"][name]]
            for name in chunks[0]["logprobs"]
        }
        text = f"{THOUGHT}</think>{ANSWER}"
        yield {"text": text, "token_ids": tokens, "logprobs": logprobs, "finish_reason": "stop"}

    assert ask(play, Scripted()) == PLAIN


@pytest.mark.parametrize("usage", [False, True])
def test_characters_of_several_tokens_survive_a_server_that_hides_some(usage: bool) -> None:
    thought, answer = "so 散 7 😊 wait", "答案 😊"

    def play(body: dict[str, Any]) -> Iterator[Any]:
        if looks(body):
            yield llama_chunk(ids("s")[0], "s", "length")
            return
        held: list[int] = []
        written = ids(thought if thinks(body) else answer)
        for token in written:
            held.append(token)
            piece = TOKENIZER.decode(held)
            if not piece.endswith("\ufffd"):
                yield llama_chunk(token, piece)
                held = []
        yield {"text": "", "logprobs": None, "finish_reason": "stop"}
        if usage:
            yield event([], usage={"completion_tokens": len(written) + 1})

    asked: list[dict[str, Any]] = []
    found = ask(play, Scripted(), asked=asked)
    assert asked[-1]["prompt"][-len(ids(thought)) - 1 :] == [*ids(thought), END]
    assert found.text == f"{thought}</think>{answer}"
    assert found.message is None
    assert found.thinking_tokens == len(ids(thought))
    assert found.total_tokens == len(ids(thought)) + 1 + 1 + len(ids(answer)) + 1


def test_a_server_without_ids_has_its_text_tokenised() -> None:
    def play(body: dict[str, Any]) -> Iterator[Any]:
        if isinstance(body["prompt"], list):
            yield 422, {"detail": "prompt must be a string"}
            return
        written = f"{THOUGHT} 😊</think>{ANSWER}" if "</think>" not in body["prompt"] else ANSWER
        for token in ids(written):
            name = TOKENIZER.decode([token])
            name = "bytes:\\xf0" if "\ufffd" in name else name
            top = {name: -0.1} | {f"x{n}": -1.0 - n for n in range(19)}
            logprobs = {"tokens": [name], "token_logprobs": [-0.1], "top_logprobs": [top]}
            text = "" if name.startswith("bytes") else name
            text = "😊" if token == ids("😊")[-1] else text
            yield {"text": text, "logprobs": logprobs, "finish_reason": None}
        yield {"text": "", "logprobs": None, "finish_reason": "stop"}

    found = ask(play, Scripted())
    assert found.text == f"{THOUGHT} 😊</think>{ANSWER}"
    assert found.thinking_tokens == len(ids(f"{THOUGHT} 😊"))
    assert (found.answer, found.message) == (ANSWER, None)


def test_what_comes_in_one_chunk_with_a_stop_is_thrown_away_and_counted() -> None:
    def play(body: dict[str, Any]) -> Iterator[Any]:
        if looks(body):
            yield FIRST
        elif thinks(body):
            tokens = [ids(str(n % 10))[0] for n in range(10)]
            chunks = [vllm_chunk(token, "") for token in tokens]
            logprobs = {
                name: [value for chunk in chunks for value in chunk["logprobs"][name]]
                for name in chunks[0]["logprobs"]
            }
            yield {"text": "0123456789", "token_ids": tokens, "logprobs": logprobs}
        else:
            yield from whole(body)

    asked: list[dict[str, Any]] = []
    found = ask(play, Scripted(4), asked=asked)
    assert (found.stopped_at, found.answer) == (4, ANSWER)
    assert asked[-1]["prompt"][-5:] == [*ids("0123"), END]
    assert found.total_tokens == 10 + 1 + len(ids(ANSWER)) + 1


def without_signals(token: int) -> dict[str, Any]:
    chunk = llama_chunk(token, TOKENIZER.decode([token]))
    chunk["logprobs"]["content"][0] |= {"logprob": 0.0, "top_logprobs": []}
    return chunk


@pytest.mark.parametrize(
    "bare", [without_signals, lambda t: vllm_chunk(t, "x") | {"logprobs": None}]
)
def test_tokens_without_log_probabilities_switch_the_policy_off(
    bare: Callable[[int], dict[str, Any]],
) -> None:
    def play(body: dict[str, Any]) -> Iterator[Any]:
        if looks(body):
            yield FIRST
            return
        for token in [*ids(THOUGHT * 3), END, *ids(ANSWER), EOS]:
            yield bare(token)

    policy = Scripted(4)
    found = ask(play, policy)
    assert (found.answer, found.reason, policy.seen) == (ANSWER, "policy_failed", [])
    assert "without log-probabilities" in str(found.message)


@pytest.mark.parametrize("finish", ["abort", "cancelled", "error", {"type": "abort"}, None])
def test_an_abort_is_asked_for_again_and_is_no_cap(finish: Any) -> None:
    aborted: list[int] = []

    def play(body: dict[str, Any]) -> Iterator[Any]:
        if not looks(body) and not aborted:
            aborted.append(1)
            yield from spelled(THOUGHT[:2])
            yield {"text": "", "logprobs": None, "finish_reason": finish}
        elif aborted and not looks(body):
            yield from spelled(THOUGHT[2:])
            yield vllm_chunk(END, "</think>")
            yield from spelled(ANSWER)
            yield vllm_chunk(EOS, "", "stop")
        else:
            yield FIRST

    assert ask(play, Scripted()) == PLAIN


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_waited_for(status: int) -> None:
    began: list[float] = []

    def play(body: dict[str, Any]) -> Iterator[Any]:
        if not looks(body) and (not began or time.monotonic() - began[0] < 1):
            began.append(time.monotonic())
            yield status, {"error": {"message": "slow down"}}, [("Retry-After", "1")]
        else:
            yield from whole(body)

    assert ask(play, Scripted(), retries=1) == PLAIN
    assert len(began) == 1
    began.clear()
    with pytest.raises(ServerError, match=r"slow down \(given up: it asks for 1 s"):
        ask(play, Scripted(), timeout=0.9)


def test_neutral_sampling_is_said_in_every_request() -> None:
    asked: list[dict[str, Any]] = []
    ask(whole, Scripted(4), asked=asked, fields={"top_p": 0.9})
    assert len(asked) == 3
    for body in asked:
        assert {name: body[name] for name in NEUTRAL} == {**NEUTRAL, "top_p": 0.9}


@pytest.mark.parametrize("named", [True, False])
def test_a_setting_that_a_server_refuses_is_left_out(named: bool) -> None:
    known = {"model", "prompt", "max_tokens", "stream", "n", "logprobs", "temperature", "top_p",
             "presence_penalty", "frequency_penalty", "skip_special_tokens", "seed"}  # fmt: skip

    def play(body: dict[str, Any]) -> Iterator[Any]:
        if wrong := sorted(set(body) - known):
            said = f"unknown: {wrong[0]}" if named else "unknown field"
            yield 400, {"error": {"message": said}}
        else:
            yield from whole(body)

    asked: list[dict[str, Any]] = []
    assert ask(play, Scripted(), asked=asked) == PLAIN
    assert asked[-1]["top_p"] == 1.0


SHAPES: dict[str, Callable[[bytes], bytes]] = {
    "comments and pings": lambda d: b': ping\n\nevent: ping\ndata: {"type": "ping"}\n\n' + d,
    "CR": lambda d: d.replace(b"\n", b"\r"),
    "CRLF": lambda d: d.replace(b"\n", b"\r\n"),
    "no space": lambda d: d.replace(b"data: ", b"data:"),
    "empty data": lambda d: d + b"data: \n\n",
    "fields": lambda d: b"id: 1\nevent: x\nretry: 3\n" + d,
    "several data lines": lambda d: d.replace(b', "choices"', b',\ndata: "choices"'),
    "usage": lambda d: d + event([], usage={"completion_tokens": 1}),
    "choices null": lambda d: d + event(None, usage=None),
    "-Infinity": lambda d: re.sub(rb"-3\.[79]\d*", b"-Infinity", d),
    "null": lambda d: re.sub(rb"-3\.[79]\d*", b"null", d),
    "BOM": lambda d: b"\xef\xbb\xbf" + d,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", [0, 3])
def test_streams_of_every_shape_give_the_plain_decode(shape: str, step: int) -> None:
    def play(body: dict[str, Any]) -> Iterator[Any]:
        for choice in whole(body):
            data = SHAPES[shape](event([{"index": 0, **choice}]))
            for start in range(0, len(data), step or len(data)):
                yield data[start : start + (step or len(data))]

    assert ask(play, Scripted()) == PLAIN


def test_an_error_in_the_middle_of_a_stream_is_a_fault() -> None:
    failed: list[int] = []

    def play(body: dict[str, Any]) -> Iterator[Any]:
        if not looks(body) and not failed:
            failed.append(1)
            yield event([], error={"message": "the engine died", "code": 500})
        else:
            yield from whole(body)

    assert ask(play, Scripted()) == PLAIN
    failed.clear()
    with pytest.raises(ServerError, match="the engine died"):
        ask(play, Scripted(), retries=0)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_cancelled_decode_closes_its_connection(times: int) -> None:
    writing: set[object] = set()

    def play(body: dict[str, Any]) -> Iterator[Any]:
        if looks(body) or not thinks(body):
            yield from whole(body)
            return
        me = object()
        writing.add(me)
        try:
            for _ in range(30_000):
                time.sleep(0.01)
                yield vllm_chunk(ids("1")[0], "1")
        finally:
            writing.discard(me)

    async def cancel(server: openai.Server) -> None:
        for pause in (0.0, 0.001, 0.02, 0.1):
            task = asyncio.create_task(of_one(server))
            await asyncio.sleep(pause)
            for _ in range(times):
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
        for _ in range(3000):  # at once, on a machine that does nothing else
            if not writing and not connections(server):
                break
            await asyncio.sleep(0.01)
        assert not connections(server)
        assert not writing

    ask(play, Scripted(), cancel)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "7.5", "1e308"])
def test_what_is_no_log_probability_is_shown_to_no_policy(value: str) -> None:
    def play(body: dict[str, Any]) -> Iterator[Any]:
        for choice in whole(body):
            data = event([{"index": 0, **choice}])
            yield data if looks(body) else data.replace(b"-0.1,", value.encode() + b",")

    policy = Scripted(4)
    found = ask(play, policy, stride=1)
    assert (found.answer, found.reason, policy.seen) == (ANSWER, "policy_failed", [])
    assert "without log-probabilities" in str(found.message)


@pytest.mark.parametrize("used", [10**18, -5, 65 + 2 * 64])
def test_a_count_that_cannot_be_is_not_believed(used: int) -> None:
    def play(body: dict[str, Any]) -> Iterator[Any]:
        for choice in whole(body):
            yield event([{"index": 0, **choice}], usage={"completion_tokens": used})

    assert ask(play, Scripted()).total_tokens == PLAIN.total_tokens


def test_a_server_that_writes_on_is_cut_where_it_was_asked_to_end() -> None:
    def play(body: dict[str, Any]) -> Iterator[Any]:
        token = ids("1")[0]
        while True:
            yield vllm_chunk(token, "1")

    found = ask(play, Scripted(), max_thinking_tokens=8)
    assert found.thinking_tokens <= 8
    assert found.total_tokens <= 200


def test_the_smallest_floats_are_log_probabilities() -> None:
    def play(body: dict[str, Any]) -> Iterator[Any]:
        for choice in whole(body):
            data = event([{"index": 0, **choice}])
            yield re.sub(rb"-[1-3]\.\d+", b"-1e308", data)

    policy = Scripted(4)
    assert ask(play, policy).answer == ANSWER
    assert policy.seen


def test_a_refused_key_is_tried_once() -> None:
    asked: list[dict[str, Any]] = []

    def play(body: dict[str, Any]) -> Iterator[Any]:
        yield 401, {"error": {"message": "no"}}

    with pytest.raises(UserError, match="does not accept the key"):
        ask(play, Scripted(), asked=asked)
    assert len(asked) == 1


def connections(server: openai.Server) -> set[Any]:
    """Those in use."""
    connector: Any = server.endpoint.session.connector
    return set(connector._acquired)


def llama(
    complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    chat: Callable[[dict[str, Any]], Iterator[bytes]] | None = None,
    control: dict[str, Any] | None = None,
) -> type[Handler]:
    class Fake(Handler):
        def do_GET(self) -> None:  # noqa: N802
            self.send_json({"data": [{"id": "m", "meta": {"n_vocab": 320, "n_ctx": 2048}}]})

        def do_POST(self) -> None:  # noqa: N802
            body = self.body()
            if self.path == "/tokenize":
                self.send_json({"tokens": ids(body["content"])})
            elif self.path == "/completion" and complete:
                found = complete(body)
                self.send_json(found, int(found.pop("status", 200)), found.pop("headers", ()))
            elif self.path.endswith("/control"):
                status = 200 if control else 404
                self.send_json(control or {"error": "no such route"}, status)
            elif chat:
                self.send_events(chat(body))

    return Fake


def serve(handler: type[Handler], policy: Scripted, chat: bool = False, **settings: Any) -> Any:
    given = {"profile": "embedded", "token_price": 1e-3, "stride": 4, "max_thinking_tokens": 64}
    with (
        listening(handler) as url,
        llama_server.connect(url, policy, TOKENIZER, **(given | settings)) as server,
    ):
        way = llama_server.decode_chat if chat else llama_server.decode
        return way(server, "1 + 1?")


def piecewise(
    written: Sequence[int], ends: Sequence[int], drafted: bool = False
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A llama-server that thinks ``written``, and answers."""

    def complete(body: dict[str, Any]) -> dict[str, Any]:
        if END in body["prompt"]:
            tokens = [*ids(ANSWER), *ends]
        else:
            start = len(body["prompt"]) - len(ids("<bos>1 + 1?\n<think>"))
            tokens = list(written[start : start + body["n_predict"]])
        listed = [llama_chunk(token, "")["logprobs"]["content"][0] for token in tokens]
        for entry in listed[1:] if drafted else []:
            entry |= {"logprob": 0.0, "top_logprobs": []}
        stop = "eos" if END in body["prompt"] else "limit"
        return {"tokens": tokens, "completion_probabilities": listed, "stop_type": stop}

    return complete


def test_a_llama_server_with_a_draft_model_gives_no_signals() -> None:
    policy = Scripted(4)
    written = [*ids(THOUGHT * 2), END, *ids("ab")]
    found = serve(llama(piecewise(written, [EOS], drafted=True)), policy)
    assert (found.answer, found.reason, policy.seen) == (ANSWER, "policy_failed", [])
    assert "without log-probabilities" in str(found.message)


@pytest.mark.parametrize("ends", [[EOS], [PAD], [], [EOS, PAD, PAD]])
def test_an_end_of_llama_server_is_counted_once_and_is_no_answer(ends: list[int]) -> None:
    found = serve(llama(piecewise([*ids("0123"), *ids("45")], ends)), Scripted(4))
    assert (found.answer, found.stopped_at) == (ANSWER, 4)
    assert found.total_tokens == 4 + 1 + len(ids(ANSWER)) + 1


def test_a_llama_server_in_trouble_is_asked_again() -> None:
    plain = piecewise(ids("012345"), [EOS])
    troubles = [
        {"status": 503, "error": {"message": "Loading model"}},
        {"status": 429, "headers": [("Retry-After", "0.2")]},
        {"tokens": [], "stop_type": "none"},
    ]

    def complete(body: dict[str, Any]) -> dict[str, Any]:
        return troubles.pop() if troubles else plain(body)

    assert serve(llama(complete), Scripted(4)).answer == ANSWER
    troubles.append({"status": 503, "error": {"message": "Loading model"}})
    with pytest.raises(ServerError, match="Loading model"):
        serve(llama(complete), Scripted(4), retries=0)
    troubles.append({"status": 400, "error": {"message": "no"}})
    with pytest.raises(UserError, match="refuses the request"):
        serve(llama(complete), Scripted(4))


def chat_of(thoughts: str, answer: str) -> Callable[[dict[str, Any]], Iterator[bytes]]:
    def chat(body: dict[str, Any]) -> Iterator[bytes]:
        parts = [("reasoning_content", token) for token in ids(thoughts)]
        parts += [("content", END)] * bool(thoughts) + [("content", token) for token in ids(answer)]
        for n, (name, token) in enumerate(parts, 1):
            text = "" if token == END else TOKENIZER.decode([token])
            choice = llama_chunk(token, text) | {"delta": {name: text}}
            yield event([{"index": 0, **choice}], timings={"predicted_n": n})
        yield event([{"index": 0, "delta": {}, "finish_reason": "stop"}])

    return chat


@pytest.mark.parametrize("control", [{"success": False, "message": "has finished"}, None])
def test_a_late_control_call_costs_no_answer(control: dict[str, Any] | None) -> None:
    handler = llama(chat=chat_of("0123456", ANSWER), control=control)
    found = serve(handler, Scripted(4), chat=True)
    assert (found.text, found.thinking, found.stopped) == (ANSWER, "0123456", False)
    assert found.thinking_tokens == 7
    assert "did not end the thinking" in str(found.message)


def test_a_server_that_does_not_think_is_left_alone() -> None:
    policy = Scripted(4)
    found = serve(llama(chat=chat_of("", ANSWER * 8)), policy, chat=True)
    assert (found.text, found.thinking, found.thinking_tokens) == (ANSWER * 8, "", 0)
    assert (found.stopped, found.message, policy.seen) == (False, None, [])


def test_a_chat_that_breaks_off_is_asked_for_again() -> None:
    whole_chat, broken = chat_of("0123456", ANSWER), [1]

    def chat(body: dict[str, Any]) -> Iterator[bytes]:
        events = whole_chat(body)
        if broken:
            broken.pop()
            yield from (next(events) for _ in range(3))
        else:
            yield from events

    found = serve(llama(chat=chat, control={"success": True}), Scripted(), chat=True)
    assert (found.text, found.thinking) == (ANSWER, "0123456")
    assert found.total_tokens == 3 + 7 + 1 + len(ids(ANSWER))
