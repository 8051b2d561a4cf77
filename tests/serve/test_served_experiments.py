"""Experiments on a gateway: arms that stick, ends that all gateways obey, one result."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from clients import until
from frozen_nets import random_policy
from gateways import StopsAt, serving_gateway
from stores import fresh, postgres

from rlbudget.cli.main import main
from rlbudget.errors import UserError
from rlbudget.integrations.engine_settings import settings_for
from rlbudget.models import load_model
from rlbudget.policy.folder import save_policy
from rlbudget.serve.experiments import kept
from rlbudget.serve.experiments.part import Experimenting
from rlbudget.serve.gateway import Gateway
from rlbudget.serve.store.opening import open_store
from rlbudget.serve.store.part import noting, store_part
from rlbudget.serve.store.reading import entries
from rlbudget.serve.store.store import Assignment, Store, opened
from rlbudget.serve.upstream import look_at
from rlbudget.strategies.experiments.design import Arm, Design
from rlbudget.strategies.feedback.log import LoggedRequest, Stop, now
from rlbudget.strategies.plan import LogSettings, Plan, load_plan
from rlbudget.tasks import load_task
from runs.integrations.toy_server import Toy, serving

torch.set_num_threads(1)

QUESTIONS = [one.question for one in load_task("embedded", n=10, seed=3).questions]
DESIGN = Design("e", (Arm("plan"), Arm("early", plan="early")), usual_tokens=50.0)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "store.sqlite3")
    return fresh(request.getfixturevalue("server"), f"t{uuid.uuid4().hex[:12]}")


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with serving(Toy(load_model("embedded"))) as url:
        yield url


@contextmanager
def gateway_at(upstream: str, where: str, declared: Design | None = None) -> Iterator[Any]:
    plans = {name: Plan({"policy": StopsAt(at)}, audit=LogSettings(None, 0.0))
             for name, at in (("default", 64), ("early", 16))}  # fmt: skip
    settings = settings_for(plans, "embedded")
    store = opened(where)
    settings = noting(settings, store)
    gateway = Gateway(settings)
    trying = Experimenting(gateway, store, declared=declared, every=0.05, judge_every=0.05)
    gateway.steering += [store_part(gateway, store), trying.part()]
    with serving_gateway(
        gateway, partial(look_at, upstream, settings, tokenizer="embedded")
    ) as root:
        yield root, store, trying


def ask(root: str, question: str, **more: Any) -> dict[str, Any]:
    body = {"model": "toy", "messages": [{"role": "user", "content": question}],
            "temperature": 0.0, **more}  # fmt: skip
    found: dict[str, Any] = httpx.post(f"{root}/v1/chat/completions", json=body, timeout=60).json()
    return dict(found["rlbudget"])


def test_two_gateways_of_a_store_draw_the_same_arms_and_obey_the_same_end(
    upstream: str, where: str
) -> None:
    with (
        gateway_at(upstream, where, DESIGN) as (first, store, _),
        gateway_at(upstream, where, DESIGN) as (second, _, trying),
    ):
        arms = [ask(first, question)["arm"] for question in QUESTIONS]
        assert set(arms) == {"plan", "early"}
        assert [ask(second, question)["arm"] for question in QUESTIONS] == arms
        told = [ask(second, question) for question in QUESTIONS]
        assert [one["policy"] for one in told] == [
            "early" if arm == "early" else "default" for arm in arms
        ]
        store.writer.flush()
        until(lambda: len(entries(store.engine).decisions) == 30)
        lines = entries(store.engine, experiment="e").decisions.values()
        assert [one.arm for one in lines][:10] == arms
        assert {one.propensity for one in lines} == {0.5}
        (result,) = kept.results(store.engine, kept.find(store.engine, "e"))
        assert result.requests == arms.count("early")
        kept.stop(store.engine, "e", "early", "by hand")
        until(lambda: trying.now is None)
        assert all("arm" not in ask(second, question) for question in QUESTIONS[:3])


def test_who_says_where_to_be_served_takes_no_part(upstream: str, tmp_path: Path) -> None:
    design = Design("e", DESIGN.arms, by="user", exclude=("team=ops",))
    with gateway_at(upstream, str(tmp_path / "s"), design) as (root, _, _):
        arms = {name: ask(root, QUESTIONS[0], user=name)["arm"] for name in "abcdefgh"}
        assert len(set(arms.values())) == 2
        for name, arm in arms.items():
            assert ask(root, QUESTIONS[1], rlbudget={"user": name})["arm"] == arm
        left_out: list[dict[str, Any]] = [
            {}, {"user": "a", "rlbudget": {"token_price": 1e-3}},
            {"user": "a", "rlbudget": {"metadata": {"team": "ops"}}},
            {"user": "a", "rlbudget": {"policy": "early"}},
            {"user": "a", "thinking_token_budget": 32},
        ]  # fmt: skip
        for more in left_out:
            assert "arm" not in ask(root, QUESTIONS[2], **more)


def noted(store: Store, arm: str, number: int, tokens: int) -> None:
    name = f"r{arm}{number}"
    store.assign(name, Assignment("e", arm, 0.5, f"u{arm}{number}"))
    store.decision(LoggedRequest(
        name, now(), "ab" * 32, None, None, 1e-3, False, Stop("policy", 16, 0.5, tokens, 0, 0)
    ))  # fmt: skip


def test_an_arm_that_costs_tokens_is_stopped_by_itself(upstream: str, where: str) -> None:
    design = Design("e", DESIGN.arms, most_tokens=200, usual_tokens=75.0)
    with gateway_at(upstream, where, design) as (root, store, trying):
        for number in range(150):
            noted(store, "plan", number, 50)
            noted(store, "early", number, 100)
        until(lambda: trying.now is None)
        found = kept.find(store.engine, "e")
        assert found.status == "stopped"
        assert found.arms["early"].why.startswith("costs tokens")
        assert "arm" not in ask(root, QUESTIONS[0])


def test_a_promoted_arm_is_served_to_all(upstream: str, tmp_path: Path) -> None:
    with gateway_at(upstream, str(tmp_path / "s"), DESIGN) as (root, store, trying):
        kept.promote(store.engine, "e", "early", "by hand")
        until(lambda: trying.now is not None and trying.now.status == "promoted")
        assert {ask(root, question)["arm"] for question in QUESTIONS} == {"early"}
        store.writer.flush()
        assert not entries(store.engine, experiment="e").decisions


def test_arms_that_cannot_be_served_change_nothing(upstream: str, tmp_path: Path) -> None:
    design = Design("e", (Arm("plan"), Arm("other", plan="elsewhere")))
    with gateway_at(upstream, str(tmp_path / "s"), design) as (root, _, trying):
        assert "needs a plan 'other'" in str(trying.fault)
        assert "arm" not in ask(root, QUESTIONS[0])


def test_an_experiment_runs_alone_and_under_one_name(where: str) -> None:
    engine = open_store(where)
    kept.start(engine, DESIGN)
    with pytest.raises(UserError, match="running"):
        kept.start(engine, DESIGN)
    with pytest.raises(UserError, match="running"):
        kept.start(engine, Design("f", DESIGN.arms))
    kept.begin(engine, DESIGN)
    with pytest.raises(UserError, match="another design"):
        kept.begin(engine, Design("e", (Arm("plan"), Arm("late"))))
    with pytest.raises(UserError, match="control"):
        kept.stop(engine, "e", "plan", "")
    with pytest.raises(UserError, match="no arm"):
        kept.stop(engine, "e", "nobody", "")
    with pytest.raises(UserError, match="no experiment x here"):
        kept.stop(engine, "x", None, "")
    kept.stop(engine, "e", None, "done")
    with pytest.raises(UserError, match="stopped"):
        kept.promote(engine, "e", "early", "")
    kept.begin(engine, DESIGN)
    assert kept.running(engine) is None
    kept.start(engine, Design("f", DESIGN.arms))
    engine.dispose()


def test_the_commands_start_show_promote_and_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "s.db")
    main(["experiment", "start", store, "--name", "dear", "--arm", "plan",
          "--arm", "dear:token_price=0.002,weight=0.5", "--margin", "0.01"])  # fmt: skip
    assert "control is plan" in capsys.readouterr().err
    main(["experiment", "status", store])
    shown = capsys.readouterr().out
    assert "dear: running" in shown
    assert "less plan" in shown
    main(["experiment", "status", store, "--json"])
    row = json.loads(capsys.readouterr().out)
    assert row["design"]["arms"][1]["token_price"] == 0.002
    assert row["results"][0]["verdict"] == "open"
    main(["experiment", "promote", store, "--arm", "dear"])
    assert "dear promoted" in capsys.readouterr().err
    main(["experiment", "stop", store])
    assert "stopped" in capsys.readouterr().err
    for words, said in (
        (["start", store], "--plan, or --arm"),
        (["start", store, "--arm", "a"], "2 to"),
        (["start", store, "--arm", "a", "--arm", "b:colour=red"], "arm 2: colour"),
        (["start", store, "--arm", "a", "--arm", "b:token_price"], "KEY=VALUE"),
        (["start", store, "--arm", "a", "--arm", "b", "--by", "moon"], "request"),
        (["status", str(tmp_path / "none")], "no such store"),
        (["stop", store, "--arm", "nobody"], "no arm"),
        (["status", store, "--name", "nobody"], "no experiment nobody"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["experiment", *words])
        assert end.value.code == 2
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1


def test_a_plan_declares_an_experiment_and_mistakes_have_a_line(tmp_path: Path) -> None:
    save_policy(tmp_path / "policy", random_policy())
    plan = tmp_path / "plan.toml"
    (tmp_path / "other.toml").write_text('policy = "policy"\n')
    good = ('policy = "policy"\n[experiment]\nname = "x"\nmargin = 0.01\narms = [\n'
            '  {name = "now"},\n  {name = "other", plan = "other.toml"},\n]\n')  # fmt: skip
    plan.write_text(good)
    design = load_plan(plan).experiment
    assert design is not None
    assert design.arms[1].plan == str(tmp_path / "other.toml")
    assert design.named().arms[1].plan == "other"
    for old, new, line in (
        ("margin = 0.01", "margin = 7", 4),
        ("margin = 0.01", "margen = 0.01", 4),
        ('name = "x"', 'name = "x y"', 3),
        ('name = "now"', 'name = "now", wieght = 2', 6),
        ("other.toml", "absent.toml", 7),
    ):
        plan.write_text(good.replace(old, new))
        with pytest.raises(UserError, match=rf"plan.toml:{line}: "):
            load_plan(plan)
