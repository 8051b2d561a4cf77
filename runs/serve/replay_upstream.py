"""A server in vLLM's shape that decodes nothing: it streams prepared chunks, flat out or paced.

    python -m runs.serve.replay_upstream [--port 8200]

``/v1/completions`` streams token ids and, where asked for, 20 log-probabilities beside each token;
``/v1/chat/completions`` streams the same text without them; ``/v1/models`` and ``/tokenize`` answer
what a client looks at first. A request gets exactly the tokens that it has room for: four fifths
thoughts, the end of the thinking, an answer, an end of sequence. ``POST /pace`` of ``{"rate": 50,
"stamps": true}`` sets how many tokens a second each stream has (0: as fast as they are taken), and
whether a token's text is the time at which it was written (``time.monotonic_ns``).

It stands on bare protocols so that it takes little of the machine that it helps to measure.
"""  # fmt: skip

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import orjson
import uvloop

from rlbudget.models.profiles import find_profile
from rlbudget.models.smollm2 import smollm2_folder
from rlbudget.models.spelling import trusted_ids
from rlbudget.models.tokenizer import read_tokenizer

MODEL = "replay"
TOP = 20
BLOCK = 8
"""tokens that a stream without a pace writes at once, before the others have their turn"""
STAMP = 20
"""characters of a token's text that is a time: ``~`` 18 digits ``;``"""
_MARK = b"~" + b"0" * (STAMP - 2) + b";"


@dataclass(frozen=True, slots=True)
class Frame:
    """One token, framed for the wire; a time stands between the two parts, where one is told."""

    head: bytes
    tail: bytes

    def stamped(self) -> bytes:
        """With the time of now."""
        return b"%b~%018d;%b" % (self.head, time.monotonic_ns(), self.tail)


@dataclass(slots=True)
class Script:
    """What is streamed, made once for each kind and length."""

    prompt: list[int]
    words: list[tuple[int, str]]
    """thoughts: (token, text); no two stretches of them are alike"""
    end: list[tuple[int, str]]
    """of the thinking, as the tokenizer spells it"""
    eos: int
    tokenizer: Any = field(repr=False)
    made: dict[tuple[Any, ...], list[Frame]] = field(default_factory=dict)

    def frames(self, n: int, *, chat: bool, top: int, stamps: bool, usage: bool) -> list[Frame]:
        """Those of a stream of ``n`` tokens."""
        key = (n, chat, top, stamps, usage)
        if key not in self.made:
            tokens = self._tokens(n)
            self.made[key] = [
                _frame(self._event(place, tokens, chat=chat, top=top, stamps=stamps, usage=usage))
                for place in range(n)
            ]
        return self.made[key]

    def rendered(self, body: dict[str, Any]) -> list[int]:
        """The token ids of a chat, or of a text."""
        if "messages" not in body:
            return trusted_ids(self.tokenizer, str(body.get("prompt", "")))
        text = self.tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=True
        )
        return trusted_ids(self.tokenizer, text)

    def events(self, n: int, *, top: int) -> list[dict[str, Any]]:
        """The same stream as objects, for who writes it himself."""
        tokens = self._tokens(n)
        return [
            self._event(place, tokens, chat=False, top=top, stamps=False, usage=True)
            for place in range(n)
        ]

    def _tokens(self, n: int) -> list[tuple[int, str]]:
        tokens = [self.words[place % len(self.words)] for place in range(n)]
        if n >= 20:
            at = n * 4 // 5 - len(self.end)
            tokens[at : at + len(self.end)] = self.end
            tokens[-1] = (self.eos, "")
        return tokens

    def _event(
        self, place: int, tokens: list[tuple[int, str]], *, chat: bool, top: int, stamps: bool,
        usage: bool,
    ) -> dict[str, Any]:  # fmt: skip
        token, text = tokens[place]
        last = place == len(tokens) - 1
        if stamps and text and (token, text) not in self.end:
            text = _MARK.decode()
        finish = ("stop" if token == self.eos else "length") if last else None
        choice: dict[str, Any] = {"index": 0}
        if chat:
            choice |= {"delta": {"content": text}, "logprobs": None}
        else:
            choice |= {"text": text, "logprobs": _logprobs(token, place, top) if top else None}
        choice |= {"finish_reason": finish, "stop_reason": None, "token_ids": [token]}
        if chat and not place:
            choice["delta"]["role"] = "assistant"
        if not chat:
            choice["prompt_token_ids"] = self.prompt if not place else None
        counted = {"prompt_tokens": len(self.prompt), "completion_tokens": place + 1,
                   "total_tokens": len(self.prompt) + place + 1}  # fmt: skip
        return {"id": "replay-0123456789abcdef0123456789abcdef",
                "object": "chat.completion.chunk" if chat else "text_completion",
                "created": 1795000000, "model": MODEL, "choices": [choice],
                "usage": counted if usage else None}  # fmt: skip


