"""zelt: a logistic head on a probe's signals, its threshold bounded by what may be harmed.

After zelt-ai 0.2.2 (MIT): a trial answer every 48 tokens, charged; a logistic regression on the
signals known there says how likely a stop is right; a decode stops where that is at least θ, the
lowest threshold for which the exact (Clopper-Pearson) bound on the share of calibration questions
that lose a right answer is at most 2% with a confidence of 90%. It knows no price. Fewer than 114
calibration questions cannot show that: it then never stops.
"""

from __future__ import annotations

import math

import numpy as np

from rlbudget.agents.logistic import fitted_head
from rlbudget.agents.rules.rule import PROBE, Parameters, Rule, lacking
from rlbudget.arrays import Bools, Floats, Ints
from rlbudget.policy.observation import feature_names, observe
from rlbudget.policy.outcomes import NATURAL_END, first_stop
from rlbudget.traces.table import TraceTable

EVERY = 48
"""tokens between two trial answers, at least"""
MOST_HARM, CONFIDENCE = 0.02, 0.9
CALIBRATION = 0.4
"""of the training questions, which the head is not fitted to"""
_THRESHOLDS = np.linspace(0.5, 0.999, 60)


def probed(table: TraceTable) -> Bools:
    """(m,) the checkpoints with a trial answer: the first, and each so far behind the last one."""
    looked: Bools = np.zeros(len(table.thinking_tokens), dtype=bool)
    last = np.full(len(table), -np.inf)
    for traces, rows in table.lockstep():
        due = table.thinking_tokens[rows] - last[traces] >= EVERY
        looked[rows[due]] = True
        last[traces[due]] = table.thinking_tokens[rows[due]]
    return looked


def zelt_rule(train: TraceTable, *, seed: int = 0) -> Rule:
    """Fit the head and find its threshold on the training traces.

    Needs scikit-learn (``UserError`` without it).
    """
    features = feature_names(train.signals, "probe")
    questions = np.unique(train.question_ids)
    drawn = np.random.default_rng([seed, 5]).permutation(questions)
    apart = np.isin(train.question_ids, drawn[: round(CALIBRATION * len(drawn))])
    fitted, calibration = (train.take(np.flatnonzero(rows)) for rows in (~apart, apart))
    head = None
    if not lacking(train, (PROBE,)) and len(np.unique(fitted.exit_exact_match)) > 1:
        looked = probed(fitted)
        head = fitted_head(observe(fitted, features)[looked], fitted.exit_exact_match[looked])

    def right(table: TraceTable) -> Floats:
        if head is None:
            return np.zeros(len(table.thinking_tokens))
        chance: Floats = head.predict_proba(observe(table, features))[:, 1]
        return np.where(probed(table), chance, 0.0)

    def stops(table: TraceTable, parameters: Parameters) -> Ints:
        return first_stop(table, right(table) >= parameters["threshold"])

    threshold = _threshold(calibration, right(calibration)) if len(calibration) else math.inf
    return Rule(
        name="zelt",
        needs=(PROBE,),
        grid=lambda table: [{"threshold": threshold}],
        stops=stops,
        probes_charged=lambda table, parameters: probed(table),
    )


def _threshold(table: TraceTable, right: Floats) -> float:
    """The lowest whose harm is bounded; infinity where none is."""
    _, question = np.unique(table.question_ids, return_inverse=True)
    n = int(question.max()) + 1
    allowed = math.inf
    for threshold in _THRESHOLDS[::-1]:  # from the safest down, until one fails
        stops = first_stop(table, right >= threshold)
        stopped = np.flatnonzero(stops != NATURAL_END)
        exits = table.exit_exact_match[table.offsets[stopped] + stops[stopped]]
        harmed = stopped[(exits == 0) & (table.final_exact_match[stopped] == 1)]
        if _at_most(len(np.unique(question[harmed])), n) > MOST_HARM:
            break
        allowed = float(threshold)
    return allowed


def _at_most(harmed: int, n: int) -> float:
    """Clopper-Pearson's upper end for ``harmed`` of ``n``, by bisection of the binomial tail."""
    if harmed == n:
        return 1.0
    low, high = harmed / n, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        tail = math.fsum(
            math.exp(
                math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
                + k * math.log(middle) + (n - k) * math.log1p(-middle)
            )
            for k in range(harmed + 1)
        )  # fmt: skip
        low, high = (middle, high) if tail > 1 - CONFIDENCE else (low, middle)
    return high
