"""A made-up population of questions whose losses are known: as many traces of it as one likes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlbudget.traces.columns import table_of
from rlbudget.traces.table import TraceTable
from rlbudget.traces.trace import Checkpoint, Exit, Final, Trace

STRIDE, CHECKPOINTS = 10, 4
NOISE = 6
"""signals that tell nothing of the answer, and much of the trace: something to learn by heart"""


def decode(question: int, seed: int = 0, *, name: str = "") -> Trace:
    """A decode of a question: another seed is another decode, another ``name`` another id.

    The answer is right from some checkpoint on, or from the end, or never. One signal knows about
    it through noise.
    """
    difficulty = float(np.random.default_rng([1, question]).beta(1.2, 1.6))
    rng = np.random.default_rng([2, question, seed])
    right_from = rng.binomial(CHECKPOINTS, difficulty) + (0 if rng.random() < 0.9 else 99)
    final = right_from <= CHECKPOINTS
    points = []
    for step in range(CHECKPOINTS):
        right = step >= right_from
        told = {"entropy_mean": float(3 * right + rng.normal(0, 0.8))}
        told |= {f"noise_{k}": drawn for k, drawn in enumerate(rng.normal(size=NOISE).tolist())}
        points.append(
            Checkpoint(STRIDE * (step + 1), told, exit=Exit("1" if right else "0", int(right), 3))
        )
    return Trace(
        trace_id=f"{name}{question}-{seed}", question_id=f"{name}q{question}", task="made-up",
        question=f"What is made up as {question}?", target="1", model="none", seed=seed,
        final=Final("1" if final else "0", int(final), STRIDE * (CHECKPOINTS + 1), 3),
        checkpoints=tuple(points),
    )  # fmt: skip


def decodes(questions: Sequence[int], seed: int = 0, *, name: str = "") -> list[Trace]:
    """One decode of each question."""
    return [decode(question, seed, name=name) for question in questions]


def large(n: int, start: int) -> TraceTable:
    """So many fresh questions, for the loss that a policy really has."""
    return table_of(decodes(range(start, start + n)))
