"""Which checkpoints need a trial answer, by the features of a policy.

Those of the ``probe`` preset need one at every checkpoint, those of ``turns`` one at each turn of
thought. Frozen rules need fewer: ``probe_streak.unhedged@4`` one at each fourth checkpoint,
``turn_here.first@10`` (with ``turn_confidence``) one at each of the first ten turns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Bools, Ints
from rlbudget.policy.own_memory import split_name
from rlbudget.signals.turns import TURN_SIGNALS, turned

if TYPE_CHECKING:
    from rlbudget.traces.table import TraceTable

PROBE_SIGNALS = ("probe_confidence", "probe_streak", "probe_distinct", "probe_share")


@dataclass(frozen=True, slots=True)
class Trials:
    """Where trial answers are made."""

    signals: tuple[str, ...] = ()
    """that the features are made of"""
    every: tuple[int, ...] = ()
    """at the checkpoints, counted from 1, that one of these divides; nowhere where there is none"""
    at_turns: bool = False
    most: float = math.inf
    """of them at turns of thought"""

    def periodic(self, nth: npt.ArrayLike) -> Bools:
        """Whether the ``nth`` checkpoints of decodes, counted from 1, are among ``every``."""
        places = np.asarray(nth)
        due: Bools = np.zeros(places.shape, dtype=bool)
        for every in self.every:
            due |= places % every == 0
        return due

    def at_turn(self, signals: Mapping[str, npt.ArrayLike], before: npt.ArrayLike) -> Bools:
        """Whether checkpoints with these signals are at a turn of thought that counts, after
        ``before`` that did."""  # fmt: skip
        here: Bools = turned(signals, self.signals) & (np.asarray(before) < self.most)
        return here

    def of_table(self, table: TraceTable) -> Bools:
        """(m,) the checkpoints of recorded traces at which one is made."""
        due = self.periodic(step_of_row(table) + 1)
        if self.at_turns:
            here = np.broadcast_to(turned(table.signals, self.signals), due.shape)
            due |= here & (counted(table, here) <= self.most)
        return due


def trials_of(features: Iterable[str]) -> Trials:
    """Where these features need a trial answer."""
    split = [split_name(feature) for feature in features]
    every = {
        int(arguments[0]) if name == "unhedged" else 1
        for signal, name, arguments in split
        if signal in PROBE_SIGNALS
    }
    of_turns = [one for one in split if one[0] in TURN_SIGNALS]
    first = [arguments[0] for _, name, arguments in of_turns if name == "first"]
    capped = all(name == "first" or signal == "turn_confidence" for signal, name, _ in of_turns)
    return Trials(
        signals=tuple(dict.fromkeys(signal for signal, _, _ in split)),
        every=(1,) if 1 in every else tuple(sorted(every)),
        at_turns=bool(of_turns),
        most=max(first) if first and capped else math.inf,
    )


def step_of_row(table: TraceTable) -> Ints:
    """(m,) the number of checkpoints before this one in its trace."""
    return np.arange(len(table.thinking_tokens)) - table.offsets[:-1][table.trace_of_row]


def counted(table: TraceTable, flags: Bools) -> Ints:
    """(m,) how many flags are set in the trace up to and including this checkpoint."""
    total = np.concatenate([[0], np.cumsum(flags, dtype=np.int64)])
    counts: Ints = total[1:] - total[table.offsets[:-1][table.trace_of_row]]
    return counts
