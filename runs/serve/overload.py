"""The queue under three times what the upstream can serve, for five minutes, on a real gateway.

    python -m runs.serve.overload [--seconds 300]

``rlbudget serve`` with a ``[queue]`` of 32 before a replaying upstream that takes four seconds for
an answer: 8 requests a second can be served, 24 arrive, at random: 1 critical, 5 normal, 18 bulk.
Of the bulk clients one in twenty leaves after a while. First the critical ones come alone, for a
minute. Writes ``runs/results/overload.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from runs.common import row, write_result
from runs.serve.load import connected, percentile
from runs.serve.peers import Process, pace, reluctant, scratch, serving, upstream

CAPACITY, TOKENS, PACE = 32, 20, 5.0
RATES = {"critical": 1.0, "normal": 5.0, "bulk": 18.0}
PRIORITIES = {"critical": -1000.0, "normal": 0.0, "bulk": 20.0}
RESERVED = {"critical": 8, "normal": 0, "bulk": 0}
AGEING, PATIENCE = 1.0, 30.0
LEAVES = 0.05
ALONE = 60.0
SLACK = 0.05
"""seconds: what is told is rounded, and a turn that is given is taken a little later"""


@dataclass(slots=True)
class Sent:
    """One request and what became of it."""

    group: str
    at: float
    leaves: float | None
    status: int = 0
    took: float = 0.0
    queued: float = 0.0
    arrived: float = 0.0
    """at the gateway, by its clock"""
    whole: bool = False
    retry: bool = False
    """whether a refusal said when to come again"""

    @property
    def turn(self) -> float:
        return self.arrived + self.queued


def main() -> None:
    """Start, load, count."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    args = parser.parse_args()
    with scratch() as folder, upstream() as behind:
        pace(behind, PACE)
        plan = plan_of(folder)
        with serving(plan, behind.url, folder) as ours:
            alone = asyncio.run(loaded(ours, {"critical": RATES["critical"]}, ALONE, seed=0))
            found = asyncio.run(loaded(ours, RATES, args.seconds, seed=1))
    rows = rows_of(alone, found, args.seconds)
    counts = {
        name: {
            "sent": len(group := [one for one in found if one.group == name]),
            "answered": sum(one.whole for one in group),
            "refused": sum(one.status == 429 for one in group),
            "left": sum(one.leaves is not None and not one.status for one in group),
            "longest_wait": max((one.queued for one in group if one.whole), default=0.0),
        }
        for name in RATES
    }
    write_result("overload", rows, seeds=[0, 1], capacity=CAPACITY, rates=RATES,
                 priorities=PRIORITIES, seconds=args.seconds, counts=counts)  # fmt: skip


def plan_of(folder: Path) -> Path:
    """The plan: a policy that stops nothing, and the queue."""
    file = folder / "plan.toml"
    classes = "".join(
        f"[queue.classes.{name}]\npriority = {priority}\nreserved = {RESERVED[name]}\n"
        for name, priority in PRIORITIES.items()
    )
    file.write_text(
        f'policy = "{reluctant(folder)}"\nmax_thinking_tokens = 32768\n[queue]\n'
        f'capacity = {CAPACITY}\nrate = {AGEING}\npatience = {PATIENCE}\ndefault = "bulk"\n'
        f"{classes}"
    )
    return file


async def loaded(
    ours: Process, rates: dict[str, float], seconds: float, *, seed: int
) -> list[Sent]:
    """Requests that come at random, all of them brought to their end."""
    generator = np.random.default_rng(seed)
    plan = []
    for name, rate in rates.items():
        gaps = generator.exponential(1 / rate, int(seconds * rate * 1.5) + 20)
        times = np.cumsum(gaps)
        for at in times[times < seconds].tolist():
            gone = name == "bulk" and generator.random() < LEAVES
            plan.append(Sent(name, at, float(generator.uniform(0.5, 10)) if gone else None))
    plan.sort(key=lambda one: one.at)
    begun = time.monotonic()
    tasks = []
    for one in plan:
        await asyncio.sleep(max(begun + one.at - time.monotonic(), 0))
        one.at = time.monotonic() - begun
        tasks.append(asyncio.ensure_future(ask(ours, one)))
    await asyncio.gather(*tasks)
    return plan


