"""Mutated lines of decision logs, rules and plans: each is refused by its line, or counted.

A line of a log that is not what it should be is left out and counted, and no other line changes. A
line of a file of rules or of a plan is taken, or the file is refused as ``FILE:LINE: what is
wrong``. Every mutation is drawn by the seed.

    python -m runs.trust.fuzz_text [--logs 2400 --rules 1000 --plans 1000 --seed 0]
"""

from __future__ import annotations

import argparse
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
from functools import partial
from pathlib import Path
from typing import Any

from rlbudget.errors import UserError
from rlbudget.policy.folder import load_policy
from rlbudget.strategies.feedback.entries import Entries, read_log
from rlbudget.strategies.feedback.harvest import harvest
from rlbudget.strategies.feedback.log import DecisionLog, LoggedRequest, Stop, feedback, now
from rlbudget.strategies.feedback.production import as_json, shown, streams_of
from rlbudget.strategies.plan import describe, load_plan
from rlbudget.strategies.rules_file import load_rules
from rlbudget.tasks import exact_match_math
from rlbudget.traces.trace import Checkpoint, Exit, Final, Trace
from runs.common import ROOT, row, write_part

POLICY = ROOT / "runs" / "models" / "embedded" / "policy_0"
SECONDS, BYTES = 1.0, 200 * 2**20
HUGE = 10**5
VALUES: list[Any] = [
    None, True, -1, 0, 5, 1.5, float("nan"), float("inf"), 1e308, 10**400, 2**63, "", "x", "\ud800",
    "\x1b[2J", "9" * HUGE, "(" * HUGE, [], {}, [1], {"a": 1}, [[]] * 1000, "r1", "2026",
]  # fmt: skip
BYTES_IN: list[bytes] = [
            b"", b"\xff", b"null", b"[", b"NaN", b'"', b"{", b"\0", b"[" * HUGE, b"9" * HUGE,
            b"\xe2\x80\xae", b"\r", b"\\ud800"]  # fmt: skip


@dataclass
class Tally:
    """What became of the mutations of one kind of file."""

    came: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    slow: str = ""
    """the slowest call"""

    def run(self, what: str, work: Callable[[], Any], mistake: re.Pattern[str] | None) -> Any:
        """One call: taken, refused by a line as ``mistake`` says it, or a fault."""
        begun = time.perf_counter()
        result = None
        try:
            result = work()
            self.came[f"{what} taken"] += 1
        except UserError as error:
            said = str(error)
            if mistake is not None and not mistake.match(said):
                self.faults[f"{what}: no FILE:LINE: {_shape(said)}"] += 1
            self.came[f"{what} refused"] += 1
        except Exception as error:
            self.faults[f"{what}: {type(error).__name__}: {_shape(str(error))}"] += 1
        took = time.perf_counter() - begun
        if took > self.slowest:
            self.slowest, self.slow = took, what
        return result


def _shape(said: str) -> str:
    """What a message says, without places and numbers."""
    return re.sub(r"\d+", "N", re.sub(r"/\S*", "PATH", said))[:80]


def paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a JSON value are."""
    if before:
        yield before
    if isinstance(value, dict | list):
        for name, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(one, (*before, name))


def mutated_json(line: bytes, rng: random.Random) -> bytes:
    """A line with a value changed, one left out, or bytes put in."""
    if rng.random() < 0.3:
        return mutated_bytes(line, rng)
    row = json.loads(line)
    places = list(paths(row))
    *outer, last = rng.choice(places)
    inside = row
    for name in outer:
        inside = inside[name]
    if rng.random() < 0.15:
        del inside[last]
    else:
        inside[last] = rng.choice(VALUES)
    return json.dumps(row).encode()


def mutated_bytes(line: bytes, rng: random.Random) -> bytes:
    """A line with some bytes replaced."""
    at, length = rng.randrange(len(line) + 1), rng.randrange(20)
    return line[:at] + rng.choice(BYTES_IN) + line[at + length :]


def mutated_toml(line: bytes, rng: random.Random) -> bytes:
    """A line with its value or its key changed, or bytes put in."""
    key, equals, _ = line.partition(b" = ")
    if not equals or rng.random() < 0.3:
        return mutated_bytes(line, rng)
    if rng.random() < 0.3:
        return rng.choice(TOML_KEYS) + line[len(key) :]
    value: bytes = rng.choice(TOML_VALUES)
    return key + equals + value


TOML_KEYS: list[bytes] = [
             b"a" * HUGE, b"a." * 5000 + b"a", b'""', b'"\\u0000"', b"name", b"policy", b"x", b"-",
             b"guard", b"rule", b"audit.log", b"then", b"'\x1b'"]  # fmt: skip
TOML_VALUES: list[bytes] = [
    b"true", b"-1", b"0", b"1.5",
    b"nan", b"inf", b"-inf", b"1e999", b"9" * HUGE, b"0x" + b"f" * HUGE,
    b"9223372036854775808", b'""', b'"x"', b'"' + b"(" * 900 + b'"', b'"(a+)+$"', b'"(?=a)"',
    b'"\\\\1"', b'"a{1001}"', b'"' + b"a" * HUGE + b'"', b"[]", b"{}", b"[1]", b'["x"]',
    b"{a = 1}",
    b"[" * 900 + b"]" * 900, b"[" * HUGE, b"{a=" * 200 + b"1" + b"}" * 200, b"1979-05-27",
    b"0000-99-99", b'"> 1e999"', b'"> nan"', b'"/"', b'"../.."', b'"~nobody/x"', b'"a\\u0000b"',
    b'"' + b"x/" * 3000 + b'"', b"'''", b'"""', b'"\\uD800"', b"1e-400", b"[nan]", b"[true]",
    b'["a", 1]', b"0o7", b"1_0", b'"> ' + b"9" * HUGE + b'"',
]  # fmt: skip


def made_log(folder: Path) -> None:
    """A log of a few requests, audits and outcomes."""
    log = DecisionLog(folder, store_text=True)
    for i in range(6):
        points = tuple(
            Checkpoint(tokens, {"entropy_mean": 0.5}, Exit(str(i), 0, 3), None)
            for tokens in (32, 64, 96)
        )
        trace = Trace(
            trace_id=f"r{i}", question_id=f"q{i}", task="t", question=f"What is {i}?", target="",
            model="m", seed=0, checkpoints=points, final=Final(str(i), 0, 128, 4), meta={},
        )  # fmt: skip
        log.audit(trace)
        stop = Stop("policy", 64, 0.9, 64, 0, 3)
        log.decision(LoggedRequest(f"r{i}", now(), "d" * 64, 3, None, 1e-3, True, stop, "q", "a"))
        if i % 2:
            feedback(folder, f"r{i}", target=str(i))
        else:
            feedback(folder, f"r{i}", right=bool(i % 3))


FILES = ("decisions.jsonl", "audits.jsonl", "outcomes.jsonl")


def fuzz_logs(n: int, rng: random.Random, home: Path) -> Tally:
    """Each mutated line is read or counted, and no other entry changes."""
    good, bad, out = home / "log", home / "mutated", home / "harvested"
    made_log(good)
    kept = read_log(good)
    exact_match_math("x+1", "1+x")  # the processes of the scorers start once
    exact_match_math("word " * 1000, "x")
    stream(kept)
    tally = Tally()
    for _ in range(n):
        for folder in (bad, out):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, bad)
        file = bad / rng.choice(FILES)
        lines = file.read_bytes().split(b"\n")
        place = rng.randrange(len(lines) - 1)
        lines[place] = mutated_json(lines[place], rng)
        file.write_bytes(b"\n".join(lines))
        found = tally.run("read", lambda: read_log(bad), None)
        if found is None:
            tally.faults["read: the whole log was refused"] += 1
            continue
        check_others(kept, found, lines[place], tally)
        tally.run("stream", partial(stream, found), None)
        tally.run("harvest", lambda: harvest(read_log(bad), out), None)
        tally.run("feedback", lambda: feedback(bad, "r2", right=True), None)
    return tally


def stream(found: Entries) -> None:
    """What ``rlbudget stream`` shows."""
    streams = streams_of(found)
    shown(streams)
    for one in streams:
        json.dumps(as_json(one), allow_nan=False)


