"""How a server lies in its messages: wrong types at every field, wrong numbers, wrong order."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from runs.trust.hostile_transport import ESC, Attack, Wire, forever


def chunk(token: int, *, nats: float = -0.5, text: str = "x", **more: Any) -> dict[str, Any]:
    """A choice of vLLM's of one token, with 20 alternatives."""
    names = [f"token_id:{token + n}" for n in range(20)]
    top = {name: nats - n for n, name in enumerate(names)}
    logprobs = {"tokens": names[:1], "token_logprobs": [nats], "top_logprobs": [top]}
    return {"index": 0, "text": text, "token_ids": [token], "logprobs": logprobs, **more}


def entry(token: int, *, nats: float = -0.5, **more: Any) -> dict[str, Any]:
    """What llama-server lists of a token."""
    top = [{"id": token + n, "token": "x", "logprob": nats - n} for n in range(20)]
    return {"id": token, "token": "x", "logprob": nats, "top_logprobs": top, **more}


def delta(token: int, *, nats: float = -0.5, name: str = "reasoning_content") -> dict[str, Any]:
    """A choice of a chat."""
    return {"index": 0, "delta": {name: "x"}, "logprobs": {"content": [entry(token, nats=nats)]}}


def event(*choices: Any, **more: Any) -> bytes:
    return b"data: " + json.dumps({"id": "c", "choices": list(choices), **more}).encode() + b"\n\n"


def many(*choices: Any, times: int = 60) -> Attack:
    """Each choice in an event of its own, over and over, and an end."""
    return events(b"".join(event(one) for one in choices) * times, END)


DONE = b"data: [DONE]\n\n"
AGAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
END = event({"index": 0, "text": "", "delta": {}, "finish_reason": "stop"}) + DONE


def events(*blocks: bytes, then: Attack | None = None) -> Attack:
    async def attack(wire: Wire) -> None:
        await wire.put(wire.head() + b"".join(blocks))
        if then is not None:
            await then(wire)

    return attack


def flood(block: bytes, pause: float = 0.0) -> Attack:
    return events(then=lambda wire: wire.flood(block, pause))


def answered(value: Any) -> Attack:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return lambda wire: wire.body(text)


def _error_with_key(wire: Wire) -> Any:
    return wire.put(wire.head() + event(error={"message": f"{ESC}bad {wire.key}"}) + DONE)


def _streams(one: Callable[..., dict[str, Any]]) -> dict[str, Attack]:
    """Those of any stream; ``one`` makes a choice of a token."""
    good = event(one(20)) + event(one(21)) + event(one(22))
    return {
        "keep-alives": events(good, then=lambda w: w.flood(b": ping\n\n", 0.1)),
        "a flood of keep-alives": flood(b": ping\n\n" * 2000),
        "empty choices": flood(event(), 0.05),
        "empty text": flood(event({"text": "", "delta": {"content": ""}}), 0.05),
        "choices null": flood(b'data: {"choices": null}\n\n', 0.05),
        "retry fields": flood(b"retry: 999999999\nid: 1\nevent: x\n\n", 0.05),
        "events of other kinds": flood(b'event: ping\ndata: {"type": "ping"}\n\n', 0.05),
        "usage alone": flood(event(usage={"completion_tokens": 3}), 0.05),
        "tokens, slowly": flood(event(one(20)), 0.5),
        "tokens without end": flood(event(one(20)) * 50),
        "tokens without end, in one event": events(event(*[one(20)] * 200)),
        "an event of 10 MB": events(event(one(20), pad="y" * 10**7), END),
        "an event of 10 MB of empty choices": events(event(*[{}] * 3_000_000)),
        "an event of 900 kB of empty choices": events(event(*[{}] * 200_000)),
        "a million data lines": events(b"data:\n" * 10**6 + b"\n", END),
        "an event name of 2 MB": events(b"event: " + b"e" * 2 * 10**6 + b"\n" + good, END),
        "done twice": events(good, END, DONE, DONE),
        "done at once": events(DONE),
        "events after the end": events(good, END, then=lambda w: w.flood(good)),
        "a second answer after the first": events(good, END, AGAIN),
        "returns alone": events((good + END).replace(b"\n", b"\r")),
        "a return and silence": events(good.replace(b"\n", b"\r")[:-1], then=forever),
        "a mark at every line": events((good + END).replace(b"data:", b"\xef\xbb\xbfdata:")),
        "no frames": events(json.dumps({"choices": [one(20)]}).encode()),
        "half a character, then the end": events(good + b'data: {"id": "\xe2\x82'),
        "an error with the key": _error_with_key,
        "an error of a list": events(event(error=[1, {"a": 2}])),
        "an error of a kind": events(b"event: error\ndata: 5\n\n"),
        "an error without words": events(event(error={})  + END),
        "finish of a number": events(good, event({**one(23), "finish_reason": 7})),
        "finish of a list": events(good, event({**one(23), "finish_reason": ["stop"]})),
        "finish of a mapping": events(good, event({**one(23), "finish_reason": {"type": 5}})),
        "finish of 100,000 letters": events(good, event({"finish_reason": "abort" * 10**4})),
        "aborted": events(good, event({"index": 0, "delta": {}, "finish_reason": "abort"})),
        "usage of 10**18": events(good, event(usage={"completion_tokens": 10**18}), END),
        "usage below 0": events(good, event(usage={"completion_tokens": -7}), END),
        "usage of words": events(good, event(usage={"completion_tokens": "many"}), END),
        "usage of a list": events(good, event(usage=[1]), END),
        "timings of words": events(good, event(timings={"predicted_n": "x"}), END),
        "two continuations": events(event(one(20), {**one(90), "index": 1}) * 3, END),
        "choices of text": events(b'data: {"choices": "abc"}\n\n'),
        "a choice of null": events(event(None)),
        "a choice of a number": events(event(5)),
        "ids of 2**70": events(event(_with(one(20), 2**70)), END),
        "ids below 0": events(event(_with(one(20), -5)), END),
        "ids of 10**9": events(event(_with(one(20), 10**9)), END),
        "NaN": many(one(20, nats=float("nan"))),
        "-Infinity": many(one(20, nats=float("-inf"))),
        "Infinity": many(one(20, nats=float("inf"))),
        "log-probabilities of 50": many(one(20, nats=50.0)),
        "log-probabilities of 1e308": many(one(20, nats=1e308)),
        "log-probabilities of -1e308": many(one(20, nats=-1e308)),
        "log-probabilities of words": events(event({**one(20), "logprobs": "none"}), END),
        "log-probabilities of a list": events(event({**one(20), "logprobs": [1]}), END),
        "no log-probabilities": many({**one(20), "logprobs": None}),
        "an id of the event that is a list": events(b'data: {"id": [1], "choices": []}\n\n', END),
    }  # fmt: skip


