"""Processes that a check started, and a toy recording to kill them in."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

from rlbudget.traces.store import digest, load_traces

PROFILE = ["--profile", "embedded", "--tokenizer", "embedded", "--stride", "16",
           "--temperature", "0"]  # fmt: skip
"""of the toy server, which writes in the tokens of the embedded model"""


def questions(folder: Path, n: int) -> Path:
    """A file of so many questions."""
    file = folder / "questions.jsonl"
    rows = [{"id": f"q{i}", "question": f"What is {i} + 3?", "target": str(i + 3)}
            for i in range(n)]  # fmt: skip
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return file


def descendants(pid: int) -> dict[int, str]:
    """The processes below one of ours, and their command lines."""
    parents, lines = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            lines[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):
            continue
        parents[int(entry.name)] = int(fields[1])
    found = {}
    for one in parents:
        above = one
        while above in parents and above != pid:
            above = parents[above]
        if above == pid and one != pid:
            found[one] = lines.get(one, "")
    return found


def kill_one(pid: int, named: str, draw: random.Random) -> bool:
    """SIGKILL to one of the processes below ``pid`` whose command line holds ``named``."""
    those = [one for one, line in descendants(pid).items() if named in line]
    if not those:
        return False
    try:
        os.kill(draw.choice(those), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def wait_for(pid: int, named: str, seconds: float = 120.0) -> bool:
    """Wait until a process below ``pid`` is called so; whether there is one."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if any(named in line for line in descendants(pid).values()):
            return True
        time.sleep(0.2)
    return False


def verdict(quiet: Path, storm: Path, n: int) -> tuple[str, bool]:
    """Whether a folder holds each of ``n`` traces once, the same as an undisturbed one."""
    traces = load_traces(storm)  # refuses a damaged part and an id that occurs twice
    same = digest(storm) == digest(quiet)
    once = len(traces) == len({trace.question_id for trace in traces}) == n
    said = (f"{len(traces):,} traces, {'each once' if once else 'not each once'},"
            f" {'the same set' if same else 'another set'}")  # fmt: skip
    return said, once and same
