"""Rolling evaluation: a round takes new traces from a log, evaluates what is served, retrains.

A round harvests the audited requests whose outcome is known since the last one. Where enough are
new the served policy is evaluated on them by cross-validation: a question's fold is a hash of its
id, so it stays in its fold as traces arrive. Then the policy is trained further on all that was
harvested and holds its contest (``retrain``). What wins is proposed, and promoted only where that
is allowed; ``rlbudget registry rollback`` takes it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlbudget.errors import UserError
from rlbudget.policy.folder import Policy
from rlbudget.policy.outcomes import full_stops, outcome
from rlbudget.policy.replay import replay
from rlbudget.strategies.feedback.entries import Entries
from rlbudget.strategies.feedback.harvest import harvest
from rlbudget.strategies.feedback.registry import Registry
from rlbudget.strategies.feedback.retrain import Retrained, retrain
from rlbudget.traces.store import existing_ids, load_table
from rlbudget.traces.table import TraceTable, fold_of

FOLDS = 5


@dataclass(frozen=True, slots=True)
class Rolled:
    """The served policy on harvested traces, a number a fold."""

    traces: int
    em_lost: tuple[float, ...]
    """exact match of the full decodes minus that of the stops, by fold"""
    saved: tuple[float, ...]
    """1 - tokens / tokens of the full decodes"""

    def __str__(self) -> str:
        lost, saved = np.array(self.em_lost), np.array(self.saved)
        return (
            f"{self.traces} traces, {len(lost)} folds: EM lost {100 * lost.mean():+.1f} points"
            f" (±{100 * lost.std():.1f}), tokens saved {saved.mean():.1%} (±{saved.std():.1%})"
        )


@dataclass(frozen=True, slots=True)
class Round:
    """What a round did."""

    new: int
    """traces that were harvested since the last retraining"""
    rolled: Rolled | None = None
    """None where too few were new"""
    retrained: Retrained | None = None
    why_not: str | None = None
    """why nothing was trained"""


def rolled(policy: Policy, table: TraceTable, *, folds: int = FOLDS) -> Rolled:
    """Evaluate a policy at its default price, by fold; folds without a question are left out."""
    full = outcome(table, full_stops(table))
    done = replay(policy, table, policy.default_price).outcome
    fold = np.array([fold_of(question, folds) for question in table.question_ids.tolist()])
    lost: list[float] = []
    saved: list[float] = []
    for one in sorted(set(fold.tolist())):
        here = fold == one
        lost.append(float((full.exact_match - done.exact_match)[here].mean()))
        saved.append(float(1 - done.tokens[here].sum() / full.tokens[here].sum()))
    return Rolled(len(table), tuple(lost), tuple(saved))


def one_round(
    entries: Entries, registry: Registry, traces: Path, *, least: int, known: int,
    without: Sequence[Path] = (), promotes: bool = False, margin: float = 0.005,
    total_timesteps: int | None = None, seed: int = 0,
) -> Round:  # fmt: skip
    """Harvest into ``traces``; evaluate and retrain where ``least`` are new.

    ``known`` are the traces that the last retraining had. Raises ``UserError`` where no policy is
    served; what a retraining refuses (too few questions for a contest, say) is told in the round.
    """
    try:
        harvest(entries, traces, without=without, resume=True)
    except UserError as nothing:
        return Round(0, why_not=str(nothing))
    new = len(existing_ids(traces)) - known
    if new < least:
        return Round(new, why_not=f"{new} new traces, of {least} that a round wants")
    found = rolled(registry.served_policy(), load_table(traces))
    try:
        done = retrain(
            registry, traces, margin=margin, promotes=promotes, total_timesteps=total_timesteps,
            seed=seed,
        )  # fmt: skip
    except UserError as refused:
        return Round(new, found, why_not=str(refused))
    return Round(new, found, done)
