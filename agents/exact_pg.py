"""The yardstick: the mean utility maximised by its exact gradient, without PPO.

In a replay the objective sum over t of P(reach t) * P(stop at t) * U(t) can be written down and
differentiated. Adam on it, with the same network, inputs, prices and weights, tells what PPO
should reach: where PPO falls short, PPO is the bug.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from rlbudget.agents.actor import one_thread
from rlbudget.agents.exact import TraceSource, values_of
from rlbudget.agents.validation import Float32s, Floats, Score, Validation, gap_weight
from rlbudget.envs.replay_core import replay_columns
from rlbudget.envs.replay_normaliser import Normaliser, fit_normaliser
from rlbudget.evaluate import outcomes
from rlbudget.observation import Preset, features_of, observe
from rlbudget.table import TraceTable


@dataclass(frozen=True, slots=True)
class ExactGradientResult:
    """The best network by validation and its score."""

    score: Score
    network: nn.Sequential
    features: tuple[str, ...]
    normaliser: Normaliser
    charged: outcomes.Probing

    @property
    def operating_prices(self) -> tuple[float, ...]:
        """As many over its range as a policy has."""
        return tuple(outcomes.operating_prices(self.normaliser.token_price))

    def stops(self, table: TraceTable, token_price: float) -> outcomes.Ints:
        """(n,) the first checkpoint at which the chance to stop is above a half."""
        seen = self.normaliser.features(observe(table, self.features))
        price = np.full((len(seen), 1), self.normaliser.price(token_price), dtype=np.float32)
        says = _stop(self.network, np.concatenate([seen, price], axis=1)) > 0.5
        return outcomes.first_stop(table, says)


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
    initial_stop_probability: float = 0.05,
    evaluate_every: int = 25,
    seed: int = 0,
) -> ExactGradientResult:
    """Adam on the exact mean utility of the training traces; the best of validation is kept."""
    features = features_of(train, preset)
    normaliser = fit_normaliser(observe(train, features), token_price)
    columns = replay_columns(train, features=features, normaliser=normaliser)
    source = TraceSource(
        columns, token_price, gap_weight(train, token_price), np.random.default_rng(seed)
    )
    judge = Validation(train, validation, features, normaliser)
    with one_thread():
        torch.manual_seed(seed)
        network = _network(columns.inputs.shape[1], initial_stop_probability)
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=learning_rate, weight_decay=weight_decay
        )
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
        best: Score | None = None
        kept = {name: value.clone() for name, value in network.state_dict().items()}
        for step in range(steps + 1):
            if step % evaluate_every == 0:
                score = judge.measure(
                    lambda inputs: (_stop(network, inputs), np.zeros(len(inputs)))
                )
                if best is None or score.selection > best.selection:
                    best = score
                    kept = {name: value.clone() for name, value in network.state_dict().items()}
            if step == steps:
                break
            batch = source.draw(rows)
            logits = network(torch.from_numpy(batch.inputs))
            stop = torch.softmax(logits, dim=1)[:, 1]
            values = values_of(
                stop.detach().numpy().astype(np.float64),
                batch.exits,
                batch.natural,
                batch.offsets,
            )
            # The gradient of the objective in s(t) is reach(t) * (U(t) - V(t + 1)).
            slope = batch.weight * values.reach * (batch.exits - values.go_on)
            optimiser.zero_grad()
            loss = -(stop * torch.from_numpy(slope.astype(np.float32))).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        network.load_state_dict(kept)
    assert best is not None
    charged: outcomes.Probing = "until_stop" if preset == "probe" else "none"
    return ExactGradientResult(best, network, features, normaliser, charged)


def _network(width: int, initial_stop_probability: float) -> nn.Sequential:
    layers = [nn.Linear(width, 64), nn.Linear(64, 64), nn.Linear(64, 2)]
    for layer, gain in zip(layers, (2**0.5, 2**0.5, 0.01), strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        odds = initial_stop_probability / (1 - initial_stop_probability)
        layers[2].bias[1] = float(np.log(odds))
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def _stop(network: nn.Sequential, inputs: Float32s) -> Floats:
    with torch.no_grad():
        logits = network(torch.from_numpy(inputs))
        stop: Floats = torch.softmax(logits, dim=1)[:, 1].numpy().astype(np.float64)
    return stop
