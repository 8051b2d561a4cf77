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

from rlbudget.errors import UserError
from rlbudget.evaluate import evaluate_folder
from rlbudget.evaluate.evaluation import as_json, assess, utilities
from rlbudget.evaluate.folds import assess_folds, pool_assessments
from rlbudget.freeze import freeze
from rlbudget.store import TraceWriter
from rlbudget.table import split_fold, table_of, without


@given(st.integers(2, 9), st.integers(20, 60), st.integers(0, 5))
def test_every_question_is_held_out_in_exactly_one_fold(folds: int, n: int, seed: int) -> None:
    table = table_of([make_trace(i) for i in range(n)])
    held_out: list[str] = []
    for fold in range(folds):
        split = split_fold(table, fold, folds, seed=seed)
        parts = [set(p.question_ids) for p in (split.train, split.validation, split.held_out)]
        assert sum(map(len, parts)) == n == len(set.union(*parts))
        held_out += split.held_out.question_ids.tolist()
    assert sorted(held_out) == sorted(table.question_ids)


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
        each = [utilities(part, part.methods[name].chosen) for part in parts]
        np.testing.assert_array_equal(
            utilities(pooled, pooled.methods[name].chosen), np.concatenate(each)
        )
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
    with TraceWriter(tmp_path / "traces") as writer:
        for i in range(60):
            trace = make_trace(i)
            exits = tuple(
                replace(c, exit=replace(c.exit, exact_match=int(k > i % 3)))
                for k, c in enumerate(trace.checkpoints)
            )
            writer.add(replace(trace, checkpoints=exits))
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
    with pytest.raises(UserError, match="a card is written with 1"):
        evaluate_folder(tmp_path / "traces", out=tmp_path / "out", folds=3, write_cards=True)
