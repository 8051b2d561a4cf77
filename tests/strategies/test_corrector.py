from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen_nets import policy_for

from rlbudget.decoding import local
from rlbudget.decoding.decode import decode
from rlbudget.decoding.decoded import Decoded
from rlbudget.decoding.record import record
from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.policy.folder import Policy
from rlbudget.policy.replay import replay
from rlbudget.strategies.correction.correct import OFF, Correction, correct, doubts_of
from rlbudget.strategies.correction.doubt import exit_features, exit_table
from rlbudget.strategies.impact import ImpactModel
from rlbudget.strategies.plan import Plan
from rlbudget.tasks import load_task
from rlbudget.traces.store import load_table, load_traces
from rlbudget.traces.table import TraceTable
from rlbudget.traces.trace import Trace

torch.set_num_threads(1)
N = 24
CAP = 96
PRICE = 1e-3


@pytest.fixture(scope="module")
def model() -> TransformersModel:
    return load_model("embedded")


@pytest.fixture(scope="module")
def folder(model: TransformersModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("traces")
    record(model, load_task("embedded", n=N), out, max_tokens=CAP, store_text=True)
    return out


@pytest.fixture(scope="module")
def table(folder: Path) -> TraceTable:
    return exit_table(folder)


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return policy_for(load_table(folder), "free")


@pytest.fixture(scope="module")
def doubt(table: TraceTable) -> ImpactModel:
    """Weights drawn once: what it says of an exit is as sharp a test as what a fitted one says."""
    features = exit_features(table)
    generator = np.random.default_rng(3)
    return ImpactModel(
        features,
        np.zeros(len(features)),
        np.ones(len(features)),
        (generator.normal(size=(len(features), 4)), generator.normal(size=(4, 1))),
        (np.zeros(4), np.zeros(1)),
    )


def _live(
    model: TransformersModel, policy: Policy, trace: Trace,
    correction: Correction | None = None, **given: Any,
) -> Decoded:  # fmt: skip
    plan = Plan({"policy": policy}, correction=correction)
    return decode(
        model, trace.question, plan, token_price=PRICE, seed=trace.meta["row_seed"],
        max_tokens=CAP, stride=8, **given,
    )  # fmt: skip


@pytest.mark.parametrize(("budget", "rounds"), [(8, 2), (None, 1)])
def test_a_live_correction_does_what_the_replay_does(
    model: TransformersModel,
    folder: Path,
    table: TraceTable,
    policy: Policy,
    doubt: ImpactModel,
    budget: int | None,
    rounds: int,
) -> None:
    done = replay(policy, table, PRICE)
    stopped = np.flatnonzero(done.stops >= 0)
    doubts = doubts_of(doubt, table)
    level = float(np.median(doubts[table.offsets[stopped] + done.stops[stopped]]))
    correction = Correction(doubt, level + 1e-6, budget, rounds)
    replayed = correct(correction, done, doubts)
    by_id = {trace.trace_id: trace for trace in load_traces(folder)}
    task = load_task("embedded", n=N)
    questions = {question.question_id: question for question in task.questions}
    for i, name in enumerate(table.trace_ids.tolist()):
        trace = by_id[name]
        live = _live(model, policy, trace, correction=correction)
        assert live.message is None
        assert live.resumed == replayed.resumed[i]
        assert live.thinking_tokens == replayed.outcome.thinking[i]
        assert live.total_tokens == replayed.outcome.tokens[i]
        score = task.score(questions[trace.question_id], live.answer)
        assert score == replayed.outcome.exact_match[i]
        assert live.answer in live.text
    assert 3 <= (replayed.resumed > 0).sum() <= len(stopped) - 3
    assert (replayed.resumed == rounds).any()


def test_off_is_the_decode_without_it(
    model: TransformersModel, folder: Path, policy: Policy, doubt: ImpactModel
) -> None:
    trace = next(t for t in load_traces(folder) if len(t.checkpoints) > 3)
    off = _live(model, policy, trace, correction=Correction(doubt, OFF, None))
    assert off == _live(model, policy, trace)


@pytest.mark.parametrize("fault", ["raises", "nan"])
def test_a_failing_correction_never_costs_the_first_answer(
    model: TransformersModel, folder: Path, policy: Policy, doubt: ImpactModel, fault: str
) -> None:
    bad = dataclasses.replace(
        doubt,
        **(
            {"mean": np.zeros(3)}
            if fault == "raises"
            else {"biases": (np.zeros(4), np.full(1, np.nan))}
        ),
    )
    seen = 0
    for trace in load_traces(folder)[:8]:
        plain = _live(model, policy, trace)
        live = _live(model, policy, trace, correction=Correction(bad, 0.0, 8))
        assert (live.answer, live.total_tokens, live.text) == (
            plain.answer, plain.total_tokens, plain.text,
        )  # fmt: skip
        if plain.stopped:
            seen += 1
            assert live.message is not None
            assert live.message.startswith("the correction failed")
    assert seen


def test_a_fault_while_thinking_on_keeps_the_answer_and_what_was_paid(
    model: TransformersModel,
    folder: Path,
    policy: Policy,
    doubt: ImpactModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = {t.trace_id: _live(model, policy, t) for t in load_traces(folder)}
    trace = next(
        t
        for t in load_traces(folder)
        if (at := plain[t.trace_id].stopped_at) is not None
        and t.checkpoints[-1].thinking_tokens >= at + 8
    )
    whole = local.forked
    calls = []

    def second_fails(*given: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("out of memory")
        return whole(*given)

    monkeypatch.setattr(local, "forked", second_fails)
    live = _live(model, policy, trace, correction=Correction(doubt, -1.0, 8))
    first = plain[trace.trace_id]
    assert live.answer == first.answer
    assert live.stopped_at == first.stopped_at
    assert live.message is not None
    assert "out of memory" in live.message
    assert live.thinking_tokens == first.thinking_tokens + 8


def test_a_correction_that_needs_trial_answers_says_so_where_none_are_made(
    model: TransformersModel, folder: Path, policy: Policy, doubt: ImpactModel
) -> None:
    trace = load_traces(folder)[0]
    with pytest.raises(UserError, match="trial answers"):
        _live(model, policy, trace, correction=Correction(doubt, 0.5, 8), probe_tokens=0)
    strange = dataclasses.replace(doubt, features=("votes_1.log", *doubt.features[1:]))
    with pytest.raises(UserError, match="votes_1"):
        _live(model, policy, trace, correction=Correction(strange, 0.5, 8))
