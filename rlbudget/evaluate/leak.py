"""The leak check: does an observation know how long the trace will be?

A stop rule may look at the past only. A feature made from the whole trace (the share of it
that is done, the number of checkpoints left) makes a replay look excellent and is worth nothing
live. Two regressors predict the thinking tokens that remain at every checkpoint of questions
they have not seen: one is fed the past of the trace, computed here from the record without
``policy.observation``; the other is fed the observation as well. An honest observation adds
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Floats, Ints
from rlbudget.errors import UserError, missing_extra
from rlbudget.policy.bootstrap import interval, resample
from rlbudget.policy.observation import observe
from rlbudget.traces.table import TraceTable

MARGIN = 0.02
"""A gain of R² up to this is what another view of the same past may bring."""
GRID_MARGIN = 0.8
FOLDS = 3
MOST_ROWS = 8000
SUSPICIOUS = 0.2
"""rank correlation with the residual from which a feature is named"""
REGRESSOR: Mapping[str, Any] = {
    "max_iter": 60, "learning_rate": 0.12, "max_leaf_nodes": 15, "min_samples_leaf": 40,
    "l2_regularization": 1.0, "early_stopping": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LeakReport:
    """How well the remaining thinking tokens can be predicted on unseen questions."""

    leaks: bool
    """the verdict: ``gain`` is above ``MARGIN`` and its interval excludes 0, or the first
    checkpoints lie at a share of each trace's length"""
    r2_past: float
    """of a regressor on the past of the trace"""
    r2_observation: float
    """of the same on the past and the observation"""
    gain: float
    """``r2_observation - r2_past``"""
    gain_ci95: tuple[float, float]
    """paired bootstrap by question"""
    r2_first_checkpoint: float
    """how well the place of a trace's first checkpoint alone gives its length; 0 on an absolute
    grid, near 1 where checkpoints lie at shares of the length"""
    suspects: tuple[str, ...]
    """features that go with what the past leaves unexplained, the strongest first"""

    def __str__(self) -> str:
        if not self.leaks:
            return (
                f"no leak: the observation adds {self.gain:+.3f} to the R² of {self.r2_past:.3f}"
                " that the past gives"
            )
        if self.r2_first_checkpoint >= GRID_MARGIN:
            return (
                "leak: the first checkpoint's place gives the trace's length"
                f" (R² {self.r2_first_checkpoint:.3f}); checkpoints must lie on an absolute grid"
            )
        named = f"; look at {', '.join(self.suspects)}" if self.suspects else ""
        return (
            f"leak: with the observation the remaining tokens are predicted with R²"
            f" {self.r2_observation:.3f}, from the past with {self.r2_past:.3f}{named}"
        )


def leak_check(
    table: TraceTable,
    features: Sequence[str],
    *,
    observations: npt.ArrayLike | None = None,
    seed: int = 0,
) -> LeakReport:
    """Check the observation of these features at the checkpoints of a table.

    ``observations`` (m, n_features), if given, are checked instead of ``observe``'s. Needs
    scikit-learn, takes some seconds. Raises ``UserError`` without it and for fewer than 30
    questions with a checkpoint.
    """
    given = observe(table, features) if observations is None else observations
    seen = np.asarray(given, dtype=np.float64)
    if seen.shape != (len(table.thinking_tokens), len(features)):
        raise ValueError(f"observations have shape {seen.shape}, expected"
                         f" {(len(table.thinking_tokens), len(features))}")  # fmt: skip
    rows = _sample(table, seed)
    question = table.question_ids[table.trace_of_row[rows]]
    past = _past(table)[rows]
    remaining = np.repeat(table.final_thinking_tokens, table.lengths) - table.thinking_tokens
    target = np.log1p(remaining[rows].astype(np.float64))

    residual_past = target - _predict(past, target, question, seed)
    both = np.concatenate([past, seen[rows]], axis=1)
    residual_observation = target - _predict(both, target, question, seed)
    spread = (target - target.mean()) ** 2
    errors = np.stack([residual_past**2, residual_observation**2, spread], axis=1)
    resampling = resample(question, draws=1000, seed=seed)
    r2_past, r2_observation = 1 - errors[:, :2].mean(axis=0) / max(spread.mean(), 1e-12)
    gain = float(r2_observation - r2_past)
    drawn = resampling.means(errors)
    gains = (drawn[:, 0] - drawn[:, 1]) / np.maximum(drawn[:, 2], 1e-12)
    gain_ci95 = interval(gains, resampling.questions)
    r2_first = _first_checkpoint(table)
    return LeakReport(
        leaks=(gain > MARGIN and gain_ci95[0] > 0) or r2_first >= GRID_MARGIN,
        r2_past=float(r2_past),
        r2_observation=float(r2_observation),
        gain=gain,
        gain_ci95=gain_ci95,
        r2_first_checkpoint=r2_first,
        suspects=_suspects(seen[rows], features, residual_past),
    )


