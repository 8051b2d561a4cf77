"""How the library is built: its rooms, its imports, its lines, what it costs to start.

    python -m runs.house --before COMMIT --moved FROM TO

``--before`` is the commit that the lines are compared with. ``--moved`` names two commits between
which files only moved: both are checked out, train on the kept SmolLM2 traces and evaluate, and
their policies and evaluations must be the same to the last bit. Training speed is that of the kept
``runs/results/training_speed.json``. The test command is run and timed, without the set-up of its
environment.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from runs.common import KEPT_TRACES, RESULTS, ROOT, row, write_result
from runs.import_graph import circles, floor, imports, modules, room

HEAVY = {"pyarrow", "rich", "torch"}
STEPS = "60000"


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", required=True)
    parser.add_argument("--moved", nargs=2, required=True)
    args = parser.parse_args()
    rows = [*_structure(), _lines(args.before), *_start(), *_golden(*args.moved), _speed(),
            _tests()]  # fmt: skip
    write_result("house", rows, before=args.before, moved=args.moved)


def _structure() -> list[dict[str, Any]]:
    files = modules()
    every = list(imports(files))
    ours = [one for one in every if one.imported in files]
    up = [one for one in ours if room(one.importer) != "rlbudget" and (
        room(one.imported) == "rlbudget" or floor(room(one.importer)) < floor(room(one.imported))
    )]  # fmt: skip
    edges: dict[str, set[str]] = defaultdict(set)
    rooms: dict[str, set[str]] = defaultdict(set)
    for one in ours:
        edges[one.importer].add(one.imported)
        if room(one.importer) != room(one.imported):
            rooms[room(one.importer)].add(room(one.imported))
    rooms.pop("rlbudget", None)
    late = {(one.importer, one.line) for one in every if one.kind == "lazy"}
    entries = [p.name for p in (ROOT / "rlbudget").iterdir() if p.name != "__pycache__"]
    round_trips = len(circles(edges)) + len(circles(rooms))
    return [
        row("entries at the top of rlbudget/", "<= 20", str(len(entries)), len(entries) <= 20),
        row("import circles between rooms or files; breaches of the layers", "0; 0",
             f"{round_trips}; {len(up)}", not round_trips and not up),
        row("lazy imports inside functions", "<= 40", str(len(late)), len(late) <= 40),
    ]  # fmt: skip


def _lines(before: str) -> dict[str, Any]:
    names = ("rlbudget", "envs", "agents")
    counts = []
    for commit in (before, "HEAD"):
        listed = _git("ls-tree", "-r", "--name-only", commit, *names).splitlines()
        counts.append(
            sum(_git("show", f"{commit}:{name}").count("\n") for name in listed
                if name.endswith(".py"))
        )  # fmt: skip
    fewer = counts[0] - counts[1]
    difference = f"{abs(fewer):,} {'fewer' if fewer > 0 else 'more'}"
    return row("library lines, before against now", ">= 1,200 fewer",
               f"{counts[0]:,} -> {counts[1]:,}: {difference}", fewer >= 1200)  # fmt: skip


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True,
                          text=True).stdout  # fmt: skip


def _start() -> list[dict[str, Any]]:
    size = (ROOT / "README.md").stat().st_size
    code = (
        "import sys, time\nstart = time.perf_counter()\nimport rlbudget\n"
        "print(time.perf_counter() - start)\nprint(sorted({n.split('.')[0] for n in sys.modules}))"
    )
    ran = [_python("-c", code).splitlines() for _ in range(7)]
    seconds = statistics.median(float(lines[0]) for lines in ran)
    heavy = sorted(name for name in HEAVY if f"'{name}'" in ran[0][1])
    helped = []
    for _ in range(7):
        before = os.times()
        _python("-m", "rlbudget", "--help")
        helped.append(os.times().elapsed - before.elapsed)
    shown = statistics.median(helped)
    return [
        row("README.md, bytes", "<= 8,000", f"{size:,}", size <= 8000),
        row("import rlbudget, seconds, median of 7; heavy packages it loads", "<= 0.1; none",
             f"{seconds:.3f}; {', '.join(heavy) or 'none'}", seconds <= 0.1 and not heavy),
        row("rlbudget --help, seconds, median of 7", "<= 0.5", f"{shown:.3f}", shown <= 0.5),
    ]  # fmt: skip


def _python(*words: str) -> str:
    return subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True,
                          text=True).stdout  # fmt: skip


def _golden(first: str, second: str) -> list[dict[str, Any]]:
    digests = [_trained(commit) for commit in (first, second)]
    same = [digests[0][name] == digests[1][name] for name in ("policy", "evaluation")]
    return [
        row("golden digests before and after the moves: trained policy, evaluation.json",
             "unchanged", f"{', '.join('unchanged' if one else 'changed' for one in same)}"
             f" ({digests[1]['policy'][:12]}, {digests[1]['evaluation'][:12]})", all(same)),
    ]  # fmt: skip


def _trained(commit: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as scratch:
        tree, traces = Path(scratch) / "tree", KEPT_TRACES
        _git("worktree", "add", "--detach", str(tree), commit)
        try:
            environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
            for words in (
                ("train", str(traces), "--out", "run", "--total-timesteps", STEPS),
                ("freeze", "run", "--out", "policy"),
                ("evaluate", str(traces), "--policy", "policy", "--out", "evaluation"),
            ):
                subprocess.run([sys.executable, "-m", "rlbudget", *words], cwd=scratch, check=True,
                               env=environment, capture_output=True)  # fmt: skip
            files = {"policy": "policy/policy.safetensors",
                     "evaluation": "evaluation/evaluation.json"}  # fmt: skip
            return {
                name: hashlib.sha256((Path(scratch) / file).read_bytes()).hexdigest()
                for name, file in files.items()
            }
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _speed() -> dict[str, Any]:
    kept = json.loads((RESULTS / "training_speed.json").read_text())
    ratio = next(one for one in kept["rows"] if "one-by-one" in one["row"])
    name = "PPO's learn(), checkpoints a second, times eight one-by-one SB3 environments"
    return row(name, f">= {ratio['wanted']}", str(ratio["reached"]), ratio["met"])


def _tests() -> dict[str, Any]:
    started = time.perf_counter()
    passed = subprocess.run(["bash", "runs/test.sh"], cwd=ROOT, capture_output=True).returncode == 0
    minutes = (time.perf_counter() - started) / 60
    reached = f"{minutes:.1f}" if passed else "failed"
    return row("tests, minutes", "<= 5", reached, passed and minutes <= 5)


if __name__ == "__main__":
    main()
