"""The embedded model served by mistake at another temperature, recorded: a change that costs.

    python -m runs.strategies.changed_model FOLDER [--n 800] [--temperature 1.3]

``runs/strategies/adaptive_price.py`` serves it from noon on: the questions are of the same kind,
the answers worse. Tried before, and harmless: temperatures of 1.1 (0.3 points) and 1.2 (1.3), the
weights rounded to four bits (none).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rlbudget.decoding.record import record
from rlbudget.models import load_model
from rlbudget.tasks import load_task


def main() -> None:
    """Record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--n", type=int, default=800)
    parser.add_argument("--temperature", type=float, default=1.3)
    args = parser.parse_args()
    task = load_task("embedded", n=args.n, seed=5)
    record(load_model("embedded"), task, args.out, seed=1, temperature=args.temperature)


if __name__ == "__main__":
    main()
