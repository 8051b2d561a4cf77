"""Loops: how often one is found where there is none, how soon where there is one, at what cost.

    python -m runs.integrations.loops [--traces out/quickstart/traces] [--n 200] [--data FOLDER]

*False alarms*: the thinkings of the embedded model, sampled and greedy, and, where they are at
hand, the written solutions of MATH-500 and GSM8K, once as characters and once cut roughly as
tokenizers cut (a digit, a word, a sign). None of them is a loop, so every find is a false alarm.
*Found*: loops of random periods set into those thinkings at random places. *Cost*: microseconds a
token, median over tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rlbudget.decoding.record import record
from rlbudget.models import load_model
from rlbudget.signals.loops import LEAST, LONGEST, REPEATS, Loops, tokens_needed
from rlbudget.tasks import load_task
from rlbudget.traces.store import iter_traces
from runs.common import ROOT, row, write_result

SEED = 0
SET_IN = 1000
MICROSECONDS = 2.0
PARTS = re.compile(r"\d| ?[^\W\d_]+|\s+|[^\w\s]|_")


@dataclass(frozen=True)
class Read:
    """What was found in streams that hold no loop."""

    name: str
    streams: int
    tokens: int
    alarms: int
    """streams in which a loop was found"""
    longest: int
    """tokens of the longest run of at least ``REPEATS`` rounds"""
    period: int
    """of that run"""
    above: dict[str, int]
    """streams that a smaller ``LEAST`` would have called loops"""


def thinkings(traces: Path) -> list[str]:
    """Of traces that were recorded with their texts."""
    return [str(trace.meta["thinking"]) for trace in iter_traces(traces)]


def embedded(n: int, temperature: float | None) -> list[str]:
    """Thinkings of the embedded model, decoded anew."""
    model = load_model("embedded")
    with tempfile.TemporaryDirectory() as scratch:
        record(
            model, load_task("embedded", n=n, seed=SEED), Path(scratch) / "t", seed=SEED,
            temperature=temperature, store_text=True,
        )  # fmt: skip
        return thinkings(Path(scratch) / "t")


def solutions(data: Path) -> dict[str, list[str]]:
    """Name -> texts, of what lies in the folder of data."""
    found = {}
    for name, field in (("math500", "solution"), ("gsm8k", "answer")):
        lines = [
            line
            for file in sorted((data / name).glob("*.jsonl"))
            for line in file.read_text(encoding="utf-8").splitlines()
        ]
        if lines:
            found[name] = [str(json.loads(line)[field]) for line in lines]
    return found


def characters(text: str) -> list[int]:
    return [ord(character) for character in text]


def parts(text: str) -> list[int]:
    return [hash(part) for part in PARTS.findall(text)]


def read(name: str, streams: Iterable[Sequence[int]]) -> Read:
    """Look for loops where there is none."""
    least = (48, 64, 96, 128)
    count = tokens = alarms = longest = period = 0
    above = dict.fromkeys(map(str, least), 0)
    for stream in streams:
        loops, alarm, most = Loops(), False, 0
        for token in stream:
            alarm = bool(loops.push(token)) or alarm
            p, run = loops.match
            if p and run + p >= REPEATS * p and run + p > most:
                most = run + p
                if most > longest:
                    longest, period = most, p
        count, tokens, alarms = count + 1, tokens + len(stream), alarms + alarm
        for bound in least:
            above[str(bound)] += most >= bound
    return Read(name, count, tokens, alarms, longest, period, above)


def late(texts: Sequence[str]) -> list[int]:
    """Tokens from where a loop stands to where it is found, for loops that were set in; a
    thousand where none was."""  # fmt: skip
    rng = random.Random(SEED)
    delays = []
    for _ in range(SET_IN):
        before = characters(rng.choice(texts))
        before = before[: rng.randrange(len(before) + 1)]
        period = rng.randint(1, LONGEST)
        word = [rng.randrange(10**7, 10**7 + 50_000) for _ in range(period)]  # no character
        loops, first = Loops(), len(before) + tokens_needed(period) - 1
        found = 0
        for place, token in enumerate(before + word * (first // period + 2)):
            if loops.push(token):
                found = place
                break
        delays.append(found - first if found else 1000)
    return delays


def microseconds(streams: Iterable[Sequence[int]]) -> float:
    """Median time of one token."""
    clock = time.perf_counter_ns
    times, empty = [], []
    for stream in streams:
        push = Loops().push
        for token in stream:
            begun = clock()
            push(token)
            times.append(clock() - begun)
            begun = clock()
            empty.append(clock() - begun)
    return (statistics.median(times) - statistics.median(empty)) / 1e3


def cpu_microseconds(streams: Iterable[Sequence[int]]) -> float:
    """Mean processor time of one token."""
    tokens, begun = 0, time.thread_time()
    for stream in streams:
        push = Loops().push
        for token in stream:
            push(token)
        tokens += len(stream)
    return 1e6 * (time.thread_time() - begun) / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--traces", type=Path, help="sampled ones with texts, as of the quickstart")
    parser.add_argument("--n", type=int, default=200, help="thinkings that are decoded anew")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    args = parser.parse_args()
    sampled = thinkings(args.traces) if args.traces else embedded(args.n, None)
    greedy = embedded(args.n, 0.0)
    looked = [
        read("embedded", map(characters, sampled)),
        read("embedded, greedy", map(characters, greedy)),
    ]
    texts = solutions(args.data)
    for name, those in texts.items():
        looked.append(read(f"{name}, characters", map(characters, those)))
        looked.append(read(f"{name}, parts", map(parts, those)))
    delays = late(sampled)
    # Each token on its own clock; characters come again often, words seldom.
    cost = {"embedded": microseconds(map(characters, sampled[:200]))}
    if texts:
        cost["parts"] = microseconds(map(parts, next(iter(texts.values()))[:300]))
    mean = cpu_microseconds(map(characters, sampled[:200]))
    # The same text cut in two ways is one text.
    count = len(sampled) + len(greedy) + sum(map(len, texts.values()))
    alarms = sum(r.alarms for r in looked)
    rows = [
        row(
            "loops found in thinkings and solutions that are none",
            "0",
            f"{alarms} of {count:,} (0 says at most {3 / count:.2%} at 95%); the longest repetition"
            f" has {max(r.longest for r in looked)} tokens, a loop {LEAST}",
            alarms == 0,
        ),
        row(
            "loops of random periods up to 512, set into thinkings: found at the token they stand",
            f"{SET_IN:,}",
            f"{sum(d < 1000 for d in delays):,}, the latest {max(delays)} tokens late",
            min(delays) >= 0 and max(delays) == 0,
        ),
        row(
            "microseconds a token, median",
            f"<= {MICROSECONDS}",
            ", ".join(f"{value:.2f} ({name})" for name, value in cost.items())
            + f"; mean {mean:.2f} of processor time",
            max(cost.values()) <= MICROSECONDS,
        ),
    ]
    write_result("loops", rows, seed=SEED, details={"read": [asdict(r) for r in looked]})


if __name__ == "__main__":
    main()
