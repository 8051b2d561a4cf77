"""Muon in single precision: momentum whose matrix is made orthogonal before it is applied.

Keller Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/; the step is scaled to the
size of AdamW's as in Liu et al., 2025, https://arxiv.org/abs/2502.16982. ``torch.optim.Muon``
computes in bfloat16, which a CPU without bfloat16 units emulates: 1.1 s a step for this model,
four times the rest of the step.
"""

from __future__ import annotations

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For the matrices inside the network, not for embeddings and norms."""

    def __init__(
        self,
        params: list[torch.nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; matrices of one shape are made orthogonal together."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                moved = []
                for parameter in parameters:
                    gradient = parameter.grad
                    if gradient is None:
                        raise ValueError("a parameter without a gradient")
                    state = self.state[parameter]
                    if "average" not in state:
                        state["average"] = torch.zeros_like(parameter)
                    state["average"].lerp_(gradient, 1 - group["momentum"])
                    moved.append(gradient.lerp(state["average"], group["momentum"]))
                scale = 0.2 * max(shape) ** 0.5 * group["lr"]
                for parameter, step in zip(
                    parameters, orthogonal(torch.stack(moved)).unbind(), strict=True
                ):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(step, alpha=-scale)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """The orthogonal factor of each matrix, about: singular values end between 0.7 and 1.2.

    ``matrices``: (n, rows, columns). Newton-Schulz iteration of fifth order.
    """
    a, b, c = COEFFICIENTS
    x: torch.Tensor = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
