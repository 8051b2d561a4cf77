"""Plans as files, for tests of commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def plan_file(path: Path, **said: Any) -> Path:
    """Write a plan: a dictionary is a section, all else stands at the top."""
    top = [f"{k} = {_spelled(v)}" for k, v in said.items() if not isinstance(v, dict)]
    for name, section in said.items():
        if isinstance(section, dict):
            top += [f"[{name}]", *(f"{k} = {_spelled(v)}" for k, v in section.items())]
    path.write_text("\n".join(top) + "\n")
    return path


def _spelled(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_spelled, value)) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value)
