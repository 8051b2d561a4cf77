"""Makers of policies and run folders with random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from rlbudget.arrays import Float32s
from rlbudget.policy.folder import Policy, make_policy
from rlbudget.policy.observation import (
    OBSERVATION_VERSION,
    Preset,
    feature_names,
    features_of,
    observe,
)
from rlbudget.policy.seen import NONE
from rlbudget.signals.tokens import SIGNALS
from rlbudget.traces.table import TraceTable

PRICES = (1e-5, 1e-2)
FREE = feature_names(SIGNALS, "free")


def random_tensors(
    n_features: int, seed: int = 0, hidden: Sequence[int] = (64, 64), actions: int = 2
) -> dict[str, Float32s]:
    """A normaliser and an actor that is undecided enough to say both things."""
    rng = np.random.default_rng(seed)
    tensors = {
        "obs_mean": rng.normal(0, 3, n_features),
        "obs_std": np.exp(rng.normal(0, 1, n_features)),
    }
    inputs = n_features + 1
    for layer, outputs in enumerate([*hidden, actions]):
        last = layer == len(hidden)
        name = "action_net" if last else f"mlp_extractor.policy_net.{2 * layer}"
        tensors[f"{name}.weight"] = rng.normal(0, 1 / np.sqrt(inputs), (outputs, inputs))
        tensors[f"{name}.bias"] = rng.normal(0, 0.1, outputs)
        inputs = outputs
    return {key: value.astype(np.float32) for key, value in tensors.items()}


def random_policy(
    features: Sequence[str] = FREE, *, seed: int = 0, preset: Preset = "free", **rest: Any
) -> Policy:
    """A policy that nobody trained."""
    return make_policy(
        random_tensors(len(features), seed),
        features=features,
        preset=preset,
        price_range=rest.pop("price_range", PRICES),
        seen=rest.pop("seen", NONE),
        **rest,
    )


def policy_for(
    table: TraceTable, preset: Preset, seed: int = 0, features: tuple[str, ...] | None = None
) -> Policy:
    """A random network on normalised features, its bias set so that it often says both things."""
    features = features_of(table, preset) if features is None else features
    observations = observe(table, features)
    rng = np.random.default_rng(seed)
    n = len(features)
    tensors = {
        "obs_mean": observations.mean(axis=0),
        "obs_std": observations.std(axis=0) + 1e-3,
        "mlp_extractor.policy_net.0.weight": rng.normal(0, n**-0.5, (16, n + 1)),
        "mlp_extractor.policy_net.0.bias": np.zeros(16),
        "action_net.weight": rng.normal(0, 1, (2, 16)),
        "action_net.bias": np.array([1.0, 0.0]),
    }
    return make_policy(
        {name: np.asarray(value, dtype=np.float32) for name, value in tensors.items()},
        features=features,
        preset=preset,
        price_range=(1e-4, 1e-2),
        seen=NONE,
    )


def random_observations(policy: Policy, n: int, seed: int = 0) -> Float32s:
    """(n, n_features) raw observations around the policy's normaliser, some far outside."""
    rng = np.random.default_rng(seed)
    spread = rng.standard_t(2, (n, len(policy.features)))
    drawn = policy.tensors["obs_mean"] + spread * policy.tensors["obs_std"]
    observations: Float32s = drawn.astype(np.float32)
    return observations


def random_prices(n: int, seed: int = 0) -> Any:
    """(n,) log-uniform over ``PRICES``."""
    rng = np.random.default_rng(seed)
    low, high = np.log(PRICES)
    return np.exp(rng.uniform(low, high, n))


def write_run(folder: Path, *, seed: int = 0, **changes: Any) -> dict[str, Float32s]:
    """A run folder as training leaves it; returns its tensors."""
    tensors = random_tensors(len(FREE), seed)
    run = {
        "version": 1,
        "preset": "free",
        "features": list(FREE),
        "observation_version": OBSERVATION_VERSION,
        "clip": 5.0,
        "price_range": list(PRICES),
        "activation": "tanh",
        "config": {"seed": seed, "total_timesteps": 1000},
        "seed": seed,
        "seen": "",
        "traces": {"digest": "ab" * 32, "n_train_questions": 12},
        "validation": {
            "prices": [
                {
                    "relative_price": 0.1,
                    "token_price": 8e-4,
                    "exact_match": 0.875,
                    "tokens": 61.5,
                    "utility": 0.8258,
                    "oracle_gap_closed": float("nan"),
                }
            ],
            "mean_utility": 0.8258,
        },
        "swept": {"questions": 12, "prices": []},
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "best.safetensors")
    (folder / "run.json").write_text(json.dumps(run))
    return tensors
