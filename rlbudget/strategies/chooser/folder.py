"""A chooser as a folder: ``config.json``, ``chooser.safetensors`` and the members' policies.

The policy of member ``i``, where it has one, is the policy folder ``policies/i``. Nothing is
unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from rlbudget.arrays import Floats
from rlbudget.errors import UserError
from rlbudget.files.folders import Get, read_folder, replace_folder
from rlbudget.policy.folder import policy_files, policy_in
from rlbudget.policy.parsing import conform
from rlbudget.policy.schema import Count, Digest, Recorded
from rlbudget.policy.sealed import refused, seal, seal_tensors, unseal, unseal_tensors, within
from rlbudget.strategies.chooser.chooser import Chooser, MemberOf, Way
from rlbudget.strategies.chooser.members import When
from rlbudget.strategies.chooser.record import TrackRecord
from rlbudget.strategies.impact import ImpactModel
from rlbudget.strategies.impact_file import impact_from, impact_tensors

FORMAT, VERSION = "rlbudget-chooser", 1
CONFIG, TENSORS, POLICIES = "config.json", "chooser.safetensors", "policies"


class _Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    ratio: Annotated[float, msgspec.Meta(gt=0, le=1e9)]
    policy: bool
    recorded: Recorded


class _Way(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    when: When
    always: Count | None


class _Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``config.json``."""

    format: str
    version: int
    members: Annotated[Sequence[_Member], msgspec.Meta(min_length=2)]
    ways: Annotated[Sequence[_Way], msgspec.Meta(min_length=1)]
    features: dict[When, Annotated[Sequence[str], msgspec.Meta(min_length=1)]]
    tasks: Sequence[str]
    trained: dict[str, Any]
    digests: dict[str, Digest]


def save_chooser(folder: Path | str, chooser: Chooser) -> None:
    """Write a chooser to a folder, all of it or nothing; a chooser that is there is replaced."""
    files = {TENSORS: seal_tensors({"format": FORMAT, "version": VERSION}, _tensors(chooser))}
    for place, member in enumerate(chooser.members):
        if member.policy is not None:
            policy = policy_files(member.policy)
            files |= {f"{POLICIES}/{place}/{name}": data for name, data in policy.items()}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "members": [
            {"name": member.name, "ratio": member.ratio, "policy": member.policy is not None,
             "recorded": dict(member.recorded)}
            for member in chooser.members
        ],
        "ways": [{"when": way.when, "always": way.always} for way in chooser.ways],
        "features": {when: list(models[0].features) for when, models in chooser.wrong.items()},
        "tasks": list(chooser.record.tasks),
        "trained": dict(chooser.trained),
        "digests": {name: sha256(data).hexdigest() for name, data in files.items()},
    }  # fmt: skip
    replace_folder(folder, {**files, CONFIG: seal(content)}, check=_check_replaceable)


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose a folder for the chooser")
    names = {one.name for one in folder.iterdir()} if folder.exists() else set()
    if names and not {CONFIG, TENSORS} <= names <= {CONFIG, TENSORS, POLICIES}:
        other = min(names - {CONFIG, TENSORS, POLICIES}, default=min(names))
        raise UserError(f"{folder} holds other things ({other}); choose a new folder")


def load_chooser(folder: Path | str) -> Chooser:
    """Read what ``save_chooser`` wrote; ``UserError`` for anything else."""
    if not Path(folder).exists():
        raise UserError(f"there is no chooser {folder}")
    with refused(folder, "a chooser"):
        return read_folder(folder, _chooser)


def chooser_digest(chooser: Chooser) -> str:
    """SHA-256 of what a chooser decides by, its members' policies included."""
    ways = [str(way) for way in chooser.ways]
    policies = [member.policy and member.policy.digest for member in chooser.members]
    tasks = list(chooser.record.tasks)
    found = sha256(json.dumps([ways, policies, tasks]).encode())
    for name, tensor in sorted(_tensors(chooser).items()):
        found.update(f"{name}{tensor.shape}".encode() + tensor.tobytes())
    return found.hexdigest()


def _tensors(chooser: Chooser) -> dict[str, Floats]:
    record = chooser.record
    tensors = {"token_prices": chooser.token_prices, "record": record.whole}
    if record.tasks:
        tensors["record.tasks"] = np.stack(list(record.tasks.values()))
    for when, models in chooser.wrong.items():
        for place, model in enumerate(models):
            tensors |= {
                f"{when}.{place}.{name}": own for name, own in impact_tensors(model).items()
            }
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def _chooser(get: Get) -> Chooser:
    content = unseal(get(CONFIG), FORMAT, VERSION, CONFIG)
    said = conform(content, _Config, CONFIG)

    def whole(name: str) -> bytes:
        data = get(name)
        if sha256(data).hexdigest() != said.digests.get(name):
            raise ValueError(f"{name} was altered after it was written")
        return data

    tensors = unseal_tensors(whole(TENSORS), FORMAT, VERSION, TENSORS)[1]
    members = tuple(
        MemberOf(
            one.name,
            one.ratio,
            policy_in(within(f"{POLICIES}/{place}", whole)) if one.policy else None,
            content["members"][place]["recorded"],
        )
        for place, one in enumerate(said.members)
    )
    ways = tuple(Way(way.when, way.always) for way in said.ways)
    k = len(members)
    for way in ways:
        if way.always is None and way.when not in said.features:
            raise ValueError(f"it lacks what it needs to choose {way.when}")
        if way.always is not None and way.always >= k:
            raise ValueError(f"there is no member {way.always}")
    prices, record = _record(tensors, said.tasks, k)
    if len(ways) != len(prices):
        raise ValueError("its ways do not fit its prices")
    wrong: dict[When, tuple[ImpactModel, ...]] = {
        when: tuple(impact_from(_own(tensors, f"{when}.{place}."), features) for place in range(k))
        for when, features in said.features.items()
    }
    return Chooser(members, prices, ways, wrong, record, content["trained"])


def _own(tensors: Mapping[str, Floats], prefix: str) -> dict[str, Floats]:
    there = tensors.items()
    return {name.removeprefix(prefix): own for name, own in there if name.startswith(prefix)}


def _record(
    tensors: Mapping[str, Floats], tasks: Sequence[str], members: int
) -> tuple[Floats, TrackRecord]:
    """The token prices, rising, and the record at each; ``ValueError`` for what makes none."""
    prices, whole = tensors.get("token_prices"), tensors.get("record")
    if prices is None or whole is None or prices.ndim != 1 or not len(prices):
        raise ValueError(f"{TENSORS} lacks its prices or its record")
    if not (prices[0] > 0 and (np.diff(prices) > 0).all()):
        raise ValueError(f"{TENSORS}: its prices do not rise from above 0")
    record = TrackRecord((len(prices), members))
    each = tensors.get("record.tasks", np.zeros((0, *record.whole.shape)))
    if whole.shape != record.whole.shape or each.shape != (len(tasks), *whole.shape):
        raise ValueError(f"{TENSORS}: its record does not fit its prices, members and tasks")
    if len(set(tasks)) != len(tasks) or whole.min() < 0 or (each.size and each.min() < 0):
        raise ValueError(f"{TENSORS}: its record counts below 0, or a task twice")
    record.whole = whole
    record.tasks = dict(zip(tasks, each, strict=True))
    return prices, record
