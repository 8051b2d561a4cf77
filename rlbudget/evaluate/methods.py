"""Stop rules: the catalogue of methods that need no training, each a value with one function.

========== ==================================================== ==================
rule       stops at the first checkpoint where                  looks at
========== ==================================================== ==================
full       never                                                nothing
fixed      ``budget`` thinking tokens are reached               nothing
random     a coin with probability ``probability`` says so      nothing
p_end      an end of thinking was likely (as ThinkBrake asks)   ``p_end_max``
entropy    the moving average of the entropy is low             ``entropy_mean``
confidence the trial answer's confidence is high (as DEER asks) a probe
streak     the last ``window`` trial answers are equal          a probe
========== ==================================================== ==================

A rule that looks at probes pays for every one up to its stop. To add a rule, write a ``Rule``
and put it in ``RULES``: the evaluation chooses its parameters on the training questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlbudget.evaluate.outcomes import (
    Choice,
    Floats,
    Ints,
    Outcome,
    Probing,
    budget_grid,
    first_stop,
    fixed_stops,
    full_stops,
    outcome,
)
from rlbudget.observation import observe
from rlbudget.table import TraceTable

Kind = Literal["rule", "learned", "bound"]
Parameters = Mapping[str, float]

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
    """the choice under these parameters, see ``rlbudget.evaluate.outcomes``"""
    probes_charged: Callable[[TraceTable, Parameters], Probing] = lambda table, parameters: "none"
    kind: Kind = "rule"

    def outcome(self, table: TraceTable, parameters: Parameters) -> Outcome:
        """What the rule earns on these traces."""
        charged = self.probes_charged(table, parameters)
        return outcome(table, self.stops(table, parameters), probes_charged=charged)

    def lacking(self, table: TraceTable) -> tuple[str, ...]:
        """The needs that the traces do not meet."""
        return tuple(need for need in self.needs if not _holds(table, need))


def _holds(table: TraceTable, need: str) -> bool:
    if need == PROBE:
        return table.has_probes
    return need in table.signals and not bool(np.isnan(table.signals[need]).all())


def _every_probe(table: TraceTable, parameters: Parameters) -> Probing:
    return "until_stop"


def _threshold_rule(
    name: str,
    need: str,
    score: Callable[[TraceTable], Floats],
    *,
    probes_charged: Callable[[TraceTable, Parameters], Probing] = lambda table, parameters: "none",
) -> Rule:
    """Stop where a score (m,), NaN where it is missing, is at least ``threshold``."""

    def grid(table: TraceTable) -> list[Parameters]:
        values = score(table)
        peaks = np.full(len(table), np.nan)
        np.fmax.at(peaks, table.trace_of_row, values)
        # First crossings depend on each trace's highest score, so its quantiles matter as well.
        shares = np.linspace(0, 1, 25)
        both = [np.quantile(v[~np.isnan(v)], shares, method="lower") for v in (values, peaks)]
        return [{"threshold": float(value)} for value in np.unique(both)]

    def stops(table: TraceTable, parameters: Parameters) -> Ints:
        return first_stop(table, score(table) >= parameters["threshold"])

    return Rule(name, (need,), grid, stops, probes_charged)


def _negative_entropy(table: TraceTable) -> Floats:
    return -observe(table, ("entropy_mean.ema",))[:, 0].astype(np.float64)


def streaks(table: TraceTable) -> Ints:
    """(m,) how many trial answers in a row, up to this checkpoint, are equal to its own."""
    rows = np.arange(len(table.probe_answer))
    changed = np.ones(len(rows), dtype=bool)
    changed[1:] = table.probe_answer[1:] != table.probe_answer[:-1]
    changed[table.offsets[:-1][table.lengths > 0]] = True
    return rows - np.maximum.accumulate(np.where(changed, rows, 0)) + 1


FULL = Rule(
    name="full",
    needs=(),
    grid=lambda table: (),
    stops=lambda table, parameters: full_stops(table),
)
FIXED = Rule(
    name="fixed",
    needs=(),
    grid=lambda table: [{"budget": b} for b in budget_grid(table) if np.isfinite(b)],
    stops=lambda table, parameters: fixed_stops(table, parameters["budget"]),
)
RANDOM = Rule(
    name="random",
    needs=(),
    grid=lambda table: [
        {"probability": p} for p in (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
    ],
    stops=lambda table, parameters: np.full(
        len(table.thinking_tokens), parameters["probability"], dtype=np.float64
    ),
)
P_END = _threshold_rule("p_end", "p_end_max", lambda table: table.signals["p_end_max"])
ENTROPY = _threshold_rule("entropy", "entropy_mean", _negative_entropy)
CONFIDENCE = _threshold_rule(
    "confidence", PROBE, lambda table: table.probe_confidence, probes_charged=_every_probe
)
STREAK = Rule(
    name="streak",
    needs=(PROBE,),
    grid=lambda table: [{"window": float(w)} for w in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)],
    stops=lambda table, parameters: first_stop(table, streaks(table) >= parameters["window"]),
    probes_charged=_every_probe,
)

RULES = (FULL, FIXED, RANDOM, P_END, ENTROPY, CONFIDENCE, STREAK)
