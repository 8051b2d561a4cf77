"""PPO on recorded traces: the way to obtain a stopping policy.

``ExactPPO`` is stable-baselines3's PPO (network, clipped surrogate, optimiser) that reads every
checkpoint of a batch of training traces from the record, with the advantage that the record
implies (``rlbudget.agents.exact``), and steps no environment. ``advantages="sampled"`` is SB3's
PPO on the environments, unchanged.

``train`` makes a run folder: ``best.safetensors`` and ``run.json`` (read by ``rlbudget freeze``),
``latest.safetensors`` (read by ``resume``) and TensorBoard events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv

from rlbudget.agents.actor import Tanh, one_thread
from rlbudget.agents.config import PPOConfig
from rlbudget.agents.curves import open_log
from rlbudget.agents.exact import Evaluate, Rows, TraceSource, stop_rows
from rlbudget.agents.exact_cascade import cascade_rows, cascade_weight
from rlbudget.agents.monitor import Monitor, Progress
from rlbudget.agents.snapshot import (
    LATEST,
    Source,
    check_same,
    describe,
    read_latest,
    restore,
)
from rlbudget.agents.validation import Validation, gap_weight
from rlbudget.arrays import Float32s, Floats
from rlbudget.envs.replay_core import ReplayColumns, replay_columns
from rlbudget.envs.replay_normaliser import Normaliser, fit_normaliser
from rlbudget.envs.replay_sb3 import ReplaySB3VecEnv
from rlbudget.errors import UserError
from rlbudget.files.folders import locked
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import features_of, observe
from rlbudget.policy.seen import NONE, Marks, as_text, marks_of, together
from rlbudget.traces.pairs import Pair
from rlbudget.traces.table import TraceTable

_SLICE = 4096
"""rows that the network is asked about at once: they stay in the cache"""

__all__ = ["ExactPPO", "PPOConfig", "TrainResult", "make_ppo", "train", "training_columns"]


class _Policy(ActorCriticPolicy):
    """SB3's, without its distribution objects, which cost a tenth of an update."""

    def evaluate_actions(
        self, obs: Any, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Values (k, 1), log-probabilities of the actions (k,), entropies (k,)."""
        logits = self.action_net(self.mlp_extractor.forward_actor(obs))
        log_chances = torch.log_softmax(logits, dim=1)
        of_actions = log_chances.gather(1, actions[:, None])[:, 0]
        entropy = -(log_chances.exp() * log_chances).sum(dim=1)
        return self.value_net(self.mlp_extractor.forward_critic(obs)), of_actions, entropy


class ExactPPO(PPO):
    """SB3's PPO whose rollout is read from the record instead of sampled.

    ``rows`` makes at least as many rows as an update takes from a batch of ``source``; a timestep
    is a row. The environment only gives the spaces and the number of rows.
    ``rollout/ep_rew_mean`` and ``rollout/ep_len_mean`` are expectations on the traces drawn.
    """

    def __init__(
        self,
        *args: Any,
        source: TraceSource,
        rows: Callable[[TraceSource, Evaluate, int], Rows],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.source = source
        self.rows = rows

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Fill the buffer from the record."""
        callback.on_rollout_start()
        size = env.num_envs * n_rollout_steps
        rows = self.rows(self.source, self.evaluate, size)
        advantages = self.source.scaled(rows.advantages)
        rollout_buffer.observations = rows.inputs[:size]
        rollout_buffer.actions = rows.actions[:size, None]
        rollout_buffer.log_probs = rows.log_chances[:size, None].astype(np.float32)
        rollout_buffer.advantages = advantages[:size, None].astype(np.float32)
        rollout_buffer.values = self._critic(rows.inputs[:size])
        rollout_buffer.returns = rows.returns[:size, None].astype(np.float32)
        rollout_buffer.full = rollout_buffer.generator_ready = True
        self.num_timesteps += size
        assert self.ep_info_buffer is not None
        self.ep_info_buffer.clear()
        self.ep_info_buffer.append({"r": rows.mean_return, "l": rows.mean_length})
        if not callback.on_step():
            return False
        callback.on_rollout_end()
        return True

    def evaluate(self, inputs: Float32s) -> Floats:
        """Network inputs (k, F + 1) -> logits of the actions (k, 2 or 3)."""
        policy = self.policy
        with torch.no_grad():
            parts = torch.split(torch.from_numpy(inputs), _SLICE)
            hidden = (policy.mlp_extractor.forward_actor(part) for part in parts)
            logits = torch.cat([policy.action_net(part) for part in hidden])
        return logits.numpy().astype(np.float64)

    def _critic(self, inputs: Float32s) -> Float32s:
        with torch.no_grad():
            values: Float32s = self.policy.predict_values(torch.from_numpy(inputs)).numpy()
        return values


def make_ppo(columns: ReplayColumns, config: PPOConfig) -> PPO:
    """PPO on these columns, its policy reluctant to stop, its generators seeded."""
    prices = columns.scaling.token_price
    env = ReplaySB3VecEnv(columns, config.n_envs, token_price=prices, seed=config.seed)
    rate = config.learning_rate
    exact = config.advantages == "exact"
    kind: type[PPO] = ExactPPO if exact else PPO
    model = kind(
        _Policy if exact else "MlpPolicy",
        env,
        learning_rate=lambda remaining: rate * remaining,
        n_steps=config.n_steps,
        batch_size=min(config.batch_size, config.n_envs * config.n_steps),
        n_epochs=config.n_epochs,
        gamma=1.0,
        gae_lambda=1.0,
        clip_range=config.clip_range,
        normalize_advantage=not exact,
        ent_coef=config.entropy_bonus,
        vf_coef=config.value_weight,
        max_grad_norm=config.max_grad_norm,
        policy_kwargs={
            "net_arch": {"pi": list(config.hidden), "vf": [] if exact else list(config.hidden)},
            "activation_fn": Tanh,
            "optimizer_class": torch.optim.AdamW,
            "optimizer_kwargs": {
                "eps": 1e-5,
                "weight_decay": config.weight_decay,
                "fused": exact,
            },
        },
        seed=config.seed,
        device="cpu",
        **(_record(columns, config) if exact else {}),
    )
    model.set_logger(Logger(None, []))  # SB3's own leaves a folder in the system's temporary one
    odds = config.initial_stop_probability / (1 - config.initial_stop_probability)
    with torch.no_grad():
        model.policy.action_net.get_parameter("bias")[1:] = float(np.log(odds))
    return model


def _record(columns: ReplayColumns, config: PPOConfig) -> dict[str, Any]:
    """The arguments of ``ExactPPO`` beside those of PPO."""
    prices = columns.scaling.token_price
    if columns.handover is not None:
        weight, rows = cascade_weight(columns, prices), cascade_rows
    else:
        weight, rows = gap_weight(columns.table, prices), stop_rows
    rng = np.random.default_rng([config.seed, 1])
    source = TraceSource(
        columns, prices, weight, rng, exploration=config.exploration, noise=config.input_noise
    )
    return {"source": source, "rows": rows}


def training_columns(train: TraceTable, config: PPOConfig) -> ReplayColumns:
    """The training traces as the network's inputs."""
    features = features_of(train, config.preset) if config.features is None else config.features
    normaliser = fit_normaliser(observe(train, features), config.price_range(train))
    return replay_columns(train, features=features, normaliser=normaliser)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The result of a training."""

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
    seen: Marks = NONE,
) -> TrainResult:
    """Train a policy and keep the best of validation in ``run_dir``.

    The two tables must share no question. ``progress`` is called with the steps done and in all.
    ``resume`` continues an interrupted run, bit for bit, or starts one. ``digest``, ``split_seed``
    and ``recorded`` say in ``run.json`` which traces these are, how they were split and made.
    ``start`` is a policy to continue from; its observation, normaliser and prices are kept. The run
    keeps the marks of all questions of the two tables, of ``seen`` and of ``start``. Raises
    ``UserError`` for tables that cannot be trained on, for a folder that holds another run, and at
    once for one that another process trains in.
    """
    _check(train, validation, config)
    with locked(run_dir):
        return _train(
            train, validation, config, Path(run_dir), progress=progress, resume=resume,
            digest=digest, split_seed=split_seed, recorded=recorded, start=start, seen=seen,
        )  # fmt: skip


def _train(
    train: TraceTable,
    validation: TraceTable,
    config: PPOConfig,
    run_dir: Path,
    *,
    progress: Progress | None,
    resume: bool,
    digest: str | None,
    split_seed: int | None,
    recorded: Mapping[str, Any] | None,
    start: Policy | None,
    seen: Marks,
) -> TrainResult:
    """``train``, nobody else writing in the folder."""
    total = config.steps(len(np.unique(train.question_ids)))
    config = replace(config, total_timesteps=total)
    snapshot = None
    if (run_dir / LATEST).exists():
        if not resume:
            raise UserError(f"{run_dir} already holds a run: resume it or choose another folder")
        snapshot = read_latest(run_dir)

    columns = training_columns(train, config) if start is None else _columns_of(start, train)
    run = describe(train, columns, config, digest, split_seed, recorded)
    given = [*train.question_ids.tolist(), *validation.question_ids.tolist()]
    all_seen = together(marks_of(given), seen, NONE if start is None else start.seen)
    run["seen"] = None if all_seen is None else as_text(all_seen)
    if snapshot is not None:
        check_same(run_dir, run, snapshot[1]["progress"]["run"])
    judge = Validation(train, validation, columns.features, columns.scaling)
    with one_thread():
        model = make_ppo(columns, config)
        if start is not None:
            _continue_from(model, start)
        model.set_logger(open_log(run_dir, run))
        source, state = _source(model), None
        if snapshot is not None:
            restore(model, source, *snapshot)
            state = snapshot[1]["progress"]
        monitor = Monitor(run_dir, source, judge, run, config, progress, state)
        remaining = total - model.num_timesteps
        if remaining > 0:
            model.learn(remaining, callback=monitor, reset_num_timesteps=snapshot is None)
        model.logger.close()
        monitor.sweep_best()
    return TrainResult(run_dir, monitor.best)


def _source(model: PPO) -> Source:
    """Where the rows of an update come from."""
    if isinstance(model, ExactPPO):
        return model.source
    env = model.get_env()
    assert isinstance(env, ReplaySB3VecEnv)
    return env


def check_split(train: TraceTable | Pair, validation: TraceTable | Pair) -> None:
    """``UserError`` where one of them is empty or they share a question."""
    if not len(train) or not len(validation):
        raise UserError("training needs training and validation traces: record more questions")
    common = np.intersect1d(train.question_ids, validation.question_ids)
    if len(common):
        raise UserError(
            f"question {common[0]} is in the training and in the validation traces: split by"
            " question"
        )


def _check(train: TraceTable, validation: TraceTable, config: PPOConfig) -> None:
    check_split(train, validation)
    full = float(np.concatenate([t.final_exact_match for t in (train, validation)]).mean())
    if config.em_floor is not None and config.em_floor > full:
        raise UserError(
            f"em_floor is {config.em_floor:g}, but the full decodes themselves reach {full:.3f}"
        )


def _columns_of(start: Policy, train: TraceTable) -> ReplayColumns:
    """The training traces as the network of a policy sees them."""
    normaliser = Normaliser(
        start.tensors["obs_mean"].copy(), start.tensors["obs_std"].copy(), start.price_range,
        float(start.config["clip"]),
    )  # fmt: skip
    return replay_columns(train, features=start.features, normaliser=normaliser)


def _continue_from(model: PPO, start: Policy) -> None:
    own = model.policy.state_dict()
    for name, tensor in start.tensors.items():
        if name in own:
            if own[name].shape != tensor.shape:
                raise UserError("the policy to go on from has a network of another size")
            own[name] = torch.from_numpy(tensor.copy())
    model.policy.load_state_dict(own)
