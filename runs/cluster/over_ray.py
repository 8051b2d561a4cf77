"""A recording over Ray: two workers against one; a worker killed, the driver killed.

    runs/cluster/over_ray.sh          makes .venv-ray with rlbudget[ray], then
    python -m runs.cluster.over_ray   there

A toy server that answers after a fixed delay and costs no computation. The seconds are those from
the start of the actors to the last shard.
"""

from __future__ import annotations

import argparse
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

DELAY = 1.0
WORKER = "Recorder"
"""in the name of a worker's process"""
TRIES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=96, help="questions")
    parser.add_argument("--kills", type=int, default=4, help="of workers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, scripted(delay=DELAY) as url:
        scratch = Path(name)
        words = ["--model", url, "--task", str(questions(scratch, args.n)), *PROFILE,
                 "--concurrency", "4"]  # fmt: skip
        one, two = (recorded(words, scratch / f"w{n}", n) for n in (1, 2))
        merged(scratch / "w1")
        workers = killing_workers(words, scratch / "storm", args.kills)
        said, met = verdict(merged(scratch / "w1"), merged(scratch / "storm"), args.n)
        drivers = killing_driver(words, scratch / "driver")
        said_too, met_too = verdict(merged(scratch / "w1"), merged(scratch / "driver"), args.n)
    write_part(
        "cluster", "ray",
        [
            row("2 Ray workers against 1 (toy server with a fixed delay)", ">= 1.7x",
                f"{one / two:.2f}x", one / two >= 1.7),
            row(f"Ray: workers killed {workers} times", "after resume each trace once", said,
                met and workers > 0),
            row(f"Ray: the driver killed {drivers} times", "after resume each trace once", said_too,
                met_too and drivers > 0),
        ],
        questions=args.n, delay=DELAY, seconds={"one": round(one, 1), "two": round(two, 1)}, seed=0,
    )  # fmt: skip


def started(words: list[str], out: Path, workers: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rlbudget.cli.main", "record", *words, "--out", str(out),
               "--ray", "--workers", str(workers)]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def recorded(words: list[str], out: Path, workers: int) -> float:
    """Seconds from the first line of progress to the last."""
    process = started(words, out, workers)
    assert process.stderr is not None
    seen: list[float] = []
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("Recording shards:"):
            seen.append(time.monotonic())
    if process.wait():
        raise SystemExit("".join(said[-20:]))
    return seen[-1] - seen[0]


def finished(words: list[str], out: Path) -> None:
    """Run it until nothing is left: a shard may still be held by a worker that is dying."""
    for _ in range(TRIES):
        process = started(words, out, 2)
        process.communicate()
        if not process.returncode:
            return
        time.sleep(2)
    raise SystemExit("it does not end")


def killing_workers(words: list[str], out: Path, wanted: int) -> int:
    draw, kills = random.Random(0), 0
    process = started(words, out, 2)
    if not wait_for(process.pid, WORKER):
        raise SystemExit("no worker is called " + WORKER)
    while kills < wanted and process.poll() is None:
        time.sleep(draw.uniform(3, 9))
        kills += kill_one(process.pid, WORKER, draw)
    process.communicate()
    if process.returncode:
        finished(words, out)
    return kills


def killing_driver(words: list[str], out: Path) -> int:
    draw, kills = random.Random(1), 0
    for _ in range(2):
        process = started(words, out, 2)
        wait_for(process.pid, WORKER)
        time.sleep(draw.uniform(8, 14))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        time.sleep(2)
    finished(words, out)
    return kills


def merged(out: Path) -> Path:
    """The shards put together."""
    folder = out.with_name(out.name + "-merged")
    command = [sys.executable, "-m", "rlbudget.cli.main", "traces", "merge", str(out), "--out"]
    done = subprocess.run([*command, str(folder)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return folder


if __name__ == "__main__":
    main()
