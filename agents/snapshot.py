"""What a run leaves on disk, and how it goes on: safetensors and JSON, nothing pickled.

``best.safetensors`` with ``run.json``: the best policy by validation, what freezing reads.
``latest.safetensors``: everything a resumed run needs to end bit for bit where an uninterrupted
one would have ended: weights, Adam's moments, every random generator, the open episodes.
Each file is written beside its place and renamed into it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from stable_baselines3 import PPO

from rlbudget.agents.exact import ExactRolloutBuffer
from rlbudget.envs.replay_sb3 import ReplaySB3VecEnv
from rlbudget.errors import UserError
from rlbudget.files import write_bytes

LATEST = "latest.safetensors"
BEST = "best.safetensors"
RUN = "run.json"
HIDDEN = "mlp_extractor.policy_net."
ACTOR = (HIDDEN, "action_net.")
"""How the names of the actor's weights begin in SB3's policy."""


def write_atomically(path: Path, content: bytes) -> None:
    """The whole content or none of it."""
    try:
        write_bytes(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def actor_of(model: PPO) -> dict[str, torch.Tensor]:
    """A copy of the actor's weights under SB3's names."""
    weights = model.policy.state_dict()
    return {n: value.detach().clone() for n, value in weights.items() if n.startswith(ACTOR)}


def save_best(
    folder: Path, actor: dict[str, torch.Tensor], mean: Any, std: Any, run: dict[str, Any]
) -> None:
    """``best.safetensors`` and ``run.json``."""
    tensors = {name: value.contiguous() for name, value in actor.items()}
    tensors |= {"obs_mean": torch.from_numpy(mean), "obs_std": torch.from_numpy(std)}
    write_atomically(folder / BEST, save(tensors))
    write_atomically(folder / RUN, (json.dumps(run, indent=1) + "\n").encode())


def save_latest(folder: Path, model: PPO, env: ReplaySB3VecEnv, progress: dict[str, Any]) -> None:
    """A run between two updates. ``progress`` is the monitor's, JSON-ready."""
    optimiser = model.policy.optimizer.state_dict()
    tensors = {f"policy.{k}": v.contiguous() for k, v in model.policy.state_dict().items()}
    for index, moments in optimiser["state"].items():
        tensors |= {f"adam.{index}.{k}": v.contiguous() for k, v in moments.items()}
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - SB3 draws on it
    assert name == "MT19937"
    tensors["torch_rng"] = torch.get_rng_state()
    tensors["numpy_rng"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    core = env.core
    for array, values in core.open_episodes().items():
        tensors[f"episodes.{array}"] = torch.from_numpy(values)
    assert model._last_episode_starts is not None
    starts = np.asarray(model._last_episode_starts)
    tensors["episodes.starts"] = torch.from_numpy(starts.astype(np.uint8))
    rest: dict[str, Any] = {
        "version": 1,
        "timesteps": model.num_timesteps,
        "updates": model._n_updates,
        "numpy_rng": [int(position), int(has_gauss), float(gauss)],
        "env_rng": env.rng.bit_generator.state,
        "progress": progress,
    }
    if isinstance(model.rollout_buffer, ExactRolloutBuffer):
        source = model.rollout_buffer.source
        rest["scale"] = model.rollout_buffer.scale
        rest["source_rng"] = source.rng.bit_generator.state
        tensors["source.queue"] = torch.from_numpy(source.queue.copy())
    write_atomically(folder / LATEST, save(tensors, metadata={"rest": json.dumps(rest)}))


def read_latest(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the rest; ``UserError`` for a damaged file."""
    path = folder / LATEST
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            rest = json.loads((file.metadata() or {})["rest"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): train anew in another folder") from error
    return tensors, rest


def restore(
    model: PPO, env: ReplaySB3VecEnv, tensors: dict[str, torch.Tensor], rest: dict[str, Any]
) -> None:
    """Put a fresh PPO of the same configuration where the snapshot was taken."""
    model.policy.load_state_dict(
        {k.removeprefix("policy."): v for k, v in tensors.items() if k.startswith("policy.")}
    )
    optimiser = model.policy.optimizer.state_dict()
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = value
    optimiser["state"] = moments
    model.policy.optimizer.load_state_dict(optimiser)
    model.num_timesteps = int(rest["timesteps"])
    model._n_updates = int(rest["updates"])
    core = env.core
    prefix = "episodes."
    core.resume(
        {k.removeprefix(prefix): v.numpy() for k, v in tensors.items() if k.startswith(prefix)},
        env.rng,
    )
    model._last_obs = core.observations()
    model._last_episode_starts = tensors["episodes.starts"].numpy().astype(bool)
    if isinstance(model.rollout_buffer, ExactRolloutBuffer):
        model.rollout_buffer.scale = float(rest["scale"])
        source = model.rollout_buffer.source
        source.queue = tensors["source.queue"].numpy()
        source.rng.bit_generator.state = rest["source_rng"]
    env.rng.bit_generator.state = rest["env_rng"]
    position, has_gauss, gauss = rest["numpy_rng"]
    keys = tensors["numpy_rng"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(tensors["torch_rng"])
