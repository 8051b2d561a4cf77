"""The client against a real server of the embedded model on loopback."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import convert
from trace_makers import make_trace

from rlbudget.agents.freeze import freeze
from rlbudget.agents.training import train_on
from rlbudget.arrays import Float32s
from rlbudget.decoding.decode import Decoded, decode
from rlbudget.decoding.record import record
from rlbudget.errors import UserError
from rlbudget.integrations import openai
from rlbudget.integrations.openai import Server, ServerError, connect
from rlbudget.models import load_model
from rlbudget.models.logprobs import least_entropy, top_signals
from rlbudget.models.messages import Choice, listed_tokens
from rlbudget.models.sampling import token_signals
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.policy.dial import Dial
from rlbudget.policy.folder import Policy, make_policy, save_policy
from rlbudget.policy.network import Decision
from rlbudget.policy.observation import feature_names, observe
from rlbudget.policy.operating import choose_points
from rlbudget.signals.questions import context_signals
from rlbudget.signals.tokens import SIGNALS, TOP_SIGNALS
from rlbudget.tasks import load_task
from rlbudget.traces.store import TraceWriter, load_table
from rlbudget.traces.table import TraceTable
from runs.integrations.toy_server import Toy, serving

torch.set_num_threads(1)

PRICE = 1e-3
CAP = 240
N = 24
MANY = 120


@pytest.fixture(scope="module")
def model() -> TransformersModel:
    return load_model("embedded")


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return [q.question for q in load_task("embedded", n=MANY, seed=5).questions]


@pytest.fixture(scope="module")
def table(model: TransformersModel, tmp_path_factory: pytest.TempPathFactory) -> TraceTable:
    out = tmp_path_factory.mktemp("traces")
    task = load_task("embedded", n=16, seed=9)
    record(model, task, out, max_tokens=CAP, probe_tokens=0, temperature=0.0)
    return load_table(out)


def policy_on(table: TraceTable, signals: Sequence[str], seed: int = 0) -> Policy:
    """A random network that stops at one checkpoint in twenty."""
    features = feature_names(signals, "free")
    observations = observe(table, features)
    rng = np.random.default_rng(seed)
    n = len(features)
    tensors = {
        "obs_mean": observations.mean(axis=0),
        "obs_std": observations.std(axis=0) + 1e-2,
        "mlp_extractor.policy_net.0.weight": rng.normal(0, n**-0.5, (16, n + 1)),
        "mlp_extractor.policy_net.0.bias": np.zeros(16),
        "action_net.weight": rng.normal(0, 1, (2, 16)),
        "action_net.bias": np.zeros(2),
    }

    def made() -> Policy:
        return make_policy(
            {name: np.asarray(value, dtype=np.float32) for name, value in tensors.items()},
            features=features,
            preset="free",
            price_range=(1e-5, 1e-2),
        )

    chances = made().stop_probabilities(observations, PRICE)
    least = float(np.quantile(chances, 0.95))
    tensors["action_net.bias"] = np.array([np.log(least / (1 - least)), 0.0])
    return made()


@pytest.fixture(scope="module")
def policy(table: TraceTable) -> Policy:
    return policy_on(table, TOP_SIGNALS)


class Told:
    """A policy that does as it is told."""

    features = feature_names(TOP_SIGNALS, "free")
    price_range = (1e-5, 1e-2)

    def __init__(self, say: Callable[[float], Decision]) -> None:
        self.say = say

    def __call__(self, observation: Float32s, *, token_price: float) -> Decision:
        return self.say(float(observation[1]))


def goes_on(tokens: float) -> Decision:
    return Decision(False, 0.25)


def stops_at(checkpoint: int) -> Told:
    return Told(lambda tokens: Decision(tokens >= checkpoint, 0.5))


def breaks(tokens: float) -> Decision:
    raise RuntimeError("no such thing")


@pytest.fixture(scope="module")
def running(model: TransformersModel) -> Iterator[tuple[Any, str]]:
    toy = Toy(model)
    with serving(toy) as url:
        yield toy, url


@pytest.fixture
def toy(running: tuple[Any, str]) -> Iterator[Any]:
    """The server, as it is by default."""
    server, _ = running
    server.requests.clear()
    yield server
    fresh = type(server)(server.model)
    for name in ("ids", "logprobs", "key", "context", "cuts", "together"):
        setattr(server, name, getattr(fresh, name))


@pytest.fixture
def url(running: tuple[Any, str], toy: Any) -> str:
    return running[1]


def ask(
    url: str,
    model: TransformersModel,
    policy: Any,
    what: Callable[[Server], Awaitable[Any]],
    **settings: Any,
) -> Any:
    settings = {"profile": "embedded", "token_price": PRICE, "max_thinking_tokens": CAP} | settings

    async def run() -> Any:
        async with connect(url, policy, model.tokenizer, **settings) as server:
            return await what(server)

    return asyncio.run(run())


def answers(
    url: str, model: TransformersModel, policy: Any, asked: Sequence[str], **settings: Any
) -> list[Decoded]:
    """All questions at once."""

    async def all_of(server: Server) -> list[Decoded]:
        return await asyncio.gather(
            *(openai.decode(server, question, temperature=0.0) for question in asked)
        )

    found: list[Decoded] = ask(url, model, policy, all_of, **settings)
    return found


def live(model: TransformersModel, policy: Any, asked: Sequence[str]) -> list[Decoded]:
    return [
        decode(model, question, policy, token_price=PRICE, temperature=0.0, max_tokens=CAP)
        for question in asked
    ]


def same(found: Decoded, wanted: Decoded) -> bool:
    """Equal but for the last bits of the chance to stop."""
    if found.stop_probability is None or wanted.stop_probability is None:
        return found == wanted
    near = abs(found.stop_probability - wanted.stop_probability) < 1e-4
    return near and found == replace(wanted, stop_probability=found.stop_probability)


def check_equal(found: Sequence[Decoded], wanted: Sequence[Decoded]) -> None:
    assert [f for f, w in zip(found, wanted, strict=True) if not same(f, w)] == []
    reasons = {d.reason for d in wanted}
    assert {"policy", "natural"} <= reasons


def test_exits_and_answers_are_those_of_the_model_itself(
    url: str, model: TransformersModel, policy: Policy, questions: list[str]
) -> None:
    asked = questions[:10]  # of which the slow tests have more
    check_equal(answers(url, model, policy, asked), live(model, policy, asked))


@pytest.mark.slow
def test_so_they_are_by_text(
    url: str, toy: Any, model: TransformersModel, policy: Policy, questions: list[str]
) -> None:
    toy.ids = False
    asked = questions[:N]
    found, wanted = answers(url, model, policy, asked), live(model, policy, asked)
    assert all(isinstance(body["prompt"], str) for body in toy.requests[-N:])
    for mine, other in zip(found, wanted, strict=True):
        assert same(replace(mine, text=""), replace(other, text=""))


@pytest.mark.slow
def test_so_they_are_with_several_tokens_a_chunk(
    url: str, toy: Any, model: TransformersModel, policy: Policy, questions: list[str]
) -> None:
    wanted = live(model, policy, questions[:6])
    for ids in (True, False):
        toy.ids, toy.together = ids, 5
        found = answers(url, model, policy, questions[:6])
        assert [f.answer for f in found] == [w.answer for w in wanted]
        assert [f.thinking_tokens for f in found] == [w.thinking_tokens for w in wanted]
        # What came in one chunk with a stop was paid for.
        more = [f.total_tokens - w.total_tokens for f, w in zip(found, wanted, strict=True)]
        assert all(0 <= n < 5 for n in more)
        assert any(more)


@pytest.mark.slow
def test_so_they_are_on_many_questions(
    url: str, model: TransformersModel, table: TraceTable, questions: list[str]
) -> None:
    for seed in range(3):
        policy = policy_on(table, TOP_SIGNALS, seed)
        check_equal(answers(url, model, policy, questions), live(model, policy, questions))


def test_a_cut_connection_costs_no_answer(
    url: str, toy: Any, model: TransformersModel, policy: Policy, questions: list[str]
) -> None:
    for question in questions[:4]:
        toy.requests.clear()

        async def cut(server: Server, question: str = question) -> Decoded:
            toy.cuts = [10, 0, 3]
            return await openai.decode(server, question, temperature=0.0)

        found = ask(url, model, policy, cut, retries=3)
        assert same(found, live(model, policy, [question])[0])
        assert len(toy.requests) >= 1 + 3  # each cut costs a request
        # It goes on from what had arrived, never from the beginning.
        prompts = [len(request["prompt"]) for request in toy.requests]
        assert prompts == sorted(prompts)
        assert prompts[-1] > prompts[0]


def test_a_server_that_is_cut_for_good_is_given_up_in_one_line(
    url: str, toy: Any, model: TransformersModel, policy: Policy, questions: list[str]
) -> None:
    async def cut(server: Server) -> Decoded:
        toy.cuts = [2] * 50
        return await openai.decode(server, questions[0])

    with pytest.raises(ServerError, match=r"given up after 3 faults") as caught:
        ask(url, model, policy, cut, retries=2)
    assert "\n" not in str(caught.value)


def test_a_stop_closes_the_stream(
    url: str, toy: Any, model: TransformersModel, questions: list[str]
) -> None:
    before = toy.generated
    (found,) = answers(url, model, stops_at(16), questions[:1], max_thinking_tokens=400)
    assert found.stopped_at == 16
    assert found.reason == "policy"
    assert toy.generated - before < found.total_tokens + 30


def test_a_policy_that_breaks_down_is_counted_and_said_once(
    url: str, model: TransformersModel, questions: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    asked = questions[:3]
    with caplog.at_level(logging.WARNING, logger="rlbudget"):
        found = answers(url, model, Told(breaks), asked, max_thinking_tokens=400)
    wanted = [decode(model, q, Told(goes_on), token_price=PRICE, temperature=0.0) for q in asked]
    assert [f.answer for f in found] == [w.answer for w in wanted]
    assert [f.total_tokens for f in found] == [w.total_tokens for w in wanted]
    assert {f.reason for f in found} == {"policy_failed"}
    assert "no such thing" in str(found[0].message)
    assert len([r for r in caplog.records if r.name == "rlbudget"]) == 1


def test_room_for_an_answer_is_kept(
    url: str, toy: Any, model: TransformersModel, questions: list[str]
) -> None:
    async def short(server: Server) -> Decoded:
        return await openai.decode(server, questions[0], max_tokens=50, temperature=0.0)

    found = ask(url, model, Told(goes_on), short)
    assert found.reason == "max_tokens"
    assert found.thinking_tokens == 50 - 33
    assert 0 < found.total_tokens <= 50
    prompt = len(model.prompt_ids(questions[0]))
    toy.context = prompt + 50
    assert answers(url, model, Told(goes_on), questions[:1]) == [found]
    toy.context = prompt + 33
    with pytest.raises(UserError, match=r"leave 33 of the server's"):
        answers(url, model, Told(goes_on), questions[:1])


def test_a_cap_below_the_reserve_is_refused(
    url: str, model: TransformersModel, questions: list[str]
) -> None:
    async def none(server: Server) -> Decoded:
        return await openai.decode(server, questions[0], max_tokens=33)

    with pytest.raises(UserError, match="leaves no room to think"):
        ask(url, model, Told(goes_on), none)


def test_a_server_without_logprobs_is_refused(
    url: str, toy: Any, model: TransformersModel, questions: list[str]
) -> None:
    toy.logprobs = 0
    for ids in (True, False):
        toy.ids = ids
        with pytest.raises(UserError, match="streams no log-probabilities"):
            answers(url, model, Told(goes_on), questions[:1])


def test_what_a_policy_lacks_is_named_at_the_start(
    url: str, toy: Any, model: TransformersModel, table: TraceTable, policy: Policy
) -> None:
    every = policy_on(table, SIGNALS)
    with pytest.raises(UserError, match=r"needs .*p_end_max.*--signals top.*approximate=True"):
        answers(url, model, every, [])
    assert not toy.requests
    toy.logprobs = 5
    with pytest.raises(UserError, match="needs topk_mean, which the server's 5 top"):
        answers(url, model, policy, [])


def test_a_policy_that_looks_at_the_question_sees_the_one_that_is_asked(
    url: str, model: TransformersModel, questions: list[str]
) -> None:
    seen: list[float] = []

    def noted(words: float) -> Decision:
        seen.append(words)
        return Decision(stop=True, stop_probability=1.0)

    policy = Told(noted)
    policy.features = ("thinking_tokens", "question_words")
    (found,) = answers(url, model, policy, questions[:1])
    assert found.message is None
    assert seen == pytest.approx([context_signals(questions[0])["question_words"]])


def test_a_list_of_the_whole_vocabulary_gives_every_signal_exactly(
    toy: Any, url: str, model: TransformersModel, table: TraceTable, questions: Sequence[str]
) -> None:
    size = len(model.tokenizer)
    toy.logprobs = size
    every = policy_on(table, SIGNALS)
    found = answers(url, model, every, questions[:6], top_logprobs=size)
    assert all(map(same, found, live(model, every, questions[:6])))
    assert any(one.stopped for one in found)


def test_estimates_are_an_option(
    url: str, model: TransformersModel, table: TraceTable, questions: list[str]
) -> None:
    every = policy_on(table, SIGNALS, seed=1)
    found = answers(url, model, every, questions[:6], approximate=True)
    assert {d.reason for d in found} <= {"policy", "natural", "max_tokens"}
    assert all(d.message is None for d in found)


def test_the_key_is_sent_and_never_shown(
    url: str, toy: Any, model: TransformersModel, questions: list[str]
) -> None:
    toy.key = "sk-secret"
    (found,) = answers(url, model, stops_at(8), questions[:1], key="sk-secret")
    assert found.stopped_at == 8

    async def shown(server: Server) -> str:
        toy.key = "sk-other"
        with pytest.raises(UserError) as caught:
            await openai.decode(server, questions[0])
        return repr(server) + str(server) + str(caught.value)

    assert "sk-secret" not in ask(url, model, stops_at(8), shown, key="sk-secret")
    with pytest.raises(UserError, match="does not accept the key"):
        answers(url, model, stops_at(8), questions[:1], key="sk-wrong")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fields": {"stop": ["x"]}}, "fields: stop cannot be set"),
        ({"retries": -1}, "retries must be at least 0"),
        ({"token_price": 1.0}, "this policy serves prices"),
        ({"profile": None}, "name an exit profile"),
        ({"max_thinking_tokens": 0}, "max_thinking_tokens must be at least 1"),
        ({"key": "sk-1\n"}, "the key holds a character"),
    ],
)
def test_wrong_settings_are_named(
    url: str, model: TransformersModel, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        answers(url, model, Told(goes_on), [], **settings)


def test_a_wrong_address_is_named(model: TransformersModel) -> None:
    with pytest.raises(ServerError, match=r"cannot reach http://127.0.0.1:9/v1"):
        answers("http://user:pass@127.0.0.1:9/v1", model, Told(goes_on), [])
    with pytest.raises(UserError, match="must look like"):
        answers("127.0.0.1", model, Told(goes_on), [])


def test_one_question_needs_no_asyncio(
    url: str, model: TransformersModel, questions: list[str]
) -> None:
    found = openai.decode_once(
        url, questions[0], stops_at(8), "embedded", profile="embedded", token_price=PRICE,
        temperature=0.0,
    )  # fmt: skip
    assert same(found, live(model, stops_at(8), questions[:1])[0])


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; import rlbudget.integrations.openai; "
        "sys.exit({'torch', 'transformers', 'openai'} & set(sys.modules) != set())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_exact_signals_are_those_of_the_logits() -> None:
    torch.manual_seed(0)
    logits = 4 * torch.randn(50, 200)
    tokens = torch.randint(0, 200, (50,))
    ends = torch.tensor([3, 7])
    wanted = token_signals(logits, tokens, ends).double().numpy()
    logprobs = logits.log_softmax(dim=-1)
    for row in range(50):
        best = logprobs[row].topk(20)
        top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        own = float(logprobs[row, tokens[row]])
        top.insert(0, (int(tokens[row]), own))  # as vLLM does
        if top[0] in top[1:]:
            top.pop(0)
        exact = top_signals(own, top, {3, 7}, approximate=False)
        assert exact[1] == exact[3] == exact[5] == 0
        np.testing.assert_allclose([exact[k] for k in (0, 2, 4)], wanted[row, [0, 2, 4]], 1e-5)
        estimated = top_signals(own, top, {3, 7}, approximate=True)
        assert estimated[1] <= wanted[row, 1] + 1e-5
        assert estimated[3] <= wanted[row, 3] + 1e-6
        if {3, 7} <= {token for token, _ in top}:
            np.testing.assert_allclose(estimated[3], wanted[row, 3], 1e-4)
            np.testing.assert_allclose(estimated[5], wanted[row, 5], 1e-4)


def test_the_least_entropy_is_reached() -> None:
    shares = np.array([0.5, 0.125, 0.125, 0.125, 0.125])
    entropy = float(-(shares * np.log(shares)).sum())
    assert least_entropy(np.log(shares[:2]).tolist()) == pytest.approx(entropy)
    assert least_entropy(np.log(shares).tolist()) == pytest.approx(entropy)


def test_both_ways_to_write_logprobs_are_read() -> None:
    content = [
        {"id": 5, "token": "a", "logprob": -0.5, "top_logprobs": [
            {"id": 5, "token": "a", "logprob": -0.5}, {"id": 6, "token": "b", "logprob": -1.5}]}
    ]  # fmt: skip
    lists = {
        "tokens": ["token_id:5"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"token_id:5": -0.5, "token_id:6": -1.5}],
    }
    (one,) = listed_tokens(convert({"text": "a", "logprobs": {"content": content}}, Choice))
    (other,) = listed_tokens(convert({"text": "a", "logprobs": lists}, Choice))
    assert (one.key, one.logprob, one.top) == (other.key, other.logprob, other.top)
    assert one.top == ((5, -0.5), (6, -1.5))


def test_the_documented_lines_run(
    url: str, policy: Policy, tmp_path: Path, table: TraceTable
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "openai.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    save_policy(tmp_path / "policy", policy)
    code = code.replace("http://127.0.0.1:8100/v1", url)
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=240, capture_output=True
    )
    assert len(ran.stdout.splitlines()) == 2


def test_a_policy_is_trained_on_the_signals_a_server_gives(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "traces") as writer:
        for i in range(40):
            writer.add(make_trace(i))
    train_on(tmp_path / "traces", tmp_path / "run", signals="top", total_timesteps=64)
    trained = freeze(tmp_path / "run", tmp_path / "policy")
    assert trained.features == feature_names(TOP_SIGNALS, "free")


def test_traces_without_such_signals_are_refused(tmp_path: Path) -> None:
    bare = [
        replace(trace, checkpoints=tuple(replace(c, signals={"x": 1.0}) for c in trace.checkpoints))
        for trace in map(make_trace, range(40))
    ]
    with TraceWriter(tmp_path / "traces") as writer:
        for trace in bare:
            writer.add(trace)
    with pytest.raises(UserError, match="hold none of the signals"):
        train_on(tmp_path / "traces", tmp_path / "none", signals="top")


@pytest.mark.parametrize("effort", ["none", "max"])
def test_an_effort_is_that_of_a_live_decode(
    url: str, model: TransformersModel, policy: Policy, questions: list[str], effort: str
) -> None:
    """At none it answers before the first thought; at max, which no price holds here, in full."""
    pointed = make_policy(
        policy.tensors, features=policy.features, preset="free", price_range=policy.price_range,
        operating_points=choose_points([], 1),
    )  # fmt: skip
    dial = Dial(effort=effort)

    async def one(server: Server) -> Decoded:
        return await openai.decode(server, questions[0], temperature=0.0, dial=dial)

    found = ask(url, model, pointed, one)
    wanted = decode(model, questions[0], pointed, dial=dial, temperature=0.0, max_tokens=CAP)
    assert found == wanted
    assert (found.thinking_tokens == 0) == (effort == "none")
    assert found.reason == ("max_tokens" if effort == "none" else "natural")
    assert found.answer
