"""Rules that look at trial answers, or at the exit's first token, and pay for every look."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlbudget.agents.rules.rule import (
    PROBE,
    Parameters,
    Rule,
    lacking,
    run_length,
    threshold_rule,
)
from rlbudget.arrays import Bools, Floats, Ints
from rlbudget.policy.outcomes import first_stop, option_tokens
from rlbudget.policy.trials import counted, step_of_row
from rlbudget.traces.table import TraceTable

CONFIDENCE = threshold_rule(
    "confidence", (PROBE,), lambda table: table.probe_confidence, probes_charged="until_stop"
)


def streaks(table: TraceTable) -> Ints:
    """(m,) how many trial answers in a row, up to this checkpoint, are equal to its own."""
    same = np.zeros(len(table.probe_answer), dtype=bool)
    same[1:] = table.probe_answer[1:] == table.probe_answer[:-1]
    same[table.offsets[:-1][table.lengths > 0]] = False
    return run_length(table, same) + 1


STREAK = Rule(
    name="streak",
    needs=(PROBE,),
    grid=lambda table: [{"window": float(w)} for w in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)],
    stops=lambda table, parameters: first_stop(table, streaks(table) >= parameters["window"]),
    probes_charged="until_stop",
)


# DEER (arXiv 2504.15895): a look at each turn of thought only, at most so many of them.


def _judged(table: TraceTable, parameters: Parameters) -> Bools:
    turned = np.nan_to_num(table.signals["hedges"]) > 0
    judged: Bools = turned & (counted(table, turned) <= parameters["most_probes"])
    return judged


def _confidence(table: TraceTable, parameters: Parameters) -> Floats:
    """(m,) the mean probability of the trial answer's tokens after the first where that is asked
    for and recorded, else its confidence."""  # fmt: skip
    if not parameters["tail"] or "probe_tail" not in table.signals:
        return table.probe_confidence
    tail = table.signals["probe_tail"]
    return np.where(np.isnan(tail), table.probe_confidence, tail)


def _deer_grid(table: TraceTable) -> list[Parameters]:
    tails = (0.0,) if lacking(table, ("probe_tail",)) else (0.0, 1.0)
    return [
        {"threshold": t, "most_probes": m, "tail": tail}
        for t in (0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.99, 0.995, 0.999)
        for m in (10.0, 50.0)
        for tail in tails
    ]


DEER = Rule(
    name="deer",
    needs=(PROBE, "hedges"),
    grid=_deer_grid,
    stops=lambda table, parameters: first_stop(
        table,
        _judged(table, parameters) & (_confidence(table, parameters) > parameters["threshold"]),
    ),
    probes_charged=_judged,
)
"""Confident in the trial answer at a turn of thought (a word like "wait" since the checkpoint
before). With ``tail`` 1 the confidence is DEER's own, the mean probability of the trial answer's
tokens after the first (0 for a single one); with ``tail`` 0 it is the one every trace with trial
answers holds, the geometric mean over all of them. It is the only one, and taken for the other,
where the signal ``probe_tail`` is missing, as in traces of another recorder."""


# Dynasor (arXiv 2412.20993): the last trial answers agree and none of them doubts itself.


def _probed(table: TraceTable, every: float) -> Bools:
    """(m,) whether a rule that probes at every ``every``-th checkpoint probes here."""
    probed: Bools = (step_of_row(table) + 1) % int(every) == 0
    return probed


def _dynasor_stops(table: TraceTable, parameters: Parameters) -> Ints:
    probed = _probed(table, parameters["every"])
    answer, hedged = table.probe_answer, table.probe_hedged
    streak = np.zeros(len(table), dtype=np.int64)
    held = np.full(len(table), -1, dtype=np.int64)
    says = np.zeros(len(answer), dtype=bool)
    for traces, rows in table.lockstep():
        looked = probed[rows]
        traces, rows = traces[looked], rows[looked]
        again = (answer[rows] == held[traces]) & ~hedged[rows]
        streak[traces] = np.where(again, streak[traces] + 1, ~hedged[rows])
        held[traces] = answer[rows]
        says[rows] = streak[traces] >= parameters["window"]
    return first_stop(table, says)


DYNASOR = Rule(
    name="dynasor",
    needs=(PROBE,),
    grid=lambda table: [
        {"window": float(w), "every": float(e)} for w in (2, 3, 4, 5, 8) for e in (1, 2, 4)
    ],
    stops=_dynasor_stops,
    probes_charged=lambda table, parameters: _probed(table, parameters["every"]),
)
CONVERGENCE = replace(STREAK, name="convergence", grid=lambda table: [{"window": 2.0}])
"""Two trial answers in a row are equal (arXiv 2506.02536)."""


# EAT (arXiv 2509.26522): the entropy after the end of thinking settles down.

_ALPHA = 0.2


def _settling(table: TraceTable) -> Floats:
    """(m,) the moving variance of the exit entropy in bits², NaN before it counts."""
    entropy = table.signals["exit_entropy"] / np.log(2)
    mean, variance = np.zeros(len(table)), np.zeros(len(table))
    seen = np.zeros(len(table), dtype=np.int64)
    out = np.full(len(entropy), np.nan)
    for traces, rows in table.lockstep():
        x = entropy[rows]
        known = ~np.isnan(x)
        traces, rows, x = traces[known], rows[known], x[known]
        first = seen[traces] == 0
        mean[traces] = np.where(first, x, _ALPHA * x + (1 - _ALPHA) * mean[traces])
        moved = _ALPHA * (x - mean[traces]) ** 2 + (1 - _ALPHA) * variance[traces]
        variance[traces] = np.where(first, 0.0, moved)
        late = seen[traces] >= np.ceil(4 / _ALPHA)
        out[rows[late]] = variance[traces[late]]
        seen[traces] += 1
    return out


EAT = Rule(
    name="eat",
    needs=("exit_entropy",),
    grid=lambda table: [{"delta": 2.0**-i} for i in range(0, 31, 2)],
    stops=lambda table, parameters: first_stop(table, _settling(table) < parameters["delta"]),
    probes_charged=lambda table, parameters: np.ones(len(table.thinking_tokens)),
)
"""A look is one forward pass over the exit text; it is charged as one token."""


# HALT-CoT: the answer distribution over the task's options has low entropy for a while.


def _option_tokens(table: TraceTable, parameters: Parameters) -> Floats:
    """(m,) what a look costs; nothing where there are no options to look at."""
    return np.where(np.isnan(table.signals["answer_entropy"]), 0.0, option_tokens(table))


HALT = Rule(
    name="halt",
    needs=("answer_entropy",),
    grid=lambda table: [
        {"theta": t, "times": m} for t in (0.6, 0.3, 0.1, 0.03, 0.01) for m in (1.0, 2.0, 3.0)
    ],
    stops=lambda table, parameters: first_stop(
        table,
        run_length(table, table.signals["answer_entropy"] / np.log(2) < parameters["theta"])
        >= parameters["times"],
    ),
    probes_charged=_option_tokens,
)
"""A look is charged like a trial answer, one token for the distribution after the cue and one for
every token read after it: those of all options, which are processed though not generated. Traces
that lack the signal ``option_tokens`` are charged one token a look."""

RULES = (CONFIDENCE, DEER, STREAK, CONVERGENCE, DYNASOR, EAT, HALT)
