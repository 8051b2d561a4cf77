"""The members' record so far: exact match and tokens of each, by task and by token price."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Floats
from rlbudget.strategies.chooser.members import Played

PRIOR = 10.0
"""answers' worth of the mean over all tasks in the record of each"""


class TrackRecord:
    """Sums over the answers of ``k`` members at ``g`` token prices; not for several threads."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.tasks: dict[str, Floats] = {}
        """(3, g, k) each: answers, those that are right, their tokens"""
        self.whole: Floats = np.zeros((3, *shape))
        """the same over all tasks"""

    def add(self, task: str, right: npt.ArrayLike, tokens: npt.ArrayLike) -> None:
        """One question: (g, k) exact match and tokens, NaN where a member was not asked."""
        asked = np.isfinite(right)
        counted = np.stack([asked, np.where(asked, right, 0), np.where(asked, tokens, 0)])
        self.tasks[task] = self.tasks.get(task, np.zeros_like(self.whole)) + counted
        self.whole += counted

    def of(self, task: str) -> Floats:
        """(2, g, k) mean exact match and tokens on a task, drawn to those of all tasks.

        For a task that is not known they are those of all; NaN before anything was seen.
        """
        with np.errstate(invalid="ignore"):
            overall: Floats = self.whole[1:] / self.whole[0]
        own = self.tasks.get(task)
        if own is None:
            return overall
        means: Floats = (own[1:] + PRIOR * overall) / (own[0] + PRIOR)
        return means


def running_record(played: Sequence[Played]) -> tuple[Floats, TrackRecord]:
    """The record before each question, (n, 2, g, k), and that after all of them.

    ``played`` are the same questions at ``g`` prices. Questions come in their order, the traces of
    one at the same time: none sees its own.
    """
    together = played[0].together
    values = np.array(
        [
            [[one.exact_match for one in part.alone], [one.tokens for one in part.alone]]
            for part in played
        ]
    ).transpose(3, 1, 0, 2)
    record = TrackRecord((len(played), len(together.members)))
    rows: dict[str, list[int]] = {}
    for place, question in enumerate(together.question_ids.tolist()):
        rows.setdefault(question, []).append(place)
    before = np.empty_like(values)
    for places in rows.values():
        for place in places:
            before[place] = record.of(str(together.tasks[place]))
        for place in places:
            record.add(str(together.tasks[place]), *values[place])
    return before, record
