"""The replay's core with a third action, PROBE, and a memory of the trial answers paid for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Bools, Float32s, Floats, Ints
from rlbudget.envs.replay_core import _ALL, ReplayColumns, ReplayCore
from rlbudget.signals.looks import LOOK_SIGNALS, LookMemory


class LookCore(ReplayCore):
    """``n`` episodes in lockstep with three actions; see ``rlbudget.envs.replay``."""

    action_names: ClassVar[tuple[str, ...]] = ("continue", "stop", "probe")
    _kept: ClassVar[tuple[str, ...]] = (*ReplayCore._kept, "_charged")

    def __init__(self, columns: ReplayColumns, n: int, token_price: tuple[float, float]) -> None:
        super().__init__(columns, n, token_price)
        self.memory = LookMemory(n)
        self._charged = np.zeros(n, dtype=np.int64)

    def _forget(self, envs: Ints) -> None:
        self.memory.forget(envs)
        self._charged[envs] = 0

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of what ``resume`` needs to continue the open episodes."""
        return super().state() | {f"looks.{k}": v for k, v in self.memory.state().items()}

    def resume(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Continue the episodes of ``state``."""
        super().resume(state)
        looks = {k.removeprefix("looks."): v for k, v in state.items() if k.startswith("looks.")}
        self.memory = LookMemory.of(looks)

    def observations(self, envs: Ints | slice = _ALL) -> Float32s:
        """Those of all or some episodes: (k, F + 1) float32, a new array."""
        out = super().observations(envs)
        envs = np.arange(self.n)[envs]
        remembered = self.memory.features(envs, self.columns.table.thinking_tokens[self.row[envs]])
        if self.columns.normaliser is not None:
            last = slice(-len(LOOK_SIGNALS), None)
            remembered = self.columns.normaliser.features(remembered, last)
        out[:, -1 - len(LOOK_SIGNALS) : -1] = remembered
        return out

    def step(self, actions: npt.ArrayLike) -> tuple[Floats, Bools]:
        """Apply one action to every episode: rewards (n,) float64, ended (n,) bool."""
        chosen = self._checked(actions)
        looking = (chosen == 2) & ~self.memory.here
        stopped = chosen == 1
        done = stopped | ((self.row == self.columns.last_row[self.trace]) & ~looking)
        moving = ~(done | looking)
        rewards = self._pay(stopped, done, moving)
        self.memory.here[moving] = False
        looks, table = np.flatnonzero(looking), self.columns.table
        if len(looks):
            rows = self.row[looks]
            answer, confidence = table.probe_answer[rows], table.probe_confidence[rows]
            self.memory.look(looks, answer, confidence, table.thinking_tokens[rows])
            self._charged[looks] += table.probe_tokens[rows]
        return rewards, done

    def steps(self, envs: Ints) -> Ints:
        """(k,) the steps of these episodes if they end now."""
        return super().steps(envs) + self.memory.count[envs].astype(np.int64)

    def looks_charged(self, envs: Ints) -> Ints:
        """(k,) tokens of the looks so far."""
        return self._charged[envs]


def core_of(columns: ReplayColumns, n: int, token_price: tuple[float, float]) -> ReplayCore:
    """``n`` episodes of the kind that these columns ask for."""
    core = columns.core or (LookCore if columns.looks else ReplayCore)
    return core(columns, n, token_price)
