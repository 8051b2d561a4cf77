"""How long an evaluation of every rule takes.

    python -m runs.speed.evaluate_speed [--traces FOLDER]

2,000 traces of the embedded model (recorded anew, or those of a recorded folder), every rule,
six prices, 2,000 bootstrap draws; reading, choosing, replay, intervals, table and figures. The
peer is the same bootstrap in a loop, one draw at a time, over the same numbers.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from rlbudget.agents.rules import RULES
from rlbudget.evaluate.folder import evaluate_folder
from rlbudget.policy.bootstrap import resample
from rlbudget.traces.store import load_table
from runs.common import recorded, write_result

N = 2000
DRAWS = 2000
RUNS = 3


def main() -> None:
    """Record, time, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--traces", type=Path, help="a recorded folder of 2,000 traces")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        traces = recorded(args.traces, Path(scratch), N)
        seconds = []
        for run in range(RUNS):
            begun = time.perf_counter()
            evaluation = evaluate_folder(traces, out=Path(scratch) / f"out{run}", draws=DRAWS)
            seconds.append(time.perf_counter() - begun)
        table = load_table(traces)
    values = np.random.default_rng(0).random((len(table), 12))
    begun = time.perf_counter()
    resample(table.question_ids, draws=DRAWS, seed=0).means(values)
    vectorised = time.perf_counter() - begun
    loop = one_by_one(table.question_ids, values)
    middle = statistics.median(seconds)
    applied = len(evaluation["summary"])
    write_result(
        "evaluate_speed",
        [
            {
                "row": "evaluate, all rules, 2,000 traces, 6 prices, 2,000 bootstrap draws",
                "wanted": "<= 20 s on 2 cores",
                "reached": f"{middle:.1f} s",
                "met": bool(middle <= 20 and len(table) >= N),
            }
        ],
        seconds=[round(value, 2) for value in seconds],
        traces=len(table),
        checkpoints=len(table.thinking_tokens),
        methods=applied,
        rules=[rule.name for rule in RULES],
        not_applicable=evaluation["not_applicable"],
        draws=DRAWS,
        bootstrap_seconds={
            "vectorised": round(vectorised, 3),
            "one draw at a time": round(loop, 3),
        },
    )


def one_by_one(question_ids: np.ndarray, values: np.ndarray) -> float:
    """Seconds of the same bootstrap, one draw at a time."""
    questions, of_trace = np.unique(question_ids, return_inverse=True)
    rows = [np.flatnonzero(of_trace == question) for question in range(len(questions))]
    rng = np.random.default_rng(0)
    begun = time.perf_counter()
    for _ in range(DRAWS // 20):
        weights = np.empty(len(values))
        for of_question, weight in zip(rows, rng.standard_exponential(len(rows)), strict=True):
            weights[of_question] = weight
        np.average(values, axis=0, weights=weights)
    return 20 * (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
