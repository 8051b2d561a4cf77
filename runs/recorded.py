"""The traces a script measures on: a folder that is there, or the embedded model recorded anew."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlbudget.decoding.record import record
from rlbudget.models import load_model
from rlbudget.tasks import load_task


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
    folder = scratch / "traces"
    record(load_model("embedded"), load_task("embedded", n=n, seed=seed), folder, seed=seed)
    return folder
