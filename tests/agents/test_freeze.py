"""Freezing: a run's best weights become a folder, all of it or nothing."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frozen_nets import (
    FREE,
    PRICES,
    policy_for,
    random_observations,
    random_policy,
    random_prices,
    write_run,
)
from safetensors.torch import load_file
from synthetic import make_table
from trace_makers import traces_of

from rlbudget.agents.actor import actor_stop_chances
from rlbudget.agents.freeze import freeze, policy_of_run
from rlbudget.agents.ppo import PPOConfig, train, training_columns
from rlbudget.errors import UserError
from rlbudget.evaluate.calibrate import calibrate
from rlbudget.files import folders
from rlbudget.policy import network
from rlbudget.policy.card import write_card
from rlbudget.policy.folder import load_policy, save_policy
from rlbudget.traces.store import TraceWriter, load_table

EVALUATION: dict[str, Any] = {
    "version": 1,
    "held_out_questions": 500,
    "full": {
        "exact_match": 0.91,
        "tokens": {"thinking": 120.1, "probe": 0, "answer": 4.0, "total": 124.1},
    },
    "results": [
        {
            "method": method,
            "kind": "learned",
            "relative_price": 0.1,
            "token_price": 8e-4,
            "exact_match": exact_match,
            "exact_match_delta_ci95": [-0.02, 0.01],
            "tokens": {"thinking": 60, "probe": 0, "answer": 4, "total": 64.0},
            "token_fraction": 0.52,
            "utility": 0.85,
            "oracle_gap_closed": 0.61,
            "parameters": {},
        }
        for method, exact_match in (("ppo", 0.9), ("streak", 0.7))
    ],
    "summary": [],
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run")
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(run: Path, out: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        freeze(run, out, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FILES = {"config.json", "policy.safetensors", "README.md"}


@pytest.mark.parametrize("standalone", [False, True])
def test_a_run_becomes_three_files_and_a_module_where_it_is_asked_for(
    run: Path, tmp_path: Path, standalone: bool
) -> None:
    policy = freeze(run, tmp_path / "deep" / "policy", standalone=standalone)
    folder = tmp_path / "deep" / "policy"
    files = contents(folder)
    assert set(files) == (FILES | {"policy.py"} if standalone else FILES)
    assert load_policy(folder) == policy
    if standalone:
        assert files["policy.py"] == Path(network.__file__).read_bytes()
    card = files["README.md"].decode()
    assert ("from policy import decide" in card) == standalone
    assert ("freeze --standalone" in card) != standalone
    assert [p.name for p in folder.parent.iterdir()] == ["policy"]


@pytest.mark.parametrize("standalone", [False, True])
def test_a_certificate_and_a_new_card_keep_the_module(tmp_path: Path, standalone: bool) -> None:
    table = make_table(400, seed=4)
    with TraceWriter(tmp_path / "traces") as writer:
        for trace in traces_of(table):
            writer.add(trace)
    policy = policy_for(load_table(tmp_path / "traces"), "free")
    save_policy(tmp_path / "policy", policy, standalone=standalone)
    folder = tmp_path / "certified"
    calibrate(tmp_path / "policy", tmp_path / "traces", folder, max_em_loss=0.9)
    write_card(folder, EVALUATION, method="ppo")
    files = contents(folder)
    assert set(files) == (FILES | {"policy.py"} if standalone else FILES)
    assert ("from policy import decide" in files["README.md"].decode()) == standalone
    assert load_policy(folder).config["calibration"]["max_em_loss"] == 0.9


def test_the_config_says_what_it_was_made_of(run: Path, tmp_path: Path) -> None:
    freeze(run, tmp_path / "policy")
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert config["version"] == 1
    assert config["features"] == list(FREE)
    assert config["observation_version"] == 1
    assert config["layers"] == [len(FREE) + 1, 64, 64, 2]
    assert config["price_range"] == list(PRICES)
    assert config["threshold"] == 0.5
    assert config["calibration"] is None
    assert config["trained"]["traces"]["digest"] == "ab" * 32
    assert config["trained"]["config"] == {"seed": 0, "total_timesteps": 1000}
    assert set(config["digests"]) == {"config.json", "policy.safetensors"}


def test_a_metric_that_does_not_exist_is_null(run: Path) -> None:
    validation = policy_of_run(run).config["trained"]["validation"]
    assert validation["prices"][0]["oracle_gap_closed"] is None


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    freeze(run, tmp_path / "a")
    freeze(run, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "policy"
    assert "no such run folder" in refused(tmp_path / "nowhere", out)
    (tmp_path / "empty").mkdir()
    assert "holds no run.json" in refused(tmp_path / "empty", out)
    write_run(tmp_path / "run")
    (tmp_path / "run" / "best.safetensors").unlink()
    assert "holds no best.safetensors" in refused(tmp_path / "run", out)
    assert not out.exists()


def test_a_run_that_did_not_come_to_its_end_is_frozen_on_demand_and_says_so(
    tmp_path: Path,
) -> None:
    out = tmp_path / "policy"
    write_run(tmp_path / "run", swept=None, timesteps=400)
    said = refused(tmp_path / "run", out)
    assert "did not come to its end (policy of step 400 of 1000)" in said
    assert "--resume" in said
    freeze(tmp_path / "run", out, unfinished=True)
    card = (out / "README.md").read_text()
    assert "**A training that did not come to its end** (policy of step 400 of 1000)" in card


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, "is not that of a run"),
        ({"activation": "relu"}, "activation 'relu'; only tanh"),
        ({"features": list(FREE[1:])}, "these weights cannot be frozen"),
        ({"preset": "dear"}, "preset 'dear': it is one of free, probe, turns"),
        ({"price_range": [1.0]}, "price_range must be"),
        ({"observation_version": 0}, "observations of version 0, but"),
    ],
)
def test_a_run_that_cannot_be_frozen_says_why(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    write_run(tmp_path / "run", **changes)
    assert said in refused(tmp_path / "run", tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def test_a_damaged_run_says_which_file(run: Path, tmp_path: Path) -> None:
    whole = (run / "best.safetensors").read_bytes()
    (run / "best.safetensors").write_bytes(whole[:-7])
    assert "best.safetensors: not a safetensors file" in refused(run, tmp_path / "policy")
    (run / "best.safetensors").write_bytes(whole)
    described = json.loads((run / "run.json").read_text())
    del described["features"]
    (run / "run.json").write_text(json.dumps(described))
    assert "run.json lacks 'features'" in refused(run, tmp_path / "policy")
    (run / "run.json").write_text("{")
    assert "run.json is damaged" in refused(run, tmp_path / "policy")


def test_a_folder_that_is_no_policy_is_never_replaced(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    assert "holds other things (thesis.tex)" in refused(run, out, overwrite=True)
    assert "holds other things" in refused(run, run, overwrite=True)
    assert "is a file" in refused(run, out / "thesis.tex", overwrite=True)
    assert "cannot write" in refused(run, out / "thesis.tex" / "policy")
    assert contents(tmp_path) == before


def test_a_policy_with_something_of_the_users_in_it_is_not_replaced(
    run: Path, tmp_path: Path
) -> None:
    freeze(run, tmp_path / "policy")
    (tmp_path / "policy" / "notes.txt").write_text("mine")
    assert "holds other things (notes.txt)" in refused(run, tmp_path / "policy", overwrite=True)


def test_an_existing_policy_is_replaced_only_when_asked(run: Path, tmp_path: Path) -> None:
    old = random_policy(seed=5)
    save_policy(tmp_path / "policy", old)
    (tmp_path / "policy" / "__pycache__").mkdir()
    assert "already holds a policy" in refused(run, tmp_path / "policy")
    assert load_policy(tmp_path / "policy") == old
    new = freeze(run, tmp_path / "policy", overwrite=True)
    assert load_policy(tmp_path / "policy") == new != old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy", "run"]


def test_an_empty_folder_may_be_filled_and_a_link_keeps_pointing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    policy = freeze(run, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert load_policy(tmp_path / "real") == policy


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_leaves_the_old_policy_and_no_litter(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    old = random_policy(seed=5)
    save_policy(tmp_path / "policy", old)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    monkeypatch.setattr(folders, "_renameat2", lambda: None)  # so that it is renamed twice
    assert "No space left on device" in refused(run, tmp_path / "policy", overwrite=True)
    monkeypatch.undo()
    assert load_policy(tmp_path / "policy") == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy", "run"]


def test_the_folder_can_be_read_by_others(run: Path, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        freeze(run, tmp_path / "policy")
    finally:
        os.umask(before)
    assert (tmp_path / "policy").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "policy" / "config.json").stat().st_mode & 0o777 == 0o644


def test_the_card_shows_the_validation_until_an_evaluation_rewrites_it(
    run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "policy"
    policy = freeze(run, folder)
    card = (folder / "README.md").read_text()
    assert "On the validation questions, which also chose these weights" in card
    assert "| 0.1 | 0.0008 | 0.875 | 61.5 | 0.8258 | – |" in card
    write_card(folder, EVALUATION, method="ppo")
    card = (folder / "README.md").read_text()
    assert "On 500 held-out questions. The full decode has exact match 0.910" in card
    assert "| 0.1 | 0.0008 | 0.900 | -0.020 to +0.010 | 64.0 | 52% | 0.8500 | 0.610 |" in card
    assert "0.700" not in card
    assert load_policy(folder) == policy


def test_a_card_needs_a_policy_and_a_method_of_the_evaluation(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        write_card(run, EVALUATION, method="ppo")
    freeze(run, tmp_path / "policy")
    with pytest.raises(UserError, match="no method 'dqn'; it has: ppo, streak"):
        write_card(tmp_path / "policy", EVALUATION, method="dqn")


def test_the_code_in_the_card_runs(run: Path, tmp_path: Path) -> None:
    policy = freeze(run, tmp_path / "policy")
    card = (tmp_path / "policy" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("this folder", "{folder}")
    observation = random_observations(policy, 1)[0]
    names: dict[str, Any] = {"observation": observation}
    exec(code.format(folder=tmp_path / "policy"), names)
    assert 0 <= names["decision"].stop_probability <= 1


@pytest.mark.parametrize("preset", ["free", "probe"])
def test_what_ppo_trained_and_what_is_frozen_agree_on_10000_observations(
    tmp_path: Path, preset: Any
) -> None:
    table = make_table(120, seed=1)
    other = make_table(60, seed=2)
    other = replace(other, question_ids=np.array([f"v{q}" for q in other.question_ids.tolist()]))
    config = PPOConfig(
        preset=preset, total_timesteps=24 * 256, n_envs=64, n_steps=4, batch_size=128
    )
    train(table, other, config, tmp_path / "run")
    policy = freeze(tmp_path / "run", tmp_path / "policy")
    normaliser = training_columns(table, config).normaliser
    assert normaliser is not None
    assert policy.preset == preset
    assert policy.price_range == normaliser.token_price
    low, high = np.log(policy.price_range)
    prices = np.exp(low + (high - low) * np.log(random_prices(10_000) / PRICES[0])
                    / np.log(PRICES[1] / PRICES[0]))  # fmt: skip
    observations = random_observations(policy, 10_000)
    actor = load_file(tmp_path / "run" / "best.safetensors")
    trained = actor_stop_chances(actor, normaliser.inputs(observations, prices))
    assert np.abs(policy.stop_probabilities(observations, prices) - trained).max() <= 1e-5
