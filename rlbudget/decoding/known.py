"""What a folder of traces is recorded with: settled before the first decode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rlbudget.errors import UserError
from rlbudget.tasks.task import Question, Task
from rlbudget.traces.settings import Settings, settings_of
from rlbudget.traces.store import iter_asked


class Named(Protocol):
    """A model as far as a folder names it."""

    @property
    def name(self) -> str:
        """Of the weights."""


def recording_settings(
    kind: str, model: Named, task: str, values: Mapping[str, Any], **more: Any
) -> Settings:
    """Those of a recording: what it is, of whom and of what, and how (``values``, ``more``)."""
    network = getattr(model, "network", None)
    dtype = getattr(network, "dtype", None)
    return settings_of(
        {
            "kind": kind,
            "model": model.name,
            "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
            "task": task,
            **values,
            **more,
        }
    )


def check_ids(task: Task) -> None:
    """``UserError`` where two questions of a task have one id."""
    if len({question.question_id for question in task.questions}) < len(task.questions):
        raise UserError(f"the task {task.name} has two questions of one id")


def there_of(folder: Path | str, wanted: Mapping[str, Question]) -> set[str]:
    """Which of the wanted traces (id -> question) a folder holds.

    Raises ``UserError`` where one of them is of another question or target than is asked now.
    """
    there = set()
    for trace_id, question, target in iter_asked(folder):
        asked = wanted.get(trace_id)
        if asked is None:
            continue
        for what, before, now in (
            ("question", question, asked.question),
            ("target", target, asked.target),
        ):
            if before != now:
                raise UserError(
                    f"{folder}: the {what} of {asked.question_id!r} was {before[:60]!r} when"
                    f" {trace_id!r} was recorded and is {now[:60]!r} now: record into another"
                    " folder"
                )
        there.add(trace_id)
    return there
