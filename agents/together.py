"""PPO with exact advantages for several small actors at once, each on training traces of its own.

The update is that of ``rlbudget.agents.ppo.ExactPPO``: rows from the record with the advantages
that it implies (``rlbudget.agents.exact``), the clipped surrogate, AdamW with a rate that falls
linearly to 0. The actors' weights lie behind one another, so a layer of all of them is one batched
matrix product: ten actors cost little more than two. There is no critic, as exact advantages need
none. An actor's gradient is clipped by itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from rlbudget.agents.actor import HIDDEN, Tanh
from rlbudget.agents.config import PPOConfig
from rlbudget.agents.exact import TraceSource, explored_chance, values_of
from rlbudget.arrays import Bools, Float32s, Floats

Actor = dict[str, torch.Tensor]
"""weights and biases under SB3's names, as ``rlbudget.agents.actor`` reads them"""


class Actors:
    """``M`` tanh networks of one shape: weights (M, outputs, inputs), biases (M, 1, outputs)."""

    def __init__(self, seeds: Sequence[int], inputs: int, config: PPOConfig) -> None:
        odds = config.initial_stop_probability / (1 - config.initial_stop_probability)
        sizes = [inputs, *config.hidden, 2]
        self.tanh = Tanh()
        self.weights: list[torch.Tensor] = []
        self.biases: list[torch.Tensor] = []
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for place, (columns, rows) in enumerate(itertools.pairwise(sizes)):
            last = place == len(sizes) - 2
            gain = 0.01 if last else math.sqrt(2)
            each = [
                nn.init.orthogonal_(torch.empty(rows, columns), gain, generator=generator)
                for generator in generators
            ]
            bias = torch.zeros(len(seeds), 1, rows)
            if last:
                bias[:, :, 1] = math.log(odds)
            self.weights.append(torch.stack(each).requires_grad_())
            self.biases.append(bias.requires_grad_())

    @property
    def parameters(self) -> list[torch.Tensor]:
        """What is learned."""
        return [*self.weights, *self.biases]

    def adopt(self, others: Actors, first: int) -> None:
        """Take over the weights of ``others`` from member ``first`` on."""
        with torch.no_grad():
            for own, other in zip(self.parameters, others.parameters, strict=True):
                own[first : first + len(other)] = other

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """(M, k, inputs) -> logits of CONTINUE and STOP, (M, k, 2)."""
        x = inputs
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if place:
                x = self.tanh(x)
            x = torch.baddbmm(bias, x, weight.transpose(1, 2))
        return x

    def actor(self, member: int) -> Actor:
        """A copy of one of them."""
        names = [f"{HIDDEN}{2 * place}" for place in range(len(self.weights) - 1)]
        found: Actor = {}
        for name, weight, bias in zip(
            [*names, "action_net"], self.weights, self.biases, strict=True
        ):
            found[f"{name}.weight"] = weight[member].detach().clone()
            found[f"{name}.bias"] = bias[member, 0].detach().clone()
        return found


def learn(
    actors: Actors, sources: Sequence[TraceSource], config: PPOConfig, *, seed: int = 0
) -> Iterator[int]:
    """Train ``actors``, one on each of ``sources``; yields the steps of each done, before every
    update and at the end.

    A step is a checkpoint, as in ``ExactPPO``.
    """
    assert config.total_timesteps is not None
    size = config.n_envs * config.n_steps
    batch = min(config.batch_size, size)
    optimiser = torch.optim.AdamW(
        actors.parameters,
        lr=config.learning_rate,
        eps=1e-5,
        weight_decay=config.weight_decay,
        fused=True,
    )
    rng = np.random.default_rng([seed, 4])
    done = 0
    while done < config.total_timesteps:
        yield done
        inputs, actions, old, advantages = _rows(actors, sources, size)
        done += size
        optimiser.param_groups[0]["lr"] = config.learning_rate * max(
            0.0, 1 - done / config.total_timesteps
        )
        for _ in range(config.n_epochs):
            order = torch.from_numpy(rng.permutation(size))
            for start in range(0, size - batch + 1, batch):
                rows = order[start : start + batch]
                logits = actors.logits(inputs[:, rows])
                odds = logits[:, :, 1] - logits[:, :, 0]
                now = -nn.functional.softplus(torch.where(actions[:, rows], -odds, odds))
                ratio = (now - old[:, rows]).exp()
                gain = advantages[:, rows]
                clipped = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
                loss = -torch.minimum(gain * ratio, gain * clipped).mean(dim=1).sum()
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                _clip(actors.parameters, config.max_grad_norm)
                optimiser.step()
    yield done


def _clip(parameters: Sequence[torch.Tensor], longest: float) -> None:
    """Bound the length of each actor's gradient."""
    squares = [p.grad.square().flatten(1).sum(dim=1) for p in parameters if p.grad is not None]
    scale = (longest / (torch.stack(squares).sum(dim=0).sqrt() + 1e-6)).clamp(max=1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(scale[:, None, None])


def _rows(
    actors: Actors, sources: Sequence[TraceSource], size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``stop_rows`` of every actor: inputs (M, size, F + 1), whether the action is STOP, the
    logarithm of its chance and its advantage, (M, size) each."""
    batches = [source.draw(size) for source in sources]
    counts = [len(batch.inputs) for batch in batches]
    most, wide = max(counts), batches[0].inputs.shape[1]
    inputs: Float32s = np.zeros((len(batches), most, wide), dtype=np.float32)
    filled: Bools = np.zeros((len(batches), most), dtype=bool)
    for place, batch in enumerate(batches):
        inputs[place, : counts[place]] = batch.inputs
        filled[place, : counts[place]] = True
    shown = torch.from_numpy(inputs)
    with torch.no_grad():
        logits = actors.logits(shown).numpy().astype(np.float64)
    odds = (logits[:, :, 1] - logits[:, :, 0])[filled]
    stop = 1 / (1 + np.exp(-np.clip(odds, -500, 500)))
    exits, natural, weight = (
        np.concatenate([getattr(batch, name) for batch in batches])
        for name in ("exits", "natural", "weight")
    )
    starts = np.concatenate([[0], np.cumsum(counts)])
    offsets = np.concatenate(
        [*(b.offsets[:-1] + s for b, s in zip(batches, starts, strict=False)), starts[-1:]]
    )
    exploration = sources[0].exploration
    values = values_of(stop, exits, natural, offsets, exploration)
    stops = odds < 0
    log_chance = -np.logaddexp(0, np.abs(odds))
    gain = np.where(stops, 1.0, -1.0) * (exits - values.go_on)
    chance = explored_chance(np.exp(log_chance), gain, exploration)
    advantages = weight * values.reach * chance * gain
    first = [slice(start, start + size) for start in starts[:-1]]
    scaled = [
        source.scaled(advantages[start:end])[:size]
        for source, start, end in zip(sources, starts, starts[1:], strict=False)
    ]

    def stacked(values: Floats | Bools) -> torch.Tensor:
        return torch.from_numpy(np.stack([values[rows] for rows in first]))

    return (
        shown[:, :size],
        stacked(stops),
        stacked(log_chance).float(),
        torch.from_numpy(np.stack(scaled).astype(np.float32)),
    )
