"""Paying for trial answers one by one: the same looks live, in replay and in the environments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from frozen_nets import random_observations, random_policy
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_table, puzzle

from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.ppo import PPOConfig, train
from rlbudget.envs.replay import ReplayProbeEnv
from rlbudget.envs.replay_core import replay_columns
from rlbudget.envs.replay_normaliser import fit_normaliser
from rlbudget.envs.replay_sb3 import ReplaySB3VecEnv
from rlbudget.errors import UserError
from rlbudget.policy.controller import Controller
from rlbudget.policy.folder import load_policy, save_policy
from rlbudget.policy.observation import feature_names, observe
from rlbudget.policy.outcomes import fixed_stops, outcome, token_price_of, utility
from rlbudget.policy.replay import replay
from rlbudget.signals.looks import LOOK_SIGNALS
from rlbudget.traces.columns import table_of
from rlbudget.traces.table import TraceTable, without
from rlbudget.traces.trace import Probe, problem_of

TABLE = make_table(60, seed=4)
LOOK = feature_names(TABLE.signals, "look")
PRICES = (1e-5, 1e-2)
COLUMNS = replay_columns(TABLE, preset="look")
POLICY = random_policy(LOOK, preset="look", seed=9)


def remembered(table: TraceTable, trace: int, looked: Any) -> list[list[float]]:
    """The features of looks at the checkpoints of a trace, from their definitions."""
    start, end = table.offsets[trace : trace + 2]
    rows, out = [], []
    for row in range(start, end):
        rows += [row] if looked[row] else []
        if not rows:
            out.append([0.0] * 8)
            continue
        answers = table.probe_answer[rows].tolist()
        streak = next((k for k, a in enumerate(answers[::-1]) if a != answers[-1]), len(answers))
        confidences = table.probe_confidence[rows]
        out.append(
            [float(looked[row]), np.log1p(len(rows)), confidences[-1], confidences.max(),
             np.log1p(streak), np.log1p(len(set(answers))), answers.count(answers[-1]) / len(rows),
             np.log1p(table.thinking_tokens[row] - table.thinking_tokens[rows[-1]])]
        )  # fmt: skip
    return out


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_what_is_remembered_of_looks_is_what_it_says(seed: int, share: float) -> None:
    looked = np.random.default_rng(seed).random(len(TABLE.thinking_tokens)) < share
    seen = observe(TABLE, LOOK, looked)
    expected = [row for i in range(len(TABLE)) for row in remembered(TABLE, i, looked)]
    np.testing.assert_allclose(seen[:, -8:], np.array(expected), rtol=1e-6, atol=1e-7)
    free = observe(TABLE, feature_names(TABLE.signals, "free"))
    assert (seen[:, :-8] == free).all()


def test_gymnasium_accepts_the_environment_with_three_actions() -> None:
    env = gym.make("rlbudget/ReplayProbe-v0", traces=TABLE, token_price=PRICES)
    check_env(env.unwrapped)
    assert env.action_space == gym.spaces.Discrete(3)
    assert gym.spec("rlbudget/ReplayProbe-v0").max_episode_steps is None


@settings(deadline=None, max_examples=60)
@given(data=st.data(), log_price=st.floats(-5, -2))
def test_return_is_the_utility_of_what_was_looked_at(data: st.DataObject, log_price: float) -> None:
    env, price = ReplayProbeEnv(COLUMNS, token_price=PRICES), 10**log_price
    trace = int(data.draw(st.sampled_from(COLUMNS.episodes.tolist())))
    first, length = int(TABLE.offsets[trace]), int(TABLE.lengths[trace])
    stop = data.draw(st.integers(-1, length - 1))
    looks = data.draw(st.sets(st.integers(0, length - 1)))
    env.reset(options={"trace": trace, "token_price": price})
    total, over, info, step = 0.0, False, {}, 0
    while not over:
        actions = [2] * (step in looks) + [
            1 if step == stop else data.draw(st.sampled_from([0, 2]))
        ]
        if actions == [2]:
            looks = looks | {step}
            actions = [2, 0]
        for k, action in enumerate(actions):
            assert not over
            observation, reward, over, truncated, info = env.step(action)
            total += reward
            assert not truncated
            if action == 2 and not over:
                here = observation[-9] == 1
                assert here == (len(actions) == 2 and k == 0)
        step += 1
    mask = np.zeros(len(TABLE.thinking_tokens), dtype=bool)
    mask[[first + k for k in looks]] = True
    stops = np.full(len(TABLE), -1)
    stops[trace] = stop
    expected = outcome(TABLE, stops, probes_charged=mask)
    assert info["probe_tokens"] == expected.probe[trace]
    assert total == utility(expected, price)[trace]


def test_a_second_look_at_a_checkpoint_goes_on() -> None:
    env = ReplayProbeEnv(TABLE, token_price=PRICES)
    env.reset(options={"trace": 0, "token_price": 1e-3})
    once = env.step(2)[0]
    twice = env.step(2)[0]
    assert (once[-9], twice[-9]) == (1, 0)
    assert twice[1] > once[1]  # thinking tokens
    assert once[-8] == twice[-8] == np.float32(np.log(2))


def test_all_fronts_of_the_environment_agree() -> None:
    rng = np.random.default_rng(0)
    columns = COLUMNS
    traces, prices = COLUMNS.episodes[:16], np.geomspace(*PRICES, 16)
    vector = gym.make_vec(
        "rlbudget/ReplayProbe-v0", 16, vectorization_mode="vector_entry_point",
        traces=TABLE, token_price=PRICES,
    )  # fmt: skip
    sb3 = ReplaySB3VecEnv(columns, 16, token_price=PRICES)
    single = [ReplayProbeEnv(columns, token_price=PRICES) for _ in traces]
    seen = vector.reset(seed=0, options={"trace": traces, "token_price": prices})[0]
    sb3.reset()
    sb3.core.begin(np.arange(16), rng, traces, prices)
    for i, env in enumerate(single):
        env.reset(options={"trace": int(traces[i]), "token_price": prices[i]})
    going = np.ones(16, dtype=bool)
    for _ in range(40):
        actions = rng.choice([0, 1, 2], 16, p=[0.5, 0.05, 0.45])
        seen, rewards, done, _, infos = vector.step(actions)
        sb3.step_async(actions)
        seen_sb3, rewards_sb3, done_sb3, infos_sb3 = sb3.step_wait()
        for i in np.flatnonzero(going):
            observation, reward, over, _, info = single[i].step(actions[i])
            assert reward == rewards[i]
            assert over == done[i] == done_sb3[i]
            assert rewards_sb3[i] == pytest.approx(reward, abs=1e-6)
            if over:
                ledger = {name: infos["final_info"][name][i] for name in info}
                assert ledger == info
                assert {name: infos_sb3[i][name] for name in info} == info
            else:
                assert (observation == seen[i]).all()
                assert (observation == seen_sb3[i]).all()
        going &= ~done
    assert not going.all()


def test_a_batch_of_chances_is_the_single_decisions_bit_for_bit() -> None:
    observations = random_observations(POLICY, 300)
    stop, look = POLICY.chances(observations, 1e-3)
    single = [POLICY(row, token_price=1e-3) for row in observations]
    assert [d.stop_probability for d in single] == stop.tolist()
    assert [d.probe for d in single] == (look > 0.5).tolist()
    assert 0 < sum(d.probe for d in single) < 300
    assert (random_policy().chances(random_observations(random_policy(), 9), 1e-3)[1] == 0).all()


def test_the_environment_and_the_replay_agree_on_a_policy() -> None:
    played = replay(POLICY, TABLE, 1e-3)
    result = played.outcome
    env = ReplayProbeEnv(TABLE, token_price=PRICES)
    for trace in COLUMNS.episodes.tolist():
        seen, _ = env.reset(options={"trace": trace, "token_price": 1e-3})
        over, info = False, {}
        while not over:
            decision = POLICY(seen[:-1], token_price=1e-3)
            look = decision.probe and seen[-9] == 0
            seen, _, over, _, info = env.step(2 if look else int(decision.stop))
        assert info["probe_tokens"] == result.probe[trace]
        assert info["thinking_tokens"] == result.thinking[trace]
        assert info["exact_match"] == result.exact_match[trace]
    assert 0 < np.asarray(played.charged).sum() < len(TABLE.thinking_tokens)
    assert np.isnan(played.chance).any()


def test_the_controller_asks_for_the_looks_of_the_replay() -> None:
    played = replay(POLICY, TABLE, 1e-3)
    assert isinstance(played.charged, np.ndarray)
    for trace in range(len(TABLE)):
        controller = Controller(POLICY, token_price=1e-3)
        assert not controller.forks_often
        for row in range(*TABLE.offsets[trace : trace + 2]):
            decision = controller.at_checkpoint(
                {name: column[row] for name, column in TABLE.signals.items()},
                int(TABLE.thinking_tokens[row]),
            )
            assert decision.probe == played.charged[row]
            if decision.probe:
                answer = f"answer {TABLE.probe_answer[row]}"
                decision = controller.looked(Probe(answer, TABLE.probe_confidence[row], 1))
                assert not decision.probe
            assert decision.stop_probability == played.chance[row]
            if decision.stop:
                break
        assert controller.failed is None


def test_a_look_that_makes_no_sense_switches_the_controller_off() -> None:
    controller = Controller(POLICY, token_price=1e-3)
    signals = {name: float(column[0]) for name, column in TABLE.signals.items()}
    controller.at_checkpoint(signals, 8)
    assert controller.looked(Probe("7", float("nan"), 2)) == (False, 0.0, False)
    assert controller.failed == "probe_confidence is nan"


def test_no_recorded_signal_may_take_the_name_of_what_is_remembered() -> None:
    trace = puzzle(0)
    point = replace(trace.checkpoints[0], signals={"look_here": 1.0})
    said = problem_of(replace(trace, checkpoints=(point, *trace.checkpoints[1:])))
    assert said is not None
    assert "look_here" in said


def test_a_policy_that_looks_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    save_policy(tmp_path / "policy", POLICY)
    loaded = load_policy(tmp_path / "policy")
    assert loaded == POLICY
    assert loaded.preset == "look"
    assert "asks for a trial answer" in (tmp_path / "policy" / "README.md").read_text()


@pytest.mark.parametrize("features", [LOOK[:-1], LOOK[::-1], feature_names(TABLE.signals, "free")])
def test_a_look_policy_needs_all_features_of_looks_last(features: tuple[str, ...]) -> None:
    with pytest.raises((UserError, ValueError), match="looks"):
        random_policy(features, preset="look")


def test_it_learns_to_look_where_a_look_pays_and_beats_always_and_never(tmp_path: Path) -> None:
    whole = table_of([puzzle(k) for k in range(500)])
    held_out = whole.take(range(300, 500))
    seen = without(whole, held_out)
    fit, validation = seen.take(range(200)), seen.take(range(200, 300))
    config = PPOConfig(total_timesteps=160_000, n_envs=512, batch_size=2048)
    worth, looked = {}, {}
    price = token_price_of(0.5, fit)
    for preset in ("free", "probe", "look"):
        train(fit, validation, replace(config, preset=preset), tmp_path / preset)
        result = replay(policy_of_run(tmp_path / preset), held_out, price).outcome
        worth[preset], looked[preset] = utility(result, price).mean(), result.probe.mean()
    assert worth["look"] > max(worth["free"], worth["probe"]) + 0.02
    assert 0 < looked["look"] < looked["probe"] / 3
    assert worth["look"] > utility(outcome(held_out, fixed_stops(held_out, 30)), price).mean()


def test_a_fresh_look_policy_decides_as_the_blind_one_it_starts_from(tmp_path: Path) -> None:
    table = make_table(80, seed=2)
    config = PPOConfig(preset="look", total_timesteps=1, n_envs=64, batch_size=64)
    train(table.take(range(60)), table.take(range(60, 80)), config, tmp_path)
    policy, blind = policy_of_run(tmp_path), policy_of_run(tmp_path / "free")
    price = policy.price_range[1]
    assert (replay(policy, table, price).stops == replay(blind, table, price).stops).all()
    assert tuple(policy.features[:-8]) == blind.features
    assert tuple(policy.features[-8:]) == LOOK_SIGNALS


def test_the_normaliser_of_some_columns_is_the_whole_ones() -> None:
    seen = observe(TABLE, LOOK)
    normaliser = fit_normaliser(seen, PRICES)
    assert (
        normaliser.features(seen)[:, -8:] == normaliser.features(seen[:, -8:], slice(-8, None))
    ).all()