def _sample(table: TraceTable, seed: int) -> Ints:
    """All checkpoints of questions drawn until there are ``MOST_ROWS``."""
    questions, of_trace = np.unique(table.question_ids, return_inverse=True)
    of_row = of_trace[table.trace_of_row]
    counts = np.bincount(of_row, minlength=len(questions))
    if (counts > 0).sum() < 30:
        raise UserError(f"{int((counts > 0).sum())} questions with a checkpoint are too few for"
                        " the leak check; it needs 30")  # fmt: skip
    order = np.random.default_rng(seed).permutation(len(questions))
    kept = order[np.cumsum(counts[order]) - counts[order] < MOST_ROWS]
    return np.flatnonzero(np.isin(of_row, kept))


def _past(table: TraceTable) -> Floats:
    """(m, k) the past of the token count and of every signal.

    Its value, the one before, the running total, mean, largest, smallest and moving average, and
    the tokens since it was above 0.
    """
    trace = table.trace_of_row
    step = np.arange(len(trace)) - table.offsets[:-1][trace]
    columns = [table.thinking_tokens.astype(np.float64), step.astype(np.float64)]
    shape = (len(table), int(table.lengths.max(initial=0)))

    def padded(values: npt.ArrayLike) -> Floats:
        grid = np.full(shape, np.nan)
        grid[trace, step] = values
        return grid

    sources = dict(table.signals)
    if table.has_probes:
        changed = np.ones(len(trace))
        changed[1:] = (np.diff(table.probe_answer) != 0) | (np.diff(trace) != 0)
        sources |= {"confidence": table.probe_confidence, "changed": changed}
    tokens = padded(table.thinking_tokens)
    for values in sources.values():
        grid = padded(values)
        known = ~np.isnan(grid)
        total = np.where(known, grid, 0).cumsum(axis=1)
        before = np.concatenate([np.full((shape[0], 1), np.nan), grid[:, :-1]], axis=1)
        last_above = np.maximum.accumulate(np.where(grid > 0, tokens, 0), axis=1)
        views = (
            grid, before, total, total / np.maximum(known.cumsum(axis=1), 1),
            np.fmax.accumulate(grid, axis=1), np.fmin.accumulate(grid, axis=1),
            _moving_average(grid), tokens - last_above,
        )  # fmt: skip
        columns += [view[trace, step] for view in views]
    return np.stack(columns, axis=1)


def _moving_average(grid: Floats, weight: float = 0.3) -> Floats:
    out = grid.copy()
    for step in range(1, grid.shape[1]):
        new = weight * grid[:, step] + (1 - weight) * out[:, step - 1]
        out[:, step] = np.where(np.isnan(new), out[:, step - 1], new)
    return out


def _predict(inputs: Floats, target: Floats, question: npt.NDArray[Any], seed: int) -> Floats:
    """(rows,) predictions for the questions of each fold from a regressor fitted on the rest."""
    try:
        from sklearn import ensemble, model_selection
    except ImportError as missing:
        raise missing_extra("train", "scikit-learn") from missing
    predicted = np.empty(len(target))
    for fit, unseen in model_selection.GroupKFold(FOLDS).split(inputs, groups=question):
        regressor = ensemble.HistGradientBoostingRegressor(**REGRESSOR, random_state=seed)
        predicted[unseen] = regressor.fit(inputs[fit], target[fit]).predict(inputs[unseen])
    return predicted


def _first_checkpoint(table: TraceTable) -> float:
    """Squared correlation of the first checkpoint's token with the trace's length, in logs."""
    filled = np.flatnonzero(table.lengths)
    first = np.log1p(table.thinking_tokens[table.offsets[filled]])
    length = np.log1p(table.final_thinking_tokens[filled])
    if first.std() < 1e-9 or length.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(first, length)[0, 1] ** 2)


def _suspects(seen: Floats, features: Sequence[str], residual: Floats) -> tuple[str, ...]:
    """Features whose ranks go with the ranks of the residual."""

    def ranks(values: Floats) -> Floats:
        return np.argsort(np.argsort(values, axis=0, kind="stable"), axis=0).astype(np.float64)

    a, b = ranks(seen), ranks(residual)
    a -= a.mean(axis=0)
    b -= b.mean()
    strength = np.abs(a.T @ b) / np.maximum(np.sqrt((a**2).sum(axis=0) * (b**2).sum()), 1e-12)
    strength[np.ptp(seen, axis=0) == 0] = 0
    order = np.argsort(-strength)
    return tuple(features[k] for k in order if strength[k] >= SUSPICIOUS)
