"""Correction: an exit that looks wrong is withdrawn, and the model continues thinking.

Once an exit's answer is written, more is known than before it (``written.py``). Where the doubt in
the answer is above a threshold, the thinking is resumed where it was left, for a small budget or to
its natural end, and a new answer is written; of the answers so far the least doubted is kept, the
later one of equals, and that of a natural end always. Every token is charged: the first answer, the
thinking after it, the next answers. Threshold, budget and rounds are chosen on training questions
at a price; where nothing pays, it stays off.

Or a *second model* refines what is doubted: it answers the question anew, and its answer is given.
What the first model wrote stays paid. Tokens are those of the first model throughout; one of the
second costs its ``ratio`` of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rlbudget.arrays import Bools, Floats, Ints
from rlbudget.errors import UserError
from rlbudget.policy.handover import in_large_tokens
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import NATURAL_END, Outcome, full_stops, outcome, utility
from rlbudget.policy.replay import Replay
from rlbudget.strategies.impact import ImpactModel
from rlbudget.traces.table import TraceTable

Aim = Literal["utility", "answers"]
OFF = float("inf")
LEVELS = 40
"""thresholds tried: quantiles of the doubts at the stops"""
PLANS: tuple[tuple[int | None, int], ...] = (
    (None, 1), (8, 1), (8, 2), (8, 4), (16, 2), (32, 1), (32, 2), (64, 1), (64, 2),
)  # fmt: skip
"""budgets (thinking tokens; None for the natural end) and rounds tried"""


@dataclass(frozen=True, slots=True)
class Refiner:
    """What is known of a second model."""

    ratio: float
    """what one of its tokens costs, in tokens of the first model"""
    recorded: Mapping[str, Any] = field(default_factory=dict)
    """how its traces were recorded, JSON-ready: ``temperature``, ``max_tokens``, ``stride``, …"""


@dataclass(frozen=True, slots=True)
class Correction:
    """When to withdraw an exit, and for how long to continue thinking."""

    doubt: ImpactModel
    """the chance that a written answer is wrong; with a second model half of 1 + the exact match
    that its answer gains; see ``doubt.py``"""
    threshold: float
    """doubt above which the exit is withdrawn; ``OFF`` for never"""
    budget: int | None
    """thinking tokens before the next exit; None for the natural end"""
    rounds: int = 1
    """exits after the first at most, while the doubt stays above the threshold"""
    second: Refiner | None = None
    """the second model that exits are handed to; None where the first itself continues"""

    @property
    def off(self) -> bool:
        """Whether it changes nothing."""
        return self.threshold == OFF


@dataclass(frozen=True, slots=True)
class Second:
    """What a second model does with the same questions, in full or under its policy."""

    outcome: Outcome
    """(n,) in its own tokens"""
    model: Refiner


@dataclass(frozen=True, slots=True)
class Corrected:
    """What a correction did to a replay."""

    before: Outcome
    outcome: Outcome
    resumed: Ints
    """(n,) how often an exit of the trace was withdrawn; with a second model at most once"""
    full: Outcome
    """the full decodes"""

    @property
    def extra_tokens(self) -> Floats:
        """(n,) tokens beyond those of the first exit."""
        return self.outcome.tokens - self.before.tokens

    @property
    def lost(self) -> Bools:
        """(n,) answers lost by early exits: right in the full decode, wrong at the first exit."""
        return self.full.exact_match > self.before.exact_match

    @property
    def recovered(self) -> Bools:
        """(n,) lost before, right after."""
        recovered: Bools = self.lost & (self.outcome.exact_match == 1)
        return recovered

    @property
    def broken(self) -> Bools:
        """(n,) right before, wrong after."""
        return self.outcome.exact_match < self.before.exact_match

    @property
    def share_recovered(self) -> float:
        """Of the lost answers; NaN where none was lost."""
        lost = int(self.lost.sum())
        return int(self.recovered.sum()) / lost if lost else float("nan")

    @property
    def share_of_saved(self) -> float:
        """Extra tokens over those that the stops had saved; NaN where they saved none."""
        saved = float(self.full.tokens.sum() - self.before.tokens.sum())
        return float(self.extra_tokens.sum()) / saved if saved > 0 else float("nan")

    @property
    def gained_per_100_tokens(self) -> float:
        """Exact matches gained, broken ones taken off, for 100 extra tokens; 0 without any."""
        extra = float(self.extra_tokens.sum())
        gained = float((self.outcome.exact_match - self.before.exact_match).sum())
        return 100 * gained / extra if extra else 0.0


def correct(
    correction: Correction,
    done: Replay,
    doubts: Floats | None = None,
    second: Second | None = None,
) -> Corrected:
    """Withdraw the doubted exits of a replay on an ``exit_table``.

    ``doubts`` (m,) spares computing those of every checkpoint. ``second`` is what a correction by
    a second model hands them to.
    """
    table, before = done.table, done.outcome
    if doubts is None:
        doubts = doubts_of(correction.doubt, table)
    if second is not None:
        return _refined(correction, done, doubts, second)
    exact_match = before.exact_match.copy()
    thinking, answer = before.thinking.copy(), before.answer.copy()
    resumed = np.zeros(len(table), dtype=np.int64)
    stopped = np.flatnonzero(done.stops != NATURAL_END)
    firsts = table.offsets[stopped] + done.stops[stopped]
    doubted = doubts[firsts] > correction.threshold
    for trace, first in zip(stopped[doubted].tolist(), firsts[doubted].tolist(), strict=True):
        now = best = first
        end = int(table.offsets[trace + 1])
        while doubts[best] > correction.threshold and resumed[trace] < correction.rounds:
            resumed[trace] += 1
            later = _next(table, now, end, correction.budget)
            if later is None:
                exact_match[trace] = table.final_exact_match[trace]
                thinking[trace] = table.final_thinking_tokens[trace]
                answer[trace] += table.final_answer_tokens[trace]
                break
            now = later
            best = now if doubts[now] <= doubts[best] else best
            exact_match[trace] = table.exit_exact_match[best]
            thinking[trace] = table.thinking_tokens[now]
            answer[trace] += table.exit_answer_tokens[now]
    after = Outcome(exact_match, thinking, before.probe, answer)
    return Corrected(before, after, resumed, outcome(table, full_stops(table)))


def _refined(correction: Correction, done: Replay, doubts: Floats, second: Second) -> Corrected:
    """The second model's answers to the doubted exits, for the tokens of both."""
    table, before = done.table, done.outcome
    if len(second.outcome) != len(table):
        raise ValueError(f"{len(second.outcome)} outcomes of the second model, {len(table)} traces")
    stopped = np.flatnonzero(done.stops != NATURAL_END)
    handed = np.zeros(len(table), dtype=np.int64)
    handed[stopped] = doubts[table.offsets[stopped] + done.stops[stopped]] > correction.threshold
    given = in_large_tokens(second.outcome, second.model.ratio)
    after = Outcome(
        np.where(handed, given.exact_match, before.exact_match),
        before.thinking + handed * given.thinking,
        before.probe + handed * given.probe,
        before.answer + handed * given.answer,
    )
    return Corrected(before, after, handed, outcome(table, full_stops(table)))