def _with(choice: dict[str, Any], token: int) -> dict[str, Any]:
    """The choice with another id wherever one stands."""
    text = json.dumps(choice).replace("token_id:20", f"token_id:{token}")
    text = text.replace('"token_ids": [20]', f'"token_ids": [{token}]')
    text = text.replace('"id": 20', f'"id": {token}')
    return dict(json.loads(text))


def _field(name: str, value: Any) -> Attack:
    return events(event({**chunk(20), name: value}), END)


def _listed(**lists: Any) -> Attack:
    return events(event({**chunk(20), "logprobs": {**chunk(20)["logprobs"], **lists}}), END)


COMPLETIONS: dict[str, Attack] = _streams(chunk) | {
    "text of a number": _field("text", 5),
    "text of a list": _field("text", ["a"]),
    "text null": events(event({**chunk(20), "text": None}), event(chunk(21)), END),
    "text of 900 kB": _field("text", "y" * 900_000),
    "control characters as text": many({**chunk(20), "text": ESC}),
    "token_ids of words": _field("token_ids", ["x"]),
    "token_ids of a fraction": _field("token_ids", [1.5]),
    "token_ids of a truth": _field("token_ids", [True]),
    "token_ids of a number": _field("token_ids", 5),
    "token_ids of lists": _field("token_ids", [[20]]),
    "more ids than log-probabilities": _field("token_ids", [20] * 5),
    "20,000 ids": _field("token_ids", [20] * 20_000),
    "100,000 ids of one text": _field("token_ids", [21] * 100_000),
    "ids that do not spell the text": many({**chunk(20), "text": "zzzz"}),
    "no ids": many({**chunk(20), "token_ids": []}),
    "names that are no ids": _listed(tokens=["token_id:x"]),
    "names with signs": _listed(tokens=["token_id:-1"], top_logprobs=[{"token_id:+5": -1.0}]),
    "names of other digits": _listed(tokens=["token_id:\u0665"]),
    "names of 5,000 digits": _listed(tokens=["token_id:" + "9" * 5000]),
    "names of numbers": _listed(tokens=[5]),
    "lists of other lengths": _listed(token_logprobs=[-1.0, -2.0]),
    "nats of words": _listed(token_logprobs=["x"]),
    "nats of truths": _listed(token_logprobs=[True]),
    "top of words": _listed(top_logprobs=[{"token_id:5": "y"}]),
    "top of a list": _listed(top_logprobs=[[1, 2]]),
    "top of a number": _listed(top_logprobs=5),
    "top with an id of 10**9": _listed(top_logprobs=[{"token_id:1000000000": -1.0}]),
    "top with NaN": many(json.loads(json.dumps(chunk(20)).replace("-3.5", "NaN"))),
    "top empty": many({**chunk(20), "logprobs": {**chunk(20)["logprobs"], "top_logprobs": [{}]}}),
    "parts of characters for ever": flood(event({"text": "", "logprobs": {"tokens": ["\ufffd"]}})),
    "stop_reason of a list": _field("stop_reason", [1]),
    "matched_stop of 2**70": _field("matched_stop", 2**70),
}  # fmt: skip


