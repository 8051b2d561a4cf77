"""Mutated lines for the importer and the reader of question files: FILE:LINE, at once, no crash.

    python -m runs.trust.fuzz_import [--lines N] [--questions N]

Each line stands between two good ones. It is taken, and then readable, or refused by one line that
begins with FILE:LINE; a second of processor time a line and 200 MB of memory are the most. Among
them are lines of a size: ids and names of a million characters, thousands of samples, options,
checkpoints and signals. Fewer than the default are a rehearsal: nothing is kept.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlbudget.errors import UserError
from rlbudget.tasks import load_task
from rlbudget.traces.interchange import import_jsonl
from rlbudget.traces.store import load_table, load_traces
from runs.common import row, write_part

LINES, QUESTIONS = 6000, 3000
SECONDS, MEGABYTES = 1.0, 200

TRACE: dict[str, Any] = {
    "version": 1, "trace_id": "t1", "question_id": "q1", "task": "g", "question": "q",
    "target": "18", "model": "m", "seed": 0, "meta": {"a": 1, "family": "f"},
    "final": {"answer": "18", "exact_match": 1, "thinking_tokens": 812, "answer_tokens": 40},
    "checkpoints": [
        {"thinking_tokens": 64, "signals": {"e": 0.5},
         "probe": {"answer": "17", "confidence": 0.4, "tokens": 6},
         "exit": {"answer": "17", "exact_match": 0, "answer_tokens": 12}},
        {"thinking_tokens": 128, "signals": {"e": 0.7}, "probe": None,
         "exit": {"answer": "18", "answer_tokens": 12}},
    ],
}  # fmt: skip
SAMPLED: dict[str, Any] = {
    "version": 1, "question_id": "q1", "task": "t", "question": "q", "target": "18", "model": "m",
    "samples": [{"answer": "18", "exact_match": 1, "tokens": 87}, {"answer": "17", "tokens": 9}],
}  # fmt: skip
QUESTION: dict[str, Any] = {"id": "a", "question": "How many?", "target": "3"}
CHOICE: dict[str, Any] = {"id": "b", "question": "Which?", "target": "B", "options": ["x", "y"],
                          "scorer": "choice"}  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 1.0, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"),
    10**30, 10**400, 2**63, -(2**63), "", "x", "1", "\0", "\ud800", "\u2028", "\U0001f600",
    "a" * 1000, "a" * 10**6, [], {}, [[]], [1], {"a": 1}, "true", "nan", "1e99999999", "9" * 5000,
    ["a"] * 4000, [str(n) for n in range(4000)], {str(n): n for n in range(3000)},
    [{"answer": str(n), "tokens": 1} for n in range(4000)],
]  # fmt: skip
NAMES = ["extra", "", "a.b", "probe_streak", "\ud800", "thinking_tokens", "samples", "options",
         "scorer", "\x1b[31mred", "x" * 10**5]  # fmt: skip
BYTES = [b"\xef\xbb\xbf", b"\x00", b"NaN", b"Infinity", b"[", b"{", b"}", b"]", b'"', b",",
         b"\\u0000", b"\\ud800", b"1e999", b"9" * 5000, b"-", b"0x1", b"\r", b"\xff",
         b"[" * 10**5]  # fmt: skip


def places_of(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to everything in a JSON value."""
    if way:
        yield way
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places_of(value[key], (*way, key))


def changed(record: dict[str, Any], rng: random.Random) -> bytes:
    """A record with values replaced, left out or added."""
    whole = json.loads(json.dumps(record))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        *outer, last = rng.choice(list(places_of(whole)))
        at: Any = whole
        for key in outer:
            at = at[key]
        kind = rng.randrange(5)
        if kind < 3:
            at[last] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 3 and len(whole) > 1:
            del at[last]
        elif isinstance(at, dict):
            at[rng.choice(NAMES)] = copy.deepcopy(rng.choice(VALUES))
        else:
            at.insert(rng.randrange(len(at) + 1), copy.deepcopy(rng.choice(VALUES)))
    text = json.dumps(whole, ensure_ascii=rng.random() < 0.7)
    return text.encode("utf-8", "surrogatepass")


