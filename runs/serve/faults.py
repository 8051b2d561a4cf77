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
import fcntl
import json
import os
import resource
import signal
import socket
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

from rlbudget.decoding.decode import decode
from rlbudget.models import load_model
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.policy.stop_policy import Full
from rlbudget.tasks import load_task
from runs.common import row, write_result
from runs.integrations.toy_server import Toy, make_app, running
from runs.serve.faulty import FAULTS, Faulty

POLICY = Path("runs/models/embedded/policy_0")
PRICE = 2e-3
MID_THOUGHT, MID_ANSWER = 3, 0
THOUGHT, ANSWER = b'"reasoning_content":"', b'"content":"'
LEAVES = (
    ("mid-thought", True, THOUGHT), ("mid-answer", True, ANSWER), ("of a whole answer", False, b""),
)  # fmt: skip
FREED = "freed within a second"
FULL = 500
"""bytes: one or two decisions"""


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
            for name, streams, until in LEAVES:
                found[f"client leaves, {name}"] = Counter(
                    asyncio.run(leaves(root, faulty, q, streams, until)) for q in questions[:times]
                )
            found["client leaves, asks again and leaves again"] = Counter(
                asyncio.run(leaves_twice(root, faulty, q)) for q in questions[:times]
            )
            found["normal ends"] = Counter(normal(root, faulty, q) for q in questions[:times])
        found["policy raises"] = broken_policy(model, url, questions[:times])
        found["decision log full"] = log_full(plan, url, questions[:times], right)
        found["decision log locked by another"] = log_locked(plan, url, questions[:times], right)
        found["SIGTERM under load"] = Counter(
            ends(plan, url, faulty, questions, signal.SIGTERM) for _ in range(times)
        )
        found["SIGKILL under load"] = Counter(
            ends(plan, url, faulty, questions, signal.SIGKILL) for _ in range(times)
        )
        lines = Path(scratch, "log", "decisions.jsonl").read_bytes().splitlines(keepends=True)
        torn = sum(not _whole(line) for line in lines[:-1])
    rows = [
        row(name, f"{wanted(name)}, each of {sum(counted.values())}",
            "; ".join(f"{n} {what}" for what, n in sorted(counted.items())),
            not any(what.startswith("WRONG") for what in counted))
        for name, counted in found.items()
    ]  # fmt: skip
    rows.append(row("decision log after all of it", "every line whole, the last one at most torn",
                    f"{len(lines)} lines, {torn} torn", torn == 0))  # fmt: skip
    write_result("faults", rows, seeds=[11], times=times)


def wanted(name: str) -> str:
    """What must come of a fault."""
    if name == "client leaves, mid-answer":
        return "upstream freed in 1 s, at most one abort beside the policy's cut"
    if name.startswith("client"):
        return "upstream freed in 1 s, at most one abort"
    if name.startswith(("decision log full", "decision log locked")):
        return "the right answer; what is not written is counted"
    if name == "policy raises":
        return "the answer of a decode without the policy, counted"
    if name.startswith("normal"):
        return "no abort but of a stream that the policy cut"
    if name.startswith("SIG"):
        ended = "what runs is answered, what is new refused" if "TERM" in name else "upstream freed"
        return ended
    return "the right answer or a proper error object, upstream freed"


