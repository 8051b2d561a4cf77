"""A chooser in the gateway: the answers of ``decode --plan``, and no fault of a model costs one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import torch
from gateways import gateway_of, serving_gateway

from rlbudget.cli.main import main
from rlbudget.decoding.chosen import Chosen, decode_chosen
from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.policy.folder import load_policy
from rlbudget.serve.choosing import open_models, under_chooser
from rlbudget.serve.gateway import Gateway, Opens
from rlbudget.serve.hooks import Outcome, Steering
from rlbudget.strategies.chooser.chooser import Chooser, MemberOf, Way
from rlbudget.strategies.chooser.folder import save_chooser
from rlbudget.strategies.chooser.members import When
from rlbudget.strategies.chooser.record import TrackRecord
from rlbudget.strategies.feedback.entries import read_log
from rlbudget.strategies.impact import ImpactModel
from rlbudget.strategies.plan import LogSettings, Plan
from rlbudget.tasks import load_task
from runs.integrations.toy_server import Toy, serving

torch.set_num_threads(1)

POLICY = Path("runs/models/embedded/policy_0")
PRICE = 8e-3
WAYS: list[tuple[When, int | None]] = [
    ("before", None), ("after_first", None), ("after_all", None), ("before", 1)
]  # fmt: skip
QUESTIONS = [q.question for q in load_task("embedded", n=3, seed=3).questions][1:]
LONG = load_task("embedded", n=1, seed=3).questions[0].question
"""273 tokens of thinking"""
LOOKS: dict[When, dict[str, tuple[float, float]]] = {
    "before": {"question_characters": (4.9, 0.1)},
    "after_first": {"0.thinking": (3.6, 1.0), "0.logprob_mean": (-0.02, 0.01)},
    "after_all": {"0.agrees": (0.5, 5.0), "1.answer": (1.5, 5.0), "0.logprob_mean": (-0.02, 0.01),
                  "1.logprob_mean": (-0.02, 5.0)},
}  # fmt: skip
"""what is looked at: mean and spread"""


def chooser_of(when: When, always: int | None = None) -> Chooser:
    """Of the embedded model under a policy, and in full; of weights that nobody fitted."""
    policy, looks = load_policy(POLICY), LOOKS[when]
    recorded = {**policy.recorded, "temperature": 0.0, "max_tokens": 40}
    members = (MemberOf("thrifty", 0.25, policy, recorded), MemberOf("full", 1.0, None, recorded))
    mean, spread = np.array([*looks.values()]).T
    wrong = tuple(
        ImpactModel(tuple(looks), mean, spread, (np.full((len(looks), 1), sign),), (np.zeros(1),))
        for sign in (1.0, -1.0)
    )
    record = TrackRecord((1, 2))
    record.add("", [[1.0, 1.0]], [[50.0, 60.0]])
    return Chooser(members, np.array([PRICE]), (Way(when, always),), {when: wrong}, record)


@cache
def own(when: When, always: int | None = None) -> list[Chosen]:
    """As ``rlbudget decode --plan`` answers."""
    model, chooser = load_model("embedded"), chooser_of(when, always)
    return [decode_chosen([model, model], q, chooser, token_price=PRICE) for q in QUESTIONS]


def gateway(
    chooser: Chooser, models: Sequence[str] = ("embedded", "embedded"), **more: Any
) -> tuple[Gateway, Opens]:
    plan = Plan({}, chooser=Path("c"), chooser_models=tuple(models),
                chooser_tokenizers=("embedded",) * len(models), **more)  # fmt: skip
    made = gateway_of(under_chooser(plan, chooser))
    size = len(load_model("embedded").tokenizer)
    return made, partial(open_models, made.settings, chooser, top_logprobs=size, retries=0)


def chat(root: str, question: str, **more: Any) -> httpx.Response:
    body = {"model": "toy", "messages": [{"role": "user", "content": question}], **more}
    return httpx.post(f"{root}/v1/chat/completions", json=body, timeout=60)


def toy() -> Toy:
    model = load_model("embedded")
    return Toy(model, logprobs=len(model.tokenizer))


def deltas(text: str) -> list[dict[str, Any]]:
    events = [orjson.loads(line[6:]) for line in text.split("\n\n")[:-2]]
    return [choice["delta"] for event in events for choice in event["choices"]]


@pytest.mark.parametrize(("when", "always"), WAYS)
def test_it_chooses_and_answers_as_decode_does(
    when: When, always: int | None, tmp_path: Path
) -> None:
    expected = own(when, always)
    assert always is not None or {one.member for one in expected} == {0, 1}
    ended: list[Outcome] = []
    made, opens = gateway(chooser_of(when, always), audit=LogSettings(tmp_path / "log"))
    made.steering.append(Steering("told", after=ended.append))
    with serving_gateway(made, opens) as root:
        found = [chat(root, question).json() for question in QUESTIONS]
    log = read_log(tmp_path / "log")
    assert len(log.decisions) == len(found)
    for one, alone, outcome in zip(found, expected, ended, strict=True):
        ours, done = one["rlbudget"], alone.asked[alone.member]
        assert one["choices"][0]["message"]["content"].strip() == alone.answer
        assert ours["chosen"]["model"] == ("thrifty", "full")[alone.member]
        assert ours["chosen"]["why"] == ("worth most" if always is None else "always")
        assert (ours["reason"], ours["thinking_tokens"]) == (done.reason, done.thinking_tokens)
        assert ours["token_price"] == PRICE
        spent = sum(each.own_tokens for each in alone.asked.values())
        assert one["usage"]["completion_tokens"] == spent == outcome.tokens
        assert len(ours["chosen"]["models"]) == len(alone.asked)
        line = log.decisions[ours["request_id"]]
        assert (line.answered_by, len(line.models)) == (
            ours["chosen"]["model"], len(alone.asked)
        )  # fmt: skip


@pytest.mark.parametrize("when", ["before", "after_first", "after_all"])
def test_the_chosen_answer_is_streamed_with_its_thoughts(when: When) -> None:
    made, opens = gateway(chooser_of(when))
    with serving_gateway(made, opens) as root:
        for question, alone in zip(QUESTIONS, own(when), strict=True):
            whole = chat(root, question).json()["choices"][0]["message"]
            told = chat(root, question, stream=True, stream_options={"include_usage": True}).text
            parts = deltas(told)
            for name in ("content", "reasoning_content"):
                assert "".join(part.get(name) or "" for part in parts) == whole[name]
            spent = sum(each.own_tokens for each in alone.asked.values())
            assert f'"completion_tokens":{spent}' in told
            assert '"chosen":{' in told
            thoughts = [part for part in parts if "reasoning_content" in part]
            nobody_else = when == "before" or (when == "after_first" and alone.member == 1)
            assert (len(thoughts) > 8) == nobody_else  # as they come


@pytest.mark.parametrize("broken", [0, 1])
@pytest.mark.parametrize("when", ["before", "after_first", "after_all"])
def test_a_model_that_fails_costs_no_answer(when: When, broken: int) -> None:
    upstream = toy()
    with serving(upstream) as url:
        models = ["embedded", "embedded"]
        models[broken] = url
        made, opens = gateway(chooser_of(when), models)
        with serving_gateway(made, opens) as root:
            upstream.cuts = [20] * 50
            found = [chat(root, question, stream=False) for question in QUESTIONS]
            streamed = [chat(root, question, stream=True).text for question in QUESTIONS]
    for one, told in zip(found, streamed, strict=True):
        assert one.status_code == 200
        assert one.json()["choices"][0]["message"]["content"]
        assert one.json()["rlbudget"]["chosen"]["model"] == ("full", "thrifty")[broken]
        assert '"error"' not in told
        assert told.endswith("data: [DONE]\n\n")
    assert "failed" in found[broken].json()["rlbudget"].get("message", "") or when == "before"


def test_where_no_model_can_answer_it_is_a_proper_error() -> None:
    first, second = toy(), toy()
    with serving(first) as one, serving(second) as two:
        made, opens = gateway(chooser_of("after_all"), [one, two])
        with serving_gateway(made, opens) as root:
            first.cuts = second.cuts = [5] * 50
            for stream in (False, True):
                found = chat(root, QUESTIONS[0], stream=stream)
                assert found.status_code == 502
                assert "no model of the chooser can answer" in found.json()["error"]["message"]


def test_what_is_no_single_question_is_the_first_models() -> None:
    conversation = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "1?"}]
    upstream = toy()
    with serving(upstream) as url:
        made, opens = gateway(chooser_of("after_all"), [url, "embedded"])
        with serving_gateway(made, opens) as root:
            for more, why in (
                ({"messages": conversation}, "single questions"), ({"n": 2}, "n > 1"),
                ({"rlbudget": {"off": True}}, "off"),
            ):  # fmt: skip
                assert why in chat(root, "1?", **more).headers["x-rlbudget-passed-through"]
            refused = chat(root, QUESTIONS[0], rlbudget={"effort": "low"})
            assert refused.status_code == 400
            assert "no operating points" in refused.json()["error"]["message"]
    made, opens = gateway(chooser_of("after_all"))
    with serving_gateway(made, opens) as root:
        assert chat(root, "1?", n=2).status_code == 400
        off = chat(root, QUESTIONS[0], max_tokens=90, rlbudget={"off": True}).json()
        assert off["rlbudget"]["off"]
        assert "chosen" not in off["rlbudget"]


@pytest.mark.parametrize(
    ("more", "line", "said"),
    [
        ("", "--model embedded", "[chooser] names its models itself"),
        ("", "--cut engine", "leave out --cut engine"),
        ('[price]\nmode = "token-budget"\ntarget = 50\n', "", "no [price] beside [chooser]"),
        ("[chooser.more]\n", "", "more: unknown"),
        ("token_price = 0\n", "", "token price 0: a chooser serves"),
        ("", "--token-price 2", "2: this policy serves"),
    ],
)
def test_what_a_chooser_cannot_have_is_refused_at_the_start(
    more: str, line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_chooser(tmp_path / "chooser", chooser_of("after_all"))
    top, sections = ("", more) if more.startswith("[") else (more, "")
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f'{top}[chooser]\nfolder = "chooser"\nmodels = ["embedded", "embedded"]\n{sections}'
    )
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--plan", str(plan), "--store", "none", *line.split()])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_another_number_of_models_is_refused() -> None:
    with pytest.raises(UserError, match=r"of 2 models \(thrifty, full\), not 3"):
        gateway(chooser_of("before"), ["embedded"] * 3)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_every_model(stream: bool) -> None:
    chooser = chooser_of("after_all")
    endless = [
        replace(one, policy=None, recorded={**one.recorded, "max_tokens": 400})
        for one in chooser.members
    ]
    first, second = toy(), toy()
    ended: list[Outcome] = []
    with serving(first) as one, serving(second) as two:
        made, opens = gateway(replace(chooser, members=tuple(endless)), [one, two])
        made.steering.append(Steering("told", after=ended.append))
        with serving_gateway(made, opens) as root:
            before = first.generated, second.generated
            body = {"model": "toy", "messages": [{"role": "user", "content": LONG}]}
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{root}/v1/chat/completions", json={**body, "stream": stream},
                           timeout=0.3)  # fmt: skip
            time.sleep(0.5)
            after = first.generated, second.generated
            time.sleep(0.3)
            assert (first.generated, second.generated) == after
    assert [one.ended for one in ended] == ["left"]
    assert all(now - then < 270 for now, then in zip(after, before, strict=True))
