"""The members of a cross-fitted ensemble: small policies, each stopped by questions of its own.

The training questions fall into folds. Of each fold two members train on all the others: one from
a cold start, reluctant to stop, the other from a clone of the best rule of each price. All of them
train at once. When their training was best is said by all folds together, for one fold alone is too
few questions to choose a moment by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from rlbudget.agents.actor import HIDDEN, actor_stop_chances, one_thread
from rlbudget.agents.clone import TriedRule, imitate, try_rules
from rlbudget.agents.config import PPOConfig
from rlbudget.agents.doubt import layers_of
from rlbudget.agents.exact import TraceSource
from rlbudget.agents.monitor import Progress
from rlbudget.agents.together import Actor, Actors, learn
from rlbudget.agents.validation import Score, Validation, gap_weight
from rlbudget.arrays import Floats, Ints
from rlbudget.envs.replay_core import ReplayColumns, replay_columns
from rlbudget.traces.table import TraceTable


@dataclass(frozen=True, slots=True)
class Fold:
    """A fold of the training questions."""

    train: TraceTable
    """the other questions"""
    own: TraceTable
    judge: Validation
    """of its own traces"""
    columns: ReplayColumns
    """of the others"""
    tried: Sequence[TriedRule]
    """rules on the others"""


@dataclass(frozen=True, slots=True)
class Member:
    """A member between two updates."""

    fold: int
    """that it does not train on"""
    warm: bool
    """whether it began as a clone of rules"""
    actor: Actor
    score: Score
    """on its fold"""


def fold_of_traces(table: TraceTable, folds: int, seed: int) -> Ints:
    """(n,) the fold of each trace: by question, of equal sizes, drawn by ``seed``."""
    questions, of_trace = np.unique(table.question_ids, return_inverse=True)
    place = np.random.default_rng([seed, 3]).permutation(len(questions)) % folds
    fold: Ints = place[of_trace].astype(np.int64)
    return fold


def make_folds(columns: ReplayColumns, fold: Ints) -> list[Fold]:
    """The folds of the traces of ``columns``, which all members' inputs are scaled like."""
    table, features, normaliser = columns.table, columns.features, columns.scaling
    found = []
    for place in range(int(fold.max()) + 1):
        train, own = (table.take(np.flatnonzero(rows)) for rows in (fold != place, fold == place))
        found.append(
            Fold(
                train,
                own,
                Validation(train, own, features, normaliser),
                replay_columns(train, features=features, normaliser=normaliser),
                try_rules(train),
            )
        )
    return found


def train_members(
    folds: Sequence[Fold],
    config: PPOConfig,
    *,
    progress: Progress | None = None,
    on_look: Callable[[int, list[Member]], None] | None = None,
) -> list[list[Member]]:
    """Train the cold and the warm members of every fold, cold ones first; at each look all of them.

    ``config.total_timesteps`` are those of each. ``on_look`` is called with the steps done and the
    members then.
    """
    assert config.total_timesteps is not None
    kinds = [(place, is_warm) for is_warm in (False, True) for place in range(len(folds))]
    seeds = [1 + 1000 * config.seed + number for number in range(len(kinds))]
    prices = folds[0].columns.scaling.token_price
    weights = [gap_weight(fold.train, prices) for fold in folds]
    sources = [
        TraceSource(
            folds[place].columns, prices, weights[place], np.random.default_rng([seed, 1]),
            exploration=config.exploration, noise=config.input_noise,
        )
        for (place, _), seed in zip(kinds, seeds, strict=True)
    ]  # fmt: skip
    looks: list[list[Member]] = []
    with one_thread():
        actors = Actors(seeds, folds[0].columns.inputs.shape[1], config)
        warm = Actors(seeds[len(folds) :], folds[0].columns.inputs.shape[1], config)
        imitate(
            warm, [fold.columns for fold in folds], [fold.tried for fold in folds],
            config.preset, seed=config.seed,
        )  # fmt: skip
        actors.adopt(warm, len(folds))
        for update, done in enumerate(learn(actors, sources, config, seed=config.seed)):
            over = done >= config.total_timesteps
            if update % config.evaluate_every == 0 or over:
                members = [
                    _member(folds[place], actors.actor(number), place, is_warm)
                    for number, (place, is_warm) in enumerate(kinds)
                ]
                looks.append(members)
                if on_look is not None:
                    on_look(done, members)
            if progress is not None:
                progress(min(done, config.total_timesteps), config.total_timesteps)
    return looks


def best_members(
    looks: Sequence[Sequence[Member]], sizes: Sequence[int], weights: Floats, without: int = -1
) -> list[Member]:
    """The members of each kind at the look that was best for them.

    That of the highest utility on the folds' own traces, of which there are ``sizes``, each price
    weighted; means over three looks, as one is noisy. ``without`` is a fold that is not asked.
    """
    chosen: list[Member] = []
    for warm in (False, True):
        of_kind = [[one for one in look if one.warm == warm] for look in looks]
        worth = [
            sum(
                sizes[one.fold] * float(weights @ [row.utility for row in one.score.prices])
                for one in look
                if one.fold != without
            )
            for look in of_kind
        ]
        smooth = np.convolve(np.pad(worth, 1, "edge"), np.ones(3) / 3, "valid")
        chosen += of_kind[int(np.argmax(smooth))]
    return chosen


def _member(fold: Fold, actor: Actor, place: int, warm: bool) -> Member:
    return Member(place, warm, actor, fold.judge.measure(partial(actor_stop_chances, actor)))


def merged(actors: Sequence[Actor]) -> Actor:
    """One network whose logits are the means of those of ``actors``, all of one shape.

    Their hidden units lie side by side; where there are several layers the members' blocks lie on
    the diagonal.
    """
    out: Actor = {}
    for layer in layers_of(actors[0]):
        name = f"{HIDDEN}{layer}"
        weights = [actor[f"{name}.weight"] for actor in actors]
        joined = torch.block_diag(*weights) if layer else torch.cat(weights)  # type: ignore[no-untyped-call]
        out[f"{name}.weight"] = joined
        out[f"{name}.bias"] = torch.cat([actor[f"{name}.bias"] for actor in actors])
    last = [actor["action_net.weight"] for actor in actors]
    out["action_net.weight"] = torch.cat(last, dim=1) / len(actors)
    out["action_net.bias"] = torch.stack([a["action_net.bias"] for a in actors]).mean(dim=0)
    return out
