"""The gateway's store: does it delay a stream, do gateways agree, and is anything lost by a kill.

    python -m runs.serve.store_check [--only delay|agreement|kills] [--seconds 10] [--kills 20]

*Delay*: 200 streams tick every 20 ms in one event loop while 2,000 decisions a second are noted in
SQLite, against the same without; the rounds alternate. *Agreement*: two gateways, processes of
their own, in front of one small server, share a PostgreSQL of Debian's: arms, price and result are
compared request by request. *Kills*: a gateway is killed (SIGKILL) at a random moment while
feedback comes in, and another starts; every feedback that was acknowledged must be in the store.
Writes ``runs/results/store.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvloop

from rlbudget.arrays import Floats
from rlbudget.integrations.engine_settings import settings_for
from rlbudget.policy.network import Decision
from rlbudget.policy.observation import feature_names
from rlbudget.serve.experiments import kept
from rlbudget.serve.feedback import Signer
from rlbudget.serve.gateway import Gateway, Opens
from rlbudget.serve.run import add_kept_parts, run
from rlbudget.serve.store.opening import open_store
from rlbudget.serve.store.part import noting
from rlbudget.serve.store.reading import entries
from rlbudget.serve.store.store import Assignment, Store, opened
from rlbudget.serve.upstream import look_at
from rlbudget.signals.tokens import TOP_SIGNALS
from rlbudget.strategies.experiments.design import Arm, Design
from rlbudget.strategies.feedback.log import LoggedRequest, Stop, now
from rlbudget.strategies.plan import LogSettings, Plan
from runs.common import ROOT, row, write_part
from runs.serve.own_postgres import fresh, postgres

SEED = 0
STREAMS, TICK, RATE = 200, 0.02, 2_000
ROUNDS = 3
MOST_DELAY = 1e-3
QUESTIONS = 24
DESIGN = Design("check", (Arm("now"), Arm("early", plan="early")), most_tokens=400,
                usual_tokens=100.0)  # fmt: skip


class StopsAt:
    """A policy that stops at one checkpoint."""

    preset = "free"
    features = feature_names(TOP_SIGNALS, "free")
    price_range = (1e-5, 1e-2)
    threshold = 0.5

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def __call__(self, observation: Any, *, token_price: float) -> Decision:
        return Decision(float(observation[1]) >= self.tokens, 0.75)

    def stop_probabilities(self, observations: Any, token_price: Any) -> Floats:
        return np.where(np.asarray(observations)[:, 1] >= self.tokens, 0.75, 0.0)


def request(name: str, tokens: int = 512) -> LoggedRequest:
    return LoggedRequest(
        request_id=name, time=now(), policy="ab" * 32, registry_version=3, strategy=None,
        token_price=1e-3, audited=False, stop=Stop("policy", tokens, 0.75, tokens, 0, 0),
        engine="vllm",
    )  # fmt: skip


# Delay --------------------------------------------------------------------------------------------


async def lateness(store: Store | None, seconds: float) -> list[float]:
    """By how much each tick of each stream is late, while decisions are noted or not."""
    late: list[float] = []
    clock = time.monotonic  # the loop's own stands still while something runs in it
    begun = clock() + 0.1
    until = begun + seconds

    async def stream(place: int) -> None:
        due = begun + TICK * place / STREAMS
        while due < until:
            await asyncio.sleep(max(due - clock(), 0))
            late.append(clock() - due)
            due += TICK

    async def deciding() -> None:
        """Twenty at a time, as ends of streams come."""
        noted, due = 0, begun
        while store is not None and due < until:
            await asyncio.sleep(max(due - clock(), 0))
            for _ in range(RATE // 100):
                noted += 1
                store.decision(request(f"r{noted}"))
            due += 0.01

    await asyncio.gather(deciding(), *(stream(place) for place in range(STREAMS)))
    return late


@dataclass
class Delays:
    without: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    written: int = 0
    lost: int = 0


def delays(folder: Path, seconds: float) -> Delays:
    """p99 of each round, in seconds."""
    found = Delays()
    for place in range(ROUNDS):
        store = opened(str(folder / f"delay-{place}.sqlite3"))
        for one, told in ((None, found.without), (store, found.beside)):
            late = uvloop.run(lateness(one, seconds))
            told.append(float(np.quantile(late, 0.99)))
        store.writer.flush(30)
        found.written += store.writer.written.rows
        found.lost += store.writer.written.lost
        store.close()
    return found


# Gateways of their own ----------------------------------------------------------------------------


def child(where: str, upstream: str | None, port: int) -> None:
    """Serve until killed."""
    plans = {name: Plan({"policy": StopsAt(at)}, audit=LogSettings(None, 0.0))
             for name, at in (("default", 64), ("early", 16))}  # fmt: skip
    store = opened(where)
    settings = noting(settings_for(plans, "embedded"), store)
    gateway = Gateway(settings)
    add_kept_parts(gateway, store)
    opens: list[Opens] = []
    if upstream is not None:
        opens = [partial(look_at, upstream, settings, tokenizer="embedded")]
    run(gateway, opens, host="127.0.0.1", port=port)


@contextmanager
def gateway(where: str, upstream: str | None = None) -> Iterator[tuple[str, subprocess.Popen[Any]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "runs.serve.store_check",
        "--child",
        where,
        "--port",
        str(port),
    ]
    command += [] if upstream is None else ["--upstream", upstream]
    process = subprocess.Popen(command, cwd=ROOT)
    root = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"{root}/healthz", timeout=5)
                break
            except httpx.TransportError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield root, process
    finally:
        process.kill()
        process.wait()


def ask(root: str, question: str) -> dict[str, Any]:
    body = {"model": "toy", "messages": [{"role": "user", "content": question}], "temperature": 0.0}
    answer = httpx.post(f"{root}/v1/chat/completions", json=body, timeout=120)
    return dict(answer.raise_for_status().json()["rlbudget"])


@dataclass
class Agreement:
    arms: tuple[list[str], list[str]]
    prices: tuple[set[float], set[float]]
    obeyed: bool


def agreement(where: str, upstream: str, questions: Sequence[str]) -> Agreement:
    """Two gateways of one store, asked the same."""
    engine = open_store(where)
    kept.start(engine, DESIGN)
    with gateway(where, upstream) as (first, _), gateway(where, upstream) as (second, _):
        arms = tuple([ask(root, one)["arm"] for one in questions] for root in (first, second))
        store = opened(where)
        store.set_price("default", 3e-3, "by hand").result(10)
        time.sleep(5)
        prices = tuple(
            {found["token_price"] for one in questions[:8]
             if (found := ask(root, one))["arm"] == "now"}
            for root in (first, second)
        )  # fmt: skip
        time.sleep(1)
        for n in range(400):  # an arm that costs tokens: whichever sees it first ends it
            arm = ("now", "early")[n % 2]
            store.assign(f"x{n}", Assignment("check", arm, 0.5, f"x{n}"))
            store.decision(request(f"x{n}", 50 + 100 * (n % 2)))
        store.close()
        deadline = time.monotonic() + 60
        while kept.find(engine, "check").status == "running" and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(5)
        obeyed = all("arm" not in ask(root, one) for root in (first, second)
                     for one in questions[:4])  # fmt: skip
    engine.dispose()
    return Agreement((arms[0], arms[1]), (prices[0], prices[1]), obeyed)


@dataclass
class Kills:
    acknowledged: int = 0
    lost: int = 0


def kills(where: str, times: int) -> Kills:
    """Feedback while the gateway is killed; what was acknowledged is looked for at the end."""
    rng, told = random.Random(SEED), set[str]()
    store = opened(where)
    signer = Signer(store.secret("feedback"))
    store.close()
    for kill in range(times):
        with gateway(where) as (root, process):
            threads = [
                threading.Thread(target=telling, args=(root, signer, f"k{kill}-{n}", told))
                for n in range(4)
            ]
            for thread in threads:
                thread.start()
            time.sleep(rng.uniform(0.1, 1.0))
            os.kill(process.pid, signal.SIGKILL)
            for thread in threads:
                thread.join()
    engine = open_store(where)
    there = set(entries(engine).outcomes)
    engine.dispose()
    return Kills(len(told), len(told - there))


def telling(root: str, signer: Signer, name: str, told: set[str]) -> None:
    """Feedback after feedback, until the gateway is gone."""
    with httpx.Client(base_url=root, timeout=30) as client:
        for n in range(100_000):
            one = f"{name}-{n}"
            body = {"id": signer.sign(one), "correct": True}
            try:
                if client.post("/v1/feedback", json=body).status_code == 200:
                    told.add(one)
            except httpx.TransportError:
                return


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", choices=("delay", "agreement", "kills"))
    parser.add_argument("--child")
    parser.add_argument("--upstream")
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    if args.child is not None:
        return child(args.child, args.upstream, args.port)
    parts = {"delay": delay_part, "agreement": agreement_part, "kills": kills_part}
    scratch = Path(tempfile.mkdtemp(prefix="rlbudget-store-"))
    try:
        with postgres() as server:
            for name in parts if args.only is None else [args.only]:
                load = os.getloadavg()[0]
                rows = parts[name](args, scratch, partial(fresh, server))
                write_part("store", name, rows, seeds=[SEED], load_average=load)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return None


Fresh = Callable[[str], str]
"""name -> URL of a new database of a PostgreSQL server"""


def delay_part(args: argparse.Namespace, scratch: Path, _: Fresh) -> list[dict[str, Any]]:
    found = delays(scratch, args.seconds)
    without, beside = (float(np.median(some)) for some in (found.without, found.beside))
    spread = ", ".join(f"{1e3 * (b - a):+.2f}"
                       for a, b in zip(found.without, found.beside, strict=True))  # fmt: skip
    return [
        row(f"SQLite, {RATE:,} decisions/s beside {STREAMS} streams: p99 delay of a tick that the"
            " store adds", "<= 1 ms; nothing lost",
            f"{1e3 * (beside - without):+.2f} ms (p99 {1e3 * beside:.2f} beside {1e3 * without:.2f}"
            f" ms without; rounds {spread}); {found.written:,} rows written, {found.lost} lost;"
            f" load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
            beside - without <= MOST_DELAY and not found.lost),
    ]  # fmt: skip


def agreement_part(args: argparse.Namespace, scratch: Path, new: Fresh) -> list[dict[str, Any]]:
    from rlbudget.models import load_model
    from rlbudget.tasks import load_task
    from runs.integrations.toy_server import Toy, serving

    questions = [one.question for one in load_task("embedded", n=QUESTIONS, seed=3).questions]
    with serving(Toy(load_model("embedded"))) as upstream:
        agreed = agreement(new("agree"), upstream, questions)
    arms, prices = agreed.arms, agreed.prices
    return [
        row("two gateways on one PostgreSQL: arms of the same questions", "the same",
            f"{sum(a == b for a, b in zip(*arms, strict=True))} of {len(arms[0])}, both arms drawn:"
            f" {len(set(arms[0])) == 2}", arms[0] == arms[1] and len(set(arms[0])) == 2),
        row("the same: price that is set by hand", "one at both",
            f"{sorted(prices[0])} and {sorted(prices[1])}", prices[0] == prices[1] == {3e-3}),
        row("the same: a losing arm is stopped by itself by one of them", "obeyed by both",
            f"obeyed by both: {agreed.obeyed}", agreed.obeyed),
    ]  # fmt: skip


def kills_part(args: argparse.Namespace, scratch: Path, new: Fresh) -> list[dict[str, Any]]:
    killed = {"SQLite": kills(str(scratch / "kills.sqlite3"), args.kills),
              "PostgreSQL": kills(new("kills"), args.kills)}  # fmt: skip
    return [
        row(f"SIGKILL of the gateway, {args.kills} times each: acknowledged feedback that is lost",
            "0", "; ".join(f"{name}: {o.lost} of {o.acknowledged:,}" for name, o in killed.items()),
            all(not one.lost and one.acknowledged for one in killed.values())),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