async def ask(ours: Process, one: Sent) -> None:
    """Send one request and read its answer."""
    client = await connected(ours.url)
    began = time.monotonic()
    answering = client.ask(request_of(ours, one.group))
    try:
        answer = await asyncio.wait_for(answering, one.leaves or 300.0)
    except TimeoutError:
        client.transport.abort()
        if one.leaves is None:
            one.status = -1
        return
    one.took, one.status, one.whole = time.monotonic() - began, answer.status, answer.whole
    if answer.whole:
        told = answer.ended()["rlbudget"]
        one.queued, one.arrived = float(told["queued_seconds"]), float(told["arrived"])
    one.retry = b"retry-after" in answer.tail.lower()
    client.transport.close()


def request_of(ours: Process, group: str) -> bytes:
    """A streamed chat of a class."""
    body = orjson.dumps({
        "model": "replay", "stream": True, "max_tokens": TOKENS, "temperature": 0.7,
        "messages": [{"role": "user", "content": "Please add 12, 30 and 7."}],
        "rlbudget": {"priority": group},
    })  # fmt: skip
    host = ours.root.removeprefix("http://")
    head = (f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json"
            f"\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n")  # fmt: skip
    return head.encode() + body


def rows_of(alone: list[Sent], found: list[Sent], seconds: float) -> list[dict[str, Any]]:
    """The table."""
    quiet = [one.took for one in alone if one.whole]
    critical = [one.took for one in found if one.group == "critical" and one.whole]
    bulk = [one for one in found if one.group == "bulk"]
    before, under = percentile(quiet, 0.95), percentile(critical, 0.95)
    refused = [one for one in found if one.status == 429]
    left = [one for one in found if one.leaves is not None and not one.status]
    gone = {id(one) for one in left}
    lost = [one for one in found if not one.whole and id(one) not in gone
            and not (one.status == 429 and one.retry)]  # fmt: skip
    served = [one for one in bulk if one.whole]
    longest = max(one.queued for one in served)
    gaps = np.diff(sorted(one.turn for one in served))
    worst = overtaken(found)
    rows = [
        row(f"3x capacity for {seconds:g} s on a real gateway: critical requests, 95th percentile",
            "<= 1.2x unloaded",
            f"{under:.2f} s, {under / before:.2f}x ({before:.2f} s unloaded; {len(critical)} of"
            f" {sum(one.group == 'critical' for one in found)} answered)", under <= 1.2 * before),
        row("bulk requests under overload", "nothing starves, nothing lost without a 429",
            f"{len(served)} of {len(bulk)} answered, the longest wait {longest:.1f} s, never"
            f" {gaps.max():.1f} s without one served; {len(refused)} refused with 429 and"
            f" Retry-After, {len(left)} left by their clients, {len(lost)} lost",
            not lost and longest <= 2 * PATIENCE),
        row("law of ageing: how much later than (difference of priorities) / rate one came that"
            " overtook another", f"<= 0 s (within {SLACK:g} s)",
            f"{worst:+.2f} s in {len(found)} requests", worst <= SLACK),
    ]  # fmt: skip
    return rows


def overtaken(found: list[Sent]) -> float:
    """The most by which the law was broken; below 0 where it was not."""
    served = [one for one in found if one.whole]
    at = np.array([one.arrived for one in served])
    turn = np.array([one.turn for one in served])
    priority = np.array([PRIORITIES[one.group] for one in served])
    worst = -np.inf
    for place in range(len(served)):
        over = (turn < turn[place] - SLACK) & (at > at[place]) & (turn > at[place])
        if over.any():
            allowed = (priority[place] - priority[over]) / AGEING
            worst = max(worst, float((at[over] - at[place] - allowed).max()))
    return worst


if __name__ == "__main__":
    main()
