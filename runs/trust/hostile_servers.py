"""Hostile servers against every call of the clients: each ends in time, small and in one line.

    python -m runs.trust.hostile_servers [--every 7] [--keep]

Each case names a call (models, look, decode, answer, llama-server's models, tokenize, completion,
chat, control) and what the server does instead of answering it. ``--every N`` tries each Nth. The
machine may be shared: a case that is late is tried twice more, and its quickest counts; the others
are kept beside the rows.
"""  # fmt: skip

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import os
import re
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from rlbudget.arrays import Float32s, Floats
from rlbudget.errors import UserError
from rlbudget.integrations import llama_server, openai
from rlbudget.models.profiles import find_profile, trusted_ids
from rlbudget.models.site import ServerError
from rlbudget.models.tokenizer import served_tokenizer
from rlbudget.policy.network import Decision
from runs.common import ROOT, row, write_part
from runs.trust.hostile_replies import MODES

KEY = "sk-SECRET-123456"
TIMEOUT, DEADLINE, RETRIES = 2.0, 3.0, 2
LATE, MEMORY = 1.1, 100.0
STRIDE = 4
MODEL_CALLS = frozenset({"models", "look"})


class Scripted:
    """A policy that stops after eight tokens and keeps what it was shown."""

    preset, threshold = "free", 0.5
    price_range = (1e-5, 1e-2)
    features = ("thinking_tokens", "logprob_mean", "margin_mean")

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self, observation: Float32s, *, token_price: float) -> Decision:
        self.seen += [float(value) for value in observation[1:]]
        return Decision(stop=bool(observation[0] >= 8), stop_probability=0.5)

    def stop_probabilities(self, observations: Any, token_price: Any) -> Floats:
        return np.where(np.asarray(observations)[:, 0] >= 8, 1.0, 0.0)


@dataclass(frozen=True, slots=True)
class Case:
    """What came of one attack."""

    call: str
    mode: str
    seconds: float
    megabytes: float
    """that the process grew at most"""
    said: str
    crash: bool
    leak: bool
    """whether the key was shown, in a message or a log"""
    wrong: bool
    """whether the policy saw what can be no observation"""
    open: int
    """sockets left open"""

    @property
    def met(self) -> bool:
        ok = not (self.crash or self.leak or self.wrong or self.open)
        return ok and self.seconds <= DEADLINE * LATE and self.megabytes <= MEMORY


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--every", type=int, default=1, help="try each Nth case")
    parser.add_argument("--call", help="try one call alone")
    parser.add_argument("--mode", help="try the modes that this is a part of")
    parser.add_argument("--keep", action="store_true", help="write runs/results/hostile.json")
    args = parser.parse_args()
    wanted = [(call, mode) for call in MODES for mode in MODES[call]]
    wanted = [w for w in wanted if args.call in (None, w[0]) and (args.mode or "") in w[1]]
    cases, again = run(wanted[:: args.every])
    for one in cases:
        if not one.met:
            print("NOT MET", one, file=sys.stderr)
    rows = rows_of(cases)
    if args.keep:
        ends = Counter(one.said.partition(":")[0] for one in cases)
        calls = Counter(one.call for one in cases)
        write_part("hostile", "servers", rows, calls=calls, ends=ends, late_at_first=again)
    else:
        print(json.dumps({"rows": rows, "late_at_first": again}))
    raise SystemExit(0 if all(one["met"] for one in rows) else 1)


def rows_of(cases: list[Case]) -> list[dict[str, Any]]:
    """The table."""
    late = max(cases, key=lambda one: one.seconds)
    large = max(cases, key=lambda one: one.megabytes)
    count = f"of {len(cases)}"

    def none(name: str, bad: int) -> dict[str, Any]:
        return row(name, f"0 {count}", f"{bad} {count}", bad == 0)

    return [
        row("cases: server x call", ">= 148", str(len(cases)), len(cases) >= 148),
        row(
            f"slowest, at a deadline of {DEADLINE:g} s",
            f"<= {DEADLINE * LATE:.1f} s",
            f"{late.seconds:.2f} s ({late.call}: {late.mode})",
            late.seconds <= DEADLINE * LATE,
        ),
        row(
            "memory, most",
            f"<= {MEMORY:g} MB",
            f"{large.megabytes:.0f} MB ({large.call}: {large.mode})",
            large.megabytes <= MEMORY,
        ),
        none("tracebacks, or more than a line", sum(one.crash for one in cases)),
        none("key shown, in a message, a log or to another server", sum(one.leak for one in cases)),
        none("observations that can be none", sum(one.wrong for one in cases)),
        none("connections left open", sum(one.open > 0 for one in cases)),
    ]