def doubts_of(doubt: ImpactModel, table: TraceTable) -> Floats:
    """(m,) the doubt in the exit at every checkpoint of an ``exit_table``."""
    return doubt.risk(observe(table, doubt.features)) if len(table.thinking_tokens) else np.zeros(0)


def tune(
    doubt: ImpactModel,
    done: Replay,
    doubts: Floats,
    token_price: float,
    *,
    most_extra: float | None = None,
    aim: Aim = "utility",
    plans: Sequence[tuple[int | None, int]] = PLANS,
    second: Second | None = None,
) -> Correction:
    """The threshold, budget and rounds that are best on a replay of training questions.

    ``aim`` says what is best: the highest mean utility, or the highest exact match among those
    that gain at least half as much utility as the best. ``doubts`` (m,) are those of models that
    have not seen the question. ``most_extra`` bounds the extra tokens, as a share of those that
    the stops save. Where nothing gains utility, the correction is off. ``second`` is the model that
    refines doubted exits, instead of thinking on. Raises ``UserError`` for a bound below 0 and for
    a ratio of the second model that is not above 0.
    """
    refiner = None if second is None else second.model
    if refiner is not None and not 0 < refiner.ratio < OFF:
        raise UserError(
            f"a token of the second model costs {refiner.ratio:g} of the first: it must be above 0"
        )
    if most_extra is not None and most_extra < 0:
        raise UserError(f"most_extra must be at least 0, not {most_extra:g}")
    off = Correction(doubt, OFF, None, second=refiner)
    stopped = np.flatnonzero(done.stops != NATURAL_END)
    known = doubts[done.table.offsets[stopped] + done.stops[stopped]]
    if not len(known):
        return off
    places = 1 - np.linspace(0, 1, LEVELS) ** 2  # close together where few are doubted
    levels: list[float] = np.unique(np.quantile(known, places)).tolist()
    without = float(utility(done.outcome, token_price).mean())
    worth: list[tuple[float, float, Correction]] = []
    for budget, rounds in plans if second is None else ((None, 1),):
        for level in levels:
            tried = Correction(doubt, level, budget, rounds, refiner)
            after = correct(tried, done, doubts, second)
            gained = float(utility(after.outcome, token_price).mean()) - without
            if gained > 0 and (most_extra is None or after.share_of_saved <= most_extra):
                worth.append((gained, float(after.outcome.exact_match.mean()), tried))
    if not worth:
        return off
    best = max(worth, key=lambda each: each[0])
    if aim == "answers":
        best = max((each for each in worth if 2 * each[0] >= best[0]), key=lambda each: each[1])
    return best[2]


def _next(table: TraceTable, row: int, end: int, budget: int | None) -> int | None:
    """The first checkpoint ``budget`` tokens after ``row``; None for the natural end."""
    if budget is None:
        return None
    least = table.thinking_tokens[row] + budget
    place = row + 1 + int(np.searchsorted(table.thinking_tokens[row + 1 : end], least))
    return place if place < end else None
