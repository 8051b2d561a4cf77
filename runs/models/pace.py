"""What the trainings of the two reasoners share: the learning rate's course, and the log."""

from __future__ import annotations

import math
from pathlib import Path


def rate_at(step: int, steps: int, *, warm_up: int) -> float:
    """Share of the highest learning rate: a line up, then a cosine down to 2%."""
    if step < warm_up:
        return step / warm_up
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))


def say(log: Path, line: str) -> None:
    """Print a line and add it to the log."""
    print(line, flush=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
