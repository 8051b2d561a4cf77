"""Several models on the same questions: their traces side by side, and what a token of each costs.

All tokens are counted as those of one model, the dearest: a token of each costs its ``ratio`` of
one of that. ``rlbudget.traces.pairs`` is the same for a small model and a large one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Floats, Strs
from rlbudget.traces.pairs import Answers
from rlbudget.traces.table import TraceTable, split_questions


@dataclass(frozen=True, slots=True)
class Member:
    """``n`` traces of one model."""

    table: TraceTable
    """an ``exit_table`` (``rlbudget.strategies.correction.doubt``)"""
    ratio: float
    """what a token of the model costs, in tokens of the dearest: above 0, at most 1"""
    answers: Answers
    checks: dict[str, Floats]
    """name -> (n,) ``THINKING_CHECKS`` at the natural ends; empty where no text was stored"""
    seen: dict[str, Floats]
    """name -> (m,) the free observation and the checks at every checkpoint"""

    def take(self, rows: npt.NDArray[np.int64]) -> Member:
        """The traces with these indices, in this order."""
        checkpoints = self.table.rows_of(rows)[0]
        return Member(
            self.table.take(rows),
            self.ratio,
            self.answers.take(self.table, rows),
            {name: column[rows] for name, column in self.checks.items()},
            {name: column[checkpoints] for name, column in self.seen.items()},
        )


@dataclass(frozen=True, slots=True)
class Together:
    """``n`` traces of each of ``k`` models; those in the same place are of the same question."""

    members: tuple[Member, ...]
    tasks: Strs
    """(n,) family or task of each question"""
    context: Floats
    """(n, 10) the questions' ``CONTEXT_SIGNALS``"""

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def question_ids(self) -> Strs:
        """(n,)"""
        return self.members[0].table.question_ids

    def take(self, rows: npt.ArrayLike) -> Together:
        """The traces with these indices, in this order."""
        index = np.asarray(rows, dtype=np.int64)
        members = tuple(member.take(index) for member in self.members)
        return Together(members, self.tasks[index], self.context[index])


@dataclass(frozen=True, slots=True)
class TogetherSplit:
    """Three parts with no question in common."""

    train: Together
    validation: Together
    held_out: Together


def split_together(together: Together, *, seed: int = 0) -> TogetherSplit:
    """Split by question, as ``split_questions`` splits each table on its own."""
    split = split_questions(together.members[0].table, seed=seed)
    train, validation, held_out = (
        together.take(np.flatnonzero(np.isin(together.question_ids, part.question_ids)))
        for part in (split.train, split.validation, split.held_out)
    )
    return TogetherSplit(train, validation, held_out)
