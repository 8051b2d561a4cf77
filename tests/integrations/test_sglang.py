"""The processor against SGLang's interface alone: stand-ins for its requests and its loop."""

from __future__ import annotations

import gc
import json
import logging
import pickletools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rlbudget.arrays import Float32s
from rlbudget.decoding.decode import decode
from rlbudget.integrations.engine_settings import PLAN, POLICY, settings_for
from rlbudget.integrations.sglang import ENGINE, Engine, StopProcessor, outcome
from rlbudget.models import load_model
from rlbudget.models.sequences import Sequences
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.policy.network import Decision
from rlbudget.policy.observation import feature_names
from rlbudget.signals.tokens import SIGNALS

torch.set_num_threads(1)

PRICE = 1e-3
CAP = 64
QUESTIONS = ("Solve for m: 4*m + 3 = 43", "Calculate 3 + 4 - 2 + 5.", "Solve for x: 2*x = 8")


class Told:
    """A policy that stops where it is told, on what it sees."""

    features = feature_names(SIGNALS, "free")
    price_range = (1e-5, 1e-2)
    recorded = {"profile": "embedded", "stride": 8, "max_tokens": CAP}  # noqa: RUF012

    def __init__(self, at: float) -> None:
        self.at = at
        self.seen: list[Float32s] = []

    def __call__(self, observation: Float32s, *, token_price: float) -> Decision:
        if self.at < 0:
            raise RuntimeError("no such thing")
        self.seen.append(observation)
        return Decision(bool(observation[1] >= self.at), 0.5)


def told(at: float) -> Told:
    """The engine's policy from here on."""
    policy = Told(at)
    ENGINE.settings = settings_for({"default": policy})
    return policy


@dataclass(eq=False)
class Req:
    """What the processor looks at of ``sglang.srt.managers.schedule_batch.Req``."""

    tokenizer: Any
    max_new_tokens: int = 200
    output_ids: list[int] = field(default_factory=list)
    inflight_middle_chunks: int = 0
    eos_token_ids: Any = None

    def __post_init__(self) -> None:
        self.sampling_params = SimpleNamespace(max_new_tokens=self.max_new_tokens)


def params_of(req: Req, **given: Any) -> dict[str, Any]:
    return {"token_price": PRICE, **given, "__req__": weakref.proxy(req)}


@pytest.fixture(scope="module")
def model() -> TransformersModel:
    return load_model("embedded")


@pytest.fixture(autouse=True)
def fresh_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (PLAN, POLICY):
        monkeypatch.delenv(name, raising=False)
    blank = Engine()
    for name in ("settings", "cores", "rows", "broken", "failures"):
        monkeypatch.setattr(ENGINE, name, getattr(blank, name))


@torch.inference_mode()
def run(
    model: TransformersModel,
    questions: Sequence[str],
    params: Sequence[dict[str, Any] | None],
    reqs: Sequence[Req],
    *,
    lag: bool = False,
) -> list[list[int]]:
    """A greedy engine in lockstep; a row ends with an end of sequence or its cap."""
    prompts = [model.prompt_ids(question) for question in questions]
    rows = Sequences.begin(model.network, prompts)
    ends = set(model.vocabulary.eos_ids.tolist())
    late: list[int] | None = None
    for _ in range(max(req.max_new_tokens for req in reqs)):
        busy = [not (req.output_ids and req.output_ids[-1] in ends) for req in reqs]
        asked = [given if here else None for given, here in zip(params, busy, strict=True)]
        logits = StopProcessor()(rows.logits.clone(), asked)
        tokens = logits.argmax(dim=-1).tolist()
        told = late if lag else tokens
        late = tokens
        for req, token, here in zip(reqs, told or (), busy, strict=False):
            if here:
                req.output_ids.append(token)
        if all(req.output_ids and req.output_ids[-1] in ends for req in reqs):
            break
        rows.feed(torch.tensor(tokens)[:, None])
    return [req.output_ids for req in reqs]


def answer(model: TransformersModel, ids: Sequence[int]) -> str:
    end = list(ids).index(int(model.vocabulary.end_id or -1))
    return model.vocabulary.text(ids[end + 1 :]).strip()


