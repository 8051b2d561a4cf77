"""The decision log under many threads, many processes and SIGKILL, and how fast it is.

    python -m runs.integrations.decision_log [--kills 50]

Two parts. *Kills*: processes of many threads write requests and audits to one log; a random one is
killed at a random moment and another starts in its place. Each thread notes in shared memory how
many of its lines are written; afterwards the files must hold all of these, at most the one more
that was being written, and nothing but whole lines. *Speed*: lines a second of one process and of
several, against ``logging.FileHandler`` behind a ``QueueHandler``, which writes the same lines from
one process; what that has lost at a kill is counted too.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import logging.handlers
import multiprocessing
import os
import queue
import random
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlbudget.strategies.feedback.log import AUDITS, DECISIONS, DecisionLog, LoggedRequest, Stop
from rlbudget.traces.trace import Checkpoint, Exit, Final, Trace
from runs.common import row, write_result

THREADS, PROCESSES = 8, 4
EVERY = 10
"""one request in so many is audited"""
SEED = 0
LINES = 40_000
RUNS = 5
ENOUGH = 10_000
"""lines a second; a machine serves a few hundred requests"""
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Found:
    """What the files hold after the kills."""

    lines: int
    whole: int
    """lines that are whole"""
    torn_ends: int
    """files whose last line was cut: the next writer would mend it"""
    acknowledged: int
    """lines whose write had returned"""
    lost: int
    """of them, those that the files lack"""
    unflushed: int
    """lines in the files whose write had not returned: at most one a thread that was killed"""
    too_many: int
    """lines that nobody wrote, or that are there twice"""


def request(request_id: str) -> LoggedRequest:
    return LoggedRequest(
        request_id=request_id, time="2026-11-26T12:00:00.000+00:00", policy="ab" * 32,
        registry_version=3, strategy="cd" * 32, token_price=1e-3, audited=False,
        stop=Stop("policy", 512, 0.75, 512, 24, 40), engine="vllm", rules=("short sums",),
    )  # fmt: skip


def audit(request_id: str) -> Trace:
    """A full decode of some 25 kB: several pages, which a kill may tear."""
    points = tuple(
        Checkpoint(at, {"entropy_mean": 0.5, "logprob_mean": -0.25}, Exit("18", 0, 12))
        for at in range(16, 16 * 160, 16)
    )
    return Trace(
        trace_id=request_id, question_id="q", task="", question="Who?", target="", model="m",
        seed=0, final=Final("18", 0, 2600, 40), checkpoints=points,
    )  # fmt: skip


def write_lines(folder: Path, place: int, counts: Any, threads: int, most: int) -> None:
    """Write until killed, or ``most`` lines a thread; ``counts[place + thread]`` are written."""
    log, trace = DecisionLog(folder), audit("")
    pattern = request("")

    def work(thread: int) -> None:
        slot = place + thread
        for i in range(most):
            name = f"{slot}-{i}"
            if i % EVERY == 0:
                log.audit(replace(trace, trace_id=name))
            else:
                log.decision(replace(pattern, request_id=name))
            counts[slot] = i + 1

    running = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    if log.failures:
        raise SystemExit(f"{log.failures} lines could not be written")


def storm(
    folder: Path, *, kills: int, processes: int, threads: int, seed: int, longest: float = 0.15
) -> Found:
    """Kill ``kills`` writers at random moments; the others end by being killed too."""
    rng = random.Random(seed)
    counts = _FORK.RawArray(ctypes.c_longlong, (kills + processes) * threads)

    def begin(place: int) -> Any:
        writer = _FORK.Process(
            target=write_lines, args=(folder, place * threads, counts, threads, 10**9)
        )
        writer.start()
        return writer

    running = [begin(place) for place in range(processes)]
    for kill in range(kills):
        time.sleep(rng.uniform(0.01, longest))
        victim = rng.randrange(processes)
        _end(running[victim])
        running[victim] = begin(processes + kill)
    for writer in running:
        _end(writer)
    return examine(folder, list(counts))


def _end(writer: Any) -> None:
    if writer.exitcode is not None:
        raise SystemExit("a writer ended by itself")
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()


def examine(folder: Path, counts: Sequence[int]) -> Found:
    """Hold the files against what their writers know to be written."""
    ids: list[str] = []
    lines = torn_ends = 0
    for name, key in ((DECISIONS, "request_id"), (AUDITS, "trace_id")):
        # What follows the last newline is a line that is not written yet.
        *ended, end = (folder / name).read_bytes().split(b"\n")
        torn_ends += bool(end)
        lines += len(ended)
        for line in ended:
            try:
                ids.append(json.loads(line)[key])
            except (ValueError, KeyError, TypeError):
                continue
    there = set(ids)
    wanted = {f"{slot}-{i}" for slot, count in enumerate(counts) for i in range(count)}
    # One more of each thread may be there: the one that it was about to count.
    may = {f"{slot}-{count}" for slot, count in enumerate(counts)}
    return Found(
        lines=lines,
        whole=len(ids),
        torn_ends=torn_ends,
        acknowledged=len(wanted),
        lost=len(wanted - there),
        unflushed=len(there & may),
        too_many=len(ids) - len(there) + len(there - wanted - may),
    )


def ours(folder: Path, lines: int, threads: int, processes: int = 1) -> float:
    """Lines a second of the decision log, requests alone."""
    each = lines // (threads * processes)

    def work() -> None:
        log, pattern = DecisionLog(folder), request("")

        def write() -> None:
            for i in range(each):
                log.decision(replace(pattern, request_id=f"{i:08}"))

        in_threads(write, threads)

    writers = [_FORK.Process(target=work) for _ in range(processes)]
    begun = time.perf_counter()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    return each * threads * processes / (time.perf_counter() - begun)


def peer_logger(file: Path) -> tuple[logging.Logger, logging.handlers.QueueListener]:
    """A logger whose records one thread writes to ``file``."""
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    listener = logging.handlers.QueueListener(waiting, logging.FileHandler(file))
    logger = logging.Logger("peer", logging.INFO)
    logger.addHandler(logging.handlers.QueueHandler(waiting))
    return logger, listener


def peer(folder: Path, lines: int, threads: int) -> float:
    """Lines a second of the peer until all are in the file."""
    each = lines // threads

    def work() -> None:
        logger, listener = peer_logger(folder / "peer.jsonl")
        listener.start()
        pattern = asdict(request(""))

        def write() -> None:
            for i in range(each):
                logger.info(json.dumps({**pattern, "request_id": f"{i:08}"}))

        in_threads(write, threads)
        listener.stop()

    writer = _FORK.Process(target=work)
    begun = time.perf_counter()
    writer.start()
    writer.join()
    return each * threads / (time.perf_counter() - begun)


def peer_lost(folder: Path, threads: int, kills: int, seed: int) -> list[int]:
    """Lines whose call had returned, and that the peer's file lacks after a kill."""
    rng = random.Random(seed)
    lost = []
    for kill in range(kills):
        file = folder / f"killed-{kill}.jsonl"
        counts = _FORK.RawArray(ctypes.c_longlong, threads)

        def work(file: Path = file, counts: Any = counts) -> None:
            logger, listener = peer_logger(file)
            listener.start()
            pattern = asdict(request(""))
            slots = iter(range(threads))

            def write() -> None:
                slot = next(slots)
                for i in range(10**9):
                    logger.info(json.dumps({**pattern, "request_id": f"{slot}-{i}"}))
                    counts[slot] = i + 1

            in_threads(write, threads)

        writer = _FORK.Process(target=work)
        writer.start()
        time.sleep(rng.uniform(0.1, 0.4))
        _end(writer)
        whole = file.read_bytes().count(b"\n") if file.exists() else 0
        lost.append(max(sum(counts) - whole, 0))
    return lost


