"""A chooser as a folder: ``config.json``, ``chooser.safetensors`` and the members' policies.

The policy of member ``i``, where it has one, is the policy folder ``policies/i``. Nothing is
unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from rlbudget.arrays import Floats
from rlbudget.errors import UserError
from rlbudget.files import write_bytes, write_text
from rlbudget.policy.folder import load_policy, save_policy
from rlbudget.strategies.chooser.chooser import Chooser, MemberOf, Way
from rlbudget.strategies.chooser.members import WHEN, When
from rlbudget.strategies.chooser.record import TrackRecord
from rlbudget.strategies.impact import ImpactModel, impact_from, impact_tensors

FORMAT, VERSION = "rlbudget-chooser", 1
CONFIG, TENSORS, POLICIES = "config.json", "chooser.safetensors", "policies"


def save_chooser(folder: Path | str, chooser: Chooser) -> None:
    """Write a chooser to a folder, each file atomically."""
    root, tensors = Path(folder), _tensors(chooser)
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
    }  # fmt: skip
    for place, member in enumerate(chooser.members):
        if member.policy is not None:
            save_policy(root / POLICIES / str(place), member.policy)
    write_bytes(root / TENSORS, save(tensors))
    write_text(root / CONFIG, json.dumps(content, indent=1) + "\n")


def load_chooser(folder: Path | str) -> Chooser:
    """Read what ``save_chooser`` wrote; ``UserError`` for anything else."""
    root = Path(folder)
    try:
        content = json.loads((root / CONFIG).read_text(encoding="utf-8"))
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise ValueError("it is another kind of folder, or of another version of rlbudget")
        return _chooser(root, content, load((root / TENSORS).read_bytes()))
    except FileNotFoundError:
        raise UserError(f"there is no chooser {folder}") from None
    except (OSError, KeyError, IndexError, TypeError, ValueError, SafetensorError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{folder} is not a chooser: {said}") from error


def chooser_digest(chooser: Chooser) -> str:
    """SHA-256 of what a chooser decides by, its members' policies included."""
    ways = [str(way) for way in chooser.ways]
    policies = [member.policy and member.policy.digest for member in chooser.members]
    tasks = list(chooser.record.tasks)
    found = hashlib.sha256(json.dumps([ways, policies, tasks]).encode())
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


def _chooser(root: Path, content: Mapping[str, Any], tensors: Mapping[str, Floats]) -> Chooser:
    members = tuple(
        MemberOf(
            str(one["name"]),
            float(one["ratio"]),
            load_policy(root / POLICIES / str(place)) if one["policy"] else None,
            dict(one["recorded"]),
        )
        for place, one in enumerate(content["members"])
    )
    ways = tuple(Way(_when(one["when"]), one["always"]) for one in content["ways"])
    prices, k = tensors["token_prices"], len(members)
    record = TrackRecord((len(prices), k))
    if tensors["record"].shape != record.whole.shape or len(ways) != len(prices) or k < 2:
        raise ValueError("its record, ways or members do not fit its prices")
    record.whole = tensors["record"]
    if content["tasks"]:
        record.tasks = dict(zip(content["tasks"], tensors["record.tasks"], strict=True))
    wrong: dict[When, tuple[ImpactModel, ...]] = {
        _when(when): tuple(
            impact_from(tensors, features, prefix=f"{when}.{place}.") for place in range(k)
        )
        for when, features in content["features"].items()
    }
    for way in ways:
        if way.always is None and way.when not in wrong:
            raise ValueError(f"it lacks what it needs to choose {way.when}")
        if way.always is not None and not 0 <= way.always < k:
            raise ValueError(f"there is no member {way.always}")
    return Chooser(members, prices, ways, wrong, record, dict(content["trained"]))


def _when(text: str) -> When:
    found = next((when for when in WHEN if when == text), None)
    if found is None:
        raise ValueError(f"{text!r} is not one of {', '.join(WHEN)}")
    return found
