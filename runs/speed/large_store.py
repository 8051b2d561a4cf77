"""Memory and time of training and evaluation on stores of four sizes, the largest 2,000,000 traces.

    python -m runs.speed.made_store STORE --traces 2000000
    python -m runs.speed.large_store STORE

Each size is the first parts of the store, linked into a folder beside it; `rlbudget train` and
`rlbudget evaluate` (all rules, 2,000 draws) run on it as processes of their own, whose peak memory,
processor seconds and seconds by the clock are taken. The rate is that of the whole command: every
checkpoint of the store, read and checked, over its processor seconds. What is done is kept in
out/large_store.json, so a run that was broken off goes on, and --keep writes what there is. Draws
runs/results/large_store.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pyarrow.parquet as pq

from rlbudget.traces.sampling import MOST_CHECKPOINTS, MOST_MEASURED
from rlbudget.traces.store import PART_SIZE
from runs.common import OUT, RESULTS, ROOT, row, write_result

mpl.use("svg")
from matplotlib import pyplot as plt

SIZES = (2_000_000, 500_000, 125_000, 31_250)
LIMIT = 4.0
"""GiB"""

Measured = dict[str, Any]


def main() -> None:
    """Measure what is not measured yet, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--keep", action="store_true", help="write what is measured, no more")
    args = parser.parse_args()
    kept = OUT / "large_store.json"
    OUT.mkdir(exist_ok=True)
    found: dict[str, Measured] = json.loads(kept.read_text()) if kept.is_file() else {}
    for traces in () if args.keep else SIZES:
        with tempfile.TemporaryDirectory(dir=args.store.parent) as scratch:
            folder = None
            for name in ("evaluate", "train"):
                if f"{name} {traces}" in found:
                    continue
                folder = folder or linked(args.store, Path(scratch) / "traces", traces)
                out = Path(scratch) / name
                found[f"{name} {traces}"] = {
                    "traces": traces, "checkpoints": checkpoints_of(folder),
                    **timed([name, str(folder), "--out", str(out)]),
                }  # fmt: skip
                kept.write_text(json.dumps(found, indent=1) + "\n")
                print(name, found[f"{name} {traces}"], file=sys.stderr, flush=True)
    draw(found, RESULTS / "large_store.svg")
    write_result(
        "large_store",
        rows_of(found),
        sizes=found,
        most_checkpoints={"train": MOST_CHECKPOINTS, "evaluate": MOST_MEASURED},
        seed=0,
    )


def linked(store: Path, folder: Path, traces: int) -> Path:
    """A folder of the first parts of a store."""
    folder.mkdir()
    for number in range(-(-traces // PART_SIZE)):
        name = f"part-{number:06d}.parquet"
        try:
            os.link(store / name, folder / name)
        except OSError:
            shutil.copy(store / name, folder / name)
    return folder


def checkpoints_of(folder: Path) -> int:
    return sum(
        len(pq.read_table(part, columns=["thinking_tokens"]).column(0).combine_chunks().flatten())
        for part in folder.iterdir()
        if part.suffix == ".parquet"
    )  # fmt: skip


def timed(words: list[str]) -> Measured:
    """Run a command: GiB at its peak, processor seconds, seconds by the clock."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "rlbudget.cli.main", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{words[0]} failed")
    return {
        "gib": round(usage.ru_maxrss / 2**20, 2),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "clock_seconds": round(time.monotonic() - begun, 1),
        "load": round(os.getloadavg()[1], 1),
    }


def rows_of(found: dict[str, Measured]) -> list[dict[str, Any]]:
    """The rows of the largest size of each command that was measured, and of what was not."""
    rows = []
    for name, what in (("train", "a training"), ("evaluate", "an evaluation of all rules")):
        sizes = [traces for traces in SIZES if f"{name} {traces}" in found]
        if max(SIZES) not in sizes:
            rows.append(row(f"{max(SIZES):,} traces: {what}", "measured", "not measured", False))
        if not sizes:
            continue
        one = found[f"{name} {max(sizes)}"]
        of = f"{one['traces']:,} traces, {one['checkpoints'] / 1e6:.0f}M checkpoints: {what}"
        rows.append(row(f"{of}, memory at its peak", f"<= {LIMIT:g} GiB", f"{one['gib']} GiB",
                        one["gib"] <= LIMIT))  # fmt: skip
        if name == "train":
            rate = one["checkpoints"] / one["processor_seconds"]
            rows.append(row(f"{of}, checkpoints of the store a processor second", ">= 50,000",
                            f"{rate:,.0f}; {_times(one)}", rate >= 50_000))  # fmt: skip
        else:
            rows.append(row(f"{of} on a sample of {MOST_MEASURED:,} checkpoints",
                            "<= 300 s on 2 cores", _times(one),
                            one["clock_seconds"] <= 300))  # fmt: skip
    return rows


def _times(one: Measured) -> str:
    return (
        f"{one['processor_seconds']:.0f} s of one core ({one['clock_seconds']:.0f} s by the clock"
        f" on two cores with a load of {one['load']:.0f})"
    )


def draw(found: dict[str, Measured], file: Path) -> None:
    """Memory against size, and seconds."""
    plt.rcParams["svg.hashsalt"] = "rlbudget"
    figure, (memory, seconds) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, mark in (("train", "o-"), ("evaluate", "s--")):
        rows = sorted((one["checkpoints"], one["gib"], one["processor_seconds"])
                      for key, one in found.items() if key.startswith(name))  # fmt: skip
        sizes, gib, spent = zip(*rows, strict=True)
        memory.plot(sizes, gib, mark, label=name)
        seconds.plot(sizes, spent, mark, label=name)
    memory.axhline(LIMIT, color="grey", linewidth=0.8)
    for axes, title in ((memory, "GiB at the peak"), (seconds, "processor seconds")):
        axes.set(xscale="log", xlabel="checkpoints in the store", ylabel=title, ylim=(0, None))
        axes.legend()
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