def in_threads(work: Callable[[], None], threads: int) -> None:
    running = [threading.Thread(target=work) for _ in range(threads)]
    for one in running:
        one.start()
    for one in running:
        one.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found = storm(
            folder / "storm", kills=args.kills, processes=PROCESSES, threads=THREADS, seed=SEED
        )
        speeds: dict[str, list[float]] = {"1 process": [], "4 processes": [], "peer": []}
        for run in range(RUNS):  # in turns: whoever comes second finds a warmer machine
            speeds["1 process"].append(ours(folder / f"one-{run}", LINES, THREADS))
            speeds["peer"].append(peer(folder, LINES, THREADS))
            speeds["4 processes"].append(ours(folder / f"four-{run}", LINES, THREADS, PROCESSES))
        lost = peer_lost(folder, THREADS, 5, SEED)
    one, four, other = (statistics.median(speeds[k]) for k in ("1 process", "4 processes", "peer"))
    ratios = [a / b for a, b in zip(speeds["1 process"], speeds["peer"], strict=True)]
    rows = [
        row(
            f"decision log, {THREADS} threads in each of {PROCESSES} processes, SIGKILL at"
            f" {args.kills} random moments: lines that are whole",
            "all",
            f"{found.whole:,} of {found.lines:,}",
            found.whole == found.lines > 0,
        ),
        row(
            "lines lost whose write had returned; lines that nobody wrote",
            "0; 0",
            f"{found.lost} of {found.acknowledged:,}; {found.too_many}",
            found.lost == found.too_many == 0,
        ),
        row(
            f"lines a second, one process of {THREADS} threads (median of {RUNS} runs)",
            f">= {ENOUGH:,}; beside it logging.FileHandler behind a QueueHandler",
            f"{one:,.0f}; the peer {other:,.0f} ({min(ratios):.2f} to {max(ratios):.2f} times in"
            f" turns), and at each of {len(lost)} kills the peer lost {min(lost):,} to"
            f" {max(lost):,} lines whose call had returned",
            one >= ENOUGH,
        ),
    ]
    write_result(
        "decision_log",
        rows,
        seed=SEED,
        details={
            "kills": asdict(found),
            "lines_per_second": speeds,
            "four_processes_median": four,
            "peer_lines_lost_at_a_kill": lost,
        },
    )


if __name__ == "__main__":
    main()
