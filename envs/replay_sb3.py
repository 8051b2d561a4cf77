"""The replay as a stable-baselines3 ``VecEnv``: what PPO trains on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from rlbudget.arrays import Bools, Float32s, Floats, Ints
from rlbudget.envs.replay import observation_space
from rlbudget.envs.replay_core import ReplayColumns, ReplayCore, core_of


class ReplaySB3VecEnv(VecEnv):
    """``num_envs`` replays in lockstep; see ``rlbudget.envs.replay.ReplayEnv`` for the task.

    Columns prepared with a normaliser give the network's inputs as observations. Episodes reset
    in the same step, as stable-baselines3 wants it; the infos of ended episodes hold the ledger,
    ``terminal_observation`` and ``episode`` (return ``r``, length ``l``), the others are empty.
    """

    def __init__(
        self,
        columns: ReplayColumns,
        num_envs: int,
        *,
        token_price: tuple[float, float],
        seed: int = 0,
    ) -> None:
        self.core: ReplayCore = core_of(columns, num_envs, token_price)
        self.rng = np.random.default_rng(seed)
        self.render_mode: str | None = None
        actions = spaces.Discrete(self.core.n_actions)
        super().__init__(num_envs, observation_space(columns), actions)
        self._actions: npt.NDArray[Any] = np.zeros(num_envs, dtype=np.int64)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of the open episodes, which ``resume`` needs beside ``rng``."""
        return self.core.state()

    def resume(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on with the episodes of ``state``."""
        self.core.resume(state)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the one generator again."""
        self.rng = np.random.default_rng(seed)
        return [seed] * self.num_envs

    def reset(self) -> Float32s:
        """Start all episodes: (num_envs, n_features + 1) float32."""
        self.core.begin(np.arange(self.num_envs), self.rng)
        return self.core.observations()

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Keep the actions for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> tuple[Float32s, Floats, Bools, list[dict[str, Any]]]:
        """Take one decision in every replay."""
        rewards, done = self.core.step(self._actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        ends = np.flatnonzero(done)
        if len(ends):
            self._write_endings(infos, ends, rewards)
            self.core.begin(ends, self.rng)
        return self.core.observations(), rewards, done, infos

    def _write_endings(self, infos: list[dict[str, Any]], ends: Ints, rewards: Floats) -> None:
        ledger = self.core.endings(ends, self._actions)
        values = zip(*(column.tolist() for column in ledger.values()), strict=True)
        last, lengths = self.core.observations(ends), self.core.steps(ends).tolist()
        returns = rewards[ends].tolist()
        for k, (env, row) in enumerate(zip(ends.tolist(), values, strict=True)):
            infos[env] = {
                **dict(zip(ledger, row, strict=True)),
                "terminal_observation": last[k],
                "episode": {"r": returns[k], "l": lengths[k]},
            }

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """One value for all replays, repeated."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refused: the replays share everything."""
        raise AttributeError(f"replays share their attributes; {attr_name} cannot be set on some")

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Refused: there is no environment behind an index."""
        raise AttributeError(f"replays have no method of their own: {method_name}")

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Never: ``episode`` is already in the infos, so no Monitor is needed."""
        return [False] * len(list(self._get_indices(indices)))
