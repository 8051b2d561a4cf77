"""Every strategy of a plan works through the gateway as it does in a decode by our own client."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import torch
from gateways import StopsAt, gateway_of, serving_gateway

from rlbudget.decoding.decoded import Decoded
from rlbudget.errors import UserError
from rlbudget.integrations import openai
from rlbudget.models import load_model
from rlbudget.policy.cascade import ESCALATE, CascadeDecision
from rlbudget.serve.hooks import Outcome, Steering
from rlbudget.serve.pool import Pool
from rlbudget.serve.upstream import look_at
from rlbudget.strategies.correction.correct import Correction, Refiner
from rlbudget.strategies.feedback.entries import read_log
from rlbudget.strategies.impact import ImpactModel
from rlbudget.strategies.plan import LogSettings, Plan, load_plan
from rlbudget.tasks import load_task
from runs.integrations.toy_server import Toy, serving

torch.set_num_threads(1)

PLAN = Path("runs/models/embedded/plan.toml")
RULES = """
[[rule]]
name = "some are never cut"
metadata = { tier = "gold" }
then = "full"
[[rule]]
name = "a task is cut soon"
task = "quick"
max_tokens = 16
"""


@dataclass(frozen=True)
class Doubting:
    """A cascade that hands over from a count of thinking tokens on."""

    at: int = 24
    features: tuple[str, ...] = ("thinking_tokens", "logprob_mean")
    price_range: tuple[float, float] = (1e-4, 1e-2)
    ratio: float = 0.25
    config: dict[str, Any] = field(
        default_factory=lambda: {"trained": {"recorded": {
            "small": {}, "large": {"profile": "embedded", "temperature": 0.0}}}}
    )  # fmt: skip
    digest: str = "d"

    def __call__(self, observation: Any, *, token_price: float) -> CascadeDecision:
        return CascadeDecision(ESCALATE if observation[0] >= self.at else 0, (0.0, 0.0, 1.0))


def doubting(bias: float, **rest: Any) -> Correction:
    """Of the same doubt everywhere."""
    doubt = ImpactModel(("thinking_tokens",), np.zeros(1), np.ones(1), (np.zeros((1, 1)),),
                        (np.array([bias]),))  # fmt: skip
    return Correction(doubt, **({"threshold": 0.5, "budget": 16, "rounds": 1} | rest))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    model = load_model("embedded")
    with serving(Toy(model, logprobs=len(model.tokenizer))) as address:
        yield address


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return [q.question for q in load_task("embedded", n=5, seed=3).questions]


def chat(root: str, question: str, **more: Any) -> httpx.Response:
    body = {"model": "toy", "messages": [{"role": "user", "content": question}],
            "temperature": 0.0, **more}  # fmt: skip
    headers = more.pop("headers", None)
    body.pop("headers", None)
    return httpx.post(f"{root}/v1/chat/completions", json=body, headers=headers, timeout=120)


def own(url: str, plan: Plan, questions: list[str], **said: Any) -> list[Decoded]:
    """By our client, which decodes a plan as ``rlbudget decode`` does."""

    async def run() -> list[Decoded]:
        size = len(load_model("embedded").tokenizer)
        async with openai.connect(url, plan, "embedded", profile="embedded",
                                  top_logprobs=size) as server:  # fmt: skip
            return [await openai.decode(server, q, temperature=0.0, **said) for q in questions]

    return asyncio.run(run())


def gateway(url: str, plan: Plan, **more: Any) -> Any:
    made = gateway_of(plan, **more)
    size = len(load_model("embedded").tokenizer)
    return made, partial(look_at, url, made.settings, tokenizer="embedded", top_logprobs=size)


@pytest.mark.parametrize("kind", ["ensemble and correction", "guard", "audit"])
def test_a_plan_decodes_as_by_our_client(
    kind: str, url: str, questions: list[str], tmp_path: Path
) -> None:
    plan = load_plan(PLAN)
    if kind == "guard":
        features = plan.policy.features
        strict = ImpactModel(features, *(np.full(len(features), x) for x in (0.0, 1.0)),
                             (np.zeros((len(features), 1)),), (np.array([5.0]),))  # fmt: skip
        plan = replace(plan, correction=None, strategy=replace(plan.strategy, guard=strict))
    elif kind == "audit":
        plan = replace(plan, audit=LogSettings(tmp_path / "log", share=1.0))
    expected = own(url, replace(plan, audit=None) if kind == "audit" else plan, questions)
    made, opens = gateway(url, plan)
    with serving_gateway(made, opens) as root:
        found = [chat(root, question).json() for question in questions]
    for one, other in zip(found, expected, strict=True):
        ours = one["rlbudget"]
        if kind == "audit":  # it thinks on to its natural end, and the log has what it would do
            assert ours["audited"]
            continue
        assert one["choices"][0]["message"]["content"].strip() == other.answer
        assert (ours["reason"], ours["thinking_tokens"]) == (other.reason, other.thinking_tokens)
        assert one["usage"]["completion_tokens"] == other.own_tokens
    reasons = [one["rlbudget"]["reason"] for one in found]
    assert ("policy" in reasons) == (kind == "ensemble and correction")
    if kind == "audit":
        log = read_log(tmp_path / "log")
        assert len(log.audits) == len(questions)
        would = [log.decisions[one["rlbudget"]["request_id"]].stop.reason for one in found]
        assert "policy" in would


def test_rules_go_by_headers_and_metadata(url: str, questions: list[str], tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    plan = load_plan(PLAN)
    plan = replace(plan, correction=None, strategy=replace(plan.strategy, rules=rules))
    gold: list[dict[str, Any]] = [
        {"rlbudget": {"metadata": {"tier": "gold"}}},
        {"headers": {"x-rlbudget-metadata": '{"tier": "gold"}'}},
    ]
    quick: list[dict[str, Any]] = [
        {"rlbudget": {"task": "quick"}}, {"headers": {"x-rlbudget-task": "quick"}},
    ]  # fmt: skip
    made, opens = gateway(url, plan)
    with serving_gateway(made, opens) as root:
        for question in questions[:3]:
            for more in gold:
                assert chat(root, question, **more).json()["rlbudget"]["reason"] != "policy"
            for more in quick:
                assert chat(root, question, **more).json()["rlbudget"]["thinking_tokens"] <= 16


def test_a_cascade_hands_over_to_a_large_upstream(url: str, questions: list[str]) -> None:
    plan = Plan({}, cascade=Doubting(), large_model=url, second_tokenizer="embedded")  # type: ignore[arg-type]
    expected = own(url, Plan({"p": StopsAt(10**6)}), questions)
    ended: list[Outcome] = []
    made, opens = gateway(url, plan)
    made.steering.append(Steering("told", after=ended.append))
    with serving_gateway(made, opens) as root:
        for question, alone in zip(questions, expected, strict=True):
            found = chat(root, question).json()
            ours, message = found["rlbudget"], found["choices"][0]["message"]
            assert message["content"].strip() == alone.answer  # both are the same model
            if alone.thinking_tokens < 24:
                assert ours["reason"] == "natural"
                continue
            assert (ours["reason"], ours["thinking_tokens"]) == ("escalate", 24)
            assert ours["second"]["thinking_tokens"] == alone.thinking_tokens
            assert found["usage"]["completion_tokens"] == 24 + alone.own_tokens
            said = chat(root, question, stream=True).text.split("\n\n")[:-2]
            deltas = [orjson.loads(line[6:])["choices"][0]["delta"] for line in said]
            assert "".join(d.get("content") or "" for d in deltas) == message["content"]
        rendered = [{"role": "system", "content": "Be kind."},
                    {"role": "user", "content": questions[0]}]  # fmt: skip
        several = chat(root, "", messages=rendered)
        assert "single questions" in several.headers.get("x-rlbudget-passed-through", "")
    assert "escalate" in {one.reason for one in ended}


def test_a_second_model_refines_doubtful_exits(url: str, questions: list[str]) -> None:
    refiner = Refiner(1.0, {"profile": "embedded"})
    for bias, asked in ((5.0, True), (-5.0, False)):
        plan = Plan({"p": StopsAt(24)}, correction=doubting(bias, second=refiner),
                    second_model=url, second_tokenizer="embedded")  # fmt: skip
        made, opens = gateway(url, plan)
        with serving_gateway(made, opens) as root:
            stopped = [
                one for q in questions
                if (one := chat(root, q).json())["rlbudget"]["reason"] == "policy"
            ]  # fmt: skip
        assert stopped
        assert all(("second" in one["rlbudget"]) == asked for one in stopped)


def test_a_large_upstream_that_is_gone_costs_no_answer(questions: list[str], url: str) -> None:
    large = Toy(load_model("embedded"), logprobs=20)
    with serving(large) as there:
        plan = Plan({}, cascade=Doubting(), large_model=there, second_tokenizer="embedded")  # type: ignore[arg-type]
        made, opens = gateway(url, plan)
        with serving_gateway(made, partial(opens, retries=0)) as root:
            large.cuts = [0] * 50
            for question in questions[:2]:
                found = chat(root, question).json()
                assert found["choices"][0]["message"]["content"]
                assert found["rlbudget"]["reason"] in ("policy_failed", "natural")


@pytest.mark.parametrize("large", ["http://127.0.0.1:9/v1", "no-such-model-anywhere"])
def test_a_second_model_that_cannot_be_had_ends_the_start_in_a_line(
    large: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    plan = Plan({}, cascade=Doubting(), large_model=large, second_tokenizer="embedded")  # type: ignore[arg-type]
    _, opens = gateway(url, plan)

    async def look() -> None:
        async with opens(retries=0, timeout=2.0):
            pass

    with pytest.raises(Exception, match=r"127\.0\.0\.1:9|no-such-model") as caught:
        asyncio.run(look())
    assert type(caught.value).__name__ in ("UserError", "ServerError")
    assert "\n" not in str(caught.value)


@dataclass
class Weighed:
    """A backend of which nothing but the weight is asked."""

    weight: float
    model: str = "m"


def shares(picks: Callable[[], Any], n: int) -> list[float]:
    found = [picks().backend.weight for _ in range(n)]
    return [found.count(weight) for weight in sorted(set(found))]


def test_upstreams_share_requests_by_their_weights_in_turns() -> None:
    pool = Pool(Weighed(1.0))  # type: ignore[arg-type]
    pool.add(Weighed(3.0))  # type: ignore[arg-type]
    assert shares(pool.next, 40) == [10, 30]
    pool.members[1].until = float("inf")  # away for a while
    assert shares(pool.next, 20) == [20]
    pool.members[1].until = 0.0
    assert shares(pool.next, 40) == [10, 30]  # and nobody has to catch up
    for member in pool.members:
        member.running = 3
    assert pool.best() is pool.members[1]


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ('urls = ["a", "b"]\nweights = [1]', "one for each of urls"),
        ('urls = ["a"]\nweights = [0]', "numbers above 0"),
        ('urls = ["a"]\nweights = [true]', "numbers above 0"),
        ('cut = "there"', '"auto", "here" or "engine"'),
        ("keys = 3", "a text"),
    ],
)
def test_a_wrong_upstream_is_refused_by_its_line(tmp_path: Path, said: str, wrong: str) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(f'policy = "{PLAN.parent.resolve()}/policy_0"\n[upstream]\n{said}\n')
    with pytest.raises(UserError, match=re.escape(wrong)) as caught:
        load_plan(file)
    assert f"{file}:{3 + said.count(chr(10)) * ('weights' in said)}: " in str(caught.value)


def test_the_keys_file_of_a_plan_lies_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(
        f'policy = "{PLAN.parent.resolve()}/policy_0"\n[upstream]\nkeys = "keys.toml"\n'
        'urls = ["a", "b"]\nweights = [3, 1]\ncut = "here"\n'
    )
    upstream = load_plan(file).upstream
    assert upstream.keys == tmp_path / "keys.toml"
    assert (upstream.weights, upstream.cut) == ((3, 1), "here")
