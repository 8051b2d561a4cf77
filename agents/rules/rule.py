"""What a stop rule is: a name, its needs, a grid, a choice of stops, and whose probes it pays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlbudget.arrays import Bools, Floats, Ints
from rlbudget.policy.outcomes import Choice, Outcome, Probing, first_stop, outcome
from rlbudget.traces.table import TraceTable

Kind = Literal["rule", "learned", "bound"]
Parameters = Mapping[str, float]
Charge = Literal["none", "until_stop"] | Callable[[TraceTable, Parameters], Probing]
"""whose trial answers a rule pays, see ``rlbudget.policy.outcomes``"""

PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Rule:
    """A stop rule with its grid of parameters."""

    name: str
    needs: tuple[str, ...]
    """``probe`` or names of signals that the traces must hold"""
    grid: Callable[[TraceTable], Sequence[Parameters]]
    """the parameters worth trying, from the training traces; never stopping is always tried"""
    stops: Callable[[TraceTable, Parameters], Choice]
    """the choice under these parameters, see ``rlbudget.policy.outcomes``; it looks at the
    history of each trace only"""
    probes_charged: Charge = "none"
    kind: Kind = "rule"

    def outcome(self, table: TraceTable, parameters: Parameters) -> Outcome:
        """What the rule earns on these traces."""
        charge = self.probes_charged
        charged = charge if isinstance(charge, str) else charge(table, parameters)
        return outcome(table, self.stops(table, parameters), probes_charged=charged)

    def lacking(self, table: TraceTable) -> tuple[str, ...]:
        """The needs that the traces do not meet."""
        return lacking(table, self.needs)


def lacking(table: TraceTable, needs: Sequence[str]) -> tuple[str, ...]:
    """Those of the needs that the traces do not meet."""
    return tuple(need for need in needs if not _holds(table, need))


def _holds(table: TraceTable, need: str) -> bool:
    if need == PROBE:
        return table.has_probes
    return need in table.signals and not bool(np.isnan(table.signals[need]).all())


def threshold_rule(
    name: str,
    needs: tuple[str, ...],
    score: Callable[[TraceTable], Floats],
    *,
    probes_charged: Charge = "none",
) -> Rule:
    """Stop where a score (m,), NaN where it is missing, is at least ``threshold``."""

    def grid(table: TraceTable) -> list[Parameters]:
        return [{"threshold": value} for value in thresholds(table, score(table))]

    def stops(table: TraceTable, parameters: Parameters) -> Ints:
        return first_stop(table, score(table) >= parameters["threshold"])

    return Rule(name, needs, grid, stops, probes_charged)


def thresholds(table: TraceTable, score: Floats, n: int = 25) -> list[float]:
    """Quantiles of a score and of the highest score of each trace, on which first crossings
    depend."""  # fmt: skip
    peaks = np.full(len(table), np.nan)
    np.fmax.at(peaks, table.trace_of_row, score)
    shares = np.linspace(0, 1, n)
    known = [values[~np.isnan(values)] for values in (score, peaks)]
    both = [np.quantile(v, shares, method="lower") for v in known if len(v)]
    return [float(value) for value in np.unique(both)]


def run_length(table: TraceTable, flags: Bools) -> Ints:
    """(m,) how many checkpoints in a row, up to and including this one, have their flag set."""
    # The last row without a flag; a trace begins as if there were one right before it.
    last = np.where(flags, np.iinfo(np.int64).min, np.arange(len(flags)))
    starts = table.offsets[:-1][table.lengths > 0]
    last[starts] = starts - flags[starts]
    runs: Ints = np.where(flags, np.arange(len(flags)) - np.maximum.accumulate(last), 0)
    return runs
