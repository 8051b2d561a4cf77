"""A part of a task's questions, for one machine of many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rlbudget.decoding.record import row_seed
from rlbudget.errors import UserError
from rlbudget.tasks.task import Task
from rlbudget.traces.shards import shards_there

SHARDS_A_WORKER = 8
"""so that a worker that is fast, or joins late, finds work"""
FEWEST_QUESTIONS = 4
"""of a shard"""


def sharded(task: Task, shard: tuple[int, int]) -> Task:
    """The questions of shard ``(i, n)``, 1 the first: by their ids alone, whatever their order.

    Raises ``UserError`` where there is no such shard.
    """
    place, n = shard
    if not 1 <= place <= n:
        raise UserError(f"shard {place}/{n}: the first is 1/{n}, the last {n}/{n}")
    kept = tuple(q for q in task.questions if row_seed(0, q.question_id) % n == place - 1)
    return replace(task, questions=kept)


def shards_for(task: Task, out: Path, workers: int) -> int:
    """Into how many parts the questions are cut: as before, where ``out`` holds some already.

    None of them is empty.
    """
    cuts = {n for _, n in shards_there(out).values()}
    if len(cuts) > 1:
        raise UserError(f"{out} holds shards of {' and of '.join(map(str, sorted(cuts)))} parts:"
                        " choose another --out")  # fmt: skip
    if cuts:
        return cuts.pop()
    n = max(1, min(SHARDS_A_WORKER * workers, len(task.questions) // FEWEST_QUESTIONS))
    while n > 1 and not all(sharded(task, (i, n)).questions for i in range(1, n + 1)):
        n -= 1
    return n
