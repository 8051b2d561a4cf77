"""The gateway before an engine that cuts by itself, and before one whose plans are others."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import torch
from gateways import StopsAt, gateway_of, serving_gateway

from rlbudget.errors import UserError
from rlbudget.integrations.engine_settings import settings_for
from rlbudget.models import load_model
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.serve.store.part import noting, store_part
from rlbudget.serve.store.reading import read_entries
from rlbudget.serve.store.store import opened
from rlbudget.serve.upstream import look_at
from rlbudget.tasks import load_task
from runs.integrations.toy_server import Toy, serving

torch.set_num_threads(1)

STOP = 56


@pytest.fixture(scope="module")
def model() -> TransformersModel:
    return load_model("embedded")


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return [q.question for q in load_task("embedded", n=10, seed=3).questions]


@pytest.fixture(scope="module")
def toy(model: TransformersModel) -> Iterator[tuple[Toy, str]]:
    plans = {"default": StopsAt(STOP), "never": StopsAt(10**6)}
    server = Toy(model, processor=settings_for(plans, "embedded"))
    with serving(server) as url:
        yield server, url


@pytest.fixture(scope="module")
def roots(toy: tuple[Toy, str]) -> Iterator[dict[str, str]]:
    """Gateways before the same server, by where they cut."""
    here, there = (gateway_of(StopsAt(STOP), never=StopsAt(10**6)) for _ in range(2))
    looked = partial(look_at, toy[1], tokenizer="embedded")
    with (
        serving_gateway(here, partial(looked, here.settings, cut="here")) as one,
        serving_gateway(there, partial(looked, there.settings)) as other,
    ):
        yield {"here": one, "engine": other}


def chat(root: str, question: str, **more: Any) -> httpx.Response:
    body = {"model": "toy", "messages": [{"role": "user", "content": question}],
            "temperature": 0.0, **more}  # fmt: skip
    return httpx.post(f"{root}/v1/chat/completions", json=body, timeout=60)


def without_id(ours: dict[str, Any]) -> dict[str, Any]:
    return {n: v for n, v in ours.items() if n not in ("request_id", "stop_probability")}


def test_both_ways_of_cutting_give_the_same_answers_and_say_the_same(
    roots: dict[str, str], questions: list[str]
) -> None:
    reasons = []
    for question in questions[:6]:
        for more in ({}, {"rlbudget": {"policy": "never"}}, {"thinking_budget": 12},
                     {"thinking_budget": 0}):  # fmt: skip
            here, there = (chat(roots[way], question, **more).json() for way in ("here", "engine"))
            assert there["choices"] == here["choices"]
            assert there["usage"] == here["usage"]
            mine, its = without_id(here["rlbudget"]), without_id(there["rlbudget"])
            if mine["reason"] == "natural" and mine["thinking_tokens"] % 8 == 0:
                mine |= {"reason": "policy", "stopped": True}  # no token tells the two apart
                del mine["estimated_saved_tokens"]  # those of a stop are not known here
            assert its == mine
            reasons.append(its["reason"])
    assert {"policy", "natural", "max_tokens"} <= set(reasons)


def test_no_log_probabilities_travel_where_the_engine_cuts(
    toy: tuple[Toy, str], roots: dict[str, str], questions: list[str]
) -> None:
    toy[0].requests.clear()
    chat(roots["engine"], questions[0], rlbudget={"token_price": 0.002}, vllm_xargs={"own": 1})
    asked = toy[0].requests
    assert len(asked) == 1
    assert "logprobs" not in asked[0]
    xargs = asked[0]["vllm_xargs"]
    assert (xargs["rlbudget_token_price"], xargs["own"]) == (0.002, 1)
    toy[0].requests.clear()
    chat(roots["here"], questions[0])
    assert {one["vllm_xargs"]["rlbudget_off"] for one in toy[0].requests} == {1}


def test_a_stream_is_that_of_the_whole_answer(roots: dict[str, str], questions: list[str]) -> None:
    for question in questions[:4]:
        whole = chat(roots["engine"], question).json()
        said = chat(roots["engine"], question, stream=True).text
        events = [orjson.loads(line[6:]) for line in said.split("\n\n")[:-2]]
        deltas = [event["choices"][0]["delta"] for event in events]
        for name in ("content", "reasoning_content"):
            shown = "".join(delta.get(name) or "" for delta in deltas)
            assert shown == whole["choices"][0]["message"][name]


def test_a_broken_stream_goes_on_in_the_engine(
    toy: tuple[Toy, str], roots: dict[str, str], questions: list[str]
) -> None:
    toy[0].cuts = [5]
    found = chat(roots["engine"], questions[0]).json()
    assert found["choices"][0]["message"]["content"]
    assert found["choices"][0]["finish_reason"] == "stop"


def test_an_engine_under_other_plans_is_left_alone_and_the_cut_made_here(
    toy: tuple[Toy, str], questions: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    gateway = gateway_of(StopsAt(STOP), other=StopsAt(24))
    opens = partial(look_at, toy[1], gateway.settings, tokenizer="embedded")
    with (
        caplog.at_level(logging.INFO, "rlbudget.serve"),
        serving_gateway(gateway, opens) as root,
    ):
        found = chat(root, questions[0]).json()
        assert found["rlbudget"]["thinking_tokens"] <= STOP
    assert "no policy 'other' here" in caplog.text
    assert "is cut here" in caplog.text


def test_an_engine_that_must_cut_and_cannot_ends_the_start_in_a_line(
    model: TransformersModel,
) -> None:
    settings = settings_for({"default": StopsAt(STOP)}, "embedded")

    async def look(url: str) -> None:
        async with look_at(url, settings, tokenizer="embedded", cut="engine"):
            pass

    import asyncio

    with (
        serving(Toy(model)) as url,
        pytest.raises(UserError, match="has no processor of rlbudget"),
    ):
        asyncio.run(look(url))


@pytest.mark.parametrize("way", ["here", "engine"])
def test_what_passes_through_is_cut_by_the_engine_only_where_it_may_be(
    toy: tuple[Toy, str], roots: dict[str, str], questions: list[str], way: str
) -> None:
    def xargs(**more: Any) -> dict[str, Any]:
        toy[0].requests.clear()
        body = {"model": "toy", "prompt": questions[0], "max_tokens": 200, **more}
        response = httpx.post(f"{roots[way]}/v1/completions", json=body, timeout=60)
        assert "x-rlbudget-passed-through" in response.headers
        found: dict[str, Any] = toy[0].requests[-1]["vllm_xargs"]
        return found

    assert xargs(rlbudget={"off": True}) == {"rlbudget_off": 1}
    assert xargs(max_tokens=4) == {"rlbudget_off": 1}
    told = xargs(stop=["x"], rlbudget={"token_price": 0.001})
    if way == "engine":
        assert told["rlbudget_token_price"] == 0.001
    else:
        assert told == {"rlbudget_off": 1}


def test_the_store_notes_what_the_engine_did(
    toy: tuple[Toy, str], questions: list[str], tmp_path: Path
) -> None:
    store = opened(str(tmp_path / "kept.sqlite3"), store_text=True)
    made = gateway_of(StopsAt(STOP), never=StopsAt(10**6))
    made.settings = noting(made.settings, store)
    made.steering.append(store_part(made, store))
    opens = partial(look_at, toy[1], made.settings, tokenizer="embedded", cut="engine")
    with serving_gateway(made, opens) as root:
        found = [chat(root, question).json() for question in questions[:4]]
    noted = read_entries(str(tmp_path / "kept.sqlite3")).decisions
    for question, one in zip(questions, found, strict=False):
        ours = one["rlbudget"]
        line = noted[ours["request_id"]]
        assert (line.stop.reason, line.stop.thinking_tokens) == (
            ours["reason"], ours["thinking_tokens"],
        )  # fmt: skip
        assert line.question == question
        assert line.answer == one["choices"][0]["message"]["content"].strip()