def check_others(kept: Entries, found: Entries, line: bytes, tally: Tally) -> None:
    """Of all the entries one may be another or gone, and a new one may be there."""
    for name in ("decisions", "audits", "outcomes"):
        before, after = getattr(kept, name), getattr(found, name)
        lost = [key for key in before if before[key] != after.get(key)]
        new = [key for key in after if key not in before]
        if len(lost) > 2 or len(new) > 1:
            tally.faults[f"{name}: {len(lost)} lost, {len(new)} new"] += 1
        renamed = any(f'"{key}"'.encode() in line for key in before if key not in lost)
        gone = lost and not new and all(key not in after for key in lost)
        if gone and not found.damaged and not renamed:
            tally.faults[f"{name}: lost and not counted"] += 1


RULES = """\
[[rule]]
name = "contracts"
question = "(?i)contract"
then = "full"
[[rule]]
name = "gold"
metadata = { tier = "gold", level = 3 }
price = 0.5
min_tokens = 32
max_tokens = 4096
[[rule]]
name = "calm"
tokens = "> 100"
then = "stop"
[[rule]]
name = "unsure"
signal = { entropy_mean = "> 1.5" }
then = "go on"
[[rule]]
name = "other"
task = "gsm8k"
policy = "policy"
"""
PLAN = """\
policy = "policy"
token_price = 1e-4
exit_profile = "embedded"
max_thinking_tokens = 8192
answer_reserve = 512
loops = true
[rules]
file = "rules.toml"
[audit]
log = "log"
share = 0.02
store_text = false
[price]
mode = "fixed"
"""


def fuzz_toml(n: int, rng: random.Random, text: str, file: Path, load: Callable[[], Any]) -> Tally:
    """Each mutated line is taken, or refused by a line."""
    tally = Tally()
    mistake = re.compile(rf"{re.escape(str(file.parent))}[^:]*:\d+: \S")
    for _ in range(n):
        lines = text.encode().split(b"\n")
        place = rng.randrange(len(lines) - 1)
        lines[place] = mutated_toml(lines[place], rng)
        file.write_bytes(b"\n".join(lines))
        tally.run(file.stem, load, mistake)
    return tally


def peak() -> int:
    """The largest size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rows_of(counts: dict[str, int], seed: int, home: Path) -> tuple[list[dict[str, Any]], Any]:
    """The rows and what became of the mutations."""
    shutil.copytree(POLICY, home / "policy")
    policy = load_policy(home / "policy")
    rules, plan = home / "rules.toml", home / "plan.toml"
    jobs: dict[str, Callable[[int, random.Random], Tally]] = {
        "logs": lambda n, rng: fuzz_logs(n, rng, home),
        "rules": lambda n, rng: fuzz_toml(
            n, rng, RULES, rules, lambda: load_rules(rules, {"policy": policy})
        ),
        "plans": lambda n, rng: fuzz_toml(
            n, rng, PLAN, plan, lambda: list(describe(load_plan(plan)))
        ),
    }
    rows, details = [], {}
    for name, job in jobs.items():
        rules.write_text(RULES)
        before = peak()
        tally = job(counts[name], random.Random(f"{seed} {name}"))
        grown = peak() - before
        faults = sum(tally.faults.values())
        wanted = "each counted, the others kept" if name == "logs" else "each FILE:LINE"
        rows.append(
            row(
                f"{name}, {counts[name]:,} mutated lines",
                f"{wanted}, 0 crashes, <= 1 s a line, <= 200 MB",
                f"{faults} faults, slowest {tally.slowest:.2f} s ({tally.slow}),"
                f" {grown / 2**20:.0f} MB more",
                faults == 0 and tally.slowest <= SECONDS and grown <= BYTES,
            )
        )
        details[name] = {"came": dict(tally.came), "faults": dict(tally.faults)}
    return rows, details


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--logs", type=int, default=2400)
    parser.add_argument("--rules", type=int, default=1000)
    parser.add_argument("--plans", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    counts = {"logs": args.logs, "rules": args.rules, "plans": args.plans}
    with tempfile.TemporaryDirectory() as home:
        rows, details = rows_of(counts, args.seed, Path(home))
    for name, found in details.items():
        print(name, json.dumps(found), file=sys.stderr)
    write_part("fuzz", "text", rows, seed=args.seed, lines=counts, came=details)


if __name__ == "__main__":
    main()
