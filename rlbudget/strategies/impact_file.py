"""An impact model, or another network like it, in a file: its numbers and what it was fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from rlbudget.arrays import Floats
from rlbudget.policy.parsing import conform
from rlbudget.policy.schema import Traces
from rlbudget.policy.sealed import read_sealed, seal_tensors, unseal_tensors, write_sealed
from rlbudget.strategies.impact import ImpactModel

FORMAT, VERSION = "rlbudget-impact", 1
NAME = "its header"
LARGEST_WEIGHT = 1e9
"""what is beyond could overflow on its way through the network"""
LARGEST_SEEN = 1e30
"""a mean or a standard deviation"""


def save_impact(path: Path | str, model: ImpactModel) -> None:
    """Write a model to a file (.safetensors), atomically."""
    content = {"format": FORMAT, "version": VERSION, **impact_content(model)}
    write_sealed(path, seal_tensors(content, impact_tensors(model)))


def load_impact(path: Path | str) -> ImpactModel:
    """Read what ``save_impact`` wrote; ``UserError`` for anything else."""
    return read_sealed(path, "an impact model", _impact)


def _impact(data: bytes) -> ImpactModel:
    content, tensors = unseal_tensors(data, FORMAT, VERSION, NAME)
    said = conform(content, ImpactSaid, NAME)
    return impact_from(tensors, said.features, trained=content["trained"])


class ImpactSaid(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a file says of an impact model."""

    format: str
    version: int
    features: Annotated[Sequence[str], msgspec.Meta(min_length=1)]
    trained: Traces


def impact_content(model: ImpactModel) -> dict[str, Any]:
    """What ``ImpactSaid`` reads, format and version aside."""
    return {"features": list(model.features), "trained": dict(model.trained)}


def impact_tensors(model: ImpactModel) -> dict[str, Floats]:
    """The numbers of a network by name, as files hold them."""
    tensors = {"mean": model.mean, "std": model.std}
    for layer, (weight, bias) in enumerate(zip(model.weights, model.biases, strict=True)):
        tensors |= {f"weight.{layer}": weight, f"bias.{layer}": bias}
    return tensors


def impact_from(
    tensors: Mapping[str, Floats],
    features: Sequence[str],
    *,
    trained: Mapping[str, Any] | None = None,
) -> ImpactModel:
    """What ``impact_tensors`` gave; ``ValueError`` for numbers that make no model."""
    layers = len(tensors) // 2 - 1
    names = [f"{kind}.{layer}" for kind in ("weight", "bias") for layer in range(layers)]
    if set(tensors) != {"mean", "std", *names} or layers < 1:
        raise ValueError("its network lacks numbers or has too many")
    inputs = len(features)
    if any(tensors[name].shape != (inputs,) for name in ("mean", "std")):
        raise ValueError(f"its normaliser is not that of {inputs} features")
    if not (tensors["std"] > 0).all() or not all(_within(tensors[n]) for n in ("mean", "std")):
        raise ValueError("its normaliser needs a mean and a positive standard deviation a feature")
    for layer in range(layers):
        weight, bias = tensors[f"weight.{layer}"], tensors[f"bias.{layer}"]
        if bias.ndim != 1 or weight.shape != (inputs, len(bias)):
            raise ValueError(f"weight.{layer} has shape {weight.shape}, which does not fit")
        if not all(_within(part, LARGEST_WEIGHT) for part in (weight, bias)):
            raise ValueError(f"weight.{layer} holds a number beyond {LARGEST_WEIGHT:g}")
        inputs = len(bias)
    if inputs != 1:
        raise ValueError(f"its network has {inputs} outputs, not one")
    return ImpactModel(
        tuple(features),
        tensors["mean"],
        tensors["std"],
        tuple(tensors[f"weight.{layer}"] for layer in range(layers)),
        tuple(tensors[f"bias.{layer}"] for layer in range(layers)),
        dict(trained or {}),
    )


def _within(numbers: Floats, most: float = LARGEST_SEEN) -> bool:
    return not numbers.size or float(np.abs(numbers).max()) <= most
