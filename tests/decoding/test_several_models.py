"""Several models live, by a chooser and by a correction: as in replay, and no fault costs the
answer."""  # fmt: skip

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen_nets import policy_for
from tiny_model import save_tiny_model, tiny_task

from rlbudget.decoding.choice import thinking_in
from rlbudget.decoding.chosen import decode_chosen
from rlbudget.decoding.decode import decode, second_model
from rlbudget.decoding.record import record
from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.models.profiles import PROFILES
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.policy.folder import Policy
from rlbudget.policy.handover import served
from rlbudget.policy.observation import observe
from rlbudget.policy.replay import replay
from rlbudget.signals.questions import CONTEXT_SIGNALS
from rlbudget.strategies.chooser.chooser import Chooser, MemberOf, Way
from rlbudget.strategies.chooser.fit import load_together
from rlbudget.strategies.chooser.folder import chooser_digest
from rlbudget.strategies.chooser.members import WHEN, Played, When, play
from rlbudget.strategies.chooser.record import running_record
from rlbudget.strategies.chooser.rows import columns_of
from rlbudget.strategies.chooser.together import Together
from rlbudget.strategies.correction.correct import (
    Correction,
    Refiner,
    Second,
    correct,
    doubts_of,
)
from rlbudget.strategies.correction.doubt import exit_features
from rlbudget.strategies.feedback.entries import read_log
from rlbudget.strategies.feedback.log import DecisionLog
from rlbudget.strategies.impact import ImpactModel
from rlbudget.strategies.plan import Plan
from rlbudget.traces.store import load_table, load_traces
from rlbudget.traces.trace import Trace

torch.set_num_threads(1)

PRICE = 1e-3
RATIOS = (0.25, 1.0)


@dataclass(frozen=True)
class Case:
    """One model at two temperatures on the same questions, each under a policy."""

    model: TransformersModel
    together: Together
    traces: tuple[dict[str, Trace], ...]
    members: tuple[MemberOf, ...]

    @property
    def policies(self) -> list[Policy | None]:
        return [member.policy for member in self.members]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("several")
    model = load_model(str(save_tiny_model(folder / "model")), profile="embedded")
    settings = [
        {"temperature": temperature, "max_tokens": 48, "stride": 8} for temperature in (1.2, 0.7)
    ]
    folders = [folder / "small", folder / "large"]
    for path, own in zip(folders, settings, strict=True):
        record(model, tiny_task(16), path, store_text=True, probe_tokens=4, **own)  # type: ignore[arg-type]
    together = load_together(folders, ratios=RATIOS)
    policies = [policy_for(load_table(path), "free", seed) for seed, path in enumerate(folders)]
    members = tuple(
        MemberOf(name, ratio, policy, {**own, "probe_tokens": 4})
        for name, ratio, policy, own in zip(("a", "b"), RATIOS, policies, settings, strict=True)
    )
    traces = tuple({t.question_id: t for t in load_traces(path)} for path in folders)
    return Case(model, together, traces, members)


def model_on(columns: dict[str, Any], seed: int) -> ImpactModel:
    """Weights that nobody fitted, on what varies."""
    names = [name for name, column in columns.items() if np.nanstd(column) > 1e-3]
    rows = np.stack([columns[name] for name in names], axis=1)
    weight = np.random.default_rng(seed).normal(0, 1, (len(names), 1))
    return ImpactModel(
        tuple(names), np.nanmean(rows, axis=0), np.nanstd(rows, axis=0) + 1e-3,
        (weight,), (np.zeros(1),),
    )  # fmt: skip


def chooser_of(case: Case, when: When, members: Sequence[MemberOf] = ()) -> tuple[Chooser, Played]:
    members = tuple(members) or case.members
    played = play(case.together, [PRICE], [member.policy for member in members])[0]
    _, record = running_record([played])
    told = np.array([record.of(task)[0, 0] for task in case.together.tasks.tolist()])
    columns = columns_of(played, told, when)
    wrong = tuple(model_on(columns, seed) for seed in (5, 6))
    return Chooser(members, np.array([PRICE]), (Way(when),), {when: wrong}, record), played


@pytest.mark.parametrize("when", WHEN)
def test_a_live_choice_is_that_of_the_replay(case: Case, when: When) -> None:
    chooser, played = chooser_of(case, when)
    choices, outcome = chooser.choices(played), chooser.replay(played)
    assert 2 <= choices.sum() <= 14
    for place, question in enumerate(case.together.question_ids.tolist()):
        trace = case.traces[0][question]
        live = decode_chosen(
            [case.model, case.model], trace.question, chooser,
            token_price=PRICE, task=str(case.together.tasks[place]), seed=trace.meta["row_seed"],
        )  # fmt: skip
        assert live.message is None
        assert live.member == choices[place]
        assert live.total_tokens == pytest.approx(outcome.tokens[place])
        assert live.answer == live.asked[live.member].answer
        if when == "after_all":
            assert sorted(live.asked) == [0, 1]


def test_the_thinking_is_what_was_recorded_as_such(case: Case) -> None:
    chooser, _ = chooser_of(case, "before", [replace(one, policy=None) for one in case.members])
    chooser = replace(chooser, ways=(Way("before", 0),))
    for question in case.together.question_ids.tolist()[:5]:
        trace = case.traces[0][question]
        live = decode_chosen([case.model, case.model], trace.question, chooser,
                             token_price=PRICE, seed=trace.meta["row_seed"])  # fmt: skip
        assert thinking_in(live.text, case.model.profile) == trace.meta["thinking"]
    assert thinking_in("no end", PROFILES["think"]) == "no end"


