"""Policies that see how much repeats itself: what a replay saw is what they see live."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen_nets import policy_for
from synthetic import make_table
from trace_makers import traces_of

from rlbudget.agents.training import train_on
from rlbudget.decoding.annotate import annotate
from rlbudget.decoding.core import LOCAL, bind
from rlbudget.decoding.decode import decode
from rlbudget.decoding.device.slots import Slots
from rlbudget.decoding.record import record
from rlbudget.errors import UserError
from rlbudget.integrations.hf_generate import BudgetGenerate
from rlbudget.integrations.openai import decode_once
from rlbudget.models import load_model
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.policy.controller import Controller
from rlbudget.policy.folder import Policy
from rlbudget.policy.replay import replay
from rlbudget.signals.repeats import TOKEN_REPEATS
from rlbudget.tasks import load_task
from rlbudget.tasks.scorers import extracted
from rlbudget.traces.store import TraceWriter, load_table, load_traces
from rlbudget.traces.table import TraceTable
from runs.integrations.toy_server import Toy, serving

torch.set_num_threads(1)

N, PRICE = 8, 1e-3
FEATURES = ("thinking_tokens.log", TOKEN_REPEATS, f"{TOKEN_REPEATS}.ema")


@pytest.fixture(scope="module")
def model() -> TransformersModel:
    return load_model("embedded")


@pytest.fixture(scope="module")
def traces(model: TransformersModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("traces")
    task = load_task("embedded", n=N, seed=9)
    record(model, task, out, temperature=0.0, probe_tokens=0, store_text=True)
    return out


@pytest.fixture(scope="module")
def policy(traces: Path) -> Policy:
    """One that stops here and there."""
    table = load_table(traces)
    assert 0.05 < np.nanmean(table.signals[TOKEN_REPEATS]) < 0.95

    def stopped(seed: int) -> int:
        made = policy_for(table, "free", seed, features=FEATURES)
        stops = replay(made, table, PRICE).stops
        return len(np.unique(stops)) if 2 <= (stops >= 0).sum() <= N - 2 else 0

    return policy_for(table, "free", max(range(60), key=stopped), features=FEATURES)


def replayed(traces: Path, policy: Policy) -> list[tuple[str, bool, str]]:
    """Of every trace: question, whether it is stopped, and the answer then."""
    table: TraceTable = load_table(traces)
    stops = replay(policy, table, PRICE).stops
    assert 2 <= (stops >= 0).sum() <= N - 2
    by_id = {trace.trace_id: trace for trace in load_traces(traces)}
    found = []
    for trace_id, stop in zip(table.trace_ids.tolist(), stops.tolist(), strict=True):
        trace = by_id[trace_id]
        end = trace.checkpoints[stop].exit if stop >= 0 else trace.final
        found.append((trace.question, stop >= 0, extracted(end.answer)))
    return found


def test_replay_equals_live_in_a_decode_in_generate_and_through_a_server(
    model: TransformersModel, traces: Path, policy: Policy
) -> None:
    settings: dict[str, Any] = {"token_price": PRICE, "temperature": 0.0}
    budget = BudgetGenerate.for_model(
        model.network, model.tokenizer, policy, token_price=PRICE, profile="embedded"
    )
    with serving(Toy(model, logprobs=0)) as url:
        every = replayed(traces, policy)
        shown = sorted(every, key=lambda one: one[1])
        for question, stopped, answer in (shown[0], *shown[-2:]):
            live = decode(model, question, policy, **settings)
            assert (live.stopped, live.answer, live.message) == (stopped, answer, None)
            served = decode_once(url, question, policy, "embedded", profile="embedded", **settings)
            assert (served.stopped, served.answer, served.message) == (stopped, answer, None)
            inputs = torch.tensor([model.prompt_ids(question)])
            model.network.generate(
                inputs, custom_generate=budget, max_new_tokens=2000, do_sample=False
            )
            (outcome,) = budget.report()
            assert (outcome.reason == "policy") == stopped
            assert outcome.thinking_tokens == live.thinking_tokens


def test_a_controller_follows_the_ids_of_the_tokens_and_says_where_one_lacks(
    model: TransformersModel, traces: Path, policy: Policy
) -> None:
    table = load_table(traces)
    played = replay(policy, table, PRICE)
    trace = next(iter(load_traces(traces)))
    (place,) = np.flatnonzero(table.trace_ids == trace.trace_id)
    ids = model.tokenizer(trace.meta["thinking"], add_special_tokens=False)["input_ids"]
    control = Controller(policy, token_price=PRICE, stride=int(trace.meta["stride"]))
    seen = [control.push((0.0,) * 6, (False,) * 3, token=token) for token in ids]
    chances = [decision.stop_probability for decision in seen if decision is not None]
    rows = table.rows_of(np.array([place]))[0]
    assert chances[: len(rows)] == played.chance[rows].tolist()
    control = Controller(policy, token_price=PRICE, stride=8)
    control.push((0.0,) * 6, (False,) * 3)
    assert "without its id" in (control.failed or "")


def test_annotating_what_was_recorded_gives_what_was_recorded(
    model: TransformersModel, traces: Path, tmp_path: Path
) -> None:
    recorded = [trace for trace in load_traces(traces) if trace.meta["natural"]][:6]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(
        json.dumps({"question": trace.question, "thinking": trace.meta["thinking"],
                    "answer": trace.final.answer, "target": trace.target}) + "\n"
        for trace in recorded
    ))  # fmt: skip
    annotate(model, log, tmp_path / "out", probe_tokens=0)
    by_question = {trace.question: trace for trace in load_traces(tmp_path / "out")}
    compared = 0
    for trace in recorded:
        again = by_question[trace.question].checkpoints
        for one, other in zip(trace.checkpoints, again, strict=False):
            assert one.thinking_tokens == other.thinking_tokens
            assert one.signals[TOKEN_REPEATS] == other.signals[TOKEN_REPEATS]
            compared += one.signals[TOKEN_REPEATS] > 0
    assert compared


def test_a_runner_that_does_not_follow_repetition_refuses_the_policy(
    model: TransformersModel, policy: Policy
) -> None:
    core = bind(
        policy, model.tokenizer, LOCAL, eos_ids=[2], vocabulary=model.vocabulary,
        profile="embedded", token_price=PRICE,
    )  # fmt: skip
    with pytest.raises(UserError, match="without --repeats"):
        Slots(core, 2, 64, torch.device("cpu"))


def test_training_sees_repetition_where_it_is_told_to(traces: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"total_timesteps": 256, "token_price": (1e-4, 1e-2), "members": 1}
    for repeats in (False, True):
        result = train_on(traces, tmp_path / str(repeats), repeats=repeats, **settings)
        found = json.loads((result.run_dir / "run.json").read_text())["features"]
        assert (TOKEN_REPEATS in found) == repeats


def test_traces_that_lack_it_are_refused_in_one_line(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "traces") as writer:
        for trace in traces_of(make_table(8, seed=1)):
            writer.add(trace)
    with pytest.raises(UserError, match="--repeats: the traces do not hold token_repeats"):
        train_on(tmp_path / "traces", tmp_path / "run", repeats=True)