def _logprobs(token: int, place: int, top: int) -> dict[str, Any]:
    drawn = random.Random(place)
    best = sorted((-drawn.expovariate(0.2) for _ in range(top)), reverse=True)
    best[0] = -drawn.random()
    best.sort(reverse=True)
    names = [f"token_id:{token}", *(f"token_id:{drawn.randrange(100, 49000)}" for _ in best[1:])]
    return {"text_offset": [place * 4], "token_logprobs": [best[0]], "tokens": names[:1],
            "top_logprobs": [dict(zip(names, best, strict=True))]}  # fmt: skip


def _frame(event: dict[str, Any]) -> Frame:
    head, _, tail = framed(b"data: " + orjson.dumps(event) + b"\n\n").partition(_MARK)
    return Frame(head, tail)


def framed(data: bytes) -> bytes:
    """As a chunk of HTTP."""
    return b"%x\r\n%b\r\n" % (len(data), data)


_LAST = framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
_STREAM = (b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
           b"transfer-encoding: chunked\r\n\r\n")  # fmt: skip


def make_script() -> Script:
    """From the tokenizer of SmolLM2."""
    tokenizer = read_tokenizer(smollm2_folder())
    pieces = tokenizer.convert_ids_to_tokens(list(range(1000, 40_000)))
    texts = ((token, piece.replace("\u0120", " ")) for token, piece in enumerate(pieces, 1000))
    words = [(token, text) for token, text in texts
             if text.isascii() and text.strip().isalpha() and "think" not in text]  # fmt: skip
    random.Random(0).shuffle(words)
    prompt = find_profile("smollm2").prompt("Please add 12, 30 and 7.", tokenizer)
    end = [(token, tokenizer.decode([token])) for token in trusted_ids(tokenizer, "</think>")]
    eos = int(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    return Script(prompt, words[:8000], end, eos, tokenizer)


class Wheel:
    """Streams of one pace, each due an interval after its last token."""

    def __init__(self) -> None:
        self.rate = 0.0
        self.stamps = False
        self.active = self.tokens = self.broken = 0
        self._due: deque[tuple[float, Stream]] = deque()
        self._armed = False

    def begin(self, stream: Stream) -> None:
        self.active += 1
        if not self.rate:
            stream.flow()
            return
        if stream.step():
            self._due.append((self._now() + 1.0 / self.rate, stream))
        if not self._armed:
            self._turn()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _turn(self) -> None:
        """Write what is due: all have one pace, so the first that began is the next one."""
        self._armed = False
        now, waiting = self._now(), self._due
        for _ in range(len(waiting)):
            if waiting[0][0] > now:
                break
            due, stream = waiting.popleft()
            if stream.step():
                waiting.append((due + 1.0 / (self.rate or 1e6), stream))
        if waiting:
            self._armed = True
            pause = max(waiting[0][0] - self._now(), 0.001)
            asyncio.get_running_loop().call_later(pause, self._turn)


class Stream:
    """One answer on its way."""

    def __init__(self, wheel: Wheel, transport: Any, frames: list[Frame], stamps: bool) -> None:
        self._wheel, self._transport, self._frames, self._stamps = wheel, transport, frames, stamps
        self._at = 0
        self.paused = self.over = False
        transport.write(_STREAM)

    def step(self) -> bool:
        """Write a token; False at the end."""
        if self.over:
            return False
        frame = self._frames[self._at]
        whole = frame.stamped() if self._stamps and frame.tail else frame.head + frame.tail
        self._at += 1
        self._wheel.tokens += 1
        if self._at == len(self._frames):
            whole += _LAST
            self.end()
        self._transport.write(whole)
        return not self.over

    def flow(self) -> None:
        """Write as long as it is taken, in turns with other streams."""
        for _ in range(BLOCK):
            if self.paused or self.over or not self.step():
                return
        asyncio.get_running_loop().call_soon(self.flow)

    def end(self, *, broken: bool = False) -> None:
        if not self.over:
            self.over = True
            self._wheel.active -= 1
            self._wheel.broken += broken


class Connection(asyncio.Protocol):
    """HTTP/1.1 of well-behaved clients."""

    def __init__(self, script: Script, wheel: Wheel) -> None:
        self._script, self._wheel = script, wheel
        self._read = bytearray()
        self._stream: Stream | None = None
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=64 << 10)

    def connection_lost(self, _: Exception | None) -> None:
        if self._stream is not None:
            self._stream.end(broken=True)

    def pause_writing(self) -> None:
        if self._stream is not None:
            self._stream.paused = True

    def resume_writing(self) -> None:
        if self._stream is not None and self._stream.paused:
            self._stream.paused = False
            if not self._wheel.rate:
                self._stream.flow()

    def data_received(self, data: bytes) -> None:
        self._read += data
        end = self._read.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._read[:end])
        lines = head.lower().split(b"\r\n")
        said = next((one for one in lines if one.startswith(b"content-length:")), b":0")
        whole = end + 4 + int(said.partition(b":")[2])
        if len(self._read) < whole:
            return
        body = bytes(self._read[end + 4 : whole])
        del self._read[:whole]
        self._answer(head.split(b" ", 2)[1], orjson.loads(body) if body else {})

    def _answer(self, path: bytes, body: dict[str, Any]) -> None:
        if path.endswith(b"/completions"):
            self._complete(body, chat=path.endswith(b"/chat/completions"))
        elif path.endswith(b"/models"):
            self._say({"object": "list", "data": [{"id": MODEL, "object": "model",
                       "owned_by": "vllm", "root": MODEL, "max_model_len": 65536}]})  # fmt: skip
        elif path == b"/tokenize":
            ids = self._script.rendered(body)
            self._say({"count": len(ids), "max_model_len": 65536, "tokens": ids})
        elif path == b"/pace":
            self._wheel.rate, self._wheel.stamps = float(body["rate"]), bool(body.get("stamps"))
            self._say({})
        elif path == b"/stats":
            wheel = self._wheel
            self._say({"active": wheel.active, "tokens": wheel.tokens, "broken": wheel.broken})
        else:
            self._say({"error": {"message": "not here"}}, b"404 Not Found")

    def _complete(self, body: dict[str, Any], *, chat: bool) -> None:
        if not body.get("stream"):
            self._say({"error": {"message": "streams alone"}}, b"400 Bad Request")
            return
        top = 0 if chat else min(int(body.get("logprobs") or 0), TOP)
        n = int(body.get("max_tokens") or body.get("max_completion_tokens") or 100)
        usage = bool((body.get("stream_options") or {}).get("continuous_usage_stats"))
        stamps = self._wheel.stamps
        frames = self._script.frames(n, chat=chat, top=top, stamps=stamps, usage=usage)
        self._stream = Stream(self._wheel, self._transport, frames, stamps)
        self._wheel.begin(self._stream)

    def _say(self, answer: dict[str, Any], status: bytes = b"200 OK") -> None:
        body = orjson.dumps(answer)
        self._transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (status, len(body), body)
        )


async def serve(port: int) -> None:
    """Until the process is ended; the port is printed."""
    script, wheel = make_script(), Wheel()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(script, wheel), "127.0.0.1", port
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
