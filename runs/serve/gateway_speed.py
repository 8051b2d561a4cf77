"""What the gateway costs beside LiteLLM's proxy and nginx in the same run.

    bash runs/serve/gateway_speed.sh latency throughput soak [--keep]

All processes share this machine: a replaying upstream (``replay_upstream.py``, 20 log-probabilities
a token for the gateway), one process each of ``rlbudget serve`` with a policy that is asked at
every checkpoint and stops nowhere, of LiteLLM's proxy, and of nginx, which passes through without
buffering and is the floor. LiteLLM and nginx get no log-probabilities.

- ``latency``: one request at a time, interleaved rounds, medians of the rounds' medians, less those
  of the upstream asked directly. A token's time is from its writing upstream to its arrival.
- ``throughput``: 50 streams flat out, and 400 streams of 50 tokens a second.
- ``soak``: 500 streams of 20 tokens a second for five minutes.

Needs Debian's nginx and ``.venv-litellm``, which the shell script makes.
"""  # fmt: skip

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop

from runs.common import row, write_part
from runs.serve.load import Answer, at_once, in_turn, percentile, request_of, steady
from runs.serve.peers import (
    LITELLM,
    Process,
    gateway,
    litellm,
    nginx,
    pace,
    scratch,
    stats,
    upstream,
)

NAME = "gateway_speed"
ROUNDS, TURNS, WARM = 7, 25, 15
SHORT, PACE = 20, 400.0
"""tokens of a stream whose times are taken, and its tokens a second"""
FLAT, LONG = 50, 600
PACED, PACED_RATE, PACED_TOKENS, PACED_SPREAD = 400, 50.0, 500, 1.0
SOAK, SOAK_RATE, SOAK_TOKENS = 500, 20.0, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("latency", "throughput", "soak"), nargs="+")
    parser.add_argument("--seconds", type=float, default=8.0, help="of one flood (default: 8)")
    parser.add_argument("--minutes", type=float, default=5.0, help="of the soak (default: 5)")
    parser.add_argument("--without-litellm", action="store_true", help="leave the rows on it out")
    parser.add_argument("--keep", action="store_true", help="put the rows into the results")
    args = parser.parse_args()
    with scratch() as folder, upstream() as behind:
        if {"latency", "throughput"} & {*args.what}:
            with started(behind, folder, not args.without_litellm) as peers:
                print("measuring", file=sys.stderr, flush=True)
                if "latency" in args.what:
                    tell("latency", *latency(behind, peers), keep=args.keep)
                if "throughput" in args.what:
                    tell("throughput", *throughput(behind, peers, args.seconds), keep=args.keep)
        if "soak" in args.what:
            with gateway(behind, folder) as ours:
                print("measuring", file=sys.stderr, flush=True)
                tell("soak", *soak(behind, ours, args.minutes * 60), keep=args.keep)


def tell(part: str, rows: list[dict[str, Any]], details: dict[str, Any], *, keep: bool) -> None:
    """Keep the rows of one measurement, or show them."""
    if keep:
        write_part(NAME, part, rows, **details, peers=versions())
        return
    for one in rows:
        print(f"{one['row']}: {one['reached']} (wanted {one['wanted']})")
    print(details, flush=True)


def versions() -> dict[str, str]:
    """Of what is measured beside us."""
    found = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=False).stderr
    said = {"nginx": found.rpartition("/")[2].strip()}
    for place in LITELLM.glob("lib/python*/site-packages/litellm-[0-9]*.dist-info"):
        said["litellm"] = place.name.removeprefix("litellm-").removesuffix(".dist-info")
    return said


# Time -----------------------------------------------------------------------------------------