def run(wanted: list[tuple[str, str]]) -> tuple[list[Case], list[tuple[str, str, float]]]:
    """Every case, one after the other, and what was late and tried again."""
    log = Path(os.devnull).open("w")  # noqa: SIM115
    heard: list[str] = []
    handler = logging.StreamHandler(log)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logging.basicConfig(level=logging.DEBUG, handlers=[handler], force=True)
    tokenizer, _ = served_tokenizer("embedded", ())
    profile = find_profile("embedded")
    exits = trusted_ids(tokenizer, profile.exit_text)
    told = {"size": len(tokenizer), "exit": exits, "stride": STRIDE,
            "end": trusted_ids(tokenizer, profile.end_of_thinking)[0]}  # fmt: skip
    with serving(told) as (port, stolen):
        attack(port, tokenizer, "none", "none", heard)  # whatever is loaded or cached at first
        attack(port, tokenizer, "chat", "none", heard)
        attack(port, tokenizer, "completion", "none", heard)
        found, again = [], []
        for call, mode in wanted:
            one = attack(port, tokenizer, call, mode, heard)
            for _ in range(2):
                if one.seconds <= DEADLINE * LATE:
                    break
                again.append((call, mode, round(one.seconds, 2)))
                one = attack(port, tokenizer, call, mode, heard)
            found.append(one)
        if stolen():
            raise SystemExit("a key came to a server that no client was told of")
    return found, again


@contextmanager
def serving(told: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    """The port, and whether a key was stolen."""
    command = [sys.executable, "-m", "runs.trust.hostile_replies", json.dumps(told)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT,
                              env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())

        def stolen() -> bool:
            server.kill()
            return "STOLEN" in (server.communicate()[0] or "")

        yield port, stolen
    finally:
        server.kill()
        server.wait()


def attack(port: int, tokenizer: Any, call: str, mode: str, heard: list[str]) -> Case:
    """One case."""
    policy = Scripted()
    heard.clear()
    llama = call in ("llama models", "tokenize", "completion", "chat", "control")
    kind = "llama" if llama else "openai"
    url = f"http://127.0.0.1:{port}/{kind}/{quote(call)}/{quote(mode, safe='')}"
    before, sockets, crash = memory("VmRSS", reset=True), open_sockets(), False
    began = time.monotonic()
    try:
        if llama:
            said, seconds = of_llama(url, call, policy, tokenizer)
        else:
            said, seconds = asyncio.run(of_openai(url + "/v1", call, policy, tokenizer))
    except (UserError, ServerError) as error:
        said, seconds = f"{type(error).__name__}: {error}", time.monotonic() - began
    except Exception:
        said, seconds, crash = traceback.format_exc(), time.monotonic() - began, True
    grown = (memory("VmHWM") - before) / 1024
    crash = crash or len(said) > 1000 or not said.isprintable()
    shown = any(KEY in text for text in (said, re.sub(r"\W", "", said), *heard))
    wrong = any(not math.isfinite(value) or value > 1e4 for value in policy.seen)
    time.sleep(0.01)
    return Case(call, mode, seconds, grown, said, crash, shown, wrong, open_sockets() - sockets)


async def of_openai(url: str, call: str, policy: Scripted, tokenizer: Any) -> tuple[str, float]:
    """What came of it, and the seconds that the attacked call took."""
    began = time.monotonic()
    async with openai.connect(
        url, policy, tokenizer, key=KEY, profile="embedded", token_price=1e-3, stride=STRIDE,
        max_thinking_tokens=64, retries=RETRIES, timeout=TIMEOUT, deadline=DEADLINE,
    ) as server:  # fmt: skip
        if call not in MODEL_CALLS:
            began = time.monotonic()
        found = await openai.decode(server, "1 + 1?", max_tokens=200)
        return f"answer: {found.reason} {found.message}", time.monotonic() - began


def of_llama(url: str, call: str, policy: Scripted, tokenizer: Any) -> tuple[str, float]:
    """The same of llama-server."""
    began = time.monotonic()
    with llama_server.connect(
        url, policy, tokenizer, key=KEY, profile="embedded", token_price=1e-3, stride=STRIDE,
        max_thinking_tokens=64, retries=RETRIES, timeout=TIMEOUT, deadline=DEADLINE,
    ) as server:  # fmt: skip
        if call in ("chat", "control"):
            began = time.monotonic()
            chat = llama_server.decode_chat(server, "1 + 1?")
            return f"answer: {chat.stopped} {chat.message}", time.monotonic() - began
        if call == "completion":
            began = time.monotonic()
        found = llama_server.decode(server, "1 + 1?")
        return f"answer: {found.reason} {found.message}", time.monotonic() - began


def memory(name: str, *, reset: bool = False) -> int:
    """Kilobytes; ``reset`` forgets the highest."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{name}:\s+(\d+)", status)[0])


def open_sockets() -> int:
    """Sockets of this process."""
    links = (os.path.realpath(one) for one in Path("/proc/self/fd").iterdir())
    return sum("socket:" in link for link in links)


if __name__ == "__main__":
    main()
