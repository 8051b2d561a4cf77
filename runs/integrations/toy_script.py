"""An OpenAI-compatible server that costs no computation, and fails as it is told to.

What it writes follows from the prompt alone, in the tokens of the embedded model: so any two
recordings of it must be the same, whatever happened on the way. It speaks as vLLM does, or as
llama-server. Of each
request it may drop the connection, break the answer off, say 429, 500 or that it was aborted, be
late, or end the whole process.

    python -m runs.integrations.toy_script --port 8101 --faults 0.02 --die 0.0005
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from runs.common import ROOT
from runs.integrations.llama_process import free_port

EOS, OPEN, END, DIGITS = 2, 3, 4, 20
FAULTS = ("drop", "cut", "busy", "broken", "aborted", "late")
LATE = 0.5
"""seconds"""


def written(prompt: list[int], n: int) -> list[int]:
    """At most ``n`` tokens: a thinking of 24 to 103 digits, its end, two digits, the end."""
    start = prompt.index(OPEN) + 1 if OPEN in prompt else len(prompt)
    key = zlib.crc32(struct.pack(f"{start}H", *prompt[:start]))
    length = 24 + key % 80
    ids = list(prompt[start:])
    found: list[int] = []
    while len(found) < n and (not found or found[-1] != EOS):
        if END not in ids:
            place = len(ids)
            token = END if place >= length else DIGITS + (key >> place % 24) % 10
        else:
            thought = ids.index(END)
            place = len(ids) - thought - 1
            # The answer settles half-way through the thinking.
            settled = min(thought, length // 2)
            token = EOS if place == 2 else DIGITS + (key * (place + 1) + settled) % 10
        found.append(token)
        ids.append(token)
    return found


def listed(token: int, place: int) -> dict[str, float]:
    """Twenty tokens and their log-probabilities, the token's the highest."""
    best = -0.05 - (token * 7 + place) % 13 / 100
    others = {f"token_id:{40 + i}": best - 2.0 - i / 10 for i in range(19)}
    return {f"token_id:{token}": best, **others}


def choice_of(body: dict[str, Any]) -> dict[str, Any]:
    """The whole continuation, in vLLM's shape."""
    prompt = body["prompt"]
    ids = written(prompt, body["max_tokens"])
    stops = body.get("stop_token_ids") or []
    halted = next((place for place, token in enumerate(ids) if token in stops), None)
    ids = ids if halted is None else ids[: halted + 1]
    ended = halted is not None or ids[-1] == EOS
    tops = [listed(token, len(prompt) + place) for place, token in enumerate(ids)]
    return {
        "index": 0,
        "text": "".join("</think>" if t == END else str(t - DIGITS) for t in ids if t != EOS),
        "token_ids": ids,
        "logprobs": {
            "tokens": [f"token_id:{token}" for token in ids],
            "token_logprobs": [next(iter(top.values())) for top in tops],
            "top_logprobs": tops,
        },
        "finish_reason": "stop" if ended else "length",
        "stop_reason": None if halted is None else ids[-1],
    }


def make_app(
    faults: float, die: float, delay: float, seed: int, owner: str = "vllm"
) -> web.Application:
    """``owner`` is whose server it says to be: ``vllm`` or ``llamacpp``."""
    draw = random.Random(seed)

    async def models(_: web.Request) -> web.Response:
        entry = {"id": "toy", "object": "model", "owned_by": owner, "root": "embedded",
                 "meta": {"n_vocab": 768, "n_ctx": 4096}}  # fmt: skip
        return web.json_response({"object": "list", "data": [entry]})

    async def completions(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if draw.random() < die:
            os._exit(1)
        fault = draw.choice(FAULTS) if draw.random() < faults * len(FAULTS) else ""
        if delay or fault == "late":
            await asyncio.sleep(delay + (LATE if fault == "late" else 0.0))
        if fault == "drop" and request.transport is not None:
            request.transport.abort()
        if fault in ("busy", "broken"):
            status, headers = (429, {"Retry-After": "0.2"}) if fault == "busy" else (500, {})
            return web.json_response({"error": {"message": fault}}, status=status, headers=headers)
        choice = choice_of(body)
        if fault == "aborted":
            choice |= {"token_ids": choice["token_ids"][:1], "finish_reason": "abort"}
        answer = {"id": "toy", "model": "toy", "choices": [choice]}
        if not body.get("stream"):
            data = json.dumps(answer).encode()
            if fault != "cut":
                return web.Response(body=data, content_type="application/json")
            response = web.StreamResponse(headers={"Content-Length": str(len(data))})
            await response.prepare(request)
            await response.write(data[: len(data) // 2])
            if request.transport is not None:
                request.transport.abort()
            return response
        events = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await events.prepare(request)
        await events.write(b"data: " + json.dumps(answer).encode() + b"\n\ndata: [DONE]\n\n")
        return events

    async def completion(request: web.Request) -> web.Response:
        """As llama-server writes it."""
        body = await request.json()
        choice = choice_of({"prompt": body["prompt"], "max_tokens": body["n_predict"]})
        logprobs = choice["logprobs"]
        entries = [
            {
                "id": token,
                "token": "",
                "logprob": logprob,
                "top_logprobs": [
                    {"id": int(name.partition(":")[2]), "token": "", "logprob": value}
                    for name, value in top.items()
                ],
            }
            for token, logprob, top in zip(
                choice["token_ids"], logprobs["token_logprobs"], logprobs["top_logprobs"],
                strict=True,
            )
        ]  # fmt: skip
        return web.json_response({
            "tokens": choice["token_ids"],
            "completion_probabilities": entries,
            "stop_type": "eos" if choice["finish_reason"] == "stop" else "limit",
            "tokens_predicted": len(choice["token_ids"]),
            "timings": {"cache_n": max(len(body["prompt"]) - 1, 0)},
        })  # fmt: skip

    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.post("/v1/completions", completions),
                    web.post("/completion", completion)])  # fmt: skip
    return app


@contextmanager
def scripted(
    *, faults: float = 0.0, die: float = 0.0, delay: float = 0.0, seed: int = 0,
    owner: str = "vllm",
) -> Iterator[str]:  # fmt: skip
    """The address, up to ``/v1``, of a server in a process that is started again when it dies."""
    port = free_port()
    command = [sys.executable, "-m", "runs.integrations.toy_script", "--port", str(port)]
    command += ["--faults", str(faults), "--die", str(die), "--delay", str(delay)]
    command += ["--owner", owner]
    over = threading.Event()
    running: list[subprocess.Popen[bytes]] = []

    def keep() -> None:
        lives = 0
        while not over.is_set():
            # Another seed each time: with the same one it would die at the same request.
            process = subprocess.Popen([*command, "--seed", str(seed + lives)], cwd=ROOT)
            running.append(process)
            process.wait()
            lives += 1

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    address = f"http://127.0.0.1:{port}/v1"
    try:
        _wait(address)
        yield address
    finally:
        over.set()
        while keeper.is_alive():  # it may be starting one
            running[-1].kill()
            keeper.join(timeout=0.2)


def _wait(address: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/models", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise TimeoutError(address)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=8101)
    parser.add_argument("--faults", type=float, default=0.0, help="chance of each kind of fault")
    parser.add_argument("--die", type=float, default=0.0, help="chance to end at a request")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds of every request")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--owner", choices=("vllm", "llamacpp"), default="vllm")
    given = parser.parse_args()
    app = make_app(given.faults, given.die, given.delay, given.seed, given.owner)
    web.run_app(app, host="127.0.0.1", port=given.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
