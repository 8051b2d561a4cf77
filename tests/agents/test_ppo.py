"""PPO: both optima, the exact gradient as the yardstick, the same seed twice, resume, the best."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_events import curves_of, events_of
from safetensors.torch import load_file
from stable_baselines3.common.policies import ActorCriticPolicy
from synthetic import make_table, never_stop_table, tabular_stops, tabular_table

from rlbudget.agents import exact_pg
from rlbudget.agents.actor import ACTOR, actor_stop_chances, one_thread
from rlbudget.agents.curves import BEST_GAP, FRONTIER, FULL, NAMES
from rlbudget.agents.exact import stop_rows, values_of
from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.monitor import LAYOUT
from rlbudget.agents.ppo import ExactPPO, PPOConfig, make_ppo, train, training_columns
from rlbudget.agents.training import train_on
from rlbudget.agents.validation import Validation
from rlbudget.envs.replay_core import ReplayCore
from rlbudget.envs.replay_sb3 import ReplaySB3VecEnv
from rlbudget.errors import UserError
from rlbudget.files.folders import locked
from rlbudget.policy import outcomes
from rlbudget.policy.replay import replay
from rlbudget.traces.table import TraceTable

TINY = PPOConfig(total_timesteps=24 * 256, n_envs=64, n_steps=4, batch_size=128, evaluate_every=4)


def renamed(table: TraceTable, prefix: str) -> TraceTable:
    """The same traces as other questions."""
    ids = np.array([prefix + name for name in table.question_ids.tolist()])
    return replace(table, question_ids=ids)


def stops_of(run_dir: Path, table: TraceTable, config: PPOConfig, price: float) -> Any:
    """Where the kept policy stops: p(stop) > 0.5."""
    columns = training_columns(table, config)
    inputs = columns.inputs.copy()
    assert columns.normaliser is not None
    inputs[:, -1] = columns.normaliser.price(price)
    stop = actor_stop_chances(load_file(run_dir / "best.safetensors"), inputs)
    return outcomes.first_stop(table, stop > 0.5)


def never_stops(table: TraceTable, token_price: float) -> Any:
    return outcomes.full_stops(table)


@pytest.mark.parametrize(
    ("table", "optimum", "advantages"),
    [
        (tabular_table(), tabular_stops, "exact"),
        (never_stop_table(), never_stops, "exact"),
        # Plain PPO does not find the tabular optimum in the same steps: exact is the default.
        (never_stop_table(), never_stops, "sampled"),
    ],
    ids=["tabular, exact", "never stop, exact", "never stop, sampled"],
)
def test_the_known_optimum_is_found_at_the_lowest_and_the_highest_price(
    table: TraceTable,
    optimum: Callable[[TraceTable, float], Any],
    advantages: Any,
    tmp_path: Path,
) -> None:
    config = PPOConfig(total_timesteps=150_000, n_envs=256, n_steps=8, batch_size=1024)
    config = replace(config, advantages=advantages, n_epochs=6)
    train(table, renamed(table, "v"), config, tmp_path)
    for price in config.price_range(table):
        stops = stops_of(tmp_path, table, config, price)
        np.testing.assert_array_equal(stops, optimum(table, price))


def test_ppo_is_as_good_as_the_exact_gradient(tmp_path: Path) -> None:
    whole = make_table(900, seed=1)
    table, validation = whole.take(range(600)), whole.take(range(600, 900))
    config = PPOConfig(total_timesteps=400_000)
    reached, wanted = [], []
    for seed in range(3):  # one seed of either differs by a point from another
        result = train(table, validation, replace(config, seed=seed), tmp_path / str(seed))
        yardstick = exact_pg.maximise(
            table,
            validation,
            token_price=config.price_range(table),
            steps=150,
            rows=8192,
            learning_rate=3e-3,
            seed=seed,
        ).score
        assert yardstick is not None
        reached.append(
            [result.metrics["mean_oracle_gap_closed"]]
            + [row["utility"] for row in result.metrics["prices"]]
        )
        wanted.append(
            [yardstick.mean_oracle_gap_closed] + [row.utility for row in yardstick.prices]
        )
    gap, *utility = np.mean(reached, axis=0)
    wanted_gap, *wanted_utility = np.mean(wanted, axis=0)
    assert np.all(np.array(utility) > np.array(wanted_utility) - 0.01)
    assert gap > wanted_gap - 0.02
    assert gap > 0.3


def test_the_same_seed_gives_the_same_policy_and_another_does_not(tmp_path: Path) -> None:
    whole = make_table(80, seed=2)
    table, validation = whole.take(range(60)), whole.take(range(60, 80))
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        np.random.seed(17)  # noqa: NPY002 - training must not depend on what was drawn before
        torch.manual_seed(len(name))
        train(table, validation, replace(TINY, seed=seed), tmp_path / name)
    a, b, c = ((tmp_path / name / "best.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize("advantages", ["exact", "sampled"])
def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(
    advantages: Any, tmp_path: Path
) -> None:
    whole = make_table(80, seed=2)
    table, validation = whole.take(range(60)), whole.take(range(60, 80))
    config = replace(TINY, advantages=advantages, input_noise=0.1)

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    train(table, validation, config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(table, validation, config, tmp_path / "cut", progress=interrupt)
    latest = (tmp_path / "cut" / "latest.safetensors").read_bytes()
    assert latest != (tmp_path / "whole" / "latest.safetensors").read_bytes()
    train(table, validation, config, tmp_path / "cut", resume=True)
    for file in ("best.safetensors", "run.json"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    ends = [load_file(tmp_path / name / "latest.safetensors") for name in ("cut", "whole")]
    for key, value in ends[1].items():
        assert torch.equal(value, ends[0][key]), key
    cut, uninterrupted = (curves(tmp_path / name) for name in ("cut", "whole"))
    assert cut == uninterrupted


def curves(run_dir: Path) -> dict[str, dict[int, float]]:
    """Every scalar, at every step, but the time it took."""
    events = events_of(run_dir)
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
        if not tag.startswith("time/")
    }


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    whole = make_table(80, seed=2)
    table, validation = whole.take(range(60)), whole.take(range(60, 80))
    first = train(table, validation, TINY, tmp_path)
    before = (tmp_path / "best.safetensors").read_bytes()
    again = train(table, validation, TINY, tmp_path, resume=True)
    assert again.metrics == first.metrics
    assert (tmp_path / "best.safetensors").read_bytes() == before


def test_the_best_policy_is_kept_not_the_last(tmp_path: Path) -> None:
    whole = make_table(60, seed=5)
    table, validation = whole.take(range(20)), whole.take(range(20, 60))
    # A few questions and a large step: the later policies overfit.
    config = replace(TINY, total_timesteps=200 * 256, learning_rate=1e-2, weight_decay=0.0)
    result = train(table, validation, config, tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["timesteps"] < run["config"]["total_timesteps"]
    seen = [e.value for e in events_of(tmp_path).Scalars(NAMES["oracle_gap_closed"])]
    assert max(seen) > seen[-1] + 0.02
    columns = training_columns(table, config)
    assert columns.normaliser is not None
    judge = Validation(table, validation, columns.features, columns.normaliser)
    actor = load_file(tmp_path / "best.safetensors")
    score = judge.measure(lambda inputs: actor_stop_chances(actor, inputs))
    assert score.as_dict() == run["validation"] == result.metrics
    assert score.mean_oracle_gap_closed == pytest.approx(max(seen), abs=1e-6)


def test_a_run_folder_holds_what_freezing_needs_and_tensorboard_what_people_look_at(
    tmp_path: Path,
) -> None:
    whole = make_table(80, seed=2)
    table, validation = whole.take(range(60)), whole.take(range(60, 80))
    steps: list[tuple[int, int]] = []
    config = replace(TINY, preset="probe")
    train(table, validation, config, tmp_path, progress=lambda *now: steps.append(now))
    assert steps[-1] == (24 * 256, 24 * 256)
    run = json.loads((tmp_path / "run.json").read_text())
    best = load_file(tmp_path / "best.safetensors")
    width = len(run["features"])
    layers = ("mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net")
    actor = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    assert set(best) == {"obs_mean", "obs_std", *actor}
    assert best["obs_mean"].shape == best["obs_std"].shape == (width,)
    assert best["mlp_extractor.policy_net.0.weight"].shape == (64, width + 1)
    assert run["preset"] == "probe"
    assert run["traces"]["n_train_questions"] == 60
    low, high = run["price_range"]
    assert low * table.full_tokens.mean() == pytest.approx(0.01)
    assert high * table.full_tokens.mean() == pytest.approx(1.0)
    events = events_of(tmp_path)
    tags = set(events.Tags()["scalars"])
    assert {*NAMES.values(), *FULL.values(), BEST_GAP} <= tags
    assert all(curves_of(LAYOUT, events).values())
    assert {"rollout/ep_rew_mean", "train/approx_kl", "train/loss", "time/fps"} <= tags
    assert FRONTIER in events.Tags()["images"]
    assert events.summary_metadata["_hparams_/experiment"] is not None
    assert torch.get_num_threads() >= 1


def test_fewer_questions_are_trained_on_for_fewer_steps() -> None:
    steps = [PPOConfig().steps(questions) for questions in (48, 200, 1200, 5000)]
    assert steps == [100_000, 204_124, 500_000, 500_000]
    assert PPOConfig(total_timesteps=7).steps(48) == 7


def test_a_run_sees_the_features_and_has_the_widths_it_was_given(tmp_path: Path) -> None:
    whole = make_table(60, seed=2)
    names = ("thinking_tokens", "entropy_mean.ema")
    config = replace(TINY, total_timesteps=512, features=names, hidden=(16, 8, 4), input_noise=0.1)
    train(whole.take(range(40)), whole.take(range(40, 60)), config, tmp_path)
    policy = policy_of_run(tmp_path)
    assert policy.features == names
    assert policy.config["layers"] == [3, 16, 8, 4, 2]
    assert len(replay(policy, whole, policy.price_range[0]).stops) == 60


def test_training_restores_the_number_of_torch_threads(tmp_path: Path) -> None:
    whole = make_table(40, seed=2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(whole.take(range(30)), whole.take(range(30, 40)), TINY, tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_exact_values_are_those_of_enumerating_every_stop() -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([3, 1, 5, 2])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    stop, exits = rng.random(offsets[-1]), rng.normal(size=offsets[-1])
    natural = rng.normal(size=4)
    values = values_of(stop, exits, natural, offsets)
    for trace, (low, high) in enumerate(itertools.pairwise(offsets.tolist())):
        for at in range(low, high):
            ends = [
                stop[end] * exits[end] * np.prod(1 - stop[at + 1 : end])
                for end in range(at + 1, high)
            ]
            go_on = sum(ends) + natural[trace] * np.prod(1 - stop[at + 1 : high])
            assert values.go_on[at] == pytest.approx(go_on)
            assert values.value[at] == pytest.approx(stop[at] * exits[at] + (1 - stop[at]) * go_on)
            assert values.reach[at] == pytest.approx(np.prod(1 - stop[low:at]))


def test_ppo_s_first_gradient_is_the_exact_gradient_of_the_mean_utility(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = make_table(40, seed=7)
    config = replace(TINY, n_envs=32, n_steps=4, exploration=0.0)
    columns = training_columns(table, config)
    model = make_ppo(columns, config)
    with torch.no_grad():  # an undecided policy, so that both actions are the likely one somewhere
        model.policy.action_net.weight.mul_(300)
        model.policy.action_net.bias.zero_()
    assert isinstance(model, ExactPPO)

    traces = model.source.columns.episodes
    batch = model.source.batch(traces, np.full(len(traces), 2e-3))
    monkeypatch.setattr(model.source, "draw", lambda rows: batch)
    drawn = stop_rows(model.source, model.evaluate, len(batch.exits))
    rows = torch.from_numpy(drawn.inputs)
    _, log_prob, _ = model.policy.evaluate_actions(rows, torch.from_numpy(drawn.actions))
    ratio = torch.exp(log_prob - torch.from_numpy(drawn.log_chances))
    surrogate = (ratio * torch.from_numpy(drawn.advantages)).sum()
    parameters = [p for n, p in model.policy.named_parameters() if n.startswith(ACTOR)]
    found = torch.autograd.grad(surrogate, parameters)

    stop = torch.softmax(model.policy.action_net(model.policy.mlp_extractor(rows)[0]), 1)[:, 1]
    assert 0.1 < float((stop > 0.5).double().mean()) < 0.9
    utility = torch.zeros(())
    for k in range(len(traces)):
        reach = torch.ones(())
        for row in range(batch.offsets[k], batch.offsets[k + 1]):
            weight = float(batch.weight[row])
            utility = utility + weight * reach * stop[row] * float(batch.exits[row])
            reach = reach * (1 - stop[row])
        utility = utility + float(batch.weight[row]) * reach * float(batch.natural[k])
    wanted = torch.autograd.grad(utility, parameters)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_an_update_is_told_what_sb3_s_own_policy_would_tell_it() -> None:
    config = replace(TINY, hidden=(16,))
    columns = training_columns(make_table(40, seed=7), config)
    policy = make_ppo(columns, config).policy
    inputs = torch.from_numpy(columns.inputs)
    actions = torch.arange(len(inputs)) % 2
    told = policy.evaluate_actions(inputs, actions)
    for own, theirs in zip(
        told, ActorCriticPolicy.evaluate_actions(policy, inputs, actions), strict=True
    ):
        assert own.shape == theirs.shape
        assert torch.allclose(own, theirs, atol=1e-6)


def test_no_environment_is_stepped_for_exact_advantages(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"exact": 0, "sampled": 0}
    step = ReplaySB3VecEnv.step_wait
    for advantages in ("exact", "sampled"):
        config = replace(TINY, advantages=advantages)
        model = make_ppo(training_columns(make_table(40, seed=7), config), config)

        def counted(env: ReplaySB3VecEnv, name: str = advantages) -> Any:
            steps[name] += env.num_envs
            return step(env)

        monkeypatch.setattr(ReplaySB3VecEnv, "step_wait", counted)
        model.learn(1000)
        assert model.num_timesteps == 1024
    assert steps == {"exact": 0, "sampled": 1024}


def test_the_logged_return_and_length_are_those_that_sampling_tends_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = make_table(12, seed=7)
    config = replace(TINY, initial_stop_probability=0.2)
    columns = training_columns(table, config)
    model = make_ppo(columns, config)
    assert isinstance(model, ExactPPO)
    price, n = 2e-3, len(columns.episodes)
    batch = model.source.batch(columns.episodes, np.full(n, price))
    monkeypatch.setattr(model.source, "draw", lambda rows: batch)
    rows = stop_rows(model.source, model.evaluate, 1)
    core = ReplayCore(columns, 2000 * n, model.source.token_price)
    rng = np.random.default_rng(0)
    core.begin(np.arange(core.n), rng, np.tile(columns.episodes, 2000), price)
    total, length, going = np.zeros(core.n), np.zeros(core.n), np.ones(core.n, dtype=bool)
    while going.any():
        logits = model.evaluate(core.observations())
        stops = rng.random(core.n) < 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
        rewards, done = core.step(stops)
        total += np.where(going, rewards, 0)
        length += going
        going &= ~done
    assert rows.mean_return == pytest.approx(total.mean(), abs=4 * total.std() / core.n**0.5)
    assert rows.mean_length == pytest.approx(length.mean(), abs=4 * length.std() / core.n**0.5)


def test_what_cannot_be_trained_on_is_refused_in_one_line(tmp_path: Path) -> None:
    table = make_table(40, seed=2)
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: PPOConfig(n_envs=0), "n_envs is 0"),
        (lambda: PPOConfig(token_price=(1e-3, 1e-3)), "0 < lowest < highest"),
        (lambda: PPOConfig(learning_rate=float("nan")), "learning_rate"),
        (lambda: train(table, table, TINY, tmp_path), "split by question"),
        (lambda: train(table, table.take([]), TINY, tmp_path), "record more questions"),
        (
            lambda: train(never_stop_table(), table, replace(TINY, preset="probe"), tmp_path),
            "split by question|record with probes",
        ),
    ]
    for attempt, message in cases:
        with pytest.raises(UserError, match=message) as error:
            attempt()
        assert "\n" not in str(error.value)


def test_a_second_training_into_a_run_folder_is_refused_at_once(tmp_path: Path) -> None:
    table = tabular_table()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()  # what a killed training left
    with locked(tmp_path / "run"):
        for start in (
            lambda: train(table, renamed(table, "v"), TINY, tmp_path / "run", resume=True),
            lambda: train_on(tmp_path / "no traces are read", tmp_path / "run"),
        ):
            with pytest.raises(UserError, match=f"process {os.getpid()} is writing here"):
                start()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_run_folder_is_not_overwritten_and_not_resumed_with_other_settings(
    tmp_path: Path,
) -> None:
    whole = make_table(40, seed=2)
    table, validation = whole.take(range(30)), whole.take(range(30, 40))
    config = replace(TINY, total_timesteps=512)
    train(table, validation, config, tmp_path)
    with pytest.raises(UserError, match="already holds a run"):
        train(table, validation, config, tmp_path)
    with pytest.raises(UserError, match="another seed"):
        train(table, validation, replace(config, seed=9), tmp_path, resume=True)
    with pytest.raises(UserError, match="another"):
        train(whole.take(range(29)), validation, config, tmp_path, resume=True)
    latest = tmp_path / "latest.safetensors"
    latest.write_bytes(latest.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        train(table, validation, config, tmp_path, resume=True)


def test_no_training_leaves_a_folder_in_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = replace(TINY, n_envs=32, n_steps=4, total_timesteps=256)
    table = make_table(40, seed=7)
    with one_thread():
        make_ppo(training_columns(table, config), config).learn(128)
    assert list(tmp_path.iterdir()) == []
