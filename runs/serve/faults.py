"""What a client of the gateway meets when something breaks: each fault twenty times.

    python -m runs.serve.faults [--times 20]

A real gateway (its own process, ``rlbudget serve``) before the toy server of the embedded model,
which breaks down as it is told, mid-thought and mid-answer. A fault must end in the right answer or
in a proper error object; a client that leaves must free the upstream within a second, by exactly
one abort; SIGTERM lets running streams end; SIGKILL leaves the log whole.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import torch

from rlbudget.models import load_model
from rlbudget.tasks import load_task
from runs.common import row, write_result
from runs.integrations.toy_server import Toy, make_app, running
from runs.serve.faulty import FAULTS, Faulty

POLICY = Path("runs/models/embedded/policy_0")
PRICE = 2e-3
MID_THOUGHT, MID_ANSWER = 3, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=20, help="how often each fault")
    times = parser.parse_args().times
    torch.set_num_threads(1)
    model = load_model("embedded")
    questions = [q.question for q in load_task("embedded", n=max(times, 20), seed=11).questions]
    faulty = Faulty(make_app(Toy(model, logprobs=len(model.tokenizer))))
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as scratch, running(faulty) as url:
        plan = Path(scratch, "plan.toml")
        plan.write_text(f'policy = "{POLICY.resolve()}"\n[audit]\nlog = "{scratch}/log"\n')
        with gateway(plan, url) as (root, _):
            right = {q: asyncio.run(ask(root, q)) for q in questions}
            for fault in FAULTS:
                for where, after in (("mid-thought", MID_THOUGHT), ("mid-answer", MID_ANSWER)):
                    found[f"upstream {fault}, {where}"] = Counter(
                        tried(root, faulty, q, right[q], fault, after, where)
                        for q in questions[:times]
                    )
                    faulty.faults.clear()
            for streams in (True, False):
                name = f"client leaves, {'streamed' if streams else 'whole'}"
                found[name] = Counter(
                    asyncio.run(leaves(root, faulty, q, streams)) for q in questions[:times]
                )
            found["normal ends"] = Counter(normal(root, faulty, q) for q in questions[:times])
        found["SIGTERM under load"] = Counter(
            ends(plan, url, faulty, questions, signal.SIGTERM) for _ in range(times)
        )
        found["SIGKILL under load"] = Counter(
            ends(plan, url, faulty, questions, signal.SIGKILL) for _ in range(times)
        )
        lines = Path(scratch, "log", "decisions.jsonl").read_bytes().splitlines(keepends=True)
        torn = sum(not _whole(line) for line in lines[:-1])
    rows = [
        row(name, f"an answer or a proper error, each of {sum(counted.values())}",
            "; ".join(f"{n} {what}" for what, n in sorted(counted.items())),
            not any(what.startswith("WRONG") for what in counted))
        for name, counted in found.items()
    ]  # fmt: skip
    rows.append(row("decision log after all of it", "every line whole, the last one at most torn",
                    f"{len(lines)} lines, {torn} torn", torn == 0))  # fmt: skip
    write_result("faults", rows, seeds=[11], times=times)


@contextmanager
def gateway(plan: Path, url: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A gateway of its own process."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rlbudget", "serve", "--plan", str(plan), "--upstream", url,
               "--tokenizer", "embedded", "--top-logprobs", "768", "--port", str(port),
               "--timeout", "4"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    root = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{root}/readyz", timeout=10).close()
                break
            except OSError:
                assert process.poll() is None, "the gateway did not start"
                time.sleep(0.1)
        yield root, process
    finally:
        process.terminate()
        process.wait(60)


def body_of(question: str, **more: Any) -> dict[str, Any]:
    return {"model": "toy", "messages": [{"role": "user", "content": question}],
            "temperature": 0.0, "rlbudget": {"token_price": PRICE}, **more}  # fmt: skip


async def ask(root: str, question: str, **more: Any) -> dict[str, Any]:
    """The whole answer, or the error object."""
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        url = f"{root}/v1/chat/completions"
        async with session.post(url, json=body_of(question, **more)) as response:
            found: dict[str, Any] = await response.json()
            return found


def tried(
    root: str, faulty: Faulty, question: str, right: dict[str, Any], fault: Any, after: int,
    where: str,
) -> str:  # fmt: skip
    """What a client met."""
    faulty.faults[:] = [(fault, after)] if where == "mid-thought" else [("none", 0), (fault, after)]
    found = asyncio.run(ask(root, question))
    time.sleep(0.02)
    if faulty.active:
        time.sleep(1.0)
        if faulty.active:
            return "WRONG: a stream upstream is still open"
    if "error" in found:
        proper = isinstance(found["error"].get("message"), str)
        return "proper error" if proper else f"WRONG: {found}"
    said = [one["choices"][0]["message"]["content"] for one in (found, right)]
    if said[0] == said[1]:
        return "the same answer"
    return "an answer of a decode without the policy" if found["rlbudget"].get("message") else (
        f"WRONG: another answer: {said}"
    )  # fmt: skip


async def leaves(root: str, faulty: Faulty, question: str, streams: bool) -> str:
    """A client that leaves after the first text, or while it waits."""
    faulty.slow = 0.02
    before = faulty.aborted
    timeout = aiohttp.ClientTimeout(total=60)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            asked = session.post(
                f"{root}/v1/chat/completions", json=body_of(question, stream=streams)
            )
            if streams:
                async with asked as response:
                    await response.content.readany()
                    left = time.monotonic()
                    response.close()
            else:
                task = asyncio.ensure_future(asked.__aenter__())
                await asyncio.sleep(0.25)
                left = time.monotonic()
                task.cancel()
        while faulty.active and time.monotonic() - left < 3:
            await asyncio.sleep(0.005)
        took = time.monotonic() - left
    finally:
        faulty.slow = 0.0
    if faulty.active or took > 1.0:
        return f"WRONG: the upstream was freed after {took:.1f} s"
    aborts = faulty.aborted - before
    return "freed within a second" if aborts <= 1 else f"WRONG: {aborts} aborts"


def normal(root: str, faulty: Faulty, question: str) -> str:
    """A request that nothing happens to closes at most the stream that it cut itself."""
    before = faulty.aborted
    found = asyncio.run(ask(root, question))
    time.sleep(0.05)
    aborts, cut = faulty.aborted - before, found["rlbudget"]["stopped"]
    if aborts > int(cut):
        return f"WRONG: {aborts} aborts"
    return "one abort, of the stream that was cut" if aborts else "no abort"


def ends(plan: Path, url: str, faulty: Faulty, questions: list[str], sign: signal.Signals) -> str:
    """Eight streams are on their way when the gateway is told to end, or killed."""
    faulty.slow = 0.01
    try:
        with gateway(plan, url) as (root, process):

            async def load() -> list[Any]:
                asked = [asyncio.ensure_future(ask(root, q)) for q in questions[:8]]
                await asyncio.sleep(0.4)
                os.kill(process.pid, sign)
                await asyncio.sleep(0.05)
                late = asyncio.ensure_future(ask(root, questions[0]))
                return await asyncio.gather(*asked, late, return_exceptions=True)

            *found, late = asyncio.run(load())
            process.wait(60)
        for _ in range(100):
            if not faulty.active:
                break
            time.sleep(0.02)
    finally:
        faulty.slow = 0.0
    if faulty.active:
        return "WRONG: a stream upstream is still open"
    if sign == signal.SIGKILL:
        return "killed, upstream freed"
    if not all(isinstance(one, dict) and "choices" in one for one in found):
        return f"WRONG: a running request was lost: {[type(one).__name__ for one in found]}"
    refused = isinstance(late, Exception) or "error" in late
    return "all eight answered, a new one refused" if refused else "WRONG: a new one was served"


def _whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict) and line.endswith(b"\n")
    except ValueError:
        return False


if __name__ == "__main__":
    main()
