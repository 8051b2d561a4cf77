"""transformers' generate under a policy: what decode and a replay of the same traces give."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen_nets import policy_for, random_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from test_request import Scripted
from tiny_model import save_tiny_model, tiny_network, tiny_questions, tiny_tokenizer
from transformers import StaticCache

from rlbudget.decoding.decode import decode
from rlbudget.decoding.decoded import Ending
from rlbudget.decoding.record import record
from rlbudget.errors import UserError
from rlbudget.integrations.hf import BudgetProcessor
from rlbudget.integrations.hf_generate import BudgetGenerate
from rlbudget.models import load_model
from rlbudget.models.reading import read_answer
from rlbudget.models.row_signals import RowSignals
from rlbudget.models.sampling import Distribution, token_signals
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.policy.dial import Dial
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import Preset
from rlbudget.policy.replay import replay
from rlbudget.strategies.plan import LogSettings, Plan
from rlbudget.tasks import load_task
from rlbudget.tasks.task import Task
from rlbudget.traces.store import load_table, load_traces
from rlbudget.traces.table import TraceTable
from rlbudget.traces.trace import Trace
from runs.integrations.architecture_kinds import KINDS
from runs.integrations.architectures import make as make_model

torch.set_num_threads(1)

N = 60
CAP = 120
PRICE = 1e-3
PROBE = 3
EOS, END = 2, 4
ROOM = 33
"""what the embedded model's exit text and answer may take"""


@pytest.fixture(scope="module")
def model() -> TransformersModel:
    return load_model("embedded")


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("embedded", n=N, seed=5)


@pytest.fixture(scope="module")
def recorded(
    model: TransformersModel, task: Task, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TraceTable, dict[str, Trace]]:
    """Greedy traces of the task's questions."""
    folder = tmp_path_factory.mktemp("traces")
    record(model, task, folder, max_tokens=CAP, temperature=0.0, probe_tokens=PROBE)
    return load_table(folder), {trace.question_id: trace for trace in load_traces(folder)}


def scripted(says: Sequence[Any] = (False,), **rest: Any) -> Scripted:
    return Scripted(says, stride=8, **rest)


def padded(model: TransformersModel, questions: Sequence[str]) -> dict[str, torch.Tensor]:
    prompts = [model.prompt_ids(question) for question in questions]
    width = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[0] * (width - len(p)) + p for p in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
    }


def processor(model: TransformersModel, policy: Any, **rest: Any) -> BudgetProcessor:
    settings = {"profile": "embedded", "token_price": PRICE, "max_thinking_tokens": CAP} | rest
    return BudgetProcessor.for_model(model.network, model.tokenizer, policy, **settings)


def generator(model: TransformersModel, policy: Any, **rest: Any) -> BudgetGenerate:
    settings = {
        "profile": "embedded",
        "token_price": PRICE,
        "max_thinking_tokens": CAP,
        "probe_tokens": PROBE,
    }
    return BudgetGenerate.for_model(model.network, model.tokenizer, policy, **(settings | rest))


def run(
    model: TransformersModel, questions: Sequence[str], budget: Any, **rest: Any
) -> list[tuple[Ending, list[int]]]:
    """Generate greedily; a row's outcome and its new tokens without the padding."""
    inputs = padded(model, questions)
    where: dict[str, Any] = (
        {"logits_processor": [budget]}
        if isinstance(budget, BudgetProcessor)
        else {"custom_generate": budget}
    )
    settings = {"max_new_tokens": CAP + ROOM, "do_sample": False} | where | rest
    ids = model.network.generate(**inputs, **settings)
    outcomes = budget.report(ids) if isinstance(budget, BudgetProcessor) else budget.report()
    new = ids[:, inputs["input_ids"].shape[1] :].tolist()
    return [
        (outcome, row[: outcome.thinking_tokens + outcome.answer_tokens])
        for outcome, row in zip(outcomes, new, strict=True)
    ]


def answer_of(model: TransformersModel, row: Sequence[int], outcome: Ending) -> str:
    after = list(row)[outcome.thinking_tokens + len(model.vocabulary.exit_ids) :]
    return read_answer(after, model.vocabulary, model.profile, ())


