"""Cross-validation: every question once, policies trained anew, pooled as one evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from frozen_nets import random_policy, write_run
from hypothesis import given
from hypothesis import strategies as st
from synthetic import make_table
from trace_makers import make_trace

from rlbudget.agents.freeze import freeze
from rlbudget.cli.main import main
from rlbudget.errors import UserError
from rlbudget.evaluate.evaluation import as_json, assess, gap_closed, utilities
from rlbudget.evaluate.folder import evaluate_folder
from rlbudget.evaluate.folds import assess_folds, pool_assessments
from rlbudget.policy.folder import load_policy, make_policy, save_policy
from rlbudget.traces.columns import table_of
from rlbudget.traces.store import TraceWriter, load_table
from rlbudget.traces.table import fold_of, split_fold, without


@given(st.integers(2, 9), st.integers(20, 60), st.integers(0, 5))
def test_every_question_is_held_out_in_exactly_one_fold(folds: int, n: int, seed: int) -> None:
    table = table_of([make_trace(i) for i in range(n)])
    held_out: list[str] = []
    if len({fold_of(f"q{i}", folds, seed=seed) for i in range(n)}) < folds:
        with pytest.raises(UserError, match="too few"):
            [split_fold(table, fold, folds, seed=seed) for fold in range(folds)]
        return
    for fold in range(folds):
        split = split_fold(table, fold, folds, seed=seed)
        parts = [set(p.question_ids) for p in (split.train, split.validation, split.held_out)]
        assert sum(map(len, parts)) == n == len(set.union(*parts))
        held_out += split.held_out.question_ids.tolist()
    assert sorted(held_out) == sorted(table.question_ids)


@given(st.integers(2, 5), st.integers(40, 60), st.integers(1, 60), st.integers(0, 5))
def test_a_question_keeps_its_fold_whatever_traces_arrive(
    folds: int, n: int, more: int, seed: int
) -> None:
    before = table_of([make_trace(i) for i in range(n)])
    after = table_of([make_trace(i) for i in range(n + more)])
    for fold in range(folds):
        held_out = [set(split_fold(t, fold, folds, seed=seed).held_out.question_ids)
                    for t in (before, after)]  # fmt: skip
        assert held_out[0] == held_out[1] & set(before.question_ids)


def test_folds_are_of_about_equal_size() -> None:
    counts = np.bincount([fold_of(f"q{i}", 7) for i in range(7000)])
    assert len(counts) == 7
    assert np.abs(counts - 1000).max() < 4 * np.sqrt(1000)


def test_a_pool_is_the_folds_side_by_side() -> None:
    table = make_table(300, seed=1)
    parts = []
    for fold in range(3):
        split = split_fold(table, fold, 3)
        train = without(table, split.held_out)
        parts.append(assess(train, split.held_out, {"mine": random_policy()}, draws=50))
    pooled = pool_assessments(parts, seed=0, draws=50)
    assert sorted(pooled.question_ids) == sorted(table.question_ids)
    for name in ("fixed", "oracle", "mine"):
        each = [utilities(part, name) for part in parts]
        np.testing.assert_array_equal(utilities(pooled, name), np.concatenate(each))
    evaluation = as_json(pooled)
    assert evaluation["folds"] == 3
    assert evaluation["held_out_questions"] == 300
    assert evaluation["train_questions"] == 200
    assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation
    row = next(r for r in evaluation["summary"] if r["method"] == "mine")
    spots = [part.methods["mine"].saving_most(0.01).held_out for part in parts]
    tokens = np.concatenate([spot.tokens for spot in spots]).mean()
    full = evaluation["full"]["tokens"]["total"]
    assert row["savings_at_em_loss"]["0.01"] == pytest.approx(1 - tokens / full)


def test_a_folder_is_evaluated_in_folds_by_fresh_policies(tmp_path: Path) -> None:
    _varied(tmp_path / "traces", range(60))
    config = {"preset": "free", "total_timesteps": 4096, "n_envs": 64, "n_steps": 8,
              "batch_size": 128, "seed": 3, "token_price": None}  # fmt: skip
    write_run(tmp_path / "run", config=config)
    freeze(tmp_path / "run", tmp_path / "policy")
    evaluation = evaluate_folder(
        tmp_path / "traces",
        policies=[tmp_path / "policy"],
        out=tmp_path / "out",
        folds=2,
        draws=50,
    )
    assert evaluation["folds"] == 2
    assert evaluation["held_out_questions"] == 60
    assert evaluation["notes"] == ["policy: trained anew in each fold"]
    assert "policy" in {row["method"] for row in evaluation["summary"]}
    assert (tmp_path / "out" / "frontier.svg").exists()


def test_what_cannot_be_folded_is_refused(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "traces") as writer:
        for i in range(5):
            writer.add(make_trace(i))
    with pytest.raises(UserError, match="at least 2"):
        assess_folds(tmp_path / "traces", {}, folds=1)
    with pytest.raises(UserError, match="too few"):
        assess_folds(tmp_path / "traces", {}, folds=6)
    with pytest.raises(UserError, match="does not say how it was trained"):
        assess_folds(tmp_path / "traces", {"mine": random_policy()}, folds=2)
    plain = random_policy()
    frozen = make_policy(
        dict(plain.tensors), features=plain.features, preset="free",
        price_range=plain.price_range, trained={"rule": "certain"},
    )  # fmt: skip
    with pytest.raises(UserError, match="tune every rule anew: leave it out, or add"):
        assess_folds(tmp_path / "traces", {"mine": frozen}, folds=2)
    with pytest.raises(UserError, match="a card is written with 1"):
        evaluate_folder(tmp_path / "traces", out=tmp_path / "out", folds=3, write_cards=True)


def _varied(folder: Path, numbers: range) -> Path:
    with TraceWriter(folder) as writer:
        for i in numbers:
            trace = make_trace(i)
            exits = tuple(
                replace(c, exit=replace(c.exit, exact_match=int(k > i % 3)))
                for k, c in enumerate(trace.checkpoints)
            )
            writer.add(replace(trace, checkpoints=exits))
    return folder


def test_a_rolling_window_measures_the_latest_traces_of_several_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = _varied(tmp_path / "old", range(60)), _varied(tmp_path / "new", range(60, 100))
    save_policy(tmp_path / "policy", random_policy(price_range=(1e-5, 1.0)))
    main(["evaluate", str(old), str(new), "--policy", str(tmp_path / "policy"), "--folds", "3",
          "--last", "50", "--as-they-are", "--draws", "20",
          "--out", str(tmp_path / "out")])  # fmt: skip
    assert "standard deviation over 3 folds" in capsys.readouterr().out
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert evaluation["held_out_traces"] == 50
    assert evaluation["notes"][0].startswith("policy: as it is")
    # By hand: each fold by itself, on its share of the last 50 traces.
    table = load_table([old, new], context=True)
    policy = load_policy(tmp_path / "policy")
    each = []
    for fold in range(3):
        split = split_fold(table, fold, 3)
        train = without(table, split.held_out)
        recent = np.flatnonzero(np.isin(split.held_out.trace_ids, table.trace_ids[-50:]))
        part = assess(train, split.held_out.take(recent), {"policy": policy}, draws=2,
                      validation=split.validation)  # fmt: skip
        each.append(gap_closed(part, "policy"))
        assert set(part.question_ids) <= {f"q{i}" for i in range(50, 100)}
    row = next(r for r in evaluation["summary"] if r["method"] == "policy")
    spread = row["over_folds"]["mean_oracle_gap_closed"]
    assert spread["each"] == pytest.approx(each)
    assert spread["mean"] == pytest.approx(np.mean(each))
    assert spread["std"] == pytest.approx(np.std(each, ddof=1))
    assert set(row["over_folds"]["savings_at_em_loss"]) == {"0.005", "0.01"}
    assert len(row["over_folds"]["savings_at_em_loss"]["0.01"]["each"]) == 3


def test_a_window_needs_folds_and_traces_in_each(tmp_path: Path) -> None:
    old = _varied(tmp_path / "old", range(40))
    with pytest.raises(UserError, match="add --folds"):
        evaluate_folder(old, out=tmp_path / "out", last=10)
    with pytest.raises(UserError, match="none of the last 1 traces"):
        assess_folds(old, {}, folds=2, last=1)
    with pytest.raises(UserError, match="at least 1"):
        assess_folds(old, {}, folds=2, last=0)
    again = _varied(tmp_path / "again", range(39, 45))
    with pytest.raises(UserError, match=r"'t39' is also in .*old/part-000000"):
        evaluate_folder([old, again], out=tmp_path / "out")