@dataclass
class Failing:
    """A model that cannot decode."""

    whole: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def read(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("broken", [0, 1])
def test_a_member_that_fails_is_left_out(case: Case, when: When, broken: int) -> None:
    chooser, _ = chooser_of(case, when)
    models: list[Any] = [case.model, case.model]
    models[broken] = Failing(case.model)
    said = []
    for question in case.together.question_ids.tolist()[:6]:
        live = decode_chosen(models, case.traces[0][question].question, chooser, token_price=PRICE)
        assert live.member == 1 - broken
        assert list(live.asked) == [1 - broken]
        said.append(live.message)
    assert f"{'ab'[broken]} failed: out of memory" in said


def test_where_nobody_can_answer_it_is_one_clear_line(case: Case) -> None:
    chooser, _ = chooser_of(case, "before")
    models: Any = [Failing(case.model)] * 2
    with pytest.raises(UserError, match=r"no model of the chooser can answer: .* failed: out of"):
        decode_chosen(models, "1 + 1?", chooser, token_price=PRICE)
    with pytest.raises(UserError, match=r"of 2 models \(a, b\), not 1"):
        decode_chosen(models[:1], "1 + 1?", chooser, token_price=PRICE)
    with pytest.raises(UserError, match="above 0"):
        decode_chosen(models, "1 + 1?", chooser, token_price=0.0)


def test_a_chooser_that_fails_takes_the_first_member(case: Case) -> None:
    chooser, _ = chooser_of(case, "before")
    bad = replace(chooser.wrong["before"][0], biases=(np.array([np.nan]),))
    chooser = replace(chooser, wrong={"before": (bad, bad)})
    live = decode_chosen([case.model] * 2, "1 + 1?", chooser, token_price=PRICE)
    assert live.member == 0
    assert live.message == "the chooser failed: the worth of an answer is not a number"


def test_a_choice_is_logged_with_what_each_model_spent(case: Case, tmp_path: Path) -> None:
    chooser, _ = chooser_of(case, "after_all")
    live = decode_chosen(
        [case.model] * 2, "1 + 1?", chooser, token_price=PRICE,
        log=DecisionLog(tmp_path / "log"), request_id="r1",
    )  # fmt: skip
    served = read_log(tmp_path / "log").decisions["r1"]
    assert served.strategy == chooser_digest(chooser)
    assert served.answered_by == "ab"[live.member]
    assert [(one.model, one.ratio) for one in served.models] == [("a", 0.25), ("b", 1.0)]
    spent = sum(one.ratio * (one.thinking_tokens + one.answer_tokens) for one in served.models)
    assert spent == pytest.approx(live.total_tokens)
    line = json.loads((tmp_path / "log" / "decisions.jsonl").read_text())
    assert "question" not in line


def correction_of(case: Case, threshold: float) -> Correction:
    """Its doubt looks at the exit and at the question."""
    table = case.together.members[0].table
    features = (*exit_features(table), *CONTEXT_SIGNALS)
    seen = observe(table, features).astype(np.float64)
    doubt = model_on(dict(zip(features, seen.T, strict=True)), 4)
    return Correction(doubt, threshold, None, 1, Refiner(4.0, case.members[1].recorded))


def test_a_refined_exit_is_live_as_in_replay(case: Case) -> None:
    first, second = case.together.members
    policies = case.policies
    policy = policies[0]
    assert policy is not None
    done = replay(policy, first.table, PRICE)
    correction = correction_of(case, 0.5)
    stopped = np.flatnonzero(done.stops >= 0)
    seen = doubts_of(correction.doubt, first.table)[
        first.table.offsets[stopped] + done.stops[stopped]
    ]
    correction = replace(correction, threshold=float(np.median(seen)))
    other = served(policies[1], second.table, PRICE / 4.0)
    assert correction.second is not None
    after = correct(
        correction, done, doubts_of(correction.doubt, first.table),
        Second(other.outcome, correction.second),
    )  # fmt: skip
    assert 2 <= (after.resumed > 0).sum() < (done.stops >= 0).sum()
    for place, question in enumerate(case.together.question_ids.tolist()):
        trace = case.traces[0][question]
        plan = Plan({"p": policy}, correction=correction, second_model="b",
                    second_policy=policies[1])  # fmt: skip
        seed = trace.meta["row_seed"]
        live = decode(
            case.model, trace.question, plan, token_price=PRICE, seed=seed,
            temperature=1.2, max_tokens=48, stride=8, probe_tokens=4,
            second=second_model(case.model, plan, seed=seed),
        )  # fmt: skip
        assert live.message is None
        assert (live.second is not None) == (after.resumed[place] > 0)
        assert live.total_tokens == pytest.approx(after.outcome.tokens[place])
        assert live.second is None or live.answer == live.second.answer


def test_a_second_model_that_fails_keeps_the_first_answer(case: Case) -> None:
    correction, policy = correction_of(case, -1.0), case.policies[0]
    assert policy is not None
    failing: Any = Failing(case.model)
    said = []
    for question in case.together.question_ids.tolist()[:8]:
        plan = Plan({"p": policy}, correction=correction, second_model="b")
        asked = {"token_price": PRICE, "max_tokens": 48, "stride": 8, "probe_tokens": 4}
        text = case.traces[0][question].question
        live = decode(case.model, text, plan, **asked, second=second_model(failing, plan))
        first = decode(case.model, text, policy, **asked)
        assert live.second is None
        assert (live.answer, live.total_tokens) == (first.answer, first.total_tokens)
        assert first.stopped == (live.message is not None)
        said.append(live.message)
    assert "the correction failed: out of memory" in said
