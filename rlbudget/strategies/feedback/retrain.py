"""Retraining: new traces, a policy trained further from the served one, and a fair contest.

The new policy starts from the served one's weights and is trained on the training questions of
the new traces. Both are then replayed on the held-out questions of these traces, without those
that the served one or an ancestor of it has seen, at every relative price. From then on the new
one has seen these questions too, so that no certificate of it rests on them. The new one is
promoted only if it is better, or not worse by more than a margin, with the whole interval on the
right side; what these questions did not show is in the interval (``rlbudget.evaluate.verdicts``),
so few of them promote nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.training import train_on
from rlbudget.arrays import Floats
from rlbudget.errors import UserError
from rlbudget.evaluate.verdicts import (
    Verdict,
    extremes,
    most_utility,
    paired,
    questions_needed,
    verdict_of,
)
from rlbudget.policy.bootstrap import FEWEST_QUESTIONS
from rlbudget.policy.folder import Policy, seen_also
from rlbudget.policy.outcomes import RELATIVE_PRICES, token_price_of, utility
from rlbudget.policy.prices import nearest_price
from rlbudget.policy.replay import replay
from rlbudget.policy.seen import NONE, marks_of, seen_by, texts_of
from rlbudget.strategies.feedback.registry import Registry
from rlbudget.traces.sampling import load_sample
from rlbudget.traces.store import iter_questions
from rlbudget.traces.table import TraceTable, split_questions


@dataclass(frozen=True, slots=True)
class Contest:
    """Mean utility of a challenger minus that of the served policy."""

    difference: float
    """mean over the relative prices and the held-out questions"""
    interval: tuple[float, float]
    """95%, by question"""
    margin: float
    questions: int
    most: float = 1.0
    """the largest difference that a question could show"""

    @property
    def verdict(self) -> Verdict:
        """What the interval proves; nothing for fewer than ``FEWEST_QUESTIONS``."""
        return verdict_of(self.interval, questions=self.questions, margin=self.margin)

    @property
    def promotes(self) -> bool:
        """Whether the challenger takes over."""
        return self.verdict in ("better", "not inferior")

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.verdict}: utility {self.difference:+.4f} [{low:+.4f}, {high:+.4f}] on"
            f" {self.questions} questions, margin {self.margin:g}{self._advice()}"
        )

    def _advice(self) -> str:
        if self.verdict != "cannot tell" or not 0 < self.margin < self.most:
            return ""
        needed = questions_needed(self.margin, most=self.most)
        if self.questions >= needed:
            return ""
        return f"; one that changes no answer and saves nothing would need {needed:,} questions"


def contest(
    challenger: Policy, served: Policy, table: TraceTable, *, margin: float = 0.005, seed: int = 0
) -> Contest:
    """Replay both on traces that neither has seen. ``margin`` is in utility (exact match).

    On fewer than ``FEWEST_QUESTIONS`` the verdict is ``cannot tell``. Raises ``UserError`` for a
    margin out of [0, 1) and for no traces.
    """
    _check_margin(margin)
    if not len(table):
        raise UserError("a contest needs questions that neither policy has seen; there are none")
    probes = any(policy.preset != "free" for policy in (challenger, served))
    both_ends = extremes(table, probes=probes)
    difference: Floats = np.zeros(len(table))
    most = 0.0
    for relative in RELATIVE_PRICES:
        price = token_price_of(relative, table)
        done = [
            replay(policy, table, nearest_price(price, policy.price_range)).outcome
            for policy in (challenger, served)
        ]
        difference += (utility(done[0], price) - utility(done[1], price)) / len(RELATIVE_PRICES)
        most += most_utility(price, *done, *both_ends) / len(RELATIVE_PRICES)
    found = paired(difference, table.question_ids, most=most, seed=seed)
    return Contest(found.difference, found.interval, margin, found.questions, most)


def _check_margin(margin: float) -> None:
    if not 0 <= margin < 1:
        raise UserError(f"margin is {margin:g}: it must be at least 0 and below 1, in exact match")


@dataclass(frozen=True, slots=True)
class Retrained:
    """What a retraining did."""

    version: int
    """of the new policy in the registry"""
    contest: Contest
    promoted: bool
    proposed: bool = False
    """whether it won and waits to be promoted"""


def retrain(
    registry: Registry,
    traces: Path,
    *,
    margin: float = 0.005,
    total_timesteps: int | None = None,
    promotes: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Retrained:
    """Train the served policy further, hold a contest on fresh questions, promote or refuse.

    The new policy is kept in the registry either way; without ``promotes`` one that won is only
    proposed, and one is not promoted where another version is
    served by then. Raises ``UserError``, before it trains, where no policy is served, where another
    process trains for this registry, for training questions all of which the policy has seen and
    for traces that leave the contest fewer than ``FEWEST_QUESTIONS``; and as ``train_on`` does.
    """
    _check_margin(margin)
    with registry.training():
        version = registry.served()
        served = registry.served_policy() if version is None else registry.policy(version)
        held_out = _fresh(served, traces, seed)
        challenger = _trained_on(served, traces, held_out, total_timesteps, seed, progress)
        added = registry.add(challenger, f"trained on from {version}")
        found = contest(challenger, served, held_out, margin=margin, seed=seed)
        why = str(found)
        if found.promotes and not promotes:
            registry.propose(added, why)
            return Retrained(added, found, False, proposed=True)
        if found.promotes:
            try:
                registry.promote(added, why, instead_of=version)
                return Retrained(added, found, True)
            except UserError as error:
                why = f"{error}; {found}"
        registry.refuse(added, why)
        return Retrained(added, found, False)


def _fresh(served: Policy, traces: Path, seed: int) -> TraceTable:
    """The questions of a contest: held out of the training, and not seen by the served policy."""
    table, seen = load_sample(traces, context=True).table, served.seen
    texts = texts_of(iter_questions(traces, of=table.question_ids))
    before = NONE if seen is None else seen
    split = split_questions(table, seed=seed)
    if seen_by(before, split.train.question_ids, texts).all():
        raise UserError(f"{traces}: the served policy was trained on these traces; bring new ones")
    trained_on = marks_of([*split.train.question_ids, *split.validation.question_ids], texts)
    known = seen_by(before, split.held_out.question_ids, texts)
    known |= seen_by(trained_on, split.held_out.question_ids, texts)
    held_out = split.held_out.take(np.flatnonzero(~known))
    questions = len(np.unique(held_out.question_ids))
    if questions < FEWEST_QUESTIONS:
        aside = len(np.unique(split.held_out.question_ids)) - questions
        also = f" ({aside} that the served policy has seen are left out)" if aside else ""
        raise UserError(
            f"{traces}: a contest of two policies needs at least {FEWEST_QUESTIONS} held-out"
            f" questions, whatever they show; there are {questions}{also}: bring more new traces"
        )
    return held_out


def _trained_on(
    served: Policy,
    traces: Path,
    held_out: TraceTable,
    total_timesteps: int | None,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> Policy:
    """The served policy trained further, which has seen the questions of the contest as well."""
    marks = marks_of(
        held_out.question_ids, texts_of(iter_questions(traces, of=held_out.question_ids))
    )
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
        return seen_also(policy_of_run(run), marks)
