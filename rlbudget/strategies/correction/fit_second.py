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
from rlbudget.evaluate.unseen import Before, fitted_to, folder_texts, unseen_rows
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
from rlbudget.traces.store import iter_traces, load_table
from rlbudget.traces.table import Split, TraceTable


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

    ``policy`` serves the first model; the split is its own where it has seen questions of
    ``first``, and held-out questions that one of the two policies has seen are left out. Raises
    ``UserError`` for recordings without a question in common and for too few questions.
    """
    if not 0 < token_ratio < np.inf:
        raise UserError(
            f"a token of the second model costs {token_ratio:g} of the first: it must be above 0"
        )
    large = load_table(second)
    split = own_split(policy, first)
    fitted: Before = {}
    if second_policy is not None:
        fitted = {"the second model's policy": fitted_to(second_policy)}
    unseen, _ = unseen_rows(split.held_out.question_ids, folder_texts(first, second), fitted)
    split = replace(split, held_out=split.held_out.take(np.flatnonzero(unseen)))
    split, others = _pairs(split, large)
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


def _pairs(split: Split, large: TraceTable) -> tuple[Split, list[TraceTable]]:
    """The traces of both models of the same questions, part by part."""
    own, others = [], []
    for part in (split.train, split.validation, split.held_out):
        here, there = side_by_side([part, large])
        own.append(part.take(here))
        others.append(large.take(there))
    return replace(split, train=own[0], validation=own[1], held_out=own[2]), others
