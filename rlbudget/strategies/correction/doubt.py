"""Doubt: the chance that an answer which an exit has just written is wrong.

A network like that of ``rlbudget.strategies.impact``, on what is known once the answer is written
(``written.py``). It is fitted where the policy stops: checkpoints are drawn with the chance that
the policy stops there, since other exits are of another distribution.

Where a second model is to answer instead, the doubt is (1 + what its answer gains) / 2: the mean of
the chances that the exit is wrong and that the second model is right. One network learns it from
every exit twice, once with each of the two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlbudget.arrays import Floats, Ints
from rlbudget.errors import UserError
from rlbudget.policy.observation import feature_names, observe
from rlbudget.policy.prices import price_grid
from rlbudget.policy.replay import replay
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.signals.questions import CONTEXT_SIGNALS, TASK_SIGNALS
from rlbudget.strategies.correction.recheck import THINKING_CHECKS, thinking_checks
from rlbudget.strategies.correction.written import CONFIDENCE, WRITTEN_SIGNALS
from rlbudget.strategies.impact import ImpactModel, fit_chance
from rlbudget.traces.store import iter_traces, load_table
from rlbudget.traces.table import TraceTable, split_fold

PRICES = 6
"""prices over the policy's range at which its stops are replayed"""
EVERYWHERE = 0.2
"""share of the checkpoints drawn uniformly: a resumed decode exits later than the policy does"""
FOLDS = 3


def exit_table(folder: Path | str) -> TraceTable:
    """The table of a folder of traces, ``WRITTEN_SIGNALS`` and the question's numbers included.

    What the traces cannot give is left out: ``exit_confidence`` without trial answers, the checks
    of the thinking where its text was not stored (``record --store-text``).
    """
    table = load_table(folder, context=True)
    columns: dict[str, list[float]] = {name: [] for name in THINKING_CHECKS}
    has_text = True
    for trace in iter_traces(folder):
        thinking, cuts = trace.meta.get("thinking", ""), trace.meta.get("cuts", [])
        has_text &= len(cuts) == len(trace.checkpoints) and "thinking" in trace.meta
        for cut, checkpoint in zip(cuts, trace.checkpoints, strict=True) if has_text else ():
            for name, value in thinking_checks(thinking[:cut], checkpoint.exit.answer).items():
                columns[name].append(value)
    signals = dict(table.signals)
    if has_text:
        signals |= {name: np.array(column, np.float64) for name, column in columns.items()}
    if table.has_probes:
        signals[CONFIDENCE] = table.probe_confidence
    return dataclasses.replace(table, signals=signals)


def exit_features(table: TraceTable) -> tuple[str, ...]:
    """The observation of a written exit: the free signals of the decode and ``WRITTEN_SIGNALS``."""
    free = set(table.signals) - {*WRITTEN_SIGNALS, *CONTEXT_SIGNALS, *TASK_SIGNALS}
    written = [name for name in WRITTEN_SIGNALS if name in table.signals]
    return (*feature_names(free, "free"), *written)


def stop_chances(policy: StopPolicy, table: TraceTable) -> Floats:
    """(m,) how likely the policy ends a decode at each checkpoint, mean over its prices."""
    observations = observe(table, policy.features)
    total = np.zeros(len(table.thinking_tokens))
    place = np.arange(len(total)) - table.offsets[:-1][table.trace_of_row]
    for price in price_grid(policy.price_range, PRICES):
        chance = np.nan_to_num(replay(policy, table, price, observations).chance)
        going = np.zeros((len(table), int(table.lengths.max(initial=0))))
        going[table.trace_of_row, place] = 1 - chance
        before = np.cumprod(np.hstack([np.ones((len(table), 1)), going[:, :-1]]), axis=1)
        total += chance * before[table.trace_of_row, place]
    return total / PRICES


def fit_doubt(
    train: TraceTable,
    validation: TraceTable,
    policy: StopPolicy,
    features: Sequence[str],
    *,
    second: tuple[Floats, Floats] | None = None,
    seed: int = 0,
) -> ImpactModel:
    """Fit on the exits of ``train``, choose the epoch and calibrate on those of ``validation``.

    The two must have no question in common. ``second`` is the exact match of a second model on the
    traces of the two, (n,) each. Raises ``UserError`` where all exits of a part are right or all
    are wrong.
    """
    generator = np.random.default_rng(seed)
    parts = []
    for part, (what, table) in enumerate((("training", train), ("validation", validation))):
        rows = _drawn(stop_chances(policy, table), generator)
        wrong = table.exit_exact_match[rows] == 0
        if second is not None:
            wrong = np.concatenate([wrong, second[part][table.trace_of_row[rows]] == 1])
            rows = np.concatenate([rows, rows])
        if len(np.unique(wrong)) < 2:
            raise UserError(f"in the {what} traces all exits are right, or all are wrong: there is"
                            " nothing to learn")  # fmt: skip
        parts.append((observe(table, features)[rows], wrong))
    return fit_chance(features, *parts, epochs=30, weight_decay=1.0, seed=seed)


def doubts_in_turn(
    train: TraceTable,
    validation: TraceTable,
    policy: StopPolicy,
    features: Sequence[str],
    *,
    second: tuple[Floats, Floats] | None = None,
    seed: int = 0,
) -> Floats:
    """(m,) the doubt at every checkpoint of ``train`` by models that have not seen its question.

    What is tuned on them sees doubts as they will be on new questions.
    """
    doubts = np.zeros(len(train.thinking_tokens))
    for fold in range(FOLDS):
        split = split_fold(train, fold, FOLDS, seed=seed)
        out = np.isin(train.question_ids, split.held_out.question_ids)
        rest = train.take(np.flatnonzero(~out))
        others = second and (second[0][~out], second[1])
        model = fit_doubt(rest, validation, policy, features, second=others, seed=seed)
        rows = out[train.trace_of_row]
        doubts[rows] = model.risk(observe(train, features)[rows])
    return doubts


def _drawn(chances: Floats, generator: np.random.Generator) -> Ints:
    """As many rows as there are, drawn with these weights, a share of them uniformly."""
    n = len(chances)
    even = np.full(n, 1 / max(n, 1))
    total = chances.sum()
    weights = EVERYWHERE * even + (1 - EVERYWHERE) * (chances / total if total > 0 else even)
    return generator.choice(n, n, p=weights / weights.sum()).astype(np.int64)
