"""Where measured numbers go: ``runs/results/NAME.json``, and the last line of the output."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("numpy", "torch", "transformers", "stable-baselines3", "gymnasium", "reasoning-gym")


def write_result(name: str, rows: list[dict[str, Any]], *, keep: bool = True, **extra: Any) -> None:
    """Save ``rows`` ({"row", "wanted", "reached", "met"}) beside versions, machine and command.

    A row whose interval cannot tell whether what is wanted is reached is not met.
    ``extra`` (seeds, details) goes into the same object, which is also printed as one line.
    Without ``keep`` it is printed only.
    """
    result = {
        "name": name,
        "rows": rows,
        **extra,
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "command": " ".join(["python", _script(), *map(_shown, sys.argv[1:])]),
    }
    if keep:
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)


def _shown(argument: str) -> str:
    """An argument, places on this machine left out: what matters of a folder is its contents."""
    return "FOLDER" if argument.startswith(("/", "~")) else argument


def _script() -> str:
    """The running script's place below the root of the checkout."""
    script, root = Path(sys.argv[0]).resolve(), FOLDER.resolve().parents[1]
    return str(script.relative_to(root)) if script.is_relative_to(root) else script.name


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
