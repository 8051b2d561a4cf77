"""The small network on torch: its tanh, its one thread, the actor's weights and what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from torch import nn

from rlbudget.arrays import Float32s, Floats

HIDDEN = "mlp_extractor.policy_net."
ACTOR = (HIDDEN, "action_net.")
"""How the names of the actor's weights begin in SB3's policy."""


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        y = x.mul_(2).sigmoid_().mul_(2).sub_(1)
        ctx.mark_dirty(y)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradients[0], y)  # type: ignore[no-any-return]


class Tanh(nn.Module):
    """Elementwise tanh, in place, through the sigmoid, which torch vectorises better on a CPU.

    A third of the time of ``torch.tanh`` on AVX2, and tanh is most of what a small network costs.
    Equal to it within 2e-7, far below what separates a frozen policy from a trained one.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape -> the same tensor, overwritten: a linear layer does not need what it gave."""
        result: torch.Tensor = _Tanh.apply(x)  # type: ignore[no-untyped-call]
        return result


@contextmanager
def one_thread() -> Iterator[None]:
    """Run with one torch thread, many times faster than two for a net this small; restore after."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def actor_of(model: PPO) -> dict[str, torch.Tensor]:
    """A copy of the actor's weights under SB3's names."""
    weights = model.policy.state_dict()
    return {n: value.detach().clone() for n, value in weights.items() if n.startswith(ACTOR)}


def actor_chances(actor: Mapping[str, torch.Tensor], inputs: Float32s) -> Floats:
    """Of an actor's weights, (k, F + 1) -> the chances of its actions, (k, 2 or 3) float64."""
    with torch.no_grad():
        x = torch.from_numpy(inputs)
        layers = {int(n.removeprefix(HIDDEN).split(".")[0]) for n in actor if n.startswith(HIDDEN)}
        for layer in sorted(layers):
            weight, bias = actor[f"{HIDDEN}{layer}.weight"], actor[f"{HIDDEN}{layer}.bias"]
            x = torch.tanh(x @ weight.T + bias)
        logits = x @ actor["action_net.weight"].T + actor["action_net.bias"]
        chances: Floats = torch.softmax(logits, dim=1).numpy().astype(np.float64)
    return chances


def actor_stop_chances(actor: Mapping[str, torch.Tensor], inputs: Float32s) -> Floats:
    """The chance to stop, (k,), of an actor of two actions."""
    return actor_chances(actor, inputs)[:, 1]