def latency(behind: Process, peers: Mapping[str, Process]) -> Any:
    pace(behind, PACE, stamps=True)
    found: dict[str, list[tuple[float, float]]] = {}
    for peer in peers.values():
        uvloop.run(in_turn(peer.url, _request(peer, SHORT), WARM))
    gc.disable()
    for _ in range(ROUNDS):
        for name, peer in peers.items():
            answers = _whole(uvloop.run(in_turn(peer.url, _request(peer, SHORT), TURNS)))
            firsts = [answer.first for answer in answers]
            tokens = [late for answer in answers for late in answer.late[1:]]
            found.setdefault(name, []).append(
                (statistics.median(firsts), statistics.median(tokens))
            )
    gc.enable()
    medians = {n: [statistics.median(one[k] for one in each) * 1e3 for k in (0, 1)]
               for n, each in found.items()}  # fmt: skip
    first, token = ({n: each[k] - medians["direct"][k] for n, each in medians.items()}
                    for k in (0, 1))  # fmt: skip
    ours = first["gateway"]
    floor = f"{ours / max(first['nginx'], 1e-3):.1f}"
    rows = [
        row("added time to the first token", "≤ 1 ms",
            f"{ours:.2f} ms, {floor} times nginx's {first['nginx']:.2f}", ours <= 1.0),
        row("added time of a streamed token, p50", "≤ 0.1 ms",
            f"{token['gateway']:.3f} ms, nginx {token['nginx']:.3f}", token["gateway"] <= 0.1),
    ]  # fmt: skip
    if "litellm" in peers:
        share = ours / first["litellm"]
        rows.append(row("added time to the first token, of LiteLLM's", "≤ 1/10",
                        f"1/{1 / share:.0f} of {first['litellm']:.1f} ms; a token"
                        f" {token['litellm']:.2f} ms", share <= 0.1))  # fmt: skip
    return rows, {"milliseconds": {n: {"first": round(each[0], 3), "token": round(each[1], 4)}
                                   for n, each in medians.items()},
                  "rounds": ROUNDS, "requests a round": TURNS}  # fmt: skip


# Throughput -----------------------------------------------------------------------------------


def throughput(behind: Process, peers: Mapping[str, Process], seconds: float) -> Any:
    flat: dict[str, list[float]] = {}
    paced: dict[str, list[float]] = {}
    late: dict[str, list[float]] = {}
    shares: dict[str, Any] = {}
    for round_ in range(3):
        for name, peer in peers.items():
            if name == "litellm" and round_ == 2:
                continue  # takes as long as all others together
            pace(behind, 0)
            tokens = LONG if name != "litellm" else LONG // 3
            rate, used, _ = _rate(behind, peer, FLAT, tokens, seconds)
            flat.setdefault(name, []).append(rate)
            shares[name] = used
        for name in ("direct", "gateway"):
            pace(behind, PACED_RATE, stamps=True)
            _, used, answers = _rate(
                behind, peers[name], PACED, PACED_TOKENS, seconds, spread=PACED_SPREAD
            )
            paced.setdefault(name, []).append(steady(answers, PACED_SPREAD))
            late.setdefault(name, []).extend(x for a in answers for x in a.late)
            shares[f"{name}, paced"] = used
    pace(behind, 0)
    best = {name: statistics.median(each) for name, each in flat.items()}
    held = {name: statistics.median(each) for name, each in paced.items()}
    offered = PACED * PACED_RATE
    rows = [
        row("tokens a second of one process, 50 streams flat out, 20 log-probabilities, policy on",
            "≥ 25,000", f"{best['gateway']:,.0f} ({_spread(flat['gateway'])})",
            best["gateway"] >= 25_000),
        row("tokens a second of one process, 400 streams of 50 a second", "≥ 12,000",
            f"{held['gateway']:,.0f} of {held['direct']:,.0f} that reach a client without it"
            f" ({offered:,.0f} offered); p50 {_ms(late['gateway'], 0.5)} against"
            f" {_ms(late['direct'], 0.5)} ms a token", held["gateway"] >= 12_000),
    ]  # fmt: skip
    if "litellm" in peers:
        times = best["gateway"] / best["litellm"]
        rows.append(row("the same 50 streams against LiteLLM's proxy without log-probabilities",
                        "≥ 20 times", f"{times:.0f} times its {best['litellm']:,.0f}",
                        times >= 20))  # fmt: skip
    return rows, {"tokens a second, flat out": {n: round(x) for n, x in best.items()},
                  "cores used": shares, "seconds": seconds}  # fmt: skip


def _rate(
    behind: Process, peer: Process, streams: int, tokens: int, seconds: float, spread: float = 0.0
) -> tuple[float, dict[str, float], list[Answer]]:
    request = _request(peer, tokens)
    apart = behind.pid != peer.pid
    before = time.process_time(), behind.used(), peer.used()
    begun = time.monotonic()
    answers = _whole(uvloop.run(at_once(peer.url, request, streams, seconds=seconds,
                                        spread=spread)))  # fmt: skip
    took = time.monotonic() - begun
    used = {"clients": (time.process_time() - before[0]) / took,
            "upstream": (behind.used() - before[1]) / took}  # fmt: skip
    if apart:
        used["between"] = (peer.used() - before[2]) / took
    return (len(answers) * tokens / took, {n: round(x, 2) for n, x in used.items()}, answers)


