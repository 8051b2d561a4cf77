"""A policy on recorded traces, as it would act live: where it stops and which probes it pays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlbudget.arrays import Float32s, Floats, Ints
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import Outcome, Probing, charged_by, first_stop, outcome
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.traces.table import TraceTable


@dataclass(frozen=True, slots=True)
class Replay:
    """What a policy did on ``n`` traces with ``m`` checkpoints."""

    table: TraceTable
    stops: Ints
    """(n,) the checkpoint at which each trace stops, ``NATURAL_END`` for none"""
    charged: Probing
    """whose trial answers it pays"""
    chance: Floats
    """(m,) its chance to stop at each checkpoint"""

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
    chance = (
        policy.stop_probabilities(observations, token_price) if len(observations) else np.zeros(0)
    )
    stops = first_stop(table, chance > policy.threshold)
    charged = charged_by(policy.preset, table, policy.features)
    if token_price < getattr(policy, "stops_from", 0.0):
        charged = "none"
    return Replay(table, stops, charged, chance)
