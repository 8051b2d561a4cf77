"""From a policy and a pair of recordings to a correction by the second model.

Prices and tokens are those of the first model, which the policy stops; a token of the second costs
``token_ratio`` of them. The second model decodes in full or under a policy of its own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from rlbudget.agents.training import recorded_of
from rlbudget.errors import UserError
from rlbudget.evaluate.unseen import fitted_to
from rlbudget.policy.folder import Policy
from rlbudget.policy.handover import served
from rlbudget.policy.outcomes import concatenated
from rlbudget.policy.replay import replay
from rlbudget.strategies.correction.correct import (
    Aim,
    Refiner,
    Second,
    correct,
    doubts_of,
    tune,
)
from rlbudget.strategies.correction.fit import Fitted, fit_doubts, own_split
from rlbudget.traces.pairs import side_by_side
from rlbudget.traces.store import digest, iter_traces, load_table
from rlbudget.traces.table import Split, TraceTable, split_questions


def fit_second(
    policy: Policy,
    first: Path | str,
    second: Path | str,
    *,
    token_ratio: float,
    token_price: float,
    second_policy: Policy | None = None,
    most_extra: float | None = None,
    aim: Aim = "utility",
    seed: int = 0,
) -> Fitted:
    """Fit and tune on training and validation questions, measure on the held-out ones.

    ``policy`` serves the first model; the split is its own where it was trained on ``first``, and
    held-out questions that the second model's policy was trained on are left out. Raises
    ``UserError`` for recordings without a question in common and for too few questions.
    """
    if not 0 < token_ratio < np.inf:
        raise UserError(
            f"a token of the second model costs {token_ratio:g} of the first: it must be above 0"
        )
    large = load_table(second)
    split, others = _pairs(own_split(policy, first), large, _seen(second_policy, second))
    own_price = token_price / token_ratio
    given = [served(second_policy, table, own_price).outcome for table in others]
    right = [one.exact_match for one in given]
    doubts = fit_doubts(split, policy, second=(right[0], right[1]), seed=seed)
    refiner = Refiner(token_ratio, recorded_of(next(iter_traces(second))))
    correction = tune(
        doubts.model,
        replay(policy, doubts.tuning, token_price),
        doubts.of_tuning,
        token_price,
        most_extra=most_extra,
        aim=aim,
        second=Second(concatenated(given[:2]), refiner),
    )
    done = replay(policy, split.held_out, token_price)
    measured = correct(
        correction, done, doubts_of(doubts.model, split.held_out), Second(given[2], refiner)
    )
    return Fitted(correction, measured, split.held_out.question_ids, token_price)


def _seen(policy: Policy | None, traces: Path | str) -> set[str]:
    """The questions that a policy was trained on or chosen by."""
    if policy is None:
        return set()
    fitted = fitted_to(policy)
    if fitted.get("digest") != digest(traces):
        return set()
    if fitted.get("split_seed") is None:
        raise UserError(
            "the second model's policy was trained on these traces but does not say how they were"
            " split, so no question is known to be unseen"
        )
    split = split_questions(load_table(traces), seed=int(fitted["split_seed"]))
    return {*split.train.question_ids.tolist(), *split.validation.question_ids.tolist()}


def _pairs(split: Split, large: TraceTable, seen: set[str]) -> tuple[Split, list[TraceTable]]:
    """The traces of both models of the same questions, part by part, those held out unseen."""
    held_out = split.held_out
    unseen = ~np.isin(held_out.question_ids, sorted(seen)) if seen else np.ones(len(held_out), bool)
    if not unseen.any():
        raise UserError("the second model's policy has seen every held-out question of the first")
    own, others = [], []
    for part in (split.train, split.validation, held_out.take(np.flatnonzero(unseen))):
        here, there = side_by_side([part, large])
        own.append(part.take(here))
        others.append(large.take(there))
    return replace(split, train=own[0], validation=own[1], held_out=own[2]), others
