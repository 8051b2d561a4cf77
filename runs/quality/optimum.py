"""Does PPO find optima that are known? Two tiny sets, five seeds, the lowest and highest price.

    python -m runs.quality.optimum

Writes runs/results/optimum.json; runs/quality/policy_quality.py repeats the row.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from rlbudget.agents.actor import actor_stop_chances
from rlbudget.agents.ppo import PPOConfig, train, training_columns
from rlbudget.policy import outcomes
from rlbudget.traces.table import TraceTable
from runs.common import write_result
from tests.shared.synthetic import never_stop_table, tabular_stops, tabular_table

SEEDS = (0, 1, 2, 3, 4)
CONFIG = PPOConfig(total_timesteps=150_000, n_envs=256, n_steps=8, batch_size=1024, n_epochs=6)


def measure(progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The row, with ``details``: set -> seeds that found the optimum at both prices."""
    sets: dict[str, tuple[TraceTable, Callable[[TraceTable, float], Any]]] = {
        "tabular": (tabular_table(), tabular_stops),
        "never stop": (never_stop_table(), lambda table, price: outcomes.full_stops(table)),
    }
    details = {}
    for name, (table, optimum) in sets.items():
        found = [seed for seed in SEEDS if _finds(table, optimum, seed)]
        details[name] = found
        progress(f"{name}: {len(found)} of {len(SEEDS)} seeds")
    return {
        "row": "both known optima, lowest and highest price, seeds of 5",
        "wanted": [5, 5],
        "reached": [len(found) for found in details.values()],
        "met": all(len(found) == len(SEEDS) for found in details.values()),
        "details": details,
    }


def _finds(table: TraceTable, optimum: Callable[[TraceTable, float], Any], seed: int) -> bool:
    """Whether the kept policy stops every trace where the optimum does, at both prices."""
    config = replace(CONFIG, seed=seed)
    # Known optima: nothing to generalise to, so the set is its own validation under other names.
    same = replace(table, question_ids=np.char.add("v", table.question_ids))
    columns = training_columns(table, config)
    assert columns.normaliser is not None
    with tempfile.TemporaryDirectory() as folder:
        train(table, same, config, Path(folder))
        actor = load_file(Path(folder) / "best.safetensors")
    inputs = columns.inputs.copy()
    for price in config.price_range(table):
        inputs[:, -1] = columns.normaliser.price(price)
        stops = outcomes.first_stop(table, actor_stop_chances(actor, inputs) > 0.5)
        if not np.array_equal(stops, optimum(table, price)):
            return False
    return True


if __name__ == "__main__":
    row = measure(lambda line: print(line, file=sys.stderr, flush=True))
    write_result("optimum", [row], seeds=SEEDS, config=CONFIG.as_dict())
