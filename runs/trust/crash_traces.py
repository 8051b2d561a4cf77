"""Two writers at once, and kills: what is said of a folder of traces is what it holds.

    python -m runs.trust.crash_traces [--rounds N]

Each round starts writers of one folder a random moment apart (imports; recordings of a tiny model;
one of each), or kills one with SIGKILL at a random moment and runs it again. Whoever says that it
wrote n traces wrote them, whoever could not says so in one line, no trace is there twice or half,
and no file is left that hinders the next. Fewer rounds than the default are a rehearsal.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from rlbudget.decoding.record import record
from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.traces.interchange import import_jsonl, write_jsonl
from rlbudget.traces.settings import SETTINGS
from rlbudget.traces.store import load_traces
from runs.common import row, write_part

_tiny = import_module("tests.shared.tiny_model")
_makers = import_module("tests.shared.trace_makers")

ROUNDS = 50
IMPORTED, RECORDED = 300, 6
Writer = Callable[[Path], int]
Told = dict[int, tuple[str, Any]]
FORK = multiprocessing.get_context("fork")


def writers(folder: Path) -> dict[str, tuple[Writer, set[str]]]:
    """Name -> what writes a folder and says how many traces it wrote, and their ids."""
    file = folder / "traces.jsonl"
    traces = [replace(_makers.make_trace(i % 40), trace_id=f"t{i}") for i in range(IMPORTED)]
    write_jsonl(file, traces)
    model = load_model(str(_tiny.save_tiny_model(folder / "model")), profile="embedded")
    task = _tiny.tiny_task(RECORDED)

    def recorded(out: Path) -> int:
        return record(
            model, task, out, max_tokens=16, batch_size=3, probe_tokens=2, resume=True
        ).n  # fmt: skip

    return {
        "import": (lambda out: import_jsonl(file, out).n, {trace.trace_id for trace in traces}),
        "record": (recorded, {f"{one.question_id}-s0" for one in task.questions}),
    }


def run(write: Writer, out: Path, number: int, told: Any) -> None:
    """A writer in a process of its own."""
    try:
        told.put((number, ("wrote", write(out))))
    except UserError as error:
        told.put((number, ("refused", str(error))))
    except BaseException as error:
        told.put((number, ("traceback", repr(error))))


def together(parts: list[Writer], out: Path, rng: random.Random, seconds: float) -> Told:
    """Writers started up to ``seconds`` apart; number -> what it says of itself."""
    queue, started = FORK.SimpleQueue(), []
    for number, write in enumerate(parts):
        process = FORK.Process(target=run, args=(write, out, number, queue))
        process.start()
        started.append(process)
        time.sleep(rng.random() * seconds / len(parts))
    told: Told = dict(queue.get() for _ in started)
    for process in started:
        process.join()
    return told


def judged(out: Path, told: Told, ids: list[set[str]]) -> str:
    """Whether what was said is what the folder holds."""
    if any(kind == "traceback" for kind, _ in told.values()):
        print(told, file=sys.stderr)
        return "a traceback"
    if any("\n" in said for kind, said in told.values() if kind == "refused"):
        return "several lines"
    if not any(kind == "wrote" for kind, _ in told.values()):
        return "nobody wrote"
    there = [trace.trace_id for trace in load_traces(out)]
    wrote = sum(said for kind, said in told.values() if kind == "wrote")
    if len(there) != wrote:
        return "another number"
    whole = [each for number, each in enumerate(ids) if told[number][0] == "wrote"]
    if sorted(there) != sorted(set().union(*whole)):
        return "another content"
    left = {path.name for path in out.iterdir()} | {p.name for p in out.parent.iterdir()}
    odd = [n for n in left if n.startswith(".") or n.endswith((".importing", ".new"))]
    return f"left {odd[0]}" if odd else "as said"


def killed(write: Writer, ids: set[str], out: Path, rng: random.Random, seconds: float) -> str:
    """Kill a writer at a random moment, look at what there is, and run it again."""
    queue = FORK.SimpleQueue()
    process = FORK.Process(target=run, args=(write, out, 0, queue))
    process.start()
    time.sleep(rng.random() * seconds)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    parts = list(out.glob("part-*.parquet")) if out.is_dir() else []
    before = {trace.trace_id for trace in load_traces(out)} if parts else set()
    if not before <= ids:
        return "another content"
    try:
        wrote = write(out)
    except UserError as error:
        if before != ids:
            print(error, file=sys.stderr)
            return "the next was hindered"
        wrote = 0
    there = [trace.trace_id for trace in load_traces(out)]
    if sorted(there) != sorted(ids) or (wrote and wrote != len(ids - before)):
        return "another content"
    odd = [p.name for p in (*out.iterdir(), *out.parent.iterdir()) if p.name.startswith(".")]
    return f"left {odd[0]}" if odd and wrote else "as said"


def main() -> None:
    """Attack."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rng, rows, counted = random.Random(3), [], dict[str, dict[str, int]]()
    with tempfile.TemporaryDirectory() as scratch:
        known = writers(Path(scratch))
        takes = {}
        for name, (write, _) in known.items():
            begun = time.monotonic()
            write(Path(scratch) / f"first-{name}")
            takes[name] = time.monotonic() - begun
        assert (Path(scratch) / "first-record" / SETTINGS).is_file()
        kinds = {
            "two imports at once": ["import", "import"],
            "two recordings at once": ["record", "record"],
            "an import and a recording at once": ["import", "record"],
            "an import killed": ["import"],
            "a recording killed": ["record"],
        }
        for kind, names in kinds.items():
            counts = Counter[str]()
            parts, ids = [known[n][0] for n in names], [known[n][1] for n in names]
            for number in range(given.rounds):
                home = Path(scratch) / f"{kind}-{number}".replace(" ", "-")
                home.mkdir()
                out, seconds = home / "out", 1.3 * max(takes[name] for name in names)
                if len(names) == 1:
                    counts[killed(parts[0], ids[0], out, rng, seconds)] += 1
                else:
                    counts[judged(out, together(parts, out, rng, seconds), ids)] += 1
                shutil.rmtree(home)
            wrong = sum(counts.values()) - counts["as said"]
            rows.append(
                row(
                    f"folders of traces, {kind}: {given.rounds} rounds",
                    "nothing lost, nothing mixed, the loser told so; no lock to delete",
                    f"{counts['as said']} of {given.rounds} as said",
                    wrong == 0,
                )
            )
            counted[kind] = dict(counts)
    if given.rounds >= ROUNDS:
        write_part("crash", "traces", rows, counted=counted, seeds=[3])
    else:
        print(rows, counted)
    sys.exit(0 if all(one["met"] for one in rows) else 1)


if __name__ == "__main__":
    main()
