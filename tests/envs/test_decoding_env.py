from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from tiny_model import save_tiny_model, tiny_task

import rlbudget.envs  # noqa: F401 - registers the environments
from rlbudget.decoding.record import record
from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.policy.observation import Preset
from rlbudget.signals.questions import context_signals
from rlbudget.traces.store import load_table, load_traces

torch.set_num_threads(1)

N = 56
SETTINGS = {"max_tokens": 48, "probe_tokens": 3}
PRICES = (1e-4, 1e-2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TransformersModel:
    return load_model(str(save_tiny_model(tmp_path_factory.mktemp("model"))), profile="embedded")


def test_the_question_is_seen_live(model: TransformersModel) -> None:
    env = make(model, features=("thinking_tokens", "question_words"))
    observation, _ = env.reset(seed=0, options={"question": 3})
    words = context_signals(tiny_task(N).questions[3].question)["question_words"]
    assert observation[1] == pytest.approx(words)


def make(model: TransformersModel, n: int = N, **rest: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(
        "rlbudget/Decoding-v0",
        model=model,
        task=tiny_task(n),
        **{"token_price": PRICES, **SETTINGS, **rest},
    )


@pytest.mark.parametrize("preset", ["free", "probe"])
def test_check_env_passes(model: TransformersModel, preset: Preset) -> None:
    with warnings.catch_warnings():
        # The unbounded features fill float32: check_env advises to normalise, which agents do.
        warnings.filterwarnings("ignore", message=".*Box observation space.*")
        check_env(make(model, 8, preset=preset).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("preset", ["free", "probe"])
def test_live_episodes_are_those_of_the_replay(
    model: TransformersModel, tmp_path: Path, preset: Preset
) -> None:
    record(model, tiny_task(N), tmp_path, batch_size=28, **SETTINGS)  # type: ignore[arg-type]
    table = load_table(tmp_path)
    traces = {trace.trace_id: trace for trace in load_traces(tmp_path)}
    live = make(model, preset=preset)
    replay = gymnasium.make("rlbudget/Replay-v0", traces=table, token_price=PRICES, preset=preset)
    assert live.unwrapped.features == replay.unwrapped.features  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    stopped = []
    for i in np.flatnonzero(table.lengths).tolist():
        trace = traces[str(table.trace_ids[i])]
        question = int(trace.question_id[1:])
        price = float(np.exp(rng.uniform(*np.log(PRICES))))
        seen, _ = live.reset(
            options={"question": question, "seed": trace.meta["row_seed"], "token_price": price}
        )
        replayed, _ = replay.reset(options={"trace": i, "token_price": price})
        over = False
        while not over:
            np.testing.assert_allclose(seen, replayed, rtol=2e-3, atol=2e-3)
            action = int(rng.random() < 0.3)
            seen, reward, over, truncated, info = live.step(action)
            replayed, expected, ended, _, ledger = replay.step(action)
            assert (over, truncated) == (ended, False)
            assert reward == expected
        for name in ("exact_match", "thinking_tokens", "probe_tokens", "answer_tokens", "stopped"):
            assert info[name] == ledger[name], name
        assert reward == info["exact_match"] - price * sum(
            info[name] for name in ("thinking_tokens", "probe_tokens", "answer_tokens")
        )
        stopped.append(info["stopped"])
    assert len(stopped) >= 40
    assert 0.2 < np.mean(stopped) < 0.95


def test_the_reward_is_nothing_until_the_end(model: TransformersModel) -> None:
    env = make(model)
    env.reset(seed=3)
    over = False
    rewards = []
    while not over:
        _, reward, over, _, _ = env.step(0)
        rewards.append(float(reward))
    assert not any(rewards[:-1])
    with pytest.raises(ValueError, match="call reset"):
        env.unwrapped.step(0)


def test_the_same_seed_draws_the_same_episode(model: TransformersModel) -> None:
    first, second = make(model), make(model)
    a, _ = first.reset(seed=5)
    b, _ = second.reset(seed=5)
    np.testing.assert_array_equal(a, b)
    low, high = PRICES
    assert low <= 10 ** float(a[-1]) * (1 + 1e-6)
    assert 10 ** float(a[-1]) <= high * (1 + 1e-6)


def test_mistakes_are_said(model: TransformersModel) -> None:
    with pytest.raises(UserError, match="token price range"):
        make(model, token_price=(0.0, 1.0))
    with pytest.raises(UserError, match="smaller stride"):
        make(model, 2, stride=4, max_tokens=4).reset(seed=0)
    env = make(model, 2).unwrapped
    with pytest.raises(ValueError, match="unknown option 'trace'"):
        env.reset(options={"trace": 0})
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action 2"):
        env.step(2)