def check_against_traces(
    model: TransformersModel,
    task: Task,
    recorded: tuple[TraceTable, dict[str, Trace]],
    policy: Policy,
    budget: Any,
) -> None:
    table, traces = recorded
    played = replay(policy, table, PRICE)
    place = {question_id: i for i, question_id in enumerate(table.question_ids.tolist())}
    got = run(model, [q.question for q in task.questions], budget)
    for question, (outcome, row) in zip(task.questions, got, strict=True):
        trace, i = traces[question.question_id], place[question.question_id]
        stop = played.stops[i]
        wanted = trace.checkpoints[stop].exit if stop >= 0 else trace.final
        end = "natural" if trace.meta["natural"] else "max_tokens"
        assert outcome.reason == ("policy" if stop >= 0 else end)
        assert outcome.thinking_tokens == played.outcome.thinking[i]
        assert outcome.probe_tokens == played.outcome.probe[i]
        assert answer_of(model, row, outcome) == wanted.answer
        assert outcome.answer_tokens == wanted.answer_tokens
        assert outcome.message is None
    assert 5 <= (played.stops >= 0).sum() <= len(table) - 5


# --- the processor


def test_a_batch_stops_as_the_replay_of_its_greedy_traces(
    model: TransformersModel, task: Task, recorded: tuple[TraceTable, dict[str, Trace]]
) -> None:
    policy = policy_for(recorded[0], "free")
    check_against_traces(model, task, recorded, policy, processor(model, policy))


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["free", "probe", "turns"])
def test_every_question_alone_is_decoded_as_decode_does(
    model: TransformersModel,
    task: Task,
    recorded: tuple[TraceTable, dict[str, Trace]],
    preset: Preset,
) -> None:
    check_alone(model, task, policy_for(recorded[0], preset))


def test_questions_alone_are_decoded_as_decode_does(
    model: TransformersModel, task: Task, recorded: tuple[TraceTable, dict[str, Trace]]
) -> None:
    few = dataclasses.replace(task, questions=task.questions[:8])
    check_alone(model, few, policy_for(recorded[0], "free"))


def check_alone(model: TransformersModel, task: Task, policy: Policy) -> None:
    ways: list[Any] = [generator(model, policy)]
    if policy.preset == "free":
        ways.append(processor(model, policy))
    for question in task.questions:
        live = decode(
            model,
            question.question,
            policy,
            token_price=PRICE,
            temperature=0,
            max_tokens=CAP,
            probe_tokens=PROBE,
        )
        for budget in ways:
            ((outcome, row),) = run(model, [question.question], budget)
            assert outcome.reason == live.reason
            assert outcome.thinking_tokens == live.thinking_tokens
            assert outcome.probe_tokens == live.probe_tokens
            assert outcome.answer_tokens == live.answer_tokens
            assert answer_of(model, row, outcome) == live.answer
            assert model.vocabulary.text(row, special=True) == live.text
            assert outcome.stop_probability == pytest.approx(live.stop_probability, abs=1e-4)


def test_a_model_of_broken_characters_stops_where_decode_does(tmp_path: Path) -> None:
    tiny = load_model(str(save_tiny_model(tmp_path)), profile="embedded")
    stops = set()
    for question in tiny_questions(15):
        policy = scripted([True])
        live = decode(tiny, question, policy, token_price=PRICE, temperature=0, max_tokens=CAP)
        for budget in (generator(tiny, policy), processor(tiny, policy)):
            ((outcome, _),) = run(tiny, [question], budget)
            assert (outcome.reason, outcome.thinking_tokens) == (live.reason, live.thinking_tokens)
            if live.stopped:
                stops.add(live.thinking_tokens)
    assert {8, 16} <= stops


@pytest.mark.parametrize("make", [processor, generator])
def test_a_row_does_not_depend_on_its_neighbours(
    model: TransformersModel,
    task: Task,
    recorded: tuple[TraceTable, dict[str, Trace]],
    make: Any,
) -> None:
    policy = policy_for(recorded[0], "free")
    questions = sorted((q.question for q in task.questions), key=len)
    questions = [questions[0], questions[-1], *questions[40:43]]
    assert len({len(model.prompt_ids(q)) for q in questions}) > 1
    budget = make(model, policy)
    together = run(model, questions, budget)
    assert len({outcome.thinking_tokens for outcome, _ in together}) > 1
    alone = [run(model, [question], budget)[0] for question in questions]
    for (mine, row), (other, single) in zip(together, alone, strict=True):
        assert dataclasses.replace(mine, stop_probability=None) == dataclasses.replace(
            other, stop_probability=None
        )
        assert row == single