def _entries(*entries: Any) -> Attack:
    choice = {"delta": {"reasoning_content": "x"}, "logprobs": {"content": entries}}
    return events(event(choice), END)


CHAT: dict[str, Attack] = _streams(delta) | {
    "delta of words": events(event({"index": 0, "delta": "x"})),
    "content of a number": events(event({"index": 0, "delta": {"content": 5}})),
    "reasoning of a list": events(event({"index": 0, "delta": {"reasoning_content": ["x"]}})),
    "content of an entry that is a number": _entries(5),
    "an entry without nats": _entries({"id": 20, "top_logprobs": [{"id": 5}]}),
    "an entry with top of words": _entries({"id": 20, "top_logprobs": "x"}),
    "log-probabilities alone": flood(event({"logprobs": {"content": [entry(20)]}})),
}  # fmt: skip


def _model(**more: Any) -> Attack:
    return answered({"data": [{"id": "m", "meta": {"n_vocab": 768, "n_ctx": 4096}, **more}]})


MODELS: dict[str, Attack] = {
    "data of words": answered({"data": "m"}),
    "data of a number": answered({"data": 5}),
    "data null": answered({"data": None}),
    "data of a mapping": answered({"data": {"id": "m"}}),
    "an entry of words": answered({"data": ["my id"]}),
    "an entry of a list": answered({"data": [["id"]]}),
    "a million entries": answered(b'{"data": [' + b"{}," * 10**6 + b"{}]}"),
    "id null": _model(id=None),
    "id of a number": _model(id=5),
    "id of a megabyte": _model(id="m" * 10**6),
    "id with control characters": _model(id=ESC),
    "length of words": _model(max_model_len="lots"),
    "length below 0": _model(max_model_len=-5),
    "length of a list": _model(max_model_len=[1]),
    "length of 1e300": _model(max_model_len=1e300),
    "length of 1": _model(max_model_len=1),
    "meta of words": _model(meta="x"),
    "meta of a list": _model(meta=[1]),
    "a vocabulary of 10**15": _model(meta={"n_vocab": 10**15, "n_ctx": 10**15}),
    "a vocabulary of words": _model(meta={"n_vocab": "768", "n_ctx": "4096"}),
    "a vocabulary below 0": _model(meta={"n_vocab": -768, "n_ctx": -1}),
}


def _reply(**more: Any) -> Attack:
    plain = {"tokens": [20], "completion_probabilities": [entry(20)], "stop_type": "limit"}
    return answered({**plain, **more})


COMPLETION: dict[str, Attack] = {
    "tokens of words": _reply(tokens="x"),
    "a token of words": _reply(tokens=["x"]),
    "a token of a fraction": _reply(tokens=[1.5]),
    "a token of 2**70": _reply(tokens=[2**70]),
    "a token below 0": _reply(tokens=[-1]),
    "a token of 10**9": _reply(tokens=[10**9]),
    "tokens null": _reply(tokens=None),
    "100,000 tokens": _reply(tokens=[20] * 100_000),
    "probabilities of words": _reply(completion_probabilities="x"),
    "probabilities of numbers": _reply(completion_probabilities=[5]),
    "probabilities null": _reply(completion_probabilities=None),
    "nats of words": _reply(completion_probabilities=[entry(20, logprob="x")]),
    "NaN": _reply(completion_probabilities=[entry(20, nats=float("nan"))]),
    "Infinity": _reply(completion_probabilities=[entry(20, nats=float("inf"))]),
    "nats of 50": _reply(completion_probabilities=[entry(20, nats=50.0)]),
    "top of words": _reply(completion_probabilities=[entry(20, top_logprobs="x")]),
    "top with ids of 10**9": _reply(completion_probabilities=[entry(10**9)]),
    "names that are no ids": _reply(completion_probabilities=[{"token": "token_id:x"}]),
    "stop_type of a number": _reply(stop_type=5),
    "tokens_predicted of 10**18": _reply(tokens_predicted=10**18),
    "tokens_predicted of words": _reply(tokens_predicted="x"),
    "an answer of 30 MB": _reply(pad="y" * 3 * 10**7),
}  # fmt: skip

TOKENIZE: dict[str, Attack] = {
    "tokens of words": answered({"tokens": "x"}),
    "tokens null": answered({"tokens": None}),
    "no tokens": answered({}),
    "other tokens": answered({"tokens": [1, 2, 3]}),
    "tokens of mappings": answered({"tokens": [{"id": 1}]}),
    "tokens of 2**70": answered({"tokens": [2**70]}),
    "a million tokens": answered(b'{"tokens": [' + b"1," * 900_000 + b"1]}"),
}

CONTROL: dict[str, Attack] = {
    "success of words": answered({"success": "yes"}),
    "success null": answered({"success": None}),
    "a message of a list": answered({"success": False, "message": [1]}),
    "a message with control characters": answered({"success": False, "message": ESC + "no"}),
    "a message of a megabyte": answered({"success": False, "message": "m" * 10**6}),
    "no fields": answered({}),
}
