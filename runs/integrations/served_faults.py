"""Recording through a server that fails in every way, killed again and again, against quiet.

    python -m runs.integrations.served_faults --n 2000 --kills 20

A toy server drops connections, breaks answers off, says 429 and 500, aborts, is late and dies; the
recorder is killed (SIGKILL) and started again with --resume. What it has in the end must be what
an undisturbed recording has. Then: two servers with a fixed delay against one.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from rlbudget.traces.store import existing_ids
from runs.cluster.killing import PROFILE, questions, verdict
from runs.common import ROOT, row, write_part
from runs.integrations.toy_script import scripted

CONCURRENCY = 64
FAULTS, DIE = 0.01, 0.0002
"""chances of a request: of each kind of fault; of the server's end"""
KILL_AFTER = (1.0, 6.0)
"""seconds of a recorder's work"""
DELAY = 0.5


def command(urls: Sequence[str], file: Path, out: Path, concurrency: int) -> list[str]:
    return [
        sys.executable, "-m", "rlbudget.cli.main", "record", "--model", ",".join(urls),
        *PROFILE, "--task", str(file), "--out", str(out), "--resume",
        "--concurrency", str(concurrency), "--patience", "60",
    ]  # fmt: skip


def recorded(urls: Sequence[str], file: Path, out: Path, concurrency: int) -> float:
    """Seconds that the command took."""
    begun = time.monotonic()
    done = subprocess.run(
        command(urls, file, out, concurrency), cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return time.monotonic() - begun


def killed(urls: Sequence[str], file: Path, out: Path, n: int, kills: int) -> int:
    """Record, killed up to ``kills`` times; how often it was."""
    draw, done = random.Random(0), 0
    while done < kills:
        process = subprocess.Popen(
            command(urls, file, out, CONCURRENCY), cwd=ROOT, stderr=subprocess.PIPE, text=True
        )  # fmt: skip
        before = len(existing_ids(out))
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("Recording:"):
                break  # it has begun to work: now its time is counted
        threading.Thread(target=process.stderr.read, daemon=True).start()
        deadline = time.monotonic() + draw.uniform(*KILL_AFTER)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        done += 1
        print(f"kill {done}: {before} of {n} were there", file=sys.stderr, flush=True)
    return done


def faults(n: int, kills: int, scratch: Path) -> None:
    file = questions(scratch, n)
    with scripted() as url:
        quiet = recorded([url], file, scratch / "quiet", CONCURRENCY)
    with scripted(faults=FAULTS, die=DIE) as url:
        begun = time.monotonic()
        times = killed([url], file, scratch / "storm", n, kills)
        recorded([url], file, scratch / "storm", CONCURRENCY)
        storm = time.monotonic() - begun
    said, met = verdict(scratch / "quiet", scratch / "storm", n)
    write_part(
        "cluster", "faults",
        [row(
            f"toy server that fails, concurrency {CONCURRENCY}, {n:,} questions, the recorder"
            f" killed {times} times",
            "each trace once, none torn, same set as undisturbed",
            said,
            met and times >= kills,
        )],
        seconds={"quiet": round(quiet, 1), "disturbed": round(storm, 1)}, kills=times,
        faults={"each kind": FAULTS, "the end of the server": DIE},
    )  # fmt: skip


def two(n: int, scratch: Path) -> None:
    file = questions(scratch, n)
    with scripted(delay=DELAY) as one, scripted(delay=DELAY) as other:
        alone = recorded([one], file, scratch / "one", 8)
        both = recorded([one, other], file, scratch / "two", 8)
        start = recorded([one], file, scratch / "two", 8)  # nothing is left: the start alone
    ratio = (alone - start) / (both - start)
    write_part(
        "cluster", "two servers",
        [row("two servers against one (fixed delay), questions a second", ">= 1.7x",
             f"{ratio:.2f}x", ratio >= 1.7)],
        questions=n, delay=DELAY, seconds={"one": round(alone, 1), "two": round(both, 1)},
        start=round(start, 1),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--two", type=int, default=120, help="questions for two servers")
    parser.add_argument("--only", choices=("faults", "two"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if given.only in (None, "faults"):
            faults(given.n, given.kills, Path(scratch))
        if given.only in (None, "two"):
            two(given.two, Path(scratch))


if __name__ == "__main__":
    main()
