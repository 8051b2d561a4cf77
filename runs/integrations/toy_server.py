"""A small OpenAI-compatible server of the embedded model, on loopback, for tests and examples.

It decodes for real, token by token, and answers `/v1/completions` with log-probabilities in the
shape of vLLM's, as a stream or whole, and `/tokenize`. It batches nothing and checks little: not
for anything but trying out clients.

    python -m runs.integrations.toy_server --port 8100
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import orjson
import torch
import tyro
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rlbudget.decoding.core import VLLM, Core
from rlbudget.decoding.request import Request
from rlbudget.errors import UserError
from rlbudget.integrations.engine_settings import (
    PREFIX,
    Settings,
    check_room,
    wish_of,
    xargs_of,
)
from rlbudget.models import load_model
from rlbudget.models.profiles import trusted_ids
from rlbudget.models.sampling import Uniforms, sample, token_signals
from rlbudget.models.sequences import Sequences
from rlbudget.models.transformers_model import TransformersModel


@dataclass
class Toy:
    """What the server is like; tests change it while it runs."""

    model: TransformersModel
    ids: bool = True
    """takes and gives token ids"""
    logprobs: int = 20
    """most top log-probabilities; 0 for none at all"""
    key: str | None = None
    """the bearer token it asks for"""
    context: int | None = None
    cuts: list[int] = field(default_factory=list)
    """for the next requests, in order: cut the connection after so many tokens"""
    together: int = 1
    """tokens in a chunk"""
    native: bool = True
    """says that it is a vLLM, and tokenises"""
    scores: str = "prompt_logprobs"
    """how it scores a prompt: that, "echo" or "" for not at all"""
    processor: Settings | None = None
    """decodes with the machine that our processor for vLLM drives, under these plans"""
    cores: dict[str, Core] = field(default_factory=dict)
    """of the processor, once it is asked"""
    generated: int = 0
    """tokens decoded so far"""
    requests: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def make_app(toy: Toy) -> Starlette:
    async def models(request: HttpRequest) -> Response:
        if refusal := refuse(toy, request):
            return refusal
        entry = {"id": "toy", "object": "model", "max_model_len": toy.context}
        if toy.native:
            entry |= {"owned_by": "vllm", "root": "embedded"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def completions(http: HttpRequest) -> Response:
        if refusal := refuse(toy, http):
            return refusal
        if http.headers.get("content-type") != "application/json":
            return error(415, "the body must be application/json")
        body = orjson.loads(await http.body())
        toy.requests.append(body)
        prompt = body["prompt"]
        if isinstance(prompt, str):
            prompt = trusted_ids(toy.model.tokenizer, prompt)
        elif not toy.ids:
            return error(422, "prompt must be a string")
        room = None if toy.context is None else toy.context - len(prompt)
        try:
            request = engine_request(toy, prompt, body)
        except UserError as refused:
            return error(400, str(refused))
        if room is not None and body["max_tokens"] > room:
            return error(400, f"{len(prompt)} prompt tokens leave room for {room}")
        if not body.get("stream"):
            return JSONResponse(await run_in_threadpool(whole, toy, prompt, body, request))
        return StreamingResponse(stream(toy, prompt, body, request), media_type="text/event-stream")

    async def tokenize(request: HttpRequest) -> Response:
        if not toy.native:
            return error(404, "Not Found")
        body = orjson.loads(await request.body())
        if "prompt" not in body:
            return error(400, "this model has no chat template")
        ids = trusted_ids(toy.model.tokenizer, body["prompt"])
        return JSONResponse({"count": len(ids), "tokens": ids})

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/tokenize", tokenize, methods=["POST"]),
        ]
    )


def refuse(toy: Toy, request: HttpRequest) -> Response | None:
    given = request.headers.get("authorization", "")
    if toy.key is None or given == f"Bearer {toy.key}":
        return None
    return error(401, f"wrong key in {given}")


def error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "code": status}}, status_code=status)


def engine_request(toy: Toy, prompt: list[int], body: dict[str, Any]) -> Request | None:
    """What our processor would make of a request; raises ``UserError`` as it does."""
    if toy.processor is None:
        return None
    params = SimpleNamespace(extra_args=body.get("vllm_xargs"))
    wish = wish_of(xargs_of(params), toy.processor, PREFIX)
    check_room(wish, toy.processor, body["max_tokens"])
    if wish.off:
        return None
    if not toy.cores:
        vocabulary = toy.model.vocabulary
        toy.cores = toy.processor.bind(toy.model.tokenizer, VLLM, len(vocabulary.markers),
                                       vocabulary.eos_ids.tolist())  # fmt: skip
    return wish.request(toy.cores[wish.name], prompt, body["max_tokens"])


async def stream(
    toy: Toy, prompt: list[int], body: dict[str, Any], request: Request | None = None
) -> AsyncIterator[bytes]:
    cut = toy.cuts.pop(0) if toy.cuts else None
    steps = decode(toy, prompt, body, request)
    waiting: list[dict[str, Any]] = []
    sent = 0
    while True:
        if sent == cut:
            raise ConnectionAbortedError
        step = await run_in_threadpool(next, steps, None)
        if step is not None:
            waiting.append(step)
            sent += 1
        if step is None or len(waiting) >= toy.together or step["finish_reason"]:
            if waiting:
                yield event([merged(waiting)])
            waiting = []
        if step is None:
            break
    yield b"data: [DONE]\n\n"


def whole(
    toy: Toy, prompt: list[int], body: dict[str, Any], request: Request | None = None
) -> dict[str, Any]:
    """All tokens at once."""
    choice = merged(list(decode(toy, prompt, body, request)))
    if toy.scores == "prompt_logprobs" and (k := body.get("prompt_logprobs")):
        choice["prompt_logprobs"] = scored(toy, prompt, k)
    if toy.scores == "echo" and body.get("echo"):
        each = [one or {} for one in scored(toy, prompt, body["logprobs"])]
        own = {"tokens": [f"token_id:{token}" for token in prompt],
               "token_logprobs": [one.get(str(token), {}).get("logprob")
                                  for token, one in zip(prompt, each, strict=True)],
               "top_logprobs": [{f"token_id:{name}": value["logprob"]
                                 for name, value in one.items()} for one in each]}  # fmt: skip
        choice["logprobs"] = {name: own[name] + choice["logprobs"][name] for name in own}
    written = len(choice.get("token_ids") or [])
    usage = {"prompt_tokens": len(prompt), "completion_tokens": written}
    return {"id": "toy", "object": "text_completion", "model": "toy", "choices": [choice],
            "usage": usage}  # fmt: skip


@torch.inference_mode()
def scored(toy: Toy, prompt: list[int], k: int) -> list[dict[str, Any] | None]:
    """The tokens of a prompt and the likeliest at their places, as vLLM writes them."""
    with toy.lock:
        rows = Sequences.begin(toy.model.network, [prompt[:1]])
        values = rows.read(torch.tensor([prompt[1:]]))[0, :-1].log_softmax(dim=-1)
    best = values.topk(min(k, toy.logprobs))
    found: list[dict[str, Any] | None] = [None]
    for place, token in enumerate(prompt[1:]):
        ids = [token, *best.indices[place].tolist()]
        found.append({str(i): {"logprob": float(values[place, i])} for i in ids})
    return found


def merged(steps: list[dict[str, Any]]) -> dict[str, Any]:
    choice = dict(steps[-1], text="".join(step["text"] for step in steps))
    if "token_ids" in choice:
        choice["token_ids"] = [token for step in steps for token in step["token_ids"]]
    if choice["logprobs"]:
        choice["logprobs"] = {
            name: [value for step in steps for value in step["logprobs"][name]]
            for name in choice["logprobs"]
        }
    return choice


def event(choices: list[dict[str, Any]]) -> bytes:
    chunk = {"id": "toy", "object": "text_completion", "model": "toy", "choices": choices}
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


@torch.inference_mode()
def begin(toy: Toy, prompt: list[int]) -> Sequences:
    with toy.lock:
        return Sequences.begin(toy.model.network, [prompt])


@torch.inference_mode()
def feed(toy: Toy, row: Sequences, token: int) -> None:
    with toy.lock:
        row.feed(torch.tensor([[token]]))


def decode(
    toy: Toy, prompt: list[int], body: dict[str, Any], request: Request | None = None
) -> Iterator[dict[str, Any]]:
    vocabulary = toy.model.vocabulary
    special = not body.get("skip_special_tokens", True)
    by_id = toy.ids and body.get("return_tokens_as_token_ids")
    temperature = body.get("temperature", 1.0)
    uniforms = Uniforms([body.get("seed") or 0])
    row = begin(toy, prompt)
    for place in range(body["max_tokens"]):
        logits = row.logits
        forced = None if request is None else request.forced(int(logits.argmax()))
        if request is not None and request.thinking:
            logits = logits.clone()
            logits[:, vocabulary.eos_ids] = -torch.inf
        if forced is not None:
            token = forced
        elif temperature == 0:
            token = int(logits.argmax())
        else:
            token = int(
                sample(logits, temperature, torch.from_numpy(uniforms.at(np.array([place]))))
            )
        toy.generated += 1
        if request is not None and not request.idle:
            ends = torch.from_numpy(vocabulary.end_first_ids)
            signals = token_signals(row.logits, torch.tensor([token]), ends)[0].double().numpy()
            request.push(token, signals if request.thinking else None)
        halted = token in (body.get("stop_token_ids") or ())
        ended = token in vocabulary.eos_ids or halted
        last = place + 1 == body["max_tokens"]
        logprobs = None
        k = min(body.get("logprobs") or 0, toy.logprobs)
        if k:
            values = logits.log_softmax(dim=-1)[0]
            best = values.topk(k)
            names = [
                f"token_id:{i}" if by_id else vocabulary.text([i], special=True)
                for i in [token, *best.indices.tolist()]
            ]
            logprobs = {
                "tokens": names[:1],
                "token_logprobs": [float(values[token])],
                "top_logprobs": [dict(zip(names[1:], best.values.tolist(), strict=True))],
            }
        choice = {
            "index": 0,
            "text": vocabulary.text([token], special=special and not ended),
            "logprobs": logprobs,
            "finish_reason": "stop" if ended else "length" if last else None,
        }
        if halted:
            choice["stop_reason"] = token
        if toy.ids and body.get("return_token_ids"):
            choice["token_ids"] = [token]
        yield choice
        if ended:
            return
        if not last:
            feed(toy, row, token)


def serving(toy: Toy, *, port: int = 0) -> AbstractContextManager[str]:
    """The address of a server in a thread, by default on a free port, up to ``/v1``."""
    return running(make_app(toy), port=port)


@contextmanager
def running(app: Any, *, port: int = 0, lifespan: Literal["on", "off"] = "off") -> Iterator[str]:
    """The same of any ASGI application."""
    config = uvicorn.Config(app, port=port, log_level="critical", lifespan=lifespan, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(timeout=20)


def main(host: str = "127.0.0.1", port: int = 8100) -> None:
    """Serve the embedded model; --port 0 takes a free one."""
    torch.set_num_threads(1)
    server = uvicorn.Server(
        uvicorn.Config(make_app(Toy(load_model("embedded"))), host=host, port=port)
    )
    asyncio.run(server.serve())


if __name__ == "__main__":
    tyro.cli(main)
