"""Refinement: an exit that looks wrong is handed to a second model, which answers in its place.

Replayed from a pair of recordings (``traces.pairs``): the same questions, both models' traces.
What the first model wrote stays paid, at ``ratio`` of a token of the second; token prices are those
of the second model. The other way to a second opinion, the same model for longer, is
``correct.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlbudget.arrays import Floats
from rlbudget.errors import UserError
from rlbudget.policy.folder import Policy
from rlbudget.policy.handover import in_large_tokens
from rlbudget.policy.outcomes import NATURAL_END, Outcome, full_stops, outcome, utility
from rlbudget.policy.replay import Replay, replay
from rlbudget.strategies.correction.correct import LEVELS, OFF, Corrected, doubts_of
from rlbudget.strategies.correction.fit import fit_doubts, joined, own_split
from rlbudget.strategies.members import either, paid_too
from rlbudget.traces.pairs import pair_tables
from rlbudget.traces.store import load_table
from rlbudget.traces.table import Split


@dataclass(frozen=True, slots=True)
class Refinement:
    """When to hand an exit to the second model."""

    threshold: float
    """doubt in the first answer above which it is; ``OFF`` for never"""
    ratio: float
    """what a token of the first model costs, in tokens of the second"""


def refine(refinement: Refinement, done: Replay, second: Outcome, doubts: Floats) -> Corrected:
    """Replace the doubted exits of a replay of the first model.

    ``second`` (n,) is what the second model does with the same questions, in full or under a
    policy; ``doubts`` (m,) those at the first model's checkpoints. All tokens of the result are
    tokens of the second model, those of the first model at ``ratio``.
    """
    table, ratio = done.table, refinement.ratio
    if len(second) != len(table):
        raise ValueError(f"{len(second)} outcomes of the second model, {len(table)} of the first")
    before = in_large_tokens(done.outcome, ratio)
    stopped = np.flatnonzero(done.stops != NATURAL_END)
    handed = np.zeros(len(table), dtype=np.int64)
    handed[stopped] = doubts[table.offsets[stopped] + done.stops[stopped]] > refinement.threshold
    after = either(handed == 1, paid_too(second, before), before)
    full = in_large_tokens(outcome(table, full_stops(table)), ratio)
    return Corrected(before, after, handed, full)


def tune_refinement(
    done: Replay, second: Outcome, doubts: Floats, token_price: float, *, ratio: float
) -> Refinement:
    """The threshold of highest mean utility on training questions; ``OFF`` where none gains.

    ``doubts`` are those of models that have not seen the question. Raises ``UserError`` for a
    ratio out of (0, 1].
    """
    if not 0 < ratio <= 1:
        raise UserError(f"ratio is {ratio:g}: it must be above 0 and at most 1")
    best = Refinement(OFF, ratio)
    highest = float(utility(refine(best, done, second, doubts).before, token_price).mean())
    stopped = np.flatnonzero(done.stops != NATURAL_END)
    known = doubts[done.table.offsets[stopped] + done.stops[stopped]]
    levels = np.quantile(known, np.linspace(0, 1, LEVELS)) if len(known) else np.zeros(0)
    for level in np.unique(levels).tolist():
        tried = Refinement(level, ratio)
        after = refine(tried, done, second, doubts).outcome
        value = float(utility(after, token_price).mean())
        if value > highest:
            best, highest = tried, value
    return best


def fit_refinement(
    policy: Policy, first: Path | str, second: Path | str, *, ratio: float, token_price: float
) -> tuple[Refinement, Corrected]:
    """From folders of both models' traces to a refinement and what it does on held-out questions.

    ``policy`` serves the first model; the second decodes in full. ``token_price`` is that of a
    token of the second. Raises ``UserError`` as ``rlbudget.traces.pairs.pair_tables`` does.
    """
    split, large = own_split(policy, first), load_table(second)
    pairs = [
        pair_tables(part, large, ratio=ratio)
        for part in (split.train, split.validation, split.held_out)
    ]
    train, validation, held_out = pairs
    doubts = fit_doubts(Split(train.small, validation.small, held_out.small), policy)
    known = joined(train.large, validation.large)
    own_price = ratio * token_price
    done = replay(policy, doubts.tuning, own_price)
    second_done = outcome(known, full_stops(known))
    refinement = tune_refinement(done, second_done, doubts.of_tuning, token_price, ratio=ratio)
    done = replay(policy, held_out.small, own_price)
    answered = outcome(held_out.large, full_stops(held_out.large))
    return refinement, refine(refinement, done, answered, doubts_of(doubts.model, done.table))
