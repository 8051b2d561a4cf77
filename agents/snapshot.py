"""What a run leaves on disk: safetensors and JSON, each written atomically, nothing pickled.

``best.safetensors`` and ``run.json``: the best policy by validation, which is what freezing reads.
``latest.safetensors``: all that a resumed run needs to end bit for bit as an uninterrupted one:
weights, Adam's moments, random generators, traces still to be drawn or open episodes.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from stable_baselines3 import PPO

from rlbudget.agents.config import PPOConfig
from rlbudget.agents.freeze import BEST, RUN
from rlbudget.envs.replay_core import ReplayColumns
from rlbudget.envs.replay_sb3 import ReplaySB3VecEnv
from rlbudget.errors import UserError
from rlbudget.files import save_bytes
from rlbudget.policy.observation import OBSERVATION_VERSION
from rlbudget.traces.table import TraceTable

LATEST = "latest.safetensors"


class Source(Protocol):
    """Where the rows of an update come from: the record, or the environments."""

    rng: np.random.Generator

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of what ``resume`` needs, beside the generator."""

    def resume(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on where ``state`` was taken."""


def describe(
    train: TraceTable,
    columns: ReplayColumns,
    config: PPOConfig,
    digest: str | None,
    split_seed: int | None,
    recorded: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """``run.json`` before there is a policy: how it is made."""
    normaliser = columns.scaling
    return {
        "version": 1,
        "preset": config.preset,
        "features": list(columns.features),
        "observation_version": OBSERVATION_VERSION,
        "clip": normaliser.clip,
        "price_range": list(normaliser.token_price),
        "activation": "tanh",
        "config": config.as_dict(),
        "seed": config.seed,
        "traces": {
            "digest": digest or _digest(train),
            "split_seed": split_seed,
            "recorded": dict(recorded or {}),
            "n_train_questions": len(np.unique(train.question_ids)),
            "n_train_traces": len(train),
            "mean_full_tokens": float(train.full_tokens.mean()),
        },
    }


def _digest(table: TraceTable) -> str:
    """Of all that a table holds."""
    hashed = hashlib.sha256()
    columns: dict[str, Any] = {field.name: getattr(table, field.name) for field in fields(table)}
    columns |= columns.pop("signals")
    for name in sorted(columns):
        hashed.update(name.encode() + np.ascontiguousarray(columns[name]).tobytes())
    return hashed.hexdigest()


def check_same(run_dir: Path, run: dict[str, Any], before: dict[str, Any]) -> None:
    """``UserError`` unless the run in ``run_dir`` was made as ``run`` says."""
    for name in ("config", "features", "price_range", "traces"):
        if before[name] == run[name]:
            continue
        what = name
        if name == "config":
            what = ", ".join(k for k, v in run[name].items() if before[name].get(k) != v)
        raise UserError(
            f"{run_dir} holds a run with another {what}: resume it with what it was started with,"
            " or choose another folder"
        )


def save_best(
    folder: Path, actor: dict[str, torch.Tensor], mean: Any, std: Any, run: dict[str, Any]
) -> None:
    """``best.safetensors`` and ``run.json``."""
    tensors = {name: value.contiguous() for name, value in actor.items()}
    tensors |= {"obs_mean": torch.from_numpy(mean), "obs_std": torch.from_numpy(std)}
    save_bytes(folder / BEST, save(tensors))
    save_run(folder, run)


def save_run(folder: Path, run: dict[str, Any]) -> None:
    """``run.json``."""
    save_bytes(folder / RUN, (json.dumps(run, indent=1) + "\n").encode())


def save_latest(folder: Path, model: PPO, source: Source, progress: dict[str, Any]) -> None:
    """A run between two updates. ``progress`` is the monitor's, JSON-ready."""
    optimiser = model.policy.optimizer.state_dict()
    tensors = {f"policy.{k}": v.contiguous() for k, v in model.policy.state_dict().items()}
    for index, moments in optimiser["state"].items():
        tensors |= {f"adam.{index}.{k}": v.contiguous() for k, v in moments.items()}
    tensors |= {f"source.{k}": torch.from_numpy(v) for k, v in source.state().items()}
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - SB3 draws on it
    assert name == "MT19937"
    tensors["torch_rng"] = torch.get_rng_state()
    tensors["numpy_rng"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    rest: dict[str, Any] = {
        "version": 2,
        "timesteps": model.num_timesteps,
        "updates": model._n_updates,
        "episodes": list(model.ep_info_buffer or ()),
        "scalars": _unwritten(model),
        "numpy_rng": [int(position), int(has_gauss), float(gauss)],
        "source_rng": source.rng.bit_generator.state,
        "progress": progress,
    }
    save_bytes(folder / LATEST, save(tensors, metadata={"rest": json.dumps(rest)}))


def _unwritten(model: PPO) -> dict[str, float]:
    """What was recorded for TensorBoard since it was last written: the losses of an update."""
    logger = model.logger
    return {
        name: float(value)
        for name, value in logger.name_to_value.items()
        if isinstance(value, int | float | np.floating)
        and "tensorboard" not in logger.name_to_excluded[name]
    }


def read_latest(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the rest; ``UserError`` for a damaged file."""
    path = folder / LATEST
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            rest = json.loads((file.metadata() or {})["rest"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): train again in another folder") from error
    return tensors, rest


def restore(
    model: PPO, source: Source, tensors: dict[str, torch.Tensor], rest: dict[str, Any]
) -> None:
    """Put a fresh PPO of the same configuration, its logger set, where the snapshot was taken."""

    def named(prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    model.policy.load_state_dict(named("policy."))
    optimiser = model.policy.optimizer.state_dict()
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in named("adam.").items():
        index, name = key.split(".")
        moments.setdefault(int(index), {})[name] = value
    optimiser["state"] = moments
    model.policy.optimizer.load_state_dict(optimiser)
    model.num_timesteps = int(rest["timesteps"])
    model._n_updates = int(rest["updates"])
    model.ep_info_buffer = deque(rest["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    for name, scalar in rest["scalars"].items():
        model.logger.record(name, scalar)
    source.resume({name: value.numpy() for name, value in named("source.").items()})
    source.rng.bit_generator.state = rest["source_rng"]
    if isinstance(source, ReplaySB3VecEnv):
        core = source.core
        model._last_obs = core.observations()
        model._last_episode_starts = core.steps(np.arange(core.n)) == 1
    position, has_gauss, gauss = rest["numpy_rng"]
    keys = tensors["numpy_rng"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(tensors["torch_rng"])
