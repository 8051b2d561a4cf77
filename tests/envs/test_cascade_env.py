"""The cascade's environments: return = utility, all fronts agree, advantages are exact."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from frozen_nets import policy_for
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_makers import make_pair
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from rlbudget.agents.exact_cascade import cascade_rows
from rlbudget.agents.ppo import ExactPPO, PPOConfig, make_ppo
from rlbudget.envs.cascade import CascadeEnv, cascade_columns
from rlbudget.envs.replay_normaliser import fit_normaliser
from rlbudget.envs.replay_sb3 import ReplaySB3VecEnv
from rlbudget.policy.cascade import cascade_features
from rlbudget.policy.handover import handover, served
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import utility
from rlbudget.policy.replay_cascade import act
from rlbudget.traces.pairs import with_natural_end

PAIR = make_pair(40, seed=3)
NODES = with_natural_end(PAIR.small)
PRICES = (1e-4, 1e-2)
LARGE = policy_for(PAIR.large, "free")
HANDOVER = handover(LARGE, PAIR.large, PRICES)
COLUMNS = cascade_columns(PAIR, handover=HANDOVER)


def test_both_checkers_accept_the_environment() -> None:
    env = gym.make("rlbudget/Cascade-v0", pair=PAIR, token_price=PRICES)
    check_env(env.unwrapped)
    check_env_sb3(CascadeEnv(PAIR, token_price=PRICES, handover=HANDOVER))
    assert env.action_space == gym.spaces.Discrete(3)
    assert gym.spec("rlbudget/Cascade-v0").max_episode_steps is None


def test_the_large_model_is_served_by_its_policy_at_the_nearest_price() -> None:
    for price in (*PRICES, 1e-3, 7e-4):
        place = int(HANDOVER.place(price))
        nearest = HANDOVER.token_prices[place]
        assert place == np.abs(np.log(HANDOVER.token_prices / price)).argmin()
        given_there = served(LARGE, PAIR.large, nearest).outcome
        np.testing.assert_array_equal(HANDOVER.exact_match[place], given_there.exact_match)
        np.testing.assert_array_equal(HANDOVER.tokens[place], given_there.tokens)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), log_price=st.floats(-4, -2))
def test_return_is_the_utility_of_what_was_done(data: st.DataObject, log_price: float) -> None:
    price = 10**log_price
    trace = data.draw(st.integers(0, len(PAIR) - 1))
    node = data.draw(st.integers(0, int(NODES.lengths[trace]) - 1))
    action = data.draw(st.sampled_from([0, 1, 2]))
    env = CascadeEnv(COLUMNS, token_price=PRICES)
    env.reset(options={"trace": trace, "token_price": price})
    total, over, step, info = 0.0, False, 0, {}
    while not over:
        _, reward, over, truncated, info = env.step(action if step == node else 0)
        assert not truncated
        total, step = total + reward, step + 1

    actions = np.zeros(len(NODES.thinking_tokens), dtype=np.int64)
    actions[NODES.offsets[trace] + node] = action
    nearest = HANDOVER.token_prices[int(HANDOVER.place(price))]
    done = act(NODES, PAIR.ratio, actions, served(LARGE, PAIR.large, nearest).outcome)
    assert total == pytest.approx(utility(done.outcome, price)[trace], abs=1e-12)
    assert info["escalated"] == done.escalated[trace] == (action == 2)
    assert info["exact_match"] == done.outcome.exact_match[trace]
    assert info["trace_id"] == PAIR.small.trace_ids[trace]
    paid = PAIR.ratio * (info["thinking_tokens"] + info["answer_tokens"]) + info["large_tokens"]
    assert paid == pytest.approx(done.outcome.tokens[trace])
    assert info["stopped"] == (action == 1 and node < NODES.lengths[trace] - 1)


def test_an_unknown_action_is_refused_by_name() -> None:
    env = CascadeEnv(COLUMNS, token_price=PRICES)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"0 \(continue\), 1 \(stop\) or 2 \(escalate\)"):
        env.step(3)


def test_all_fronts_of_the_environment_agree() -> None:
    rng, n = np.random.default_rng(0), 16
    traces, prices = np.arange(n), np.geomspace(*PRICES, n)
    vector = gym.make_vec(
        "rlbudget/Cascade-v0", n, vectorization_mode="vector_entry_point",
        pair=PAIR, token_price=PRICES, handover=HANDOVER,
    )  # fmt: skip
    sb3 = ReplaySB3VecEnv(COLUMNS, n, token_price=PRICES)
    single = [CascadeEnv(COLUMNS, token_price=PRICES) for _ in traces]
    vector.reset(seed=0, options={"trace": traces, "token_price": prices})
    sb3.reset()
    sb3.core.begin(np.arange(n), rng, traces, prices)
    for i, env in enumerate(single):
        env.reset(options={"trace": int(traces[i]), "token_price": prices[i]})
    going, ways = np.ones(n, dtype=bool), set()
    for _ in range(60):
        actions = rng.choice([0, 1, 2], n, p=[0.9, 0.05, 0.05])
        seen, rewards, done, _, infos = vector.step(actions)
        sb3.step_async(actions)
        seen_sb3, rewards_sb3, done_sb3, infos_sb3 = sb3.step_wait()
        for i in np.flatnonzero(going):
            observation, reward, over, _, info = single[i].step(actions[i])
            assert reward == rewards[i] == rewards_sb3[i]
            assert over == done[i] == done_sb3[i]
            if over:
                ways.add((info["stopped"], info["escalated"]))
                assert {k: infos["final_info"][k][i] for k in info} == info
                assert {k: infos_sb3[i][k] for k in info} == info
            else:
                np.testing.assert_array_equal(observation, seen[i])
                np.testing.assert_array_equal(observation, seen_sb3[i])
        going &= ~done
    assert not going.any()
    assert len(ways) == 3


def test_the_advantages_are_the_gradient_of_the_mean_utility(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = cascade_features(PAIR.small)
    normaliser = fit_normaliser(observe(NODES, features), PRICES)
    columns = cascade_columns(PAIR, handover=HANDOVER, features=features, normaliser=normaliser)
    model = make_ppo(columns, PPOConfig(n_envs=8, n_steps=40, exploration=0.0))
    assert isinstance(model, ExactPPO)
    assert model.rows is cascade_rows
    source = model.source
    source.weight = np.ones_like
    batch = source.batch(np.arange(2), np.array([2e-4, 5e-3]))
    monkeypatch.setattr(source, "draw", lambda rows: batch)  # the same two traces each time
    k = len(batch.exits)
    logits = np.random.default_rng(0).normal([1.0, 0.0, 0.0], size=(k, 3))
    rows = cascade_rows(source, lambda inputs: logits, 2 * k)
    action, advantage = rows.actions.reshape(k, 2), rows.advantages.reshape(k, 2)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for j in range(2):
        expected = np.take_along_axis(np.log(chances), action[:, j : j + 1], 1)[:, 0]
        np.testing.assert_allclose(rows.log_chances.reshape(k, 2)[:, j], expected, rtol=1e-5)
    # d log p(a) / d logits = (a is chosen) - p
    gradient = sum(advantage[:, j : j + 1] * (np.eye(3)[action[:, j]] - chances) for j in range(2))
    nudge = 1e-5
    for row in range(0, k, 7):
        for choice in range(3):
            values = []
            for sign in (1, -1):
                moved = logits.copy()
                moved[row, choice] += sign * nudge
                values.append(mean_value(moved, columns, batch))
            slope = (values[0] - values[1]) / (2 * nudge)
            assert gradient[row, choice] == pytest.approx(slope, abs=1e-6)


def mean_value(logits: Any, columns: Any, batch: Any) -> float:
    """Sum of the values of the first checkpoints, by walking each trace backwards."""
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    total = 0.0
    for trace in range(len(batch.traces)):
        price, value = batch.price[trace], batch.natural[trace]
        place = int(HANDOVER.place(price))
        own = int(batch.traces[trace])
        for row in range(batch.offsets[trace + 1] - 1, batch.offsets[trace] - 1, -1):
            at = columns.table.offsets[own] + row - batch.offsets[trace]
            paid = PAIR.ratio * columns.table.thinking_tokens[at] + HANDOVER.tokens[place, own]
            asked = HANDOVER.exact_match[place, own] - price * paid
            go_on, stop, escalate = chances[row]
            value = go_on * value + stop * batch.exits[row] + escalate * asked
        total += value
    return float(total)
