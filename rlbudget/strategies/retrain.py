"""The feedback loop: new traces, a policy that goes on from the served one, and a fair contest.

The new policy starts from the served one's weights and is trained on the training questions of
the new traces. Both are then replayed on the held-out questions of these traces, which neither
has seen, at every relative price. The new one is promoted only if it is better, or not worse by
more than a margin, with the whole interval on the right side.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from rlbudget.errors import UserError
from rlbudget.evaluate.bootstrap import interval, resample
from rlbudget.evaluate.outcomes import RELATIVE_PRICES, Floats, token_price_of, utility
from rlbudget.evaluate.replay import replay
from rlbudget.freeze import policy_of_run
from rlbudget.policy import Policy
from rlbudget.store import digest, load_table
from rlbudget.strategies.registry import Registry
from rlbudget.table import TraceTable, split_questions
from rlbudget.training import train_on

Verdict = Literal["better", "not inferior", "cannot tell", "worse"]
DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Contest:
    """Mean utility of a challenger minus that of the served policy."""

    difference: float
    """mean over the relative prices and the held-out questions"""
    interval: tuple[float, float]
    """95%, by question"""
    margin: float
    questions: int

    @property
    def verdict(self) -> Verdict:
        """What the interval proves."""
        low, high = self.interval
        if low > 0:
            return "better"
        if low > -self.margin:
            return "not inferior"
        return "worse" if high < 0 else "cannot tell"

    @property
    def promotes(self) -> bool:
        """Whether the challenger takes over."""
        return self.verdict in ("better", "not inferior")

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.verdict}: utility {self.difference:+.4f} [{low:+.4f}, {high:+.4f}] on"
            f" {self.questions} questions, margin {self.margin:g}"
        )


def contest(
    challenger: Policy, served: Policy, table: TraceTable, *, margin: float = 0.005, seed: int = 0
) -> Contest:
    """Replay both on traces that neither has seen. ``margin`` is in utility (exact match).

    Raises ``UserError`` for a negative margin and too few questions.
    """
    if margin < 0:
        raise UserError(f"margin must be at least 0, not {margin:g}")
    questions = len(np.unique(table.question_ids))
    if questions < 2:
        raise UserError("a contest needs at least 2 questions that neither policy has seen")
    difference: Floats = np.zeros(len(table))
    for relative in RELATIVE_PRICES:
        price = token_price_of(relative, table)
        values = [
            utility(replay(policy, table, _within(policy, price)).outcome, price)
            for policy in (challenger, served)
        ]
        difference += (values[0] - values[1]) / len(RELATIVE_PRICES)
    draws = resample(table.question_ids, draws=DRAWS, seed=seed).means(difference)
    return Contest(float(difference.mean()), interval(draws), margin, questions)


def _within(policy: Policy, price: float) -> float:
    low, high = policy.price_range
    return min(max(price, low), high)


@dataclass(frozen=True, slots=True)
class Retrained:
    """What a retraining did."""

    version: int
    """of the new policy in the registry"""
    contest: Contest
    promoted: bool


def retrain(
    registry: Registry,
    traces: Path,
    *,
    margin: float = 0.005,
    total_timesteps: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Retrained:
    """Train on from the served policy, hold a contest on fresh questions, promote or refuse.

    The new policy is kept in the registry either way. Raises ``UserError`` where no policy is
    served, for traces it was trained on already, and as training does.
    """
    served = registry.served_policy()
    before = (served.config.get("trained") or {}).get("traces") or {}
    if before.get("digest") == digest(traces):
        raise UserError(f"{traces}: the served policy was trained on these traces; bring new ones")
    table = load_table(traces, context=True)
    held_out = split_questions(table, seed=seed).held_out
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train_on(
            traces,
            run,
            start=served,
            total_timesteps=total_timesteps,
            seed=seed,
            split_seed=seed,
            progress=progress,
        )
        challenger = policy_of_run(run)
    version = registry.add(challenger, f"trained on from {registry.served()}")
    found = contest(challenger, served, held_out, margin=margin, seed=seed)
    if found.promotes:
        registry.promote(version, str(found))
    else:
        registry.refuse(version, str(found))
    return Retrained(version, found, found.promotes)
