"""How fast the replay steps and PPO trains.

    python -m runs.speed.training_speed [TRACES]

Three rounds in one process, the ways in turn; medians are reported:

* ``replay``: the Gymnasium vector environment alone, one stop in twenty;
* ``exact``: the whole ``learn()`` as ``rlbudget train`` sets it up, no environment stepped;
* ``sampled``: the same with ``--advantages sampled``, SB3's PPO on the replays;
* ``one by one``: SB3's PPO with all its defaults on eight single environments (DummyVecEnv).

TRACES is a folder of recorded traces; without it a synthetic table of 1,200 traces is used.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from rlbudget.agents.actor import one_thread
from rlbudget.agents.ppo import PPOConfig, make_ppo, training_columns
from rlbudget.envs.replay import ReplayEnv
from rlbudget.envs.replay_core import ReplayColumns, replay_columns
from rlbudget.envs.replay_vector import ReplayVectorEnv
from rlbudget.traces.store import load_table
from rlbudget.traces.table import TraceTable, split_questions
from runs.common import write_result
from tests.shared.synthetic import make_table

ROUNDS = 3
REPLAYS = 4096


def replay(columns: ReplayColumns, token_price: tuple[float, float]) -> float:
    """Environment steps per second, infos made and episodes restarted."""
    env = ReplayVectorEnv(REPLAYS, columns, token_price=token_price)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    actions = (rng.random((64, REPLAYS)) < 0.05).astype(np.int64)
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < 2:
        env.step(actions[steps % len(actions)])
        steps += 1
    return steps * REPLAYS / (time.perf_counter() - start)


def learn(columns: ReplayColumns, config: PPOConfig) -> float:
    """Checkpoints (environment steps where sampled) per second of the whole ``learn()``."""
    model = make_ppo(columns, config)
    start = time.perf_counter()
    model.learn(config.steps(len(np.unique(columns.table.question_ids))))
    return model.num_timesteps / (time.perf_counter() - start)


def one_by_one(columns: ReplayColumns, token_price: tuple[float, float]) -> float:
    """The same with eight single environments and every default of SB3's."""
    env = DummyVecEnv([lambda: ReplayEnv(columns, token_price=token_price)] * 8)
    model = PPO("MlpPolicy", env, seed=0, device="cpu")
    start = time.perf_counter()
    model.learn(model.n_steps * 8)
    return model.num_timesteps / (time.perf_counter() - start)


def main() -> None:
    folder = sys.argv[1] if len(sys.argv) > 1 else None
    train: TraceTable = (
        split_questions(load_table(Path(folder))).train if folder else make_table(1200, seed=0)
    )
    exact = PPOConfig(total_timesteps=400_000)
    sampled = replace(exact, advantages="sampled")
    token_price = exact.price_range(train)
    raw, inputs = replay_columns(train), training_columns(train, exact)
    ways: dict[str, Callable[[], float]] = {
        "replay": lambda: replay(raw, token_price),
        "exact": lambda: learn(inputs, exact),
        "sampled": lambda: learn(inputs, sampled),
        "one by one": lambda: one_by_one(raw, token_price),
    }
    seen: dict[str, list[float]] = {name: [] for name in ways}
    threads = torch.get_num_threads()
    with one_thread():
        for number in range(ROUNDS):
            for name, way in ways.items():
                seen[name].append(way())
                speed = f"{seen[name][-1]:,.0f} steps/s"
                print(f"round {number + 1}, {name}: {speed}", file=sys.stderr, flush=True)
    median = {name: statistics.median(values) for name, values in seen.items()}
    ratio = median["exact"] / median["one by one"]
    write_result(
        "training_speed",
        [
            {
                "row": "training, checkpoints per second, whole learn() of PPO",
                "wanted": 60_000,
                "reached": round(median["exact"]),
                "met": median["exact"] >= 60_000,
            },
            {
                "row": "the same, times eight one-by-one environments with SB3's defaults",
                "wanted": 60,
                "reached": round(ratio, 1),
                "met": ratio >= 60,
            },
            {
                "row": "replay environment alone, steps per second",
                "wanted": 1_000_000,
                "reached": round(median["replay"]),
                "met": median["replay"] >= 1_000_000,
            },
        ],
        rounds={name: [round(value) for value in values] for name, values in seen.items()},
        sampled_steps_per_second=round(median["sampled"]),
        replays=REPLAYS,
        config=exact.as_dict(),
        torch_threads={"used": 1, "default": threads},
        traces={
            "source": "recorded" if folder else "synthetic",
            "traces": len(train),
            "checkpoints": len(train.thinking_tokens),
            "features": len(raw.features),
        },
        seed=0,
    )


if __name__ == "__main__":
    main()