def torn(record: dict[str, Any], rng: random.Random) -> bytes:
    """A record's line with bytes changed, lost or more."""
    text = json.dumps(record)
    line, kind = bytearray(text.encode()), rng.randrange(6)
    at = rng.randrange(len(line))
    if kind == 0:
        line[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del line[at:]
    elif kind == 2:
        line[at : at + rng.randrange(1, 10)] = rng.randbytes(rng.randrange(6))
    elif kind == 3:
        line[at:at] = rng.choice(BYTES)
    elif kind == 4:
        key = rng.choice(re.findall(r'"[a-z_]+": ', text))
        twice = key + json.dumps(rng.choice([0, "x", None, 5])) + ", " + key
        return text.replace(key, twice, 1).encode()
    else:
        return b"\xef\xbb\xbf" + bytes(line)
    return bytes(line)


@dataclass
class Found:
    """What became of lines."""

    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    odd: list[str] = field(default_factory=list)


def attack(
    n: int,
    records: list[dict[str, Any]],
    good: bytes,
    take: Callable[[Path], None],
    file: Path,
    seed: int,
) -> Found:
    """``n`` mutated lines, each between two that are blank or good."""
    rng, found = random.Random(seed), Found()
    for _ in range(n):
        record = rng.choice(records)
        line = changed(record, rng) if rng.random() < 0.5 else torn(record, rng)
        lines = [b"", good]
        place = rng.randrange(3)
        lines.insert(place, line)
        file.write_bytes(b"\n".join(lines) + b"\n")
        begun, said = time.process_time(), ""
        try:
            take(file)
            became = "taken"
        except UserError as error:
            said = str(error)
            became = judged(said, file, place + 1, whole=line.count(b"\n") == 0)
        except Exception as error:
            became = "crash"
            found.odd.append(f"{type(error).__name__}: {error}"[:200])
        found.counts[became] += 1
        if became not in ("taken", "refused"):
            found.odd.append(f"{became}: {said[-200:]!r} of {line[:120]!r}")
        found.slowest = max(found.slowest, time.process_time() - begun)
    return found


def judged(said: str, file: Path, place: int, *, whole: bool) -> str:
    """Whether a refusal is one line that names the right line of the file."""
    at = re.match(re.escape(str(file)) + r":(\d+): ", said)
    if at is None:
        # A file none of whose lines is left, or that is one array, has no single line at fault.
        return "refused without a line"
    if any(ord(letter) < 32 for letter in said):
        return "refused with control characters"
    # The good line may be the one that no longer fits: an id or a kind that came before it.
    others = (
        "came before",
        "one file",
        "on an earlier line",
        "earlier",
        "twice",
        "read as",
        "another target",
    )
    if whole and int(at[1]) != place and not any(one in said for one in others):
        return "refused at another line"
    return "refused"


def main() -> None:
    """Attack."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lines", type=int, default=LINES)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    given = parser.parse_args()
    found: dict[str, tuple[int, Found]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"

        def imported(file: Path) -> None:
            shutil.rmtree(out, ignore_errors=True)
            import_jsonl(file, out)
            load_traces(out)
            load_table(out, context=True)

        good = json.dumps({**TRACE, "trace_id": "other", "question_id": "q0"}).encode()
        before = peak()
        found["import"] = (given.lines, attack(
            given.lines, [TRACE, TRACE, SAMPLED], good, imported, Path(scratch) / "f.jsonl", 11
        ))  # fmt: skip
        asked = json.dumps({**QUESTION, "id": "good"}).encode()
        found["question file"] = (given.questions, attack(
            given.questions, [QUESTION, CHOICE], asked,
            lambda file: void(load_task(str(file))), Path(scratch) / "q.jsonl", 12,
        ))  # fmt: skip
        memory = peak() - before
    rows = []
    for kind, (n, one) in found.items():
        bad = {k: v for k, v in one.counts.items() if k not in ("taken", "refused")}
        met = not bad and one.slowest <= SECONDS and memory <= MEGABYTES
        rows.append(
            row(
                f"{kind}: {n} mutated lines",
                f"each FILE:LINE, 0 crashes, <= {SECONDS:g} s a line, <= {MEGABYTES} MB",
                f"{one.counts['refused']} refused, {one.counts['taken']} taken,"
                f" {sum(bad.values())} otherwise, {one.slowest:.2f} s, {memory:.0f} MB",
                met,
            )
        )
        for problem in one.odd[:20]:
            print(problem, file=sys.stderr)
    counted = {kind: dict(one.counts) for kind, (_, one) in found.items()}
    if given.lines >= LINES and given.questions >= QUESTIONS:
        write_part("fuzz", "import", rows, counted=counted, seeds=[11, 12])
    else:
        print(rows, counted)
    sys.exit(0 if all(one["met"] for one in rows) else 1)


def void(_: object) -> None:
    """Nothing."""


def peak() -> float:
    """Most memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