def test_no_new_token_is_left_out_of_the_report(model: TransformersModel, task: Task) -> None:
    (question, *_) = task.questions
    budget = processor(model, scripted([True]))
    inputs = padded(model, [question.question])
    ids = model.network.generate(**inputs, logits_processor=[budget], max_new_tokens=99)
    new = ids.shape[1] - inputs["input_ids"].shape[1]
    (before,) = budget.report()
    (after,) = budget.report(ids)
    assert budget.report(ids) == [after]
    assert before.thinking_tokens == after.thinking_tokens == 8
    assert after.answer_tokens == before.answer_tokens + 1 == new - 8
    with pytest.raises(UserError, match="not the output of the last call"):
        budget.report(ids[:, :-3])


@pytest.mark.parametrize("make", [processor, generator])
def test_a_new_call_begins_anew(model: TransformersModel, task: Task, make: Any) -> None:
    policy = scripted([False, True])
    budget = make(model, policy)
    questions = [q.question for q in task.questions[:3]]
    first = run(model, questions[:1], budget)
    assert run(model, questions[:1], budget) == first
    policy.says = [True]
    again = run(model, questions, budget)
    assert [outcome.thinking_tokens for outcome, _ in again] == [8, 8, 8]
    assert first[0][0].thinking_tokens == 16


class Eager(torch.nn.Module):
    """The output layer of a model that would end the sequence at every chance."""

    def __init__(self, layer: Any, token: int) -> None:
        super().__init__()
        self.layer, self.token = layer, token
        self.out_features = layer.out_features

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.layer(hidden).clone()
        logits[..., self.token] += 30.0
        return logits


@pytest.mark.parametrize("make", [processor, generator])
@pytest.mark.parametrize("token", [EOS, END])
def test_an_early_end_still_gives_an_answer(
    model: TransformersModel, task: Task, make: Any, token: int
) -> None:
    network = load_model("embedded").network
    network.lm_head = Eager(network.lm_head, token)
    eager = dataclasses.replace(model, network=network)
    budget = make(eager, scripted())
    ((outcome, row),) = run(eager, [task.questions[0].question], budget, max_new_tokens=ROOM + 1)
    assert (outcome.reason, outcome.thinking_tokens) == ("natural", 0)
    assert row[0] == END
    if token == EOS:
        assert row == [END, EOS]


@pytest.mark.parametrize("make", [processor, generator])
def test_the_cap_ends_a_thinking(model: TransformersModel, task: Task, make: Any) -> None:
    questions = [q.question for q in task.questions[:2]]
    got = run(model, questions, make(model, scripted(), max_thinking_tokens=11))
    assert [(o.reason, o.thinking_tokens, row[11]) for o, row in got] == 2 * [
        ("max_tokens", 11, END)
    ]


def test_room_for_the_answer_is_kept(model: TransformersModel, task: Task) -> None:
    with pytest.raises(UserError, match="leaves no room to think"):
        processor(model, scripted(), max_new_tokens=ROOM)
    questions = [task.questions[0].question]
    with pytest.raises(UserError, match="leaves no room to think"):
        run(model, questions, generator(model, scripted()), max_new_tokens=ROOM)
    few = ROOM + 9
    for budget in (processor(model, scripted(), max_new_tokens=few), generator(model, scripted())):
        ((outcome, row),) = run(model, questions, budget, max_new_tokens=few)
        assert (outcome.reason, outcome.thinking_tokens) == ("max_tokens", 9)
        assert row[-1] == EOS


