"""PPO from stable-baselines3 on recorded traces: the way to obtain a stopping policy.

A run folder holds ``best.safetensors`` and ``run.json`` (what ``rlbudget freeze`` reads),
``latest.safetensors`` (what ``resume`` reads) and TensorBoard events.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure

from rlbudget.agents.config import PPOConfig
from rlbudget.agents.exact import Evaluate, ExactRolloutBuffer, TraceSource
from rlbudget.agents.exact_cascade import CascadeRolloutBuffer, cascade_weight
from rlbudget.agents.exact_looks import LookRolloutBuffer
from rlbudget.agents.look_start import adopt
from rlbudget.agents.monitor import Monitor, Progress
from rlbudget.agents.snapshot import BEST, LATEST, read_latest, restore
from rlbudget.agents.tanh import Tanh
from rlbudget.agents.threads import one_thread
from rlbudget.agents.validation import Float32s, Floats, Validation, gap_weight
from rlbudget.envs.replay_core import ReplayColumns, replay_columns
from rlbudget.envs.replay_normaliser import Normaliser, fit_normaliser
from rlbudget.envs.replay_sb3 import ReplaySB3VecEnv
from rlbudget.errors import UserError
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import OBSERVATION_VERSION, features_of, observe
from rlbudget.signals.looks import LOOK_SIGNALS
from rlbudget.traces.table import TraceTable

_LOOK_RATE = 2.5
"""learning rate of what looks add, in ``learning_rate``: it has few weights to learn"""

__all__ = ["PPOConfig", "TrainResult", "make_ppo", "train"]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training left."""

    run_dir: Path
    metrics: dict[str, Any]
    """the ``validation`` of ``run.json``: the best policy's means and its results per price"""


def train(
    train: TraceTable,
    validation: TraceTable,
    config: PPOConfig,
    run_dir: Path,
    *,
    progress: Progress | None = None,
    resume: bool = False,
    digest: str | None = None,
    split_seed: int | None = None,
    recorded: Mapping[str, Any] | None = None,
    start: Policy | None = None,
) -> TrainResult:
    """Train a policy and keep the best of validation in ``run_dir``.

    The two tables must share no question. ``progress`` is called with the steps done and in all.
    With ``resume`` a run that was interrupted goes on and ends as it would have ended; where
    there is nothing to resume it starts. ``digest`` and ``split_seed`` say in ``run.json`` which
    traces these are and how they were split, ``recorded`` how they were made. ``start`` is a
    policy to go on from: its observation, normaliser and prices are kept. Raises
    ``UserError`` for tables that cannot be trained on and for a folder that holds another run.
    """
    common = set(train.question_ids.tolist()) & set(validation.question_ids.tolist())
    if common:
        raise UserError(
            f"question {min(common)} is in the training and in the validation traces: split by"
            " question"
        )
    if not len(train) or not len(validation):
        raise UserError("training needs training and validation traces: record more questions")
    total_timesteps = config.steps(len(np.unique(train.question_ids)))
    config = replace(config, total_timesteps=total_timesteps)
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    snapshot = None
    if (run_dir / LATEST).exists():
        if not resume:
            raise UserError(f"{run_dir} already holds a run: resume it or choose another folder")
        snapshot = read_latest(run_dir)

    columns = training_columns(train, config) if start is None else _columns_of(start, train)
    _check_reachable(config, train, validation)
    blind = None
    if config.preset == "look":
        # Two runs of equal length, shown as one.
        first = _shifted(progress, 0, 2 * total_timesteps)
        blind = _blind_start(train, validation, config, run_dir, first)
        progress = _shifted(progress, total_timesteps, 2 * total_timesteps)
    run = _run(train, columns, config, digest, split_seed, recorded)
    if snapshot is not None:
        _check_same(run_dir, run, snapshot[1]["progress"]["run"])
    judge = Validation(train, validation, columns.features, _normaliser(columns))
    with one_thread():
        model = make_ppo(columns, config)
        if blind is not None:
            adopt(model, blind)
        if start is not None:
            _go_on_from(model, start)
        env = model.get_env()
        assert isinstance(env, ReplaySB3VecEnv)
        state = None
        if snapshot is not None:
            restore(model, env, *snapshot)
            state = snapshot[1]["progress"]
        model.set_logger(configure(str(run_dir), ["tensorboard"]))
        monitor = Monitor(
            run_dir,
            env,
            judge,
            run,
            every=config.evaluate_every,
            total_timesteps=total_timesteps,
            progress=progress,
            constraint=config.constraint,
            state=state,
        )
        remaining = total_timesteps - model.num_timesteps
        if remaining > 0:
            model.learn(remaining, callback=monitor, reset_num_timesteps=snapshot is None)
        model.logger.close()
    return TrainResult(run_dir, monitor.best)


def _columns_of(start: Policy, train: TraceTable) -> ReplayColumns:
    """The training traces as the network of a policy sees them."""
    if start.preset == "look":
        raise UserError("a policy of the look preset cannot be trained on")
    normaliser = Normaliser(
        start.tensors["obs_mean"].copy(), start.tensors["obs_std"].copy(), start.price_range,
        float(start.config["clip"]),
    )  # fmt: skip
    return replay_columns(train, features=start.features, normaliser=normaliser)


def _go_on_from(model: PPO, start: Policy) -> None:
    own = model.policy.state_dict()
    for name, tensor in start.tensors.items():
        if name in own:
            if own[name].shape != tensor.shape:
                raise UserError("the policy to go on from has a network of another size")
            own[name] = torch.from_numpy(tensor.copy())
    model.policy.load_state_dict(own)


