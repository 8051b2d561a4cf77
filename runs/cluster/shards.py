"""Shards of a recording through the template, killed at random, against an undisturbed recording.

    python -m runs.cluster.shards --n 300 --kills 10

A toy server; ``runs/cluster/parallel.sh`` records 6 shards, 2 at once. Again and again one of the
recorders, or all at once, is killed (SIGKILL) and the same line is run again. Then the shards are
merged.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from runs.cluster.killing import PROFILE, kill_one, questions, verdict, wait_for
from runs.common import ROOT, row, write_part
from runs.integrations.toy_script import scripted

SHARDS, JOBS = 6, 2
DELAY = 0.1
KILL_AFTER = (10.0, 30.0)
"""seconds of a recorder's life, its start included"""
RLBUDGET = [sys.executable, "-m", "rlbudget.cli.main"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--kills", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, scripted(delay=DELAY) as url:
        scratch = Path(name)
        words = ["--model", url, "--task", str(questions(scratch, args.n)), *PROFILE]
        quiet, storm = scratch / "quiet", scratch / "storm"
        run([*RLBUDGET, "record", *words, "--out", str(quiet), "--concurrency", "32"])
        template = [str(ROOT / "runs" / "cluster" / "parallel.sh"), str(SHARDS), str(JOBS),
                    str(storm), *words, "--concurrency", "4"]  # fmt: skip
        kills = disturbed(template, args.kills)
        run(template)
        run([*RLBUDGET, "traces", "merge", str(storm), "--out", str(scratch / "merged")])
        said, met = verdict(quiet, scratch / "merged", args.n)
    write_part(
        "cluster", "shards",
        [row(f"{SHARDS} shards of {args.n} questions, {JOBS} at once, recorders killed {kills}"
             " times at random, merged", "each trace once, the same set as undisturbed", said,
             met and kills >= args.kills)],
        kills=kills, seed=0,
    )  # fmt: skip


def run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])


def environment() -> dict[str, str]:
    return {**os.environ, "RLBUDGET": " ".join(RLBUDGET)}


def disturbed(template: list[str], wanted: int) -> int:
    """Run the template, killed so many times; how often it was before all had ended."""
    draw, kills = random.Random(0), 0
    while kills < wanted:
        process = subprocess.Popen(template, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        wait_for(process.pid, "--shard")
        time.sleep(draw.uniform(*KILL_AFTER))
        if process.poll() == 0:
            break
        if draw.random() < 0.3:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        else:
            kills += kill_one(process.pid, "rlbudget.cli.main", draw)
        process.wait()
        print(f"killed {kills} times", file=sys.stderr, flush=True)
    return kills


if __name__ == "__main__":
    main()