@pytest.mark.parametrize("make", [processor, generator])
@pytest.mark.parametrize("says", [RuntimeError("out of order"), float("nan")])
def test_a_failing_policy_never_costs_the_answer(
    model: TransformersModel,
    task: Task,
    recorded: tuple[TraceTable, dict[str, Trace]],
    make: Any,
    says: float | Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    questions = task.questions[:2]
    with caplog.at_level(logging.WARNING, logger="rlbudget"):
        got = run(model, [q.question for q in questions], make(model, scripted([0.0, 0.0, says])))
    assert len([r for r in caplog.records if r.name == "rlbudget"]) == 1
    for question, (outcome, row) in zip(questions, got, strict=True):
        final = recorded[1][question.question_id].final
        assert outcome.reason == "policy_failed"
        assert outcome.thinking_tokens == final.thinking_tokens
        assert answer_of(model, row, outcome) == final.answer


def test_a_policy_that_needs_trial_answers_is_sent_to_the_other_way(
    model: TransformersModel, recorded: tuple[TraceTable, dict[str, Trace]]
) -> None:
    policy = policy_for(recorded[0], "probe")
    with pytest.raises(UserError, match="looks at trial answers"):
        processor(model, policy)
    with pytest.raises(UserError, match="no profile 'nobody'"):
        processor(model, scripted(), profile="nobody")


def test_the_callers_logits_stay_as_they_were(model: TransformersModel, task: Task) -> None:
    inputs = padded(model, [task.questions[0].question])
    out = model.network.generate(
        **inputs,
        logits_processor=[processor(model, scripted([True]))],
        max_new_tokens=60,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
    )
    assert all(torch.isfinite(logits).all() for logits in out.logits)
    assert torch.isinf(out.scores[0][0, EOS])
    assert torch.isfinite(out.scores[8][0]).sum() == 1


def test_sampling_is_under_the_same_budget(model: TransformersModel, task: Task) -> None:
    torch.manual_seed(0)
    questions = [q.question for q in task.questions[:6]]
    for make in (processor, generator):
        got = run(model, questions, make(model, scripted([False, True])), do_sample=True,
                  temperature=0.9, top_p=0.9)  # fmt: skip
        assert {o.reason for o, _ in got} <= {"policy", "natural"}
        assert all(o.thinking_tokens == 16 for o, _ in got if o.reason == "policy")


# --- generate


@pytest.mark.parametrize("preset", ["free", "probe", "turns"])
def test_generate_stops_as_the_replay_of_its_greedy_traces(
    model: TransformersModel,
    task: Task,
    recorded: tuple[TraceTable, dict[str, Trace]],
    preset: Preset,
) -> None:
    policy = policy_for(recorded[0], preset)
    check_against_traces(model, task, recorded, policy, generator(model, policy))


def test_generate_gives_the_cache_back_and_goes_on_with_one(
    model: TransformersModel, task: Task
) -> None:
    inputs = padded(model, [task.questions[0].question])
    settings = {"max_new_tokens": 60, "do_sample": False, "return_dict_in_generate": True}
    policy = scripted([True], features=("thinking_tokens", "probe_confidence"))
    budget = generator(model, policy)
    out = model.network.generate(**inputs, **settings, custom_generate=budget)
    (outcome,) = budget.report()
    assert outcome.probe_tokens > 0
    assert out.past_key_values.get_seq_length() == out.sequences.shape[1] - 1
    out.past_key_values.crop(inputs["input_ids"].shape[1] - out.sequences.shape[1])
    again = model.network.generate(
        **inputs, **settings, custom_generate=budget, past_key_values=out.past_key_values
    )
    assert torch.equal(again.sequences, out.sequences)


def test_what_cannot_be_forked_is_refused(model: TransformersModel, task: Task) -> None:
    questions = [task.questions[0].question]
    budget = generator(model, scripted())
    static = StaticCache(config=model.network.config, max_cache_len=300)
    with pytest.raises(UserError, match="not StaticCache"):
        run(model, questions, budget, past_key_values=static)
    with pytest.raises(UserError, match="use_cache=True"):
        run(model, questions, budget, use_cache=False)
    with pytest.raises(UserError, match="num_beams=1"):
        run(model, questions, budget, num_beams=2)


# --- the signals


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 3),
    vocabulary=st.sampled_from([40, 700, 20_000]),
    scale=st.sampled_from([0.1, 3.0, 30.0]),
    ends=st.integers(1, 2),
    forbidden=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_signals_measured_ahead_are_those_measured_with_the_token(
    n: int, vocabulary: int, scale: float, ends: int, forbidden: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    distribution = Distribution(torch.arange(ends) + 7)
    one = RowSignals([7, 8][:ends])
    for _ in range(2):
        logits = scale * torch.randn(n, vocabulary)
        if forbidden:
            logits[:, 9:12] = -torch.inf
        tokens = torch.randint(12, vocabulary, (n,))
        distribution.measure(logits)
        wanted = token_signals(logits, tokens, torch.arange(ends) + 7)
        torch.testing.assert_close(distribution.signals(tokens), wanted, rtol=4e-4, atol=1e-4)
        for row, token in enumerate(tokens.tolist()):
            one.measure(logits[row].numpy())
            alone = torch.tensor(one.signals(token))
            torch.testing.assert_close(alone, wanted[row], rtol=4e-4, atol=1e-4)
            assert one.highest == float(logits[row].max())


@pytest.mark.parametrize("rest", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 4}])
def test_rows_that_are_no_continuations_are_refused(
    model: TransformersModel, rest: dict[str, int]
) -> None:
    ids = torch.tensor([model.prompt_ids("Solve for m: 4*m + 3 = 43 and then sort 12, 7, 30")])
    policy = scripted([False])
    budget = BudgetProcessor.for_model(
        model.network, model.tokenizer, policy, profile="embedded", max_thinking_tokens=60
    )
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 95, "do_sample": False}
    with pytest.raises(UserError, match="leave out num_beams, assistant_model and prompt_lookup"):
        model.network.generate(ids, logits_processor=[budget], **settings, **rest)
    out = model.network.generate(ids, logits_processor=[budget], **settings)
    assert budget.report(out)[0].thinking_tokens > 0  # the next call begins anew
    with pytest.raises(UserError, match="a budget cannot be given to"):
        model.network.generate(
            ids,
            custom_generate=BudgetGenerate.for_model(
                model.network, model.tokenizer, policy, profile="embedded"
            ),
            **settings,
            **rest,
        )