def _check_reachable(config: PPOConfig, train: TraceTable, validation: TraceTable) -> None:
    if config.constraint is None:
        return
    if config.preset == "look":
        raise UserError("em_floor and token_budget: the look preset is not trained to a constraint")
    full = float(np.concatenate([t.final_exact_match for t in (train, validation)]).mean())
    if config.em_floor is not None and config.em_floor > full:
        raise UserError(
            f"em_floor is {config.em_floor:g}, but the full decodes themselves reach {full:.3f}"
        )


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of a part: ``before`` steps were done before it, of ``total``."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)


def _blind_start(
    train_on: TraceTable,
    validation: TraceTable,
    config: PPOConfig,
    run_dir: Path,
    progress: Progress | None,
) -> dict[str, torch.Tensor]:
    """The actor that one that may look starts from: the best of its own run in ``run_dir/free``,
    which never looks."""  # fmt: skip
    folder = run_dir / "free"
    blind = replace(config, preset="free")
    train(train_on, validation, blind, folder, resume=True, progress=progress)
    return load_file(folder / BEST)


def training_columns(train: TraceTable, config: PPOConfig) -> ReplayColumns:
    """The training traces as the network's inputs."""
    features = features_of(train, config.preset) if config.features is None else config.features
    # What is remembered of looks varies only with looking: as a coin would.
    looked = np.random.default_rng(config.seed).random(len(train.thinking_tokens)) < 0.5
    normaliser = fit_normaliser(observe(train, features, looked), config.price_range(train))
    if config.preset == "look":
        normaliser.mean[-len(LOOK_SIGNALS) :] = 0  # no look yet is 0
    return replay_columns(train, features=features, normaliser=normaliser)


def make_ppo(columns: ReplayColumns, config: PPOConfig) -> PPO:
    """SB3's PPO on these columns, its policy reluctant to stop, its generators seeded."""
    price_range = _normaliser(columns).token_price
    env = ReplaySB3VecEnv(columns, config.n_envs, token_price=price_range, seed=config.seed)
    exact = config.advantages == "exact"
    buffer: dict[str, Any] = {}
    if exact:
        weight, kind = _exact_for(columns, price_range)
        source = TraceSource(
            columns,
            price_range,
            weight,
            np.random.default_rng([config.seed, 1]),
            noise=config.input_noise,
        )
        buffer = {
            "rollout_buffer_class": kind,
            "rollout_buffer_kwargs": {"source": source, "exploration": config.exploration},
        }
    rows = config.n_envs * config.n_steps
    rate = config.learning_rate * (_LOOK_RATE if columns.looks else 1)
    model = PPO(
        "MlpPolicy",
        env,
        learning_rate=lambda remaining: rate * remaining,
        n_steps=config.n_steps,
        batch_size=min(config.batch_size, rows),
        n_epochs=config.n_epochs,
        gamma=1.0,
        gae_lambda=1.0,
        clip_range=config.clip_range,
        normalize_advantage=not exact,
        ent_coef=config.entropy_bonus,
        vf_coef=config.value_weight,
        max_grad_norm=config.max_grad_norm,
        policy_kwargs={
            "net_arch": {"pi": list(config.hidden), "vf": list(config.hidden)},
            "activation_fn": Tanh,
            "optimizer_class": torch.optim.AdamW,
            "optimizer_kwargs": {"eps": 1e-5, "weight_decay": config.weight_decay},
        },
        seed=config.seed,
        device="cpu",
        **buffer,
    )
    odds = config.initial_stop_probability / (1 - config.initial_stop_probability)
    with torch.no_grad():
        bias = model.policy.action_net.get_parameter("bias")
        bias[1] = float(np.log(odds))
        if columns.handover is not None:
            bias[2] = bias[1]
    if isinstance(model.rollout_buffer, ExactRolloutBuffer):
        model.rollout_buffer.evaluate = _evaluate(model)
    return model


def _exact_for(
    columns: ReplayColumns, price_range: tuple[float, float]
) -> tuple[Callable[[Floats], Floats], type[ExactRolloutBuffer]]:
    """The weights of prices and the buffer for episodes of this kind."""
    if columns.handover is not None:
        return cascade_weight(columns, price_range), CascadeRolloutBuffer
    kind = LookRolloutBuffer if columns.looks else ExactRolloutBuffer
    return gap_weight(columns.table, price_range), kind


def _evaluate(model: PPO) -> Evaluate:
    """The current policy and critic, in slices that stay in the cache."""

    def evaluate(inputs: Float32s) -> tuple[Any, Any]:
        logits, value = [], []
        policy = model.policy
        with torch.no_grad():
            for part in torch.split(torch.from_numpy(inputs), 4096):
                actor, critic = policy.mlp_extractor(part)
                logits.append(policy.action_net(actor))
                value.append(policy.value_net(critic)[:, 0])
        return torch.cat(logits).numpy(), torch.cat(value).numpy()

    return evaluate


def _normaliser(columns: ReplayColumns) -> Any:
    assert columns.normaliser is not None
    return columns.normaliser


def _run(
    train: TraceTable,
    columns: ReplayColumns,
    config: PPOConfig,
    digest: str | None,
    split_seed: int | None,
    recorded: Mapping[str, Any] | None,
) -> dict[str, Any]:
    normaliser = _normaliser(columns)
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
    hashed = hashlib.sha256()
    for column in (
        table.trace_ids,
        table.offsets,
        table.thinking_tokens,
        table.exit_exact_match,
        table.exit_answer_tokens,
        table.probe_tokens,
        table.final_exact_match,
        table.final_thinking_tokens,
        table.final_answer_tokens,
        *(table.signals[name] for name in sorted(table.signals)),
    ):
        hashed.update(np.ascontiguousarray(column).tobytes())
    return hashed.hexdigest()


def _check_same(run_dir: Path, run: dict[str, Any], before: dict[str, Any]) -> None:
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
