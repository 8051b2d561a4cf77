"""A correction in a file, or in a folder with the policy that its second model is served by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import msgspec

from rlbudget.errors import UserError
from rlbudget.files.folders import read_folder, replace_folder
from rlbudget.policy.folder import Policy, policy_files, policy_in
from rlbudget.policy.parsing import conform
from rlbudget.policy.schema import Recorded
from rlbudget.policy.sealed import (
    read_sealed,
    refused,
    seal_tensors,
    unseal_tensors,
    within,
    write_sealed,
)
from rlbudget.strategies.correction.correct import OFF, Correction, Refiner
from rlbudget.strategies.impact_file import (
    ImpactSaid,
    impact_content,
    impact_from,
    impact_tensors,
)

FORMAT, VERSION = "rlbudget-correction", 1
FILE, POLICY = "correction.safetensors", "second"
"""in a folder: the correction, and the policy folder of its second model"""
_NAME = "its header"
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class _Refiner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ratio: Annotated[float, msgspec.Meta(gt=0, le=1e9)]
    recorded: Recorded


class _Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    threshold: float | None
    budget: AtLeastOne | None
    rounds: AtLeastOne
    second: _Refiner | None


class _File(ImpactSaid, frozen=True, forbid_unknown_fields=True, kw_only=True):
    plan: _Plan


def save_correction(
    path: Path | str, correction: Correction, second_policy: Policy | None = None
) -> None:
    """Write a correction to a file (.safetensors) or a folder (any other name), atomically.

    A folder may hold the policy that the second model is served by. Raises ``UserError`` as
    ``check_out`` does, and where it cannot be written.
    """
    check_out(Path(path), second_policy)
    if Path(path).suffix == ".safetensors":
        write_sealed(path, _bytes_of(correction))
        return
    files = {FILE: _bytes_of(correction)}
    if second_policy is not None:
        files |= {f"{POLICY}/{name}": data for name, data in policy_files(second_policy).items()}
    replace_folder(path, files, check=_check_replaceable)


def check_out(out: Path, second_policy: Policy | None) -> None:
    """Raises ``UserError`` for a file that is to hold a policy."""
    if out.suffix == ".safetensors" and second_policy is not None:
        raise UserError(f"a correction with --second-policy is a folder, not the file {out}")


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name it .safetensors, or choose a folder")
    others = {one.name for one in folder.iterdir()} - {FILE, POLICY} if folder.exists() else set()
    if others:
        raise UserError(f"{folder} holds other things ({min(others)}); choose a new folder")


def _bytes_of(correction: Correction) -> bytes:
    content = {
        "format": FORMAT,
        "version": VERSION,
        **impact_content(correction.doubt),
        "plan": {
            "threshold": None if correction.off else correction.threshold,
            "budget": correction.budget,
            "rounds": correction.rounds,
            "second": None if correction.second is None else asdict(correction.second),
        },
    }
    return seal_tensors(content, impact_tensors(correction.doubt))


def load_correction(path: Path | str) -> Correction:
    """Read what ``save_correction`` wrote, a file or a folder; ``UserError`` for anything else."""
    if not Path(path).is_dir():
        return read_sealed(path, "a correction", _correction)
    with refused(path, "a correction"):
        return read_folder(path, lambda get: _correction(get(FILE)))


def _correction(data: bytes) -> Correction:
    content, tensors = unseal_tensors(data, FORMAT, VERSION, _NAME)
    said = conform(content, _File, _NAME)
    second: Mapping[str, Any] | None = content["plan"]["second"]
    return Correction(
        impact_from(tensors, said.features, trained=content["trained"]),
        OFF if said.plan.threshold is None else said.plan.threshold,
        said.plan.budget,
        said.plan.rounds,
        None if second is None else Refiner(float(second["ratio"]), second["recorded"]),
    )


def load_second_policy(path: Path | str) -> Policy | None:
    """The policy that the second model of the correction ``path`` is served by, if it has one."""
    if not (Path(path) / POLICY).is_dir():
        return None
    with refused(Path(path) / POLICY, "a policy"):
        return read_folder(path, lambda get: policy_in(within(POLICY, get)))
