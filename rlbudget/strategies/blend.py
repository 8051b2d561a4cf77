"""A fitted blend in a file: what weighs the members of an ensemble, and whose weights they are.

JSON. The members are named by a digest, in their order: a blend says nothing about other policies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlbudget.errors import UserError
from rlbudget.files import write_text
from rlbudget.policy.folder import Policy
from rlbudget.strategies.ensemble import Blend, ensemble
from rlbudget.strategies.steered import SteeredPolicy

FORMAT, VERSION = "rlbudget-blend", 1


@dataclass(frozen=True, slots=True)
class SavedBlend:
    """A blend and the policies that it was fitted to."""

    blend: Blend
    price_factors: tuple[float, ...]
    """times the token price, one a member"""
    members: tuple[str, ...]
    """SHA-256 of each policy (``policy_digest``), in order"""
    trained: Mapping[str, Any] = field(default_factory=dict)
    """what it was fitted to, JSON-ready: ``digest`` of the traces, ``split_seed``, where known"""

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
    write_text(Path(path), json.dumps(content, indent=1) + "\n")


def load_blend(path: Path | str) -> SavedBlend:
    """Read what ``save_blend`` wrote; ``UserError`` for anything else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise ValueError("it is another kind of file, or of another version of rlbudget")
        weights = tuple(map(float, content["weights"]))
        saved = SavedBlend(
            Blend(weights, float(content["price_weight"]), float(content["offset"])),
            tuple(map(float, content["price_factors"])),
            tuple(map(str, content["members"])),
            dict(content["trained"]),
        )
        if not len(weights) == len(saved.price_factors) == len(saved.members):
            raise ValueError("it has not one weight and one factor a member")
    except FileNotFoundError:
        raise UserError(f"there is no blend {path}") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path} is not a blend: {said}") from error
    return saved
