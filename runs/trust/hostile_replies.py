"""A server on loopback whose every answer is chosen by the address: /CALL/MODE/...

    python -m runs.trust.hostile_replies TOLD   (JSON: what a good answer needs to know)

Prints its port, and STOLEN where a key comes to the second port, which no client was told of.
"""  # fmt: skip

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

from runs.trust import hostile_messages as messages
from runs.trust.hostile_transport import TRANSPORT, Attack, Wire

MODES: dict[str, dict[str, Attack]] = {
    "models": TRANSPORT | messages.MODELS,
    "look": TRANSPORT | messages.COMPLETIONS,
    "decode": TRANSPORT | messages.COMPLETIONS,
    "answer": TRANSPORT | messages.COMPLETIONS,
    "llama models": TRANSPORT | messages.MODELS,
    "tokenize": TRANSPORT | messages.TOKENIZE,
    "completion": TRANSPORT | messages.COMPLETION,
    "chat": TRANSPORT | messages.CHAT,
    "control": TRANSPORT | messages.CONTROL,
}
"""call -> name -> what it does"""


def good(call: str, told: dict[str, Any]) -> bytes:
    """What an honest server says."""
    chunk, delta, event, end = messages.chunk, messages.delta, messages.event, messages.END
    if call.endswith("models"):
        meta = {"n_vocab": told["size"], "n_ctx": 4096}
        return json.dumps({"data": [{"id": "m", "max_model_len": 4096, "meta": meta}]}).encode()
    if call == "look":
        return event({**chunk(20), "finish_reason": "length"}) + messages.DONE
    if call in ("decode", "answer"):
        return b"".join(event(chunk(20 + n % 50)) for n in range(200)) + end
    if call == "tokenize":
        return json.dumps({"tokens": told["exit"]}).encode()
    if call == "completion":
        tokens = [20 + n for n in range(told["stride"])]
        listed = [messages.entry(token) for token in tokens]
        return json.dumps({"tokens": tokens, "completion_probabilities": listed}).encode()
    if call == "control":
        return b'{"success": true}'
    thoughts = b"".join(event(delta(20 + n)) for n in range(60))
    return thoughts + event(delta(30, name="content")) + end


def call_of(path: str, body: dict[str, Any], told: dict[str, Any]) -> str:
    """Which of the calls a request is."""
    if path.endswith("/completions") and "/chat/" not in path:
        if body["max_tokens"] == 1:
            return "look"
        return "answer" if told["end"] in body["prompt"] else "decode"
    last = path.rpartition("/")[2]
    llama = "n_vocab" if "/llama/" in path else ""
    return {"models": "llama models" if llama else "models", "completions": "chat"}.get(last, last)


async def serve(reader: Any, writer: Any, told: dict[str, Any], other: int) -> None:
    with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:])}
        body = await reader.readexactly(int(fields.get("content-length") or 0))
        key = fields.get("authorization", "").removeprefix("Bearer ")
        path = head[0].split(" ")[1]
        if not other or "stolen" in path:
            print("STOLEN", key, flush=True)
            return
        wanted, mode = (unquote(part) for part in path.split("/")[2:4])
        call = call_of(path, json.loads(body or b"{}"), told)
        wire = Wire(writer, call, key, other, good(call, told))
        if call != wanted or mode == "none":
            await wire.body(wire.good)
            return
        attack = asyncio.ensure_future(MODES[call][mode](wire))
        gone = asyncio.ensure_future(reader.read())  # the client has closed
        await asyncio.wait({attack, gone}, return_when=asyncio.FIRST_COMPLETED)
        for task in (attack, gone):
            task.cancel()
        await asyncio.wait({attack, gone})
        if not attack.cancelled() and (error := attack.exception()) is not None:
            raise error
    with suppress(OSError):
        writer.close()


async def main(told: dict[str, Any]) -> None:
    second = await asyncio.start_server(lambda r, w: serve(r, w, told, 0), "127.0.0.1", 0)
    other = second.sockets[0].getsockname()[1]
    server = await asyncio.start_server(lambda r, w: serve(r, w, told, other), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server, second:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
