"""The replay environments: return = utility, the same for every front, no way past the record."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv
from synthetic import make_table, never_stop_table

from rlbudget.envs.replay import ReplayEnv
from rlbudget.envs.replay_core import ReplayColumns, replay_columns
from rlbudget.envs.replay_normaliser import fit_normaliser
from rlbudget.envs.replay_sb3 import ReplaySB3VecEnv
from rlbudget.envs.replay_vector import ReplayVectorEnv
from rlbudget.errors import UserError
from rlbudget.policy import outcomes
from rlbudget.policy.observation import feature_names, features_of, observe
from rlbudget.traces.table import TraceTable

TABLE = make_table(120, seed=3)
PRICES = (1e-5, 1e-2)
FREE = replay_columns(TABLE)
PROBE = replay_columns(TABLE, preset="probe")


def play(env: ReplayEnv, trace: int, price: float, stop: int) -> tuple[float, dict[str, Any]]:
    """Return and last info of an episode that stops at checkpoint ``stop`` (-1: never)."""
    env.reset(options={"trace": trace, "token_price": price})
    total, over, step, info = 0.0, False, 0, {}
    while not over:
        _, reward, over, truncated, info = env.step(int(step == stop))
        assert not truncated
        assert over or reward == 0
        total += reward
        step += 1
    return total, info


def test_gymnasium_accepts_the_environment() -> None:
    check_env(gym.make("rlbudget/Replay-v0", traces=TABLE, token_price=PRICES).unwrapped)


def test_the_ids_are_registered_without_a_time_limit() -> None:
    spec = gym.spec("rlbudget/Replay-v0")
    assert spec.max_episode_steps is None
    assert "rlbudget/Decoding-v0" in gym.registry


@settings(deadline=None, max_examples=200)
@given(data=st.data(), log_price=st.floats(-6, -1), probe=st.booleans())
def test_return_equals_utility_exactly(data: st.DataObject, log_price: float, probe: bool) -> None:
    columns = PROBE if probe else FREE
    trace = int(data.draw(st.sampled_from(columns.episodes.tolist())))
    stop = data.draw(st.integers(-1, int(TABLE.lengths[trace]) - 1))
    price = 10**log_price
    total, info = play(ReplayEnv(columns, token_price=PRICES), trace, price, stop)

    stops = np.full(len(TABLE), -1)
    stops[trace] = stop
    charged = "until_stop" if probe else "none"
    result = outcomes.outcome(TABLE, stops, probes_charged=charged)
    assert total == outcomes.utility(result, price)[trace]

    rows = range(TABLE.offsets[trace], TABLE.offsets[trace + 1])
    seen = rows if stop < 0 else rows[: stop + 1]
    probes = sum(int(TABLE.probe_tokens[row]) for row in seen) if probe else 0
    if stop < 0:
        right = TABLE.final_exact_match[trace]
        thinking, answer = TABLE.final_thinking_tokens[trace], TABLE.final_answer_tokens[trace]
    else:
        right = TABLE.exit_exact_match[seen[-1]]
        thinking, answer = TABLE.thinking_tokens[seen[-1]], TABLE.exit_answer_tokens[seen[-1]]
    assert total == right - price * (thinking + probes + answer)
    assert info == {
        "exact_match": right,
        "thinking_tokens": thinking,
        "probe_tokens": probes,
        "answer_tokens": answer,
        "token_price": price,
        "trace_id": f"t{trace}",
        "stopped": stop >= 0,
    }


@settings(deadline=None, max_examples=100)
@given(trace=st.sampled_from(FREE.episodes.tolist()), budget=st.integers(8, 200))
def test_running_out_of_budget_stops_at_the_last_checkpoint_within_it(
    trace: int, budget: int
) -> None:
    env = ReplayEnv(TABLE, token_price=PRICES, max_tokens=budget)
    _, info = play(env, trace, 1e-3, -1)
    if TABLE.final_thinking_tokens[trace] <= budget:
        assert not info["stopped"]
        assert info["thinking_tokens"] == TABLE.final_thinking_tokens[trace]
    else:
        rows = slice(TABLE.offsets[trace], TABLE.offsets[trace + 1])
        within = TABLE.thinking_tokens[rows] <= budget
        assert info["stopped"]
        assert info["thinking_tokens"] == TABLE.thinking_tokens[rows][within][-1]
        assert info["exact_match"] == TABLE.exit_exact_match[rows][within][-1]


def test_the_observation_is_the_observed_checkpoint_and_the_log_price() -> None:
    env = ReplayEnv(TABLE, token_price=PRICES)
    expected = observe(TABLE, features_of(TABLE, "free"))
    trace = int(FREE.episodes[5])
    seen, _ = env.reset(options={"trace": trace, "token_price": 1e-3})
    for row in range(TABLE.offsets[trace], TABLE.offsets[trace + 1]):
        assert env.observation_space.contains(seen)
        np.testing.assert_array_equal(seen[:-1], expected[row])
        assert seen[-1] == np.float32(-3)
        seen, *_ = env.step(0)


def test_the_first_features_are_those_the_docstring_names() -> None:
    names = ReplayEnv(TABLE, token_price=PRICES).features
    assert names[:2] == ("thinking_tokens.log", "thinking_tokens")
    with_probes = ReplayEnv(TABLE, token_price=PRICES, preset="probe").features
    assert with_probes == feature_names(TABLE.signals, "probe")


def test_prices_and_traces_are_drawn_over_their_whole_range() -> None:
    env = ReplayVectorEnv(4096, FREE, token_price=PRICES)
    _, _ = env.reset(seed=0)
    _, _, _, _, infos = env.step(np.ones(4096, dtype=np.int64))
    price = np.log10(infos["final_info"]["token_price"])
    assert price.min() >= -5
    assert price.max() <= -2
    counts, _ = np.histogram(price, bins=6, range=(-5, -2))
    assert counts.min() > 0.85 * 4096 / 6
    drawn = set(infos["final_info"]["trace_id"].tolist())
    assert drawn == {f"t{trace}" for trace in FREE.episodes}


def test_traces_without_a_checkpoint_are_never_an_episode() -> None:
    empty = int(np.flatnonzero(TABLE.lengths == 0)[0])
    assert empty not in FREE.episodes
    with pytest.raises(ValueError, match="no checkpoint"):
        ReplayEnv(TABLE, token_price=PRICES).reset(options={"trace": empty})


def test_the_vector_environment_steps_as_single_environments_do() -> None:
    n = 32
    vector = ReplayVectorEnv(n, PROBE, token_price=PRICES)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    singles = [ReplayEnv(PROBE, token_price=PRICES) for _ in range(n)]
    rng = np.random.default_rng(0)
    traces, prices = rng.choice(PROBE.episodes, n), rng.uniform(1e-4, 1e-2, n)
    seen, _ = vector.reset(seed=1, options={"trace": traces, "token_price": prices})
    assert vector.observation_space.contains(seen)
    for k, env in enumerate(singles):
        env.reset(options={"trace": traces[k], "token_price": prices[k]})
    over = np.zeros(n, dtype=bool)
    while not over.all():
        actions = (rng.random(n) < 0.1).astype(np.int64)
        seen, rewards, done, truncated, infos = vector.step(actions)
        assert not truncated.any()
        for k in np.flatnonzero(~over):
            alone, reward, ended, _, info = singles[k].step(actions[k])
            assert (reward, ended) == (rewards[k], done[k])
            if not ended:
                np.testing.assert_array_equal(alone, seen[k])
                continue
            np.testing.assert_array_equal(alone, infos["final_obs"][k])
            assert info == {name: infos["final_info"][name][k] for name in info}
        over |= done


def test_make_vec_makes_the_vector_environment() -> None:
    env = gym.make_vec(
        "rlbudget/Replay-v0",
        num_envs=3,
        vectorization_mode="vector_entry_point",
        traces=TABLE,
        token_price=PRICES,
    )
    assert isinstance(env.unwrapped, ReplayVectorEnv)
    assert env.reset(seed=0)[0].shape == (3, len(FREE.features) + 1)


def test_sb3_and_gymnasium_vector_environments_agree() -> None:
    sb3 = ReplaySB3VecEnv(FREE, 16, token_price=PRICES, seed=5)
    vector = ReplayVectorEnv(16, FREE, token_price=PRICES)
    vector.reset(seed=5)
    # Both own one generator; given the same one, everything they draw is the same.
    sb3.rng = vector.np_random
    state = vector.np_random.bit_generator.state
    seen = sb3.reset()
    vector.np_random.bit_generator.state = state
    np.testing.assert_array_equal(seen, vector.reset()[0])
    other = np.random.default_rng(0)
    vector.np_random = np.random.default_rng(9)
    sb3.rng = np.random.default_rng(9)
    for _ in range(30):
        actions = (other.random(16) < 0.2).astype(np.int64)
        seen, rewards, done, infos = sb3.step(actions)
        wanted, paid, over, _, ends = vector.step(actions)
        np.testing.assert_array_equal(seen, wanted)
        np.testing.assert_array_equal(rewards, paid)
        np.testing.assert_array_equal(done, over)
        for k in np.flatnonzero(done):
            assert infos[k]["episode"]["r"] == rewards[k]
            assert "TimeLimit.truncated" not in infos[k]
            np.testing.assert_array_equal(infos[k]["terminal_observation"], ends["final_obs"][k])


def test_sb3_accepts_the_single_environment() -> None:
    env = DummyVecEnv([lambda: ReplayEnv(FREE, token_price=PRICES)] * 2)
    assert env.reset().shape == (2, len(FREE.features) + 1)
    *_, done, infos = env.step(np.array([0, 1]))
    assert done.tolist() == [False, True]
    assert not infos[1]["TimeLimit.truncated"]


def test_the_same_seed_gives_the_same_episodes() -> None:
    runs = []
    for seed in (4, 4, 5):
        env = ReplayVectorEnv(8, FREE, token_price=PRICES)
        seen = [env.reset(seed=seed)[0]]
        seen += [env.step(np.arange(8) % 2)[0] for _ in range(20)]
        runs.append(np.stack(seen))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()


def test_a_normaliser_gives_the_network_its_input() -> None:
    observations = observe(TABLE, FREE.features)
    normaliser = fit_normaliser(observations, PRICES)
    columns = replay_columns(TABLE, normaliser=normaliser)
    env = ReplaySB3VecEnv(columns, 64, token_price=PRICES)
    seen = env.reset()
    core = env.core
    wanted = np.clip((observations[core.row] - normaliser.mean) / normaliser.std, -5, 5)
    np.testing.assert_array_equal(seen[:, :-1], wanted)
    place = (np.log10(core.price) + 5) / 3 * 2 - 1
    np.testing.assert_allclose(seen[:, -1], place, atol=1e-6)
    assert normaliser.price(PRICES).tolist() == [-1, 1]
    np.testing.assert_array_equal(seen, normaliser.inputs(observations[core.row], core.price))


def test_a_feature_that_never_varies_is_normalised_to_zero() -> None:
    observations = np.full((50, 2), 0.1, dtype=np.float32)
    observations[:, 1] = np.arange(50)
    normaliser = fit_normaliser(observations, PRICES)
    assert np.abs(normaliser.features(observations)[:, 0]).max() < 1e-6
    assert normaliser.features(observations)[:, 1].std() == pytest.approx(1)


@pytest.mark.parametrize("price", [(0.0, 1e-3), (1e-3, 1e-4), (1e-3, np.inf), (np.nan, 1e-3)])
def test_a_price_range_that_cannot_be_is_refused(price: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="0 < lowest"):
        ReplayEnv(FREE, token_price=price)


def no_checkpoints() -> TraceTable:
    return TABLE.take(np.flatnonzero(TABLE.lengths == 0))


def test_what_cannot_be_replayed_is_refused_in_one_line() -> None:
    cases: list[tuple[TraceTable | ReplayColumns, dict[str, Any], str]] = [
        (no_checkpoints(), {}, "no trace has a checkpoint"),
        (TABLE, {"max_tokens": 7}, "give at least 8"),
        (never_stop_table(), {"preset": "probe"}, "record with probes"),
        (TABLE, {"features": ["altitude"]}, "no signal altitude"),
    ]
    for traces, arguments, message in cases:
        with pytest.raises(UserError, match=message) as error:
            ReplayEnv(traces, token_price=PRICES, **arguments)
        assert "\n" not in str(error.value)


def test_misuse_is_an_error() -> None:
    env = ReplayEnv(FREE, token_price=PRICES)
    with pytest.raises(ValueError, match="call reset"):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"0 \(continue\) or 1"):
        env.step(2)
    for options in ({"trace": 10**6}, {"token_price": -1.0}, {"price": 1.0}):
        with pytest.raises(ValueError):
            env.reset(options=options)


def test_a_vector_reset_with_a_list_of_none_draws_anew() -> None:
    vector = ReplayVectorEnv(8, FREE, token_price=PRICES)

    def drawn(seed: int | list[int | None] | None) -> list[list[float]]:
        seen: list[list[float]] = vector.reset(seed=seed)[0].tolist()
        return seen

    nobody: list[int | None] = [None] * 8
    some: list[int | None] = [3, *[None] * 7]
    everybody: list[int | None] = [0, 1, 2, 3, 4, 5, 6, 7]
    assert drawn(nobody) != drawn(nobody)
    assert drawn(some) != drawn(some)
    assert drawn(everybody) == drawn(everybody) != drawn([0] * 8)
    with pytest.raises(ValueError, match="2 seeds for 8 environments"):
        vector.reset(seed=[1, 2])
    first = vector.reset(seed=5)[0]
    again = vector.reset(seed=[None] * 8)[0]
    np.testing.assert_array_equal(vector.reset(seed=5)[0], first)
    np.testing.assert_array_equal(vector.reset(seed=[None] * 8)[0], again)
