"""A policy on recorded traces, as it would act live: where it stops and which probes it pays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rlbudget.arrays import Bools, Float32s, Floats, Ints
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import NATURAL_END, Outcome, Probing, charged_by, first_stop, outcome
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.signals.looks import LOOK_SIGNALS, LookMemory
from rlbudget.traces.table import TraceTable

Chances = Callable[[Float32s], tuple[Floats, Floats]]
"""observations (k, F) -> chance to stop, chance to look first: (k,) each"""


@dataclass(frozen=True, slots=True)
class Replay:
    """What a policy did on ``n`` traces with ``m`` checkpoints."""

    table: TraceTable
    stops: Ints
    """(n,) the checkpoint at which each trace stops, ``NATURAL_END`` for none"""
    charged: Probing
    """whose trial answers it pays"""
    chance: Floats
    """(m,) its last chance to stop at each checkpoint; a policy that asks for trial answers has
    NaN at those that it did not reach"""

    @property
    def outcome(self) -> Outcome:
        """What it earned and cost."""
        return outcome(self.table, self.stops, probes_charged=self.charged)


def replay(
    policy: StopPolicy, table: TraceTable, token_price: float, observations: Float32s | None = None
) -> Replay:
    """Replay a policy under a token price. ``observations`` spares observing the table again."""
    if observations is None:
        observations = observe(table, policy.features)

    def chances(rows: Float32s) -> tuple[Floats, Floats]:
        return policy.chances(rows, token_price)

    if policy.preset == "look":
        return replay_looking(table, observations, chances, threshold=policy.threshold)
    chance = chances(observations)[0] if len(observations) else np.zeros(0)
    stops = first_stop(table, chance > policy.threshold)
    return Replay(table, stops, charged_by(policy.preset, table, policy.features), chance)


def replay_looking(
    table: TraceTable,
    observations: Float32s,
    chances: Chances,
    *,
    threshold: float = 0.5,
) -> Replay:
    """Replay a policy that asks for trial answers, at most one at each checkpoint.

    ``observations`` (m, F) are those of decodes that never ask.
    """
    memory, columns = LookMemory(len(table)), slice(-len(LOOK_SIGNALS), None)
    stops = np.full(len(table), NATURAL_END, dtype=np.int64)
    looked: Bools = np.zeros(len(table.thinking_tokens), dtype=bool)
    chance = np.full(len(looked), np.nan)
    lengths = table.lengths

    def decide(traces: Ints, rows: Ints) -> Floats:
        seen = observations[rows]
        seen[:, columns] = memory.features(traces, table.thinking_tokens[rows])
        chance[rows], look = chances(seen)
        return look

    going = np.flatnonzero(lengths > 0)
    for step in range(int(lengths.max(initial=0))):
        going = going[lengths[going] > step]
        if not len(going):
            break
        rows = table.offsets[going] + step
        memory.here[going] = False
        looks = decide(going, rows) > 0.5
        looked[rows] = looks
        asked, at = going[looks], rows[looks]
        if len(asked):
            answer, confidence = table.probe_answer[at], table.probe_confidence[at]
            memory.look(asked, answer, confidence, table.thinking_tokens[at])
            decide(asked, at)
        stopped = chance[rows] > threshold
        stops[going[stopped]] = step
        going = going[~stopped]
    return Replay(table, stops, looked, chance)
