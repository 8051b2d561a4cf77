"""What an HTTP client costs beside a stream of tokens: aiohttp, which the library uses, and others.

    pip install httpx==0.28.1 && python -m runs.speed.http_clients [--streams 64] [--tokens 600]

A server on loopback streams chunks of 1.4 kB with 20 log-probabilities to many streams at once,
then answers small requests in turn. Bodies are read and thrown away: parsing costs all alike.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from importlib.metadata import version
from typing import Any

from runs.common import ROOT, row, write_result
from runs.trust.hostile_messages import DONE, chunk, event

LIBRARIES = ("aiohttp", "httpx", "httpcore")
REPEATS = 3
GETS = 500
Calls = tuple[Callable[[], Awaitable[None]], Callable[[], Awaitable[None]]]


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tokens: int) -> None:
    data = [event(chunk(20 + n)) for n in range(50)]
    framed = [b"%x\r\n" % len(one) + one + b"\r\n" for one in data]
    last = b"%x\r\n" % len(DONE) + DONE + b"\r\n0\r\n\r\n"
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        while head := await reader.readuntil(b"\r\n\r\n"):
            if head.startswith(b"GET"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                await writer.drain()
                continue
            await reader.readexactly(2)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for n in range(tokens):
                writer.write(framed[n % 50])
                await writer.drain()
                if n % 4 == 0:
                    await asyncio.sleep(0)
            writer.write(last)
            await writer.drain()
    writer.close()


async def client(library: str, url: str, stack: AsyncExitStack) -> Calls:
    """Reads a stream; gets a small answer."""
    module: Any = importlib.import_module(library)
    if library == "aiohttp":
        session = await stack.enter_async_context(
            module.ClientSession(connector=module.TCPConnector(limit=0), auto_decompress=False)
        )

        async def stream() -> None:
            async with session.post(url, data=b"{}") as response:
                while await response.content.readany():
                    pass

        async def get() -> None:
            async with session.get(url) as response:
                await response.read()

        return stream, get
    limits = {"limits": module.Limits(max_connections=None)} if library == "httpx" else {}
    kind = module.AsyncClient if library == "httpx" else module.AsyncConnectionPool
    given = limits or {"max_connections": 1000}
    pool = await stack.enter_async_context(kind(**given))

    async def stream_of() -> None:
        async with pool.stream("POST", url, content=b"{}") as response:
            blocks = response.aiter_bytes() if library == "httpx" else response.aiter_stream()
            async for _ in blocks:
                pass

    async def get_of() -> None:
        await pool.request("GET", url)

    return stream_of, get_of


async def measure(library: str, url: str, streams: int, tokens: int) -> tuple[float, float]:
    """Microseconds of this process's processor a token, and a small request."""

    def used() -> float:
        return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])

    async with AsyncExitStack() as stack:
        stream, get = await client(library, url, stack)
        await stream()
        began = used()
        await asyncio.gather(*(stream() for _ in range(streams)))
        a_token = (used() - began) / streams / tokens
        began = used()
        for _ in range(GETS):
            await get()
        return a_token * 1e6, (used() - began) / GETS * 1e6


async def listen(tokens: int) -> None:
    server = await asyncio.start_server(lambda r, w: serve(r, w, tokens), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=600, help="a stream")
    parser.add_argument("--listen", action="store_true", help="be the server")
    args = parser.parse_args()
    if args.listen:
        asyncio.run(listen(args.tokens))
        return
    command = [sys.executable, "-m", "runs.speed.http_clients", "--listen"]
    command += ["--tokens", str(args.tokens)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert server.stdout is not None
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in LIBRARIES}
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/"
        time.sleep(0.1)
        for _ in range(REPEATS):
            for name in LIBRARIES:
                found[name].append(asyncio.run(measure(name, url, args.streams, args.tokens)))
    finally:
        server.kill()
        server.wait()
    token, small = (
        {name: statistics.median(each[k] for each in found[name]) for name in LIBRARIES}
        for k in range(2)
    )
    ours, *others = LIBRARIES
    rows = [
        row(
            f"processor time {what}: {ours} against {other}",
            "less",
            f"{cost[ours]:.1f} against {cost[other]:.1f} microseconds",
            cost[ours] < cost[other],
        )
        for what, cost in (("a token", token), ("a small request", small))
        for other in others
    ]
    libraries = {name: version(name) for name in LIBRARIES}
    write_result("http_clients", rows, libraries=libraries, streams=args.streams)


if __name__ == "__main__":
    main()
