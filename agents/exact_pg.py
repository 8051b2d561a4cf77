"""The yardstick: the mean utility maximised by its exact gradient, without PPO.

In a replay the objective sum over t of P(reach t) * P(stop at t) * U(t) can be written down and
differentiated. Adam on it, with PPO's network, inputs, prices and weights, tells what PPO should
reach: where PPO falls short, PPO is the bug.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from rlbudget.agents.actor import ACTOR, actor_of, actor_stop_chances, one_thread
from rlbudget.agents.config import PPOConfig
from rlbudget.agents.exact import values_of
from rlbudget.agents.ppo import ExactPPO, make_ppo, training_columns
from rlbudget.agents.validation import Score, Validation
from rlbudget.arrays import Ints
from rlbudget.envs.replay_normaliser import Normaliser
from rlbudget.policy import outcomes
from rlbudget.policy.observation import Preset, observe
from rlbudget.traces.table import TraceTable


@dataclass(frozen=True, slots=True)
class ExactGradientResult:
    """The best network by validation and its score, None where it was validated in folds."""

    score: Score | None
    actor: dict[str, torch.Tensor]
    features: tuple[str, ...]
    normaliser: Normaliser
    preset: Preset

    @property
    def operating_prices(self) -> tuple[float, ...]:
        """As many over its range as a policy has."""
        return tuple(outcomes.operating_prices(self.normaliser.token_price))

    def stops(self, table: TraceTable, token_price: float) -> Ints:
        """(n,) the first checkpoint at which the chance to stop is above a half."""
        inputs = self.normaliser.inputs(observe(table, self.features), token_price)
        return outcomes.first_stop(table, actor_stop_chances(self.actor, inputs) > 0.5)


def maximise(
    train: TraceTable,
    validation: TraceTable,
    *,
    token_price: tuple[float, float],
    preset: Preset = "free",
    steps: int = 1000,
    rows: int = 16384,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    evaluate_every: int = 25,
    seed: int = 0,
) -> ExactGradientResult:
    """Adam on the exact mean utility of the training traces; the best of validation is kept."""
    config = PPOConfig(preset=preset, token_price=token_price, seed=seed)
    columns = training_columns(train, config)
    judge = Validation(train, validation, columns.features, columns.scaling)
    best: Score | None = None
    with one_thread():
        model = make_ppo(columns, config)
        assert isinstance(model, ExactPPO)
        policy = model.policy
        actor = [p for name, p in policy.named_parameters() if name.startswith(ACTOR)]
        optimiser = torch.optim.AdamW(actor, lr=learning_rate, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
        for step in range(steps + 1):
            if step % evaluate_every == 0:
                now = actor_of(model)
                score = judge.measure(partial(actor_stop_chances, now))
                if best is None or score.selection > best.selection:
                    best, kept = score, now
            if step == steps:
                break
            batch = model.source.draw(rows)
            hidden = policy.mlp_extractor.forward_actor(torch.from_numpy(batch.inputs))
            stop = torch.softmax(policy.action_net(hidden), dim=1)[:, 1]
            chance = stop.detach().numpy().astype(np.float64)
            values = values_of(chance, batch.exits, batch.natural, batch.offsets)
            # The gradient of the objective in s(t) is reach(t) * (U(t) - V(t + 1)).
            slope = batch.weight * values.reach * (batch.exits - values.go_on)
            optimiser.zero_grad()
            loss = -(stop * torch.from_numpy(slope.astype(np.float32))).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    assert best is not None
    return ExactGradientResult(best, kept, columns.features, columns.scaling, preset)
