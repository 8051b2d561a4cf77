"""What a decode remembers of its trial answers, and where its turns of thought are.

In the ``turns`` preset trial answers are made at turns of thought alone, as DEER does
(arXiv 2504.15895): at a checkpoint since whose predecessor there was a word like "wait". What is
remembered of them are features of its observation:

===============  ============================================================
turn_here        1 if there is a trial answer at this checkpoint
turn_count       log(1 + trial answers so far)
turn_confidence  confidence of the last one, 0 before the first
turn_best        highest confidence so far
turn_streak      log(1 + equal answers in a row), other checkpoints left out
turn_distinct    log(1 + different answers so far)
turn_share       share of the trial answers so far that equal the last one
turn_age         log(1 + tokens since the last one), 0 before the first
===============  ============================================================

Before the first trial answer all of them are 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Bools, Float32s, Floats, Ints

TURN_SIGNALS = (
    "turn_here",
    "turn_count",
    "turn_confidence",
    "turn_best",
    "turn_streak",
    "turn_distinct",
    "turn_share",
    "turn_age",
)
TURNS = ("hedges", "text_hedges")
"""the signals that count words of doubt since the checkpoint before, one of which says where a turn
of thought is: the first that a policy sees"""


def turned(signals: Mapping[str, npt.ArrayLike], names: Collection[str]) -> Bools:
    """Where a turn of thought is, of signals (k,), NaN or absent where missing, and the names of
    those that a policy sees; an array of their shape. ``ValueError`` where it sees none of
    ``TURNS``."""
    name = next((one for one in TURNS if one in names), None)
    if name is None:
        raise ValueError(f"trial answers at turns of thought need a signal of {', '.join(TURNS)}")
    counts = np.asarray(signals.get(name, np.nan), dtype=np.float64)
    found: Bools = counts > 0  # not where it is NaN
    return found


class TrialMemory:
    """The trial answers of ``n`` decodes in lockstep."""

    def __init__(self, n: int) -> None:
        self.here = np.zeros(n, dtype=bool)
        """(n,) whether a trial answer was made at the present checkpoint"""
        self.count = np.zeros(n)
        """(n,) trial answers so far"""
        self._confidence = np.zeros(n)
        self._best = np.zeros(n)
        self._answer = np.full(n, -1, dtype=np.int64)
        self._streak = np.zeros(n)
        self._at = np.zeros(n)
        self._votes = np.zeros((n, 4))

    def add(
        self, rows: Ints, answer: npt.ArrayLike, confidence: npt.ArrayLike, tokens: npt.ArrayLike
    ) -> None:
        """Take the trial answers of these decodes at ``tokens`` thinking tokens: (len(rows),) each.

        Equal answers of a decode are equal numbers from 0; a confidence is in [0, 1].
        """
        answers = np.asarray(answer, dtype=np.int64)
        if answers.max(initial=0) >= self._votes.shape[1]:
            wider = np.zeros((len(self._votes), 2 * int(answers.max()) + 2))
            wider[:, : self._votes.shape[1]] = self._votes
            self._votes = wider
        sure = np.asarray(confidence, dtype=np.float64)
        self.here[rows] = True
        self.count[rows] += 1
        self._confidence[rows] = sure
        self._best[rows] = np.maximum(self._best[rows], sure)
        self._streak[rows] = np.where(answers == self._answer[rows], self._streak[rows] + 1, 1)
        self._answer[rows] = answers
        self._votes[rows, answers] += 1
        self._at[rows] = np.asarray(tokens, dtype=np.float64)

    def agreement(self, rows: Ints) -> tuple[Floats, Floats, Floats]:
        """(k,) each: equal answers in a row, different answers so far, share of the last one."""
        votes = self._votes[rows]
        own = self._votes[rows, np.maximum(self._answer[rows], 0)]
        distinct = (votes > 0).sum(axis=1).astype(np.float64)
        return self._streak[rows], distinct, own / np.maximum(self.count[rows], 1)

    def features(self, rows: Ints, tokens: npt.ArrayLike) -> Float32s:
        """The features of ``TURN_SIGNALS`` at ``tokens`` thinking tokens: float32,
        (len(rows), 8)."""  # fmt: skip
        streak, distinct, share = self.agreement(rows)
        out = np.empty((len(rows), len(TURN_SIGNALS)), dtype=np.float32)
        out[:, 0] = self.here[rows]
        out[:, 1] = np.log1p(self.count[rows])
        out[:, 2] = self._confidence[rows]
        out[:, 3] = self._best[rows]
        out[:, 4] = np.log1p(streak)
        out[:, 5] = np.log1p(distinct)
        out[:, 6] = share
        since = np.log1p(np.asarray(tokens, dtype=np.float64) - self._at[rows])
        out[:, 7] = np.where(self.count[rows] > 0, since, 0)
        return out