# Soak -----------------------------------------------------------------------------------------


def soak(behind: Process, ours: Process, seconds: float) -> Any:
    pace(behind, SOAK_RATE, stamps=True)
    spread = SOAK_TOKENS / SOAK_RATE
    memory: list[tuple[float, float]] = []
    request = _request(ours, SOAK_TOKENS)

    async def watched() -> tuple[list[Answer], float]:
        begun, used = time.monotonic(), ours.used()
        watch = asyncio.ensure_future(_watch(ours, begun, memory))
        answers = await at_once(ours.url, request, SOAK, seconds=seconds, spread=spread)
        watch.cancel()
        return answers, (ours.used() - used) / (time.monotonic() - begun)

    answers, cores = uvloop.run(watched())
    left = stats(behind)
    direct = uvloop.run(at_once(behind.url, _request(behind, SOAK_TOKENS), SOAK, seconds=20.0,
                                spread=spread))  # fmt: skip
    lost = sum(not answer.whole for answer in answers)
    cut = sum(answer.whole and not _uncut(answer) for answer in answers)
    settled = [mb for at, mb in memory if 60 <= at <= seconds] or [mb for _, mb in memory]
    grown = max(settled) / settled[0] - 1
    late = [x for answer in answers for x in answer.late]
    alone = [x for answer in direct for x in answer.late]
    rows = [
        row(f"500 streams at once for {seconds / 60:.0f} minutes: streams lost", "none",
            f"{lost} of {len(answers):,}; {cut} cut", lost + cut == 0),
        row("their memory after the first minute", "within 5%",
            f"{grown:+.1%} at most, {settled[0]:.0f} to {settled[-1]:.0f} MB", grown <= 0.05),
        row("their tokens' time, p99", "≤ 20 ms", f"{_ms(late, 0.99)} ms (p50 {_ms(late, 0.5)});"
            f" without gateway {_ms(alone, 0.99)} (p50 {_ms(alone, 0.5)})",
            percentile(late, 0.99) <= 0.020),
    ]  # fmt: skip
    return rows, {"streams": SOAK, "tokens a second and stream": SOAK_RATE, "tokens": len(late),
                  "cores of the gateway": round(cores, 2),
                  "streams broken upstream": left["broken"],
                  "memory, MB": [[round(at), round(mb)] for at, mb in memory[::6]]}  # fmt: skip


async def _watch(ours: Process, begun: float, memory: list[tuple[float, float]]) -> None:
    while True:
        memory.append((time.monotonic() - begun, ours.memory()))
        await asyncio.sleep(5)


# What all share -------------------------------------------------------------------------------


@contextmanager
def started(behind: Process, folder: Path, with_litellm: bool) -> Iterator[dict[str, Process]]:
    """By the names in the tables."""
    with gateway(behind, folder) as ours, nginx(behind, folder) as floor:
        peers = {"direct": behind, "nginx": floor, "gateway": ours}
        if not with_litellm:
            yield peers
            return
        with litellm(behind, folder) as theirs:
            yield {**peers, "litellm": theirs}


def _request(peer: Process, tokens: int) -> bytes:
    return request_of(peer.url, "replay", tokens)


def _whole(answers: list[Answer]) -> list[Answer]:
    """All of them; a measurement of broken answers is none."""
    for answer in answers:
        if not answer.whole:
            raise SystemExit(f"status {answer.status}, {answer.size} bytes: {answer.tail[-500:]!r}")
        if not _uncut(answer):
            raise SystemExit(f"cut: {answer.ended()}")
    return answers


def _uncut(answer: Answer) -> bool:
    """Whether a thinking that went through the gateway went to its own end."""
    said = answer.ended().get("rlbudget")
    return said is None or (said["reason"] in ("natural", "max_tokens") and "message" not in said)


def _spread(values: list[float]) -> str:
    return f"{min(values):,.0f} to {max(values):,.0f}"


def _ms(values: list[float], share: float) -> str:
    return f"{percentile(values, share) * 1e3:.2f}"


if __name__ == "__main__":
    main()
