"""A part of a task's questions, for one machine of many."""

from __future__ import annotations

from dataclasses import replace

from rlbudget.decoding.record import row_seed
from rlbudget.errors import UserError
from rlbudget.tasks.task import Task


def sharded(task: Task, shard: tuple[int, int]) -> Task:
    """The questions of shard ``(i, n)``, 1 the first: by their ids alone, whatever their order.

    Raises ``UserError`` where there is no such shard.
    """
    place, n = shard
    if not 1 <= place <= n:
        raise UserError(f"shard {place}/{n}: the first is 1/{n}, the last {n}/{n}")
    kept = tuple(q for q in task.questions if row_seed(0, q.question_id) % n == place - 1)
    return replace(task, questions=kept)
