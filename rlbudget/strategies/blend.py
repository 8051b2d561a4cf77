"""A fitted blend in a file: what weighs the members of an ensemble, and whose weights they are.

JSON. The members are named by a digest, in their order: a blend says nothing about other policies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec

from rlbudget.errors import UserError
from rlbudget.policy.folder import Policy
from rlbudget.policy.parsing import conform
from rlbudget.policy.schema import Digest, Traces
from rlbudget.policy.sealed import read_sealed, seal, unseal, write_sealed
from rlbudget.strategies.ensemble import Blend, ensemble
from rlbudget.strategies.steered import SteeredPolicy

FORMAT, VERSION = "rlbudget-blend", 1
Number = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]
Factor = Annotated[float, msgspec.Meta(gt=0, le=1e9)]


@dataclass(frozen=True, slots=True)
class SavedBlend:
    """A blend and the policies that it was fitted to."""

    blend: Blend
    price_factors: tuple[float, ...]
    """times the token price, one a member"""
    members: tuple[str, ...]
    """SHA-256 of each policy (``policy_digest``), in order"""
    trained: Mapping[str, Any] = field(default_factory=dict)
    """what it was fitted to, JSON-ready: ``digest`` of the traces, ``split_seed``, and ``seen``,
    the marks of its questions, where known"""

    def of(self, policies: Sequence[Policy]) -> SteeredPolicy:
        """The ensemble of its members; ``UserError`` for other policies or another order.

        One policy stands for all members where the blend is of one policy at several prices.
        """
        members = list(policies) * (len(self.members) if len(policies) == 1 else 1)
        if tuple(map(policy_digest, members)) != self.members:
            raise UserError(
                f"the blend was fitted to {len(self.members)} other members: give the policies of"
                " rlbudget blend, in the same order"
            )
        return ensemble(members, combine=self.blend, price_factors=self.price_factors)


def policy_digest(policy: Policy) -> str:
    """SHA-256 of what decides in a policy: its observation, its threshold and its weights."""
    served = (policy.features, policy.price_range, policy.threshold)
    found = hashlib.sha256(json.dumps(served).encode())
    for name, tensor in sorted(policy.tensors.items()):
        found.update(f"{name}{tensor.shape}".encode() + tensor.tobytes())
    return found.hexdigest()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file says."""

    format: str
    version: int
    weights: Annotated[Sequence[Number], msgspec.Meta(min_length=1)]
    price_weight: Number
    offset: Number
    price_factors: Sequence[Factor]
    members: Sequence[Digest]
    trained: Traces


def save_blend(path: Path | str, saved: SavedBlend) -> None:
    """Write a blend to a JSON file, atomically."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "weights": saved.blend.weights,
        "price_weight": saved.blend.price_weight,
        "offset": saved.blend.offset,
        "price_factors": saved.price_factors,
        "members": saved.members,
        "trained": dict(saved.trained),
    }
    write_sealed(path, seal(content))


def load_blend(path: Path | str) -> SavedBlend:
    """Read what ``save_blend`` wrote; ``UserError`` for anything else."""
    return read_sealed(path, "a blend", _blend)


def _blend(data: bytes) -> SavedBlend:
    content = unseal(data, FORMAT, VERSION, "it")
    said = conform(content, _File, "it")
    if not len(said.weights) == len(said.price_factors) == len(said.members):
        raise ValueError("it has not one weight and one factor a member")
    return SavedBlend(
        Blend(tuple(said.weights), said.price_weight, said.offset),
        tuple(said.price_factors),
        tuple(said.members),
        content["trained"],
    )
