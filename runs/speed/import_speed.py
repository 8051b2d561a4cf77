"""How fast `rlbudget import` reads a file of traces, and how much memory it takes.

    python -m runs.speed.import_speed [--traces FOLDER]

Traces of the embedded model (recorded anew, or those of a recorded folder), repeated under new ids
to N lines of JSONL as other tools would write them, imported into new folders: parsing, checking
and writing Parquet, the start of the interpreter left out. The peer is `json.loads` with the same
checks and the same writing, in turn with it; beside both stands `json.loads` of the lines alone,
which checks and writes nothing. Seconds of CPU stand beside those of the clock, which on a machine
that is shared measure the others too.

Memory is the largest resident size of a fresh process that imports N traces, and one 4 N.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlbudget.traces.interchange import import_jsonl, trace_from_dict
from rlbudget.traces.store import TraceWriter, load_traces
from rlbudget.traces.trace import trace_to_dict
from runs.common import recorded, write_result

N = 4000
RECORDED = 500
RUNS = 7
WANTED = 5000
GROWTH = 10.0


@dataclass(frozen=True, slots=True)
class Rate:
    """Traces a second of one way, medians over the runs."""

    clock: float
    cpu: float

    def as_dict(self) -> dict[str, int]:
        """JSON-ready."""
        return {"traces_per_second": round(self.clock), "traces_per_cpu_second": round(self.cpu)}


def main() -> None:
    """Record, write, time, measure memory, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--traces", type=Path, help="a recorded folder; recorded anew if left out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        records = [trace_to_dict(t) for t in load_traces(recorded(args.traces, scratch, RECORDED))]
        load = os.getloadavg()
        small, large = scratch / "n.jsonl", scratch / "4n.jsonl"
        write(small, records, N)
        write(large, records, 4 * N)
        ways = timed(
            {
                "import": lambda: imported(small, scratch),
                "json.loads, checked and written": lambda: peer(small, scratch),
                "json.loads alone": lambda: parsed(small),
            }
        )
        peaks = {n: peak(file, scratch) for n, file in ((N, small), (4 * N, large))}
        size = small.stat().st_size
    checkpoints = sum(len(record["checkpoints"]) for record in records) / len(records)
    ours, theirs = ways["import"], ways["json.loads, checked and written"]
    growth = peaks[4 * N] - peaks[N]
    write_result(
        "import_speed",
        [
            {
                "row": f"import, traces/s (median of {RUNS} runs; {checkpoints:.0f} checkpoints and"
                f" {size / N / 1000:.1f} kB a trace)",
                "wanted": f">= {WANTED:,} (json.loads and the same checks: {theirs.clock:,.0f},"
                f" {theirs.cpu:,.0f} per CPU second)",
                "reached": f"{ours.clock:,.0f} ({ours.cpu:,.0f} per CPU second)",
                "met": bool(ours.clock >= WANTED),
            },
            {
                "row": f"import, peak memory of {4 * N:,} traces over that of {N:,}",
                "wanted": f"flat: <= {GROWTH:g} MB more",
                "reached": f"{growth:+.1f} MB on {peaks[N]:.0f} MB (file: {4 * size / 1e6:.0f} MB)",
                "met": bool(growth <= GROWTH),
            },
        ],
        traces=N,
        checkpoints_per_trace=round(checkpoints, 2),
        bytes_per_trace=round(size / N),
        runs=RUNS,
        ways={name: rate.as_dict() for name, rate in ways.items()},
        load_average=[round(value, 2) for value in load],
        peak_megabytes={str(n): round(value, 1) for n, value in peaks.items()},
    )


def write(file: Path, records: list[dict[str, Any]], n: int) -> None:
    """``n`` lines, the records again and again, each time under new ids."""
    with file.open("w", encoding="utf-8") as out:
        for i in range(n):
            record = {**records[i % len(records)], "trace_id": f"t{i}", "question_id": f"q{i}"}
            out.write(json.dumps(record) + "\n")


def imported(file: Path, scratch: Path) -> None:
    """The import, into a folder that is deleted."""
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        import_jsonl(file, Path(out) / "traces")


def peer(file: Path, scratch: Path) -> None:
    """Every line by `json.loads`, then the same schema, the same laws and the same writer."""
    with (
        tempfile.TemporaryDirectory(dir=scratch) as out,
        TraceWriter(Path(out) / "traces") as writer,
        file.open(encoding="utf-8") as lines,
    ):
        for line in lines:
            writer.add(trace_from_dict(json.loads(line)), checked=True)


def parsed(file: Path) -> None:
    """Every line parsed and thrown away."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            json.loads(line)


def timed(ways: dict[str, Callable[[], None]]) -> dict[str, Rate]:
    """Each way in turn, ``RUNS`` times after one that is not counted."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for run in range(RUNS + 1):
        for name, way in ways.items():
            clock, cpu = time.perf_counter(), time.process_time()
            way()
            if run:
                seconds[name].append((time.perf_counter() - clock, time.process_time() - cpu))
    return {
        name: Rate(*(N / statistics.median(column) for column in zip(*pairs, strict=True)))
        for name, pairs in seconds.items()
    }


CHILD = """
import sys
from pathlib import Path
from rlbudget.traces.interchange import import_jsonl
import_jsonl(sys.argv[1], sys.argv[2])
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""
"""The kernel's high-water mark of this process: ru_maxrss would hold that of its parent."""


def peak(file: Path, scratch: Path) -> float:
    """Megabytes, the largest resident size of a process that imports the file (Linux)."""
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        command = [sys.executable, "-c", CHILD, str(file), str(Path(out) / "traces")]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(said) / 1000


if __name__ == "__main__":
    main()