@contextmanager
def gateway(
    plan: Path, url: str, *, most_bytes: int | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A gateway of its own process, whose files grow to ``most_bytes`` at most."""
    command = ["-m", "rlbudget", "serve", "--plan", str(plan), "--upstream", url,
               "--tokenizer", "embedded", "--top-logprobs", "768", "--timeout", "4",
               "--port"]  # fmt: skip
    with started(command, most_bytes) as found:
        yield found


@contextmanager
def started(
    command: list[str], most_bytes: int | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Python with ``command`` and a free port, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def small() -> None:
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    process = subprocess.Popen(
        [sys.executable, *command, str(port)], stderr=subprocess.DEVNULL, preexec_fn=small
    )
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
    said = [said_of(one) for one in (found, right)]
    if said[0] == said[1]:
        return "the same answer"
    return "an answer of a decode without the policy" if found["rlbudget"].get("message") else (
        f"WRONG: another answer: {said}"
    )  # fmt: skip


async def leaves(root: str, faulty: Faulty, question: str, streams: bool, until: bytes) -> str:
    """A client that leaves once it has read ``until``, or while it waits."""
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
                    await response.content.readuntil(until)
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
    most = 2 if until == ANSWER else 1  # the policy itself closed the stream of the thinking
    return FREED if aborts <= most else f"WRONG: {aborts} aborts"


async def leaves_twice(root: str, faulty: Faulty, question: str) -> str:
    """A client that tries again and gives up again."""
    said = [await leaves(root, faulty, question, True, THOUGHT) for _ in range(2)]
    return "freed within a second, both times" if len({*said, FREED}) == 1 else " ".join(said)


def normal(root: str, faulty: Faulty, question: str) -> str:
    """A request that nothing happens to closes at most the stream that it cut itself."""
    before = faulty.aborted
    found = asyncio.run(ask(root, question))
    time.sleep(0.05)
    aborts, cut = faulty.aborted - before, found["rlbudget"]["stopped"]
    if aborts > int(cut):
        return f"WRONG: {aborts} aborts"
    return "one abort, of the stream that was cut" if aborts else "no abort"


def broken_policy(model: TransformersModel, url: str, questions: list[str]) -> Counter[str]:
    """Each answer must be that of a decode without a policy."""
    found: Counter[str] = Counter()
    with started(["-m", "runs.serve.raising", url]) as (root, _):
        for question in questions:
            free = decode(model, question, Full(), temperature=0.0)
            steered = asyncio.run(ask(root, question))
            same = (said_of(steered) or "").strip() == free.answer
            told = "a fault of the policy" in steered["rlbudget"].get("message", "")
            found["natural answer, fault told" if same and told else f"WRONG: {steered}"] += 1
        return counted_too(found, root, "rlbudget_policy_failures", len(questions))


def log_full(
    plan: Path, url: str, questions: list[str], right: dict[str, dict[str, Any]]
) -> Counter[str]:
    """The log's file must not grow any more."""
    other = plan.with_name("full.toml")
    other.write_text(plan.read_text().replace('/log"', '/full"'))
    log = plan.with_name("full") / "decisions.jsonl"
    with gateway(other, url, most_bytes=FULL) as (root, _):
        found = answered(root, questions, right)
        lines = log.read_bytes().splitlines(keepends=True)
        lost = len(questions) - len(lines)
        if not all(map(_whole, lines)) or lost <= 0:
            found["WRONG: the log is torn or was not full"] += 1
        return counted_too(found, root, "rlbudget_log_failures", lost)


def log_locked(
    plan: Path, url: str, questions: list[str], right: dict[str, dict[str, Any]]
) -> Counter[str]:
    """Another process holds the lock all the time."""
    other = plan.with_name("locked.toml")
    other.write_text(plan.read_text().replace('/log"', '/locked"'))
    log = plan.with_name("locked") / "decisions.jsonl"
    log.parent.mkdir()
    with log.open("wb") as held, gateway(other, url) as (root, _):
        fcntl.flock(held, fcntl.LOCK_EX)
        found = answered(root, questions, right)
    lines = log.read_bytes().splitlines(keepends=True)
    if not all(map(_whole, lines)) or len(lines) != len(questions):
        found[f"WRONG: {len(lines)} lines in the log"] += 1
    return found


def answered(root: str, questions: list[str], right: dict[str, dict[str, Any]]) -> Counter[str]:
    return Counter(
        "the same answer" if said_of(one) == said_of(right[q]) else f"WRONG: {one}"
        for q in questions
        for one in [asyncio.run(ask(root, q))]
    )


def said_of(found: dict[str, Any]) -> str | None:
    if "choices" not in found:
        return None
    text: str = found["choices"][0]["message"]["content"]
    return text


def counted_too(found: Counter[str], root: str, metric: str, wanted: int) -> Counter[str]:
    """Whether a gateway's counter says so."""
    with urllib.request.urlopen(f"{root}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    reached = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(metric)]
    if sum(reached) != wanted:
        found[f"WRONG: {metric} says {reached}, not {wanted}"] += 1
    return found


def ends(plan: Path, url: str, faulty: Faulty, questions: list[str], sign: signal.Signals) -> str:
    """Eight streams are on their way when the gateway is told to end, or killed."""
    faulty.slow = 0.05
    try:
        with gateway(plan, url) as (root, process):

            async def load() -> list[Any]:
                asked = [asyncio.ensure_future(ask(root, q)) for q in questions[:8]]
                for _ in range(500):
                    if faulty.active == len(asked):  # all are on their way, none has ended
                        break
                    await asyncio.sleep(0.01)
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