@pytest.mark.parametrize("at", [16, 1000])
def test_a_batch_stops_and_answers_as_the_model_itself(model: TransformersModel, at: int) -> None:
    mine = told(at)
    reqs = [Req(model.tokenizer) for _ in QUESTIONS]
    params = [params_of(req) for req in reqs]
    written = run(model, QUESTIONS, params, reqs)
    assert ENGINE.failures.count == 0
    other = Told(at)
    for question, ids, given in zip(QUESTIONS, written, params, strict=True):
        wanted = decode(model, question, other, token_price=PRICE, temperature=0.0, max_tokens=CAP)
        found = outcome(given)
        assert found is not None
        assert (answer(model, ids), found.thinking_tokens, found.reason) == (
            wanted.answer, wanted.thinking_tokens, wanted.reason,
        )  # fmt: skip
    mine_sorted = sorted(row.tolist() for row in mine.seen)
    np.testing.assert_allclose(mine_sorted, sorted(r.tolist() for r in other.seen), 1e-3, 1e-4)


def test_requests_without_parameters_are_left_alone(model: TransformersModel) -> None:
    told(8)
    logits = torch.randn(2, len(model.tokenizer))
    before = logits.clone()
    assert StopProcessor()(logits, [None, {"a": 1}]) is logits
    assert torch.equal(logits, before)
    assert torch.equal(StopProcessor()(logits, None), before)


def test_state_ends_with_the_request(model: TransformersModel) -> None:
    told(8)
    req = Req(model.tokenizer)
    params = params_of(req)
    StopProcessor()(torch.randn(1, len(model.tokenizer)), [params])
    assert outcome(params) is not None
    held = gc.get_referrers(params["__rlbudget__"])
    assert [h for h in held if isinstance(h, dict | list) and h is not params] == []


def test_the_parts_of_a_long_prompt_are_passed_over(model: TransformersModel) -> None:
    told(8)
    req = Req(model.tokenizer, inflight_middle_chunks=1)
    params = params_of(req)
    logits = torch.randn(1, len(model.tokenizer))
    before = logits.clone()
    assert torch.equal(StopProcessor()(logits, [params]), before)
    assert "__rlbudget__" not in params


def test_an_engine_that_runs_ahead_is_noticed(
    model: TransformersModel, caplog: pytest.LogCaptureFixture
) -> None:
    told(16)
    reqs = [Req(model.tokenizer, max_new_tokens=60)]
    params = [params_of(reqs[0])]
    with caplog.at_level(logging.WARNING, logger="rlbudget"):
        run(model, QUESTIONS[:1], params, reqs, lag=True)
    assert outcome(params[0]) is None
    assert ENGINE.failures.count == 1
    assert "--disable-overlap-schedule" in caplog.text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"token_price": 1.0}, "token_price 1: this policy serves"),
        ({"token_price": "x"}, "must be a number, not 'x'"),
        ({"off": 3}, "true or false"),
    ],
)
def test_no_mistake_of_a_request_reaches_the_engine(
    model: TransformersModel, given: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    told(8)
    req = Req(model.tokenizer)
    params = params_of(req, **given)
    logits = torch.randn(1, len(model.tokenizer))
    before = logits.clone()
    with caplog.at_level(logging.WARNING, logger="rlbudget"):
        assert torch.equal(StopProcessor()(logits, [params]), before)
    assert said in caplog.text


def test_a_missing_policy_and_speculation_are_named(
    model: TransformersModel, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    req = Req(model.tokenizer)
    params = params_of(req)
    logits = torch.randn(2, len(model.tokenizer))
    with caplog.at_level(logging.WARNING, logger="rlbudget"):
        StopProcessor()(logits, [params, params])
        assert "speculative decoding" in caplog.text
        ENGINE.failures.count = 0
        StopProcessor()(logits, [params, None])
        assert "set RLBUDGET_POLICY" in caplog.text


def test_a_policy_that_breaks_down_costs_nothing(model: TransformersModel) -> None:
    told(-1)
    reqs = [Req(model.tokenizer)]
    params = [params_of(reqs[0])]
    (ids,) = run(model, QUESTIONS[:1], params, reqs)
    found = outcome(params[0])
    assert found is not None
    assert found.message is not None
    assert ENGINE.failures.count == 1
    assert answer(model, ids)


def test_what_is_sent_is_a_name_and_no_code() -> None:
    data = bytes.fromhex(json.loads(StopProcessor.to_str())["callable"])
    names = [str(argument) for _, argument, _ in pickletools.genops(data) if argument]
    assert {"rlbudget.integrations.sglang", "StopProcessor"} <= set(names)
    assert not any("REDUCE" in code.name for code, _, _ in pickletools.genops(data))
