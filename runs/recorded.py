"""The traces a script measures on: a folder that is there, or the embedded model recorded anew."""

from __future__ import annotations

from pathlib import Path

from rlbudget.models import load_model
from rlbudget.record import record
from rlbudget.tasks import load_task


def recorded(traces: Path | None, scratch: Path, n: int, seed: int = 0) -> Path:
    """``traces``, or ``n`` decodes of the embedded model recorded below ``scratch``."""
    if traces is not None:
        return traces
    folder = scratch / "traces"
    record(load_model("embedded"), load_task("embedded", n=n, seed=seed), folder, seed=seed)
    return folder
