"""A gateway with a store: requests noted, feedback by signed ids, traces again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from frozen_nets import random_policy
from gateways import StopsAt, serving_gateway
from hypothesis import given
from hypothesis import strategies as st

from rlbudget.cli.main import main
from rlbudget.errors import UserError
from rlbudget.integrations.engine_settings import settings_for
from rlbudget.models import load_model
from rlbudget.policy.folder import save_policy
from rlbudget.serve.feedback import Signer, feedback_of
from rlbudget.serve.gateway import Gateway
from rlbudget.serve.store.part import keeps_texts, noting, store_part
from rlbudget.serve.store.reading import entries, last_lines
from rlbudget.serve.store.store import Store, opened
from rlbudget.serve.store.tables import SHADOWS
from rlbudget.serve.upstream import look_at
from rlbudget.strategies.feedback.entries import read_log
from rlbudget.strategies.plan import LogSettings, Plan, load_plan
from rlbudget.tasks import load_task
from rlbudget.traces.store import load_traces
from runs.integrations.toy_server import Toy, serving

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with serving(Toy(load_model("embedded"))) as url:
        yield url


@dataclass
class Served:
    root: str
    store: Store

    def chat(self, question: str, **more: Any) -> dict[str, Any]:
        body = {"model": "toy", "messages": [{"role": "user", "content": question}],
                "temperature": 0.0, **more}  # fmt: skip
        found: dict[str, Any] = httpx.post(
            f"{self.root}/v1/chat/completions", json=body, timeout=60
        ).json()
        return found

    def tell(self, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.root}/v1/feedback", json=body, timeout=60)


class Opened:
    """Gateways of plans, and their stores."""

    def __init__(self, upstream: str, folder: Path) -> None:
        self.upstream, self.folder = upstream, folder

    def serve(self, plan: Plan, **more: Any) -> Any:
        from contextlib import contextmanager

        @contextmanager
        def running() -> Iterator[Served]:
            settings = settings_for({"default": plan}, "embedded")
            store = opened(str(self.folder / "store.db"), store_text=keeps_texts(settings))
            settings = noting(settings, store)
            gateway = Gateway(settings, **more)
            gateway.steering.append(store_part(gateway, store))
            opens = partial(look_at, self.upstream, settings, tokenizer="embedded")
            with serving_gateway(gateway, opens) as root:
                yield Served(root, store)

        return running()


@pytest.fixture
def gateways(upstream: str, tmp_path: Path) -> Opened:
    return Opened(upstream, tmp_path)


QUESTIONS = load_task("embedded", n=8, seed=3).questions


def audited(share: float, **more: Any) -> Plan:
    return Plan({"policy": StopsAt(24)}, audit=LogSettings(None, share, **more))


def test_every_request_is_noted_and_its_feedback_becomes_a_trace(
    gateways: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with gateways.serve(audited(1.0)) as served:
        for number, one in enumerate(QUESTIONS):
            ours = served.chat(one.question, rlbudget={"request_id": f"r{number}"})["rlbudget"]
            assert ours["feedback_id"].startswith(f"r{number}.")
            told = served.tell(id=ours["feedback_id"], answer=one.target)
            assert told.json() == {"object": "rlbudget.feedback", "request_id": f"r{number}"}
        served.store.writer.flush()
        kept = entries(served.store.engine)
        assert list(kept.decisions) == list(kept.outcomes) == [f"r{n}" for n in range(8)]
        assert len(kept.audits) == 8
        metrics = httpx.get(f"{served.root}/metrics", timeout=60).text
        assert "rlbudget_store_rows_total 24.0" in metrics
        assert "rlbudget_store_lost_total 0.0" in metrics
    main(["store", "export", str(tmp_path / "store.db"), "--out", str(tmp_path / "traces")])
    traces = load_traces(tmp_path / "traces")
    assert {t.target for t in traces} == {q.target for q in QUESTIONS}
    capsys.readouterr()
    main(["stream", str(tmp_path / "store.db")])
    assert "8" in capsys.readouterr().out
    main(["store", "prune", str(tmp_path / "store.db"), "--days", "0"])
    assert "8 decisions" in capsys.readouterr().out


def test_a_plan_with_a_log_has_both(gateways: Opened, tmp_path: Path) -> None:
    plan = Plan({"policy": StopsAt(24)}, audit=LogSettings(tmp_path / "log", 0.5))
    with gateways.serve(plan) as served:
        for one in QUESTIONS[:4]:
            served.chat(one.question)
        served.store.writer.flush()
        assert entries(served.store.engine) == read_log(tmp_path / "log")


def test_verdicts_ratings_and_comments(gateways: Opened) -> None:
    with gateways.serve(audited(0.0)) as served:
        ids = [served.chat(q.question)["rlbudget"]["feedback_id"] for q in QUESTIONS[:3]]
        assert served.tell(id=ids[0], correct=False, rating=0.25).status_code == 200
        assert served.tell(id=ids[1], rating=1).status_code == 200
        told = served.tell(id=ids[2], comment="well said").json()
        assert "store_text" in told["not_kept"]["comment"]
        kept = entries(served.store.engine)
        names = [one.rpartition(".")[0] for one in ids]
        assert kept.ratings == {names[0]: 0.25, names[1]: 1.0}
        assert [kept.outcomes[name].right for name in names[:1]] == [False]
        assert names[1] not in kept.outcomes


def test_a_comment_is_kept_with_texts(gateways: Opened) -> None:
    with gateways.serve(audited(0.0, store_text=True)) as served:
        signed = served.chat(QUESTIONS[0].question)["rlbudget"]["feedback_id"]
        assert "not_kept" not in served.tell(id=signed, comment="well said", correct=True).json()
        (kept,) = entries(served.store.engine).outcomes.values()
        assert kept.comment == "well said"
        served.store.writer.flush()
        (decision,) = entries(served.store.engine).decisions.values()
        assert QUESTIONS[0].question in str(decision.question)


SIGNER = Signer(b"key")
GOOD = SIGNER.sign("r1")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "id"),
        ({"id": 3, "correct": True}, "id"),
        ({"id": "r1", "correct": True}, "no answer"),
        ({"id": "r2." + GOOD.partition(".")[2], "correct": True}, "no answer"),
        ({"id": GOOD[:-1], "correct": True}, "no answer"),
        ({"id": "é.ü", "correct": True}, "no answer"),
        ({"id": GOOD}, "say one of"),
        ({"id": GOOD, "correct": 1}, "correct"),
        ({"id": GOOD, "rating": 2}, "rating"),
        ({"id": GOOD, "rating": True}, "rating"),
        ({"id": GOOD, "rating": float("nan")}, "rating"),
        ({"id": GOOD, "answer": " "}, "answer"),
        ({"id": GOOD, "answer": ["7"]}, "answer"),
        ({"id": GOOD, "answer": "x" * 20_001}, "answer"),
        ({"id": GOOD, "answer": "7", "correct": True}, "needs no other"),
        ({"id": GOOD, "stars": 5}, "no field 'stars'"),
    ],
)
def test_what_is_no_feedback_is_one_line(body: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        feedback_of(body, SIGNER)
    assert "\n" not in str(caught.value)


@given(name=st.text(), other=st.text())
def test_an_id_is_that_of_one_request_alone(name: str, other: str) -> None:
    signed = SIGNER.sign(name)
    assert SIGNER.request_of(signed) == name
    if other != name:
        with pytest.raises(UserError):
            SIGNER.request_of(f"{other}.{signed.rpartition('.')[2]}")
    with pytest.raises(UserError):
        Signer(b"another").request_of(signed)


def test_feedback_over_http_that_is_none_is_an_error_of_openais_form(gateways: Opened) -> None:
    with gateways.serve(audited(0.0)) as served:
        for content in (b"", b"[]", b"{", b'{"id": "x"}'):
            told = httpx.post(f"{served.root}/v1/feedback", content=content)
            assert told.status_code == 400
            assert told.json()["error"]["message"]


def test_a_store_that_cannot_be_written_costs_no_answer(gateways: Opened) -> None:
    with gateways.serve(audited(0.0)) as served:
        served.store.writer.close()
        found = served.chat(QUESTIONS[0].question)
        assert found["choices"][0]["message"]["content"]
        assert served.tell(id=found["rlbudget"]["feedback_id"], correct=True).status_code == 503
        metrics = httpx.get(f"{served.root}/metrics", timeout=60).text
        assert "rlbudget_store_lost_total 2.0" in metrics


def test_what_shadow_found_is_noted_and_is_no_decision(gateways: Opened) -> None:
    with gateways.serve(audited(0.0), shadow=True) as served:
        for one in QUESTIONS:
            served.chat(one.question)
        served.store.writer.flush()
        found = last_lines(served.store.engine, SHADOWS, 20)
        assert len(found) == 8
        cuts = [row["shadow"] for row in found if row["shadow"] is not None]
        assert cuts
        assert all("same_answer" in cut and "answer" not in cut for cut in cuts)
        assert not entries(served.store.engine).decisions


def test_a_cut_of_a_verified_tasks_policy_is_judged_too(gateways: Opened) -> None:
    policy = StopsAt(24)
    policy.recorded = {"scorer": "verifier"}  # type: ignore[attr-defined]
    with gateways.serve(Plan({"policy": policy}), shadow=True) as served:
        told = [served.chat(one.question)["rlbudget"].get("shadow") for one in QUESTIONS]
    cuts = [one for one in told if one is not None]
    assert cuts
    assert all(isinstance(cut["same_answer"], bool) for cut in cuts)


def test_a_plan_names_its_store(tmp_path: Path) -> None:
    save_policy(tmp_path / "policy", random_policy())
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'policy = "policy"\n[audit]\nshare = 0.5\n[store]\nurl = "s.db"\nkeep_days = 9\n'
    )
    read = load_plan(plan)
    assert read.store.url == str(tmp_path / "s.db")
    assert read.store.keep_days == 9
    assert read.audit is not None
    with pytest.raises(UserError, match="names no log"):
        read.audit.opened()
    plan.write_text('policy = "policy"\n[store]\nkeep_days = 0\n')
    with pytest.raises(UserError, match=r"plan.toml:3: keep_days"):
        load_plan(plan)
    plan.write_text('policy = "policy"\n[store]\nfile = "x"\n')
    with pytest.raises(UserError, match=r"plan.toml:3: file: unknown"):
        load_plan(plan)
