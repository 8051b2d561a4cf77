"""Which questions of a task a model can decode: the others are left out and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rlbudget.errors import UserError
from rlbudget.tasks.task import Task

if TYPE_CHECKING:
    from rlbudget.models.transformers_model import TransformersModel


@dataclass(frozen=True, slots=True)
class Fitting:
    """A task without the questions that cannot be decoded."""

    task: Task
    left_out: tuple[str, ...]
    """of each other question its id and why"""


def fitting(
    model: TransformersModel,
    task: Task,
    max_tokens: int | None,
    on_left_out: Callable[[str], None] | None,
) -> Fitting:
    """The questions that fit into ``model`` with up to ``max_tokens`` of thinking (None: the
    profile's); ``on_left_out`` is told each other one.

    Raises ``UserError`` where none fits.
    """
    kept, left_out = [], []
    for question in task.questions:
        why = model.refusal(question.question, max_tokens=max_tokens, options=question.options)
        if why is None:
            kept.append(question)
        else:
            left_out.append(f"question {question.question_id!r} is left out: {why}")
    if left_out and not kept:
        raise UserError(
            f"none of the {len(left_out)} questions of the task {task.name} can be decoded; the"
            f" first: {left_out[0]}"
        )
    if on_left_out is not None:
        for one in left_out:
            on_left_out(one)
    return Fitting(replace(task, questions=tuple(kept)), tuple(left_out))
