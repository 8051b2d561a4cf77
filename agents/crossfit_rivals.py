"""The rivals of the cross-fitted ensemble, cross-fitted as it is: fitted-Q and the exact gradient.

All training questions train. They fall into folds, one member leaves each fold out, and when the
members' training was best is said by all folds together, as ``rlbudget.agents.members`` does. What
decides is the members' mean: of their predicted advantages of a stop, or of their logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from rlbudget.agents.actor import actor_stop_chances, one_thread
from rlbudget.agents.config import MEMBERS, PPOConfig, ensemble_of
from rlbudget.agents.doubt import relative_weights
from rlbudget.agents.exact import TraceSource, values_of
from rlbudget.agents.exact_pg import ExactGradientResult
from rlbudget.agents.fitted_q import ROUNDS, FittedQ, advantages, regressor, returns_of
from rlbudget.agents.members import Fold, Member, best_members, fold_of_traces, merged
from rlbudget.agents.out_of_fold import relative_prices
from rlbudget.agents.ppo import training_columns
from rlbudget.agents.together import Actor, Actors
from rlbudget.agents.validation import SMALLEST_GAP, Validation, bounds, gap_weight
from rlbudget.arrays import Bools, Ints
from rlbudget.envs.replay_core import ReplayColumns, replay_columns
from rlbudget.errors import UserError
from rlbudget.policy import outcomes
from rlbudget.policy.observation import Preset, features_of
from rlbudget.traces.table import TraceTable

STEPS = 1000
"""of the exact gradient, more than a member of the ensemble takes"""
ROWS = 1024
"""checkpoints of each member in a step"""
PATIENCE = 2
"""rounds of fitted-Q that may bring nothing before its end"""


def crossfit_q(
    table: TraceTable,
    token_prices: Sequence[float],
    *,
    preset: Preset = "free",
    features: tuple[str, ...] | None = None,
    members: int = MEMBERS,
    seed: int = 0,
) -> FittedQ:
    """Fitted-Q (``rlbudget.agents.fitted_q``) with ``members`` pairs of regressors a price.

    Needs scikit-learn; ``UserError`` without it and for fewer than two questions.
    """
    names = features_of(table, preset) if features is None else features
    fold = _folds(table, members, seed)
    parts = [
        (table.take(np.flatnonzero(fold != k)), table.take(np.flatnonzero(fold == k)))
        for k in range(int(fold.max()) + 1)
    ]
    sides = [
        (replay_columns(train, features=names), replay_columns(own, features=names))
        for train, own in parts
    ]
    rights = [
        regressor(seed).fit(train.inputs[:, :-1], train.table.exit_exact_match)
        for train, _ in sides
    ]
    pairs = {
        float(price): _pairs(sides, rights, float(price), preset, seed) for price in token_prices
    }
    return FittedQ(names, preset, pairs)


def _pairs(
    sides: Sequence[tuple[ReplayColumns, ReplayColumns]],
    rights: Sequence[Any],
    price: float,
    preset: Preset,
    seed: int,
) -> tuple[tuple[Any, Any], ...]:
    """The members of one price at the round of highest utility on all that they left out."""
    says = [np.zeros(len(train.inputs), dtype=bool) for train, _ in sides]
    best, kept, since = -np.inf, tuple[tuple[Any, Any], ...](), 0
    for number in range(ROUNDS):
        value, now, then = 0.0, [], list[Bools]()
        for (train, own), right, told in zip(sides, rights, says, strict=True):
            go_on = regressor(seed + number).fit(
                train.inputs[:, :-1], returns_of(train, price, told)
            )
            then.append(advantages(train, price, right, go_on) >= 0)
            stops = outcomes.first_stop(own.table, advantages(own, price, right, go_on) >= 0)
            charged = outcomes.charged_by(preset, own.table, own.features)
            found = outcomes.outcome(own.table, stops, probes_charged=charged)
            value += float(outcomes.utility(found, price).sum())
            now.append((right, go_on))
        if value > best:
            best, kept, since = value, tuple(now), 0
        else:
            since += 1
        if since == PATIENCE:
            break
        says = then
    return kept


def crossfit_gradient(
    table: TraceTable,
    *,
    token_price: tuple[float, float] | None = None,
    preset: Preset = "free",
    features: tuple[str, ...] | None = None,
    members: int = MEMBERS,
    steps: int = STEPS,
    rows: int = ROWS,
    learning_rate: float = 2e-3,
    weight_decay: float = 1e-2,
    evaluate_every: int = 20,
    seed: int = 0,
) -> ExactGradientResult:
    """The exact gradient of the mean utility (``rlbudget.agents.exact_pg``) for ``members`` actors.

    They are as wide as those of the ensemble and train at once. ``UserError`` for fewer than two
    questions.
    """
    fold = _folds(table, members, seed)
    one = PPOConfig(preset=preset, token_price=token_price, features=features, seed=seed)
    config = replace(ensemble_of(one, len(np.unique(table.question_ids)), members), input_noise=0.0)
    columns = training_columns(table, config)
    scaling = columns.scaling
    parts = [_part(columns, fold, place) for place in range(int(fold.max()) + 1)]
    seeds = [1 + 1000 * seed + place for place in range(len(parts))]
    sources = [
        TraceSource(
            part.columns, scaling.token_price, gap_weight(part.train, scaling.token_price),
            np.random.default_rng([number, 1]),
        )
        for part, number in zip(parts, seeds, strict=True)
    ]  # fmt: skip
    looks: list[list[Member]] = []
    with one_thread():
        actors = Actors(seeds, columns.inputs.shape[1], config)
        optimiser = torch.optim.AdamW(
            actors.parameters, lr=learning_rate, weight_decay=weight_decay
        )
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
        for step in range(steps + 1):
            if step % evaluate_every == 0 or step == steps:
                looks.append([_member(part, actors.actor(k), k) for k, part in enumerate(parts)])
            if step < steps:
                optimiser.zero_grad()
                _loss(actors, sources, rows).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
    limits = [bounds(table, table, price) for price in relative_prices(table).values()]
    chosen = best_members(
        looks, [len(part.own) for part in parts], relative_weights(limits, SMALLEST_GAP)
    )
    actor = merged([member.actor for member in chosen])
    return ExactGradientResult(None, actor, columns.features, scaling, preset)


def _folds(table: TraceTable, members: int, seed: int) -> Ints:
    """(n,) the fold of each trace, those of the ensemble of the same seed."""
    folds = min(members, len(np.unique(table.question_ids)))
    if folds < 2:
        raise UserError("training needs at least two questions: record more questions")
    return fold_of_traces(table, folds, seed)


def _part(columns: ReplayColumns, fold: Ints, place: int) -> Fold:
    table, features, scaling = columns.table, columns.features, columns.scaling
    train, own = (table.take(np.flatnonzero(rows)) for rows in (fold != place, fold == place))
    inputs = replay_columns(train, features=features, normaliser=scaling)
    return Fold(train, own, Validation(train, own, features, scaling), inputs, ())


def _member(part: Fold, actor: Actor, place: int) -> Member:
    return Member(place, False, actor, part.judge.measure(partial(actor_stop_chances, actor)))


def _loss(actors: Actors, sources: Sequence[TraceSource], rows: int) -> torch.Tensor:
    """The members' mean utilities, negative and summed: its gradient is theirs.

    That of the objective in s(t) is reach(t) * (U(t) - V(t + 1)).
    """
    batches = [source.draw(rows) for source in sources]
    most = max(len(batch.inputs) for batch in batches)
    inputs = np.zeros((len(batches), most, batches[0].inputs.shape[1]), dtype=np.float32)
    for place, batch in enumerate(batches):
        inputs[place, : len(batch.inputs)] = batch.inputs
    stop = torch.softmax(actors.logits(torch.from_numpy(inputs)), dim=2)[:, :, 1]
    slope = np.zeros(stop.shape, dtype=np.float32)
    for place, batch in enumerate(batches):
        own = slice(0, len(batch.inputs))
        chance = stop[place, own].detach().numpy().astype(np.float64)
        values = values_of(chance, batch.exits, batch.natural, batch.offsets)
        slope[place, own] = batch.weight * values.reach * (batch.exits - values.go_on)
        slope[place, own] /= len(batch.inputs)
    return -(stop * torch.from_numpy(slope)).sum()
