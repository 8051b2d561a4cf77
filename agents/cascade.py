"""Train a cascade by PPO with exact advantages; the best on the validation questions is frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from rlbudget.agents.actor import actor_chances, actor_of, one_thread
from rlbudget.agents.config import PPOConfig
from rlbudget.agents.exact_cascade import ROWS, constant_and_oracle
from rlbudget.agents.monitor import Progress, Watch
from rlbudget.agents.ppo import check_split, make_ppo
from rlbudget.agents.validation import Score, score_of
from rlbudget.arrays import Float32s, Floats
from rlbudget.envs.cascade import cascade_columns
from rlbudget.envs.replay_core import ReplayColumns
from rlbudget.envs.replay_normaliser import fit_normaliser
from rlbudget.errors import UserError
from rlbudget.policy import outcomes
from rlbudget.policy.cascade import Cascade, cascade_features, choose, make_cascade
from rlbudget.policy.handover import Handover, handover, served
from rlbudget.policy.observation import observe
from rlbudget.policy.replay_cascade import act
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.traces.pairs import Pair, with_natural_end


@dataclass(frozen=True, slots=True)
class TrainedCascade:
    """The result of a training."""

    cascade: Cascade
    score: Score
    """on the validation questions; 0 of the gap is the better constant way of the training ones"""


def train_cascade(
    train: Pair,
    validation: Pair,
    config: PPOConfig | None = None,
    *,
    large: StopPolicy | None = None,
    progress: Progress | None = None,
) -> TrainedCascade:
    """Train on one pair, choose on the other; they must share no question.

    ``large`` is the policy that the large model is served by when it is asked, its natural end if
    left out. The prices of ``config`` are per token of the large model, by default the relative
    prices 0.01 to 1 of its full decodes; ``total_timesteps`` is by default twice that of a stop
    policy. Raises ``UserError`` for pairs that share a question or differ in their ratio, and for a
    configuration that is not that of a cascade.
    """
    config = config or PPOConfig()
    _check(train, validation, config)
    # Two rows a checkpoint: the steps are twice those of a policy that only stops.
    steps = config.total_timesteps or ROWS * config.steps(len(np.unique(train.question_ids)))
    config = replace(config, total_timesteps=steps)
    prices = config.price_range(train.large)
    features = cascade_features(train.small)
    seen = observe(with_natural_end(train.small), features)
    columns = cascade_columns(
        train,
        handover=handover(large, train.large, prices),
        features=features,
        normaliser=fit_normaliser(seen, prices),
    )
    judge = CascadeValidation(columns, train, validation, large)
    with one_thread():
        model = make_ppo(columns, config)
        keeper = _Keeper(judge, config.evaluate_every, steps, progress)
        model.learn(steps, callback=keeper)
    normaliser = judge.normaliser
    tensors = {name: value.numpy() for name, value in keeper.actor.items()}
    tensors |= {"obs_mean": normaliser.mean, "obs_std": normaliser.std}
    cascade = make_cascade(
        tensors,
        features=features,
        price_range=prices,
        ratio=train.ratio,
        clip=normaliser.clip,
        trained={
            "config": config.as_dict(),
            "n_train_questions": len(np.unique(train.question_ids)),
            "mean_full_tokens": float(train.large.full_tokens.mean()),
            "validation": keeper.best.as_dict(),
        },
    )
    return TrainedCascade(cascade, keeper.best)


def _check(train: Pair, validation: Pair, config: PPOConfig) -> None:
    check_split(train, validation)
    if train.ratio != validation.ratio:
        raise UserError(
            f"ratio {train.ratio:g} in training, {validation.ratio:g} in validation: one cascade"
            " has one ratio"
        )
    if config.preset != "free" or config.features is not None or config.constraint is not None:
        raise UserError("a cascade sees the free preset, all of it, and serves token prices")


class CascadeValidation:
    """The validation questions, with all that does not depend on the cascade computed once."""

    def __init__(
        self, trained_on: ReplayColumns, train: Pair, validation: Pair, large: StopPolicy | None
    ) -> None:
        self.normaliser = trained_on.scaling
        self.columns = cascade_columns(
            validation, features=trained_on.features, normaliser=self.normaliser
        )
        self._at_end = np.zeros(len(self.columns.inputs), dtype=bool)
        self._at_end[self.columns.last_row] = True
        self._prices = [outcomes.token_price_of(r, train.large) for r in outcomes.RELATIVE_PRICES]
        self._large = [served(large, validation.large, price).outcome for price in self._prices]
        self._bounds = []
        for price, given in zip(self._prices, self._large, strict=True):
            budget = outcomes.best_budget(trained_on.table, price * train.ratio)
            asked = Handover(np.array([price]), given.exact_match[None], given.tokens[None])
            here = replace(self.columns, handover=asked)
            self._bounds.append(constant_and_oracle(here, price, budget))

    def measure(self, chances: Callable[[Float32s], Floats]) -> Score:
        """Replay at every relative price; ``chances`` takes network inputs, (k, F + 1), and gives
        those of the three actions, (k, 3)."""  # fmt: skip
        columns, found = self.columns, []
        for price, large in zip(self._prices, self._large, strict=True):
            columns.inputs[:, -1] = self.normaliser.price(price)
            actions = choose(chances(columns.inputs), self._at_end)
            found.append(act(columns.table, columns.ratio, actions, large).outcome)
        return score_of(self._prices, found, self._bounds)


class _Keeper(Watch):
    """Keeps the best actor."""

    best: Score
    actor: dict[str, torch.Tensor]

    def __init__(
        self, judge: CascadeValidation, every: int, total: int, progress: Progress | None
    ) -> None:
        super().__init__(every, total, progress)
        self._judge = judge

    def look(self, *, last: bool) -> None:
        """Measure the actor; of equals the later is kept, as it has trained longer at the prices
        that are not validated."""  # fmt: skip
        actor = actor_of(self.model)  # type: ignore[arg-type]
        score = self._judge.measure(partial(actor_chances, actor))
        if self.updates == 0 or score.selection >= self.best.selection:
            self.best, self.actor = score, actor