def test_the_next_turn_of_a_chat_is_a_call_of_its_own(model: TransformersModel) -> None:
    ids = torch.tensor([model.prompt_ids("4*m + 3 = 43")])
    budget = BudgetProcessor.for_model(
        model.network, model.tokenizer, scripted([False]), profile="embedded",
        max_thinking_tokens=20,
    )  # fmt: skip
    for _ in range(2):
        out = model.network.generate(
            ids, attention_mask=torch.ones_like(ids), logits_processor=[budget], do_sample=False,
            max_new_tokens=40,
        )  # fmt: skip
        assert budget.report(out)[0].thinking_tokens > 0
        ids = torch.cat([out, ids[:, 1:]], dim=1)


@pytest.mark.filterwarnings("ignore")
def test_trial_answers_of_a_state_no_batch_shares_are_refused(tmp_path: Path) -> None:
    make_model("mamba", KINDS["mamba"], tmp_path)
    model = load_model(str(tmp_path), profile="embedded")
    with pytest.raises(UserError, match="of a MambaForCausalLM cannot be made inside generate"):
        BudgetGenerate.for_model(
            model.network, model.tokenizer, scripted([False]), profile="embedded"
        )


@pytest.mark.parametrize("make", [processor, generator])
def test_no_effort_answers_before_the_first_thought(
    model: TransformersModel, task: Task, make: Any
) -> None:
    questions, dial = [q.question for q in task.questions[:4]], Dial(effort="none")
    policy = scripted((True,))
    found = run(model, questions, make(model, policy, token_price=None, dial=dial))
    for question, (ending, row) in zip(questions, found, strict=True):
        wanted = decode(model, question, policy, dial=dial, temperature=0.0, max_tokens=CAP)
        assert (ending.thinking_tokens, ending.reason) == (0, "max_tokens")
        assert answer_of(model, row, ending) == wanted.answer != ""
        assert ending.answer_tokens == wanted.answer_tokens


def test_rows_that_the_limit_ends_are_logged_once_too(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    network = tiny_network(len(tokenizer))
    plan = Plan({"policy": random_policy()}, audit=LogSettings(tmp_path))
    processor = BudgetProcessor.for_model(
        network, tokenizer, plan, profile="embedded", stride=8, max_thinking_tokens=9,
        questions=["1", "2"],
    )  # fmt: skip
    prompts = torch.tensor([[1, 5, 3], [1, 6, 3]])
    for _ in range(2):
        ids = network.generate(
            prompts, attention_mask=torch.ones_like(prompts), logits_processor=[processor],
            max_new_tokens=12, do_sample=False,
        )  # fmt: skip
    processor.report(ids)
    processor.report(ids)
    assert len((tmp_path / "decisions.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
@pytest.mark.parametrize("vocabulary", [40, 20_000])
def test_logits_that_are_no_numbers_give_signals_that_are_none(odd: float, vocabulary: int) -> None:
    one = RowSignals([7])
    logits = torch.randn(vocabulary)
    logits[9] = odd
    one.measure(logits.numpy())
    assert not np.isfinite(one.signals(3)).all()
    one.measure(torch.zeros(vocabulary).numpy())  # every token is as likely as any other
    assert one.signals(3) == pytest.approx(
        (-np.log(vocabulary), np.log(vocabulary), 0, 1 / vocabulary, -np.log(vocabulary), 0)
    )
