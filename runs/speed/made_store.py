"""Write a store of made-up traces, as large as one likes, in the layout of a recording.

    python -m runs.speed.made_store OUT [--traces 2000000] [--seed 0] [--processes 2]

Two traces a question, some 30 checkpoints a trace (between 10 and 50), every signal and a trial
answer at each, parts of as many traces as the recorder's. A question has a hidden difficulty; an
answer becomes right somewhere or never, and may be lost again; the signals know of it through
noise. Each part is drawn from the seed and its own number, so the same seed writes the same store
however many processes write it. No Python object is made per trace or checkpoint.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa

from rlbudget.files import write_bytes
from rlbudget.signals.tokens import SIGNALS
from rlbudget.traces.columns import part_of
from rlbudget.traces.laws import SIGNAL
from rlbudget.traces.parts import sealed
from rlbudget.traces.store import PART_SIZE
from rlbudget.traces.trace import Checkpoint, Exit, Final, Probe, Trace
from tests.shared.synthetic import signals_of

STRIDE = 32
SHORTEST, LONGEST = 10, 50
"""checkpoints of a trace"""
WRONG = 4
"""different wrong answers to a question"""


def main() -> None:
    """Write a store."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--traces", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    begun = time.perf_counter()
    n = make_store(args.out, args.traces, seed=args.seed, processes=args.processes)
    size = sum(part.stat().st_size for part in args.out.glob("part-*.parquet"))
    print(f"{args.traces} traces, {n} checkpoints, {size / 1e9:.2f} GB"
          f" in {time.perf_counter() - begun:.0f} s")  # fmt: skip


def make_store(folder: Path, traces: int, *, seed: int = 0, processes: int = 1) -> int:
    """Write so many traces into a folder that is not there; the checkpoints written."""
    folder.mkdir(parents=True)
    write = partial(write_made, folder, traces=traces, seed=seed)
    parts = range(-(-traces // PART_SIZE))
    if processes == 1:
        return sum(map(write, parts))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return sum(pool.map(write, parts, chunksize=16))


def write_made(folder: Path, number: int, *, traces: int, seed: int) -> int:
    """Write a part by its number; its checkpoints."""
    first = number * PART_SIZE
    part, m = made_part(first, min(PART_SIZE, traces - first), seed)
    write_bytes(folder / f"part-{number:06d}.parquet", sealed(part))
    return m


def made_part(first: int, n: int, seed: int) -> tuple[pa.Table, int]:
    """``n`` traces from number ``first`` on, and how many checkpoints they have."""
    rng = np.random.default_rng([seed, first])
    trace = np.arange(first, first + n)
    question = trace // 2
    # The difficulty belongs to the question, in whichever part its traces lie.
    difficulty = np.array([np.random.default_rng([seed, 1, q]).random() for q in question.tolist()])
    lengths = rng.integers(SHORTEST, LONGEST + 1, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    of = np.repeat(np.arange(n), lengths)
    step = np.arange(offsets[-1]) - offsets[of]
    thinking = (step + 1) * STRIDE
    final_thinking = lengths * STRIDE + rng.integers(1, STRIDE, n)
    found = np.where(
        rng.random(n) > 0.05 + 0.2 * difficulty,
        final_thinking * rng.beta(1.2, 2.5, n),
        2.0 * final_thinking,
    )
    lost = np.where(
        rng.random(n) < 0.2, found + (final_thinking - found) * rng.beta(2.0, 1.3, n), np.inf
    )
    right = (thinking >= found[of]) & (thinking < lost[of])
    final_right = (final_thinking >= found) & (final_thinking < lost)
    exits_right = right | (rng.random(len(of)) < 0.04)
    target = question % 1000
    wrong = target[of] + rng.integers(1, WRONG + 1, len(of))
    answers = pa.array(np.where(exits_right, target[of], wrong)).cast(pa.string())
    final = np.where(final_right, target, target + 1)
    m = len(of)
    flat = {
        "thinking_tokens": thinking,
        "exit_answer": answers,
        "exit_exact_match": exits_right,
        "exit_answer_tokens": rng.integers(4, 9, m),
        "probe_answer": answers,
        "probe_confidence": np.clip(
            0.55 + 0.25 * right - 0.15 * difficulty[of] + rng.normal(0, 0.13, m), 0.01, 0.999
        ),
        "probe_tokens": rng.integers(3, 9, m),
        **{SIGNAL + name: values for name, values in signals_of(
            rng, right.astype(np.float64), difficulty[of], np.zeros(m, dtype=np.int64)).items()},
    }  # fmt: skip
    ids = [f"{number:08d}" for number in trace.tolist()]
    rows = {
        "trace_id": [f"t{number}" for number in ids],
        "question_id": [f"q{number:08d}" for number in question.tolist()],
        "task": ["made"] * n,
        "question": [f"What is {value} in the made-up question {q}?"
                     for value, q in zip(target.tolist(), question.tolist(), strict=True)],
        "target": list(map(str, target.tolist())),
        "model": ["made-up"] * n,
        "seed": trace,
        "meta": [json.dumps({"natural": True, "scorer": "text", "stride": STRIDE})] * n,
        "final_answer": list(map(str, final.tolist())),
        "final_exact_match": final_right,
        "final_thinking_tokens": final_thinking,
        "final_answer_tokens": rng.integers(3, 8, n),
        "scorer": ["text"] * n,
    }  # fmt: skip
    schema = _schema()
    columns = []
    for field in schema:
        if field.name in rows:
            columns.append(pa.array(rows[field.name]).cast(field.type))
        else:
            values = pa.array(flat[field.name]).cast(field.type.value_type)
            columns.append(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values))
    return pa.Table.from_arrays(columns, schema=schema), m


def _schema() -> pa.Schema:
    """That of a recorded part with every signal."""
    point = Checkpoint(STRIDE, dict.fromkeys(SIGNALS, 0.0), Exit("", 0, 0), Probe("", 0.0, 0))
    end = Final("", 0, STRIDE + 1, 0)
    return part_of([Trace("t", "q", "made", "?", "!", "made-up", 0, end, (point,))]).schema


if __name__ == "__main__":
    main()
