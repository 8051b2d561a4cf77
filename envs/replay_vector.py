"""Replays as a Gymnasium vector environment: hundreds of decodes a step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rlbudget.arrays import Bools, Float32s, Floats, Ints
from rlbudget.envs.replay import observation_space
from rlbudget.envs.replay_core import (
    ReplayColumns,
    begin_from_options,
    core_of,
    replay_columns,
)
from rlbudget.policy.observation import Preset
from rlbudget.traces.table import TraceTable


class ReplayVectorEnv(VectorEnv[Float32s, Ints, npt.NDArray[Any]]):
    """``num_envs`` replays in lockstep, stepped in one numpy operation.

    Spaces, rewards and the episode's end are those of ``rlbudget.envs.replay.ReplayEnv``.
    Episodes reset in the same step (``AutoresetMode.SAME_STEP``): the observation after an end
    is the first of the next episode, the last of the old one is in ``infos["final_obs"]`` and
    its ledger in ``infos["final_info"]``, arrays of shape (num_envs,) with their masks
    ``_final_obs`` and ``_exact_match`` and so on, Gymnasium's form.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium's own form
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int,
        traces: TraceTable | ReplayColumns | str | Path,
        *,
        token_price: tuple[float, float],
        preset: Preset = "free",
        features: Sequence[str] | None = None,
        max_tokens: int | None = None,
    ) -> None:
        columns = replay_columns(traces, preset=preset, features=features, max_tokens=max_tokens)
        self.num_envs = num_envs
        self.features = columns.features
        self.single_observation_space = observation_space(columns)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._core = core_of(columns, num_envs, token_price)
        self.single_action_space = spaces.Discrete(self._core.n_actions)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._all = np.arange(num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float32s, dict[str, Any]]:
        """Start all episodes. ``options`` may fix ``trace`` and ``token_price``, one number for
        all or (num_envs,). A list of seeds is made one seed: a fresh one where some are None, none
        where all are. ``ValueError`` for a list of another length."""  # fmt: skip
        super().reset(seed=seed if seed is None or isinstance(seed, int) else self._one_seed(seed))
        begin_from_options(self._core, self._all, self.np_random, options)
        return self._core.observations(), {}

    def _one_seed(self, seeds: Sequence[int | None]) -> int | None:
        """One seed made of all; None where all are None."""
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments")
        if all(seed is None for seed in seeds):
            return None
        fresh = np.random.SeedSequence().entropy if None in seeds else 0
        assert isinstance(fresh, int)
        given = [0 if seed is None else 1 + int(seed) for seed in seeds]
        return int(np.random.SeedSequence([fresh, *given]).generate_state(1)[0])

    def step(
        self, actions: npt.NDArray[Any]
    ) -> tuple[Float32s, Floats, Bools, Bools, dict[str, Any]]:
        """Take one decision in every replay."""
        rewards, done = self._core.step(actions)
        infos: dict[str, Any] = {}
        ends = np.flatnonzero(done)
        if len(ends):
            infos = self._endings(ends, actions, done)
            self._core.begin(ends, self.np_random)
        return self._core.observations(), rewards, done, np.zeros_like(done), infos

    def _endings(self, ends: Ints, actions: npt.NDArray[Any], done: Bools) -> dict[str, Any]:
        final_obs = np.full(self.num_envs, None, dtype=object)
        final_obs[ends] = list(self._core.observations(ends))
        final_info: dict[str, Any] = {}
        for name, column in self._core.endings(ends, actions).items():
            whole = np.zeros(self.num_envs, dtype=column.dtype)
            whole[ends] = column
            final_info |= {name: whole, f"_{name}": done}
        return {
            "final_obs": final_obs,
            "_final_obs": done,
            "final_info": final_info,
            "_final_info": done,
        }
