"""What it costs to check traces as they are read, against the code before the checks.

    python -m runs.trust.reading [--folder FOLDER] [--rounds N]

60,000 made-up traces are written once by each of the two codes (kept in ``--folder`` where it is
given) and read by processes of either in turn; a reading is that of the whole table, in seconds of
processor time, the better of two in a process. The code before is that of the commit ``BEFORE``,
taken from git.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from runs.common import ROOT, row, write_part

BEFORE = "a4b5909"
TRACES = 60_000
WANTED = 1.05

WRITE = """
import sys
from dataclasses import replace
from synthetic import make_table
from trace_makers import traces_of
from rlbudget.traces.store import TraceWriter
from rlbudget.traces.trace import Probe
table = make_table(int(sys.argv[2]), seed=1)
row = 0
with TraceWriter(sys.argv[1]) as writer:
    for trace in traces_of(table):
        points = []
        for point in trace.checkpoints:
            answer, sure = str(int(table.probe_answer[row])), float(table.probe_confidence[row])
            points.append(replace(point, probe=Probe(answer, sure, int(table.probe_tokens[row]))))
            row += 1
        writer.add(replace(trace, checkpoints=tuple(points)))
"""
READ = """
import sys, time
from rlbudget.traces.store import load_table
taken = []
for _ in range(2):
    begun = time.process_time()
    assert len(load_table(sys.argv[1])) == int(sys.argv[2])
    taken.append(time.process_time() - begun)
print(min(taken))
"""


def run(tree: Path, code: str, folder: Path) -> str:
    """What code says, run on a tree."""
    path = os.pathsep.join([str(tree), str(ROOT / "tests" / "shared")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(folder), str(TRACES)]
    # Not from the checkout's root: its own rlbudget would come first.
    done = subprocess.run(
        command, env=environment, cwd=folder.parent, check=True, capture_output=True, text=True
    )
    return done.stdout


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where the traces are kept")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        kept = given.folder or Path(scratch)
        before = Path(scratch) / "before"
        before.mkdir()
        whole = subprocess.run(
            ["git", "archive", BEFORE, "rlbudget", "agents", "envs"],
            cwd=ROOT, check=True, capture_output=True,
        ).stdout  # fmt: skip
        subprocess.run(["tar", "x", "-C", str(before)], input=whole, check=True)
        trees = {"before": before, "now": ROOT}
        for name, tree in trees.items():
            if not (kept / name).exists():
                run(tree, WRITE, kept / name)
        taken: dict[str, list[float]] = {name: [] for name in trees}
        for _ in range(given.rounds):
            for name, tree in trees.items():
                taken[name].append(float(run(tree, READ, kept / name)))
    ratios = [now / then for now, then in zip(taken["now"], taken["before"], strict=True)]
    ratio = statistics.median(taken["now"]) / statistics.median(taken["before"])
    write_part(
        "fuzz",
        "reading",
        [
            row(
                f"reading {TRACES:,} traces with laws and digests checked, against reading before",
                f"<= {WANTED:.2f}x",
                f"{ratio:.2f}x (pairs {min(ratios):.2f} to {max(ratios):.2f})",
                ratio <= WANTED,
            )
        ],
        seconds={name: [round(one, 3) for one in each] for name, each in taken.items()},
        before=BEFORE,
    )


if __name__ == "__main__":
    main()
