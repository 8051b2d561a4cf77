"""The plan: one file, read whole or refused by its line; engines refuse what they lack."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from frozen_nets import FREE, random_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_files import plan_file

from rlbudget.decoding.core import ENGINES, HF_GENERATE, HF_PROCESSOR, LOCAL, SGLANG, VLLM, refusals
from rlbudget.errors import UserError
from rlbudget.policy.dial import Dial
from rlbudget.policy.folder import save_policy
from rlbudget.policy.observation import feature_names
from rlbudget.policy.operating import Swept, choose_points
from rlbudget.signals.tokens import SIGNALS
from rlbudget.signals.turns import TURN_SIGNALS
from rlbudget.strategies.plan import KEYS, Plan, describe, load_plan, plan_of

PROBE = feature_names(SIGNALS, "probe")
RULE = '[[rule]]\nname = "gold"\nmetadata = { tier = "gold" }\nprice = 0.5\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    save_policy(tmp_path / "a", random_policy(FREE, seed=1))
    save_policy(tmp_path / "b", random_policy(FREE, seed=2))
    (tmp_path / "rules.toml").write_text(RULE)
    return tmp_path


def test_paths_are_relative_to_the_file_wherever_one_stands(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = plan_file(home / "plan.toml", policy="a", audit={"log": "logs/today", "share": 0.25})
    monkeypatch.chdir(os.sep)
    plan = load_plan(file)
    assert list(plan.policies) == ["a"]
    assert plan.audit is not None
    assert (plan.audit.log, plan.audit.share) == (home / "logs/today", 0.25)


def test_a_policy_alone_is_the_smallest_plan(home: Path) -> None:
    read = load_plan(plan_file(home / "plan.toml", policy="a"))
    assert read.plain
    assert read.compose() is None
    assert read.fingerprint == plan_of(random_policy(FREE, seed=1)).fingerprint


def test_a_plan_and_what_it_names_have_one_digest(home: Path) -> None:
    said: dict[str, Any] = {"policies": ["a", "b"], "combine": "mean",
                            "rules": {"file": "rules.toml"}}  # fmt: skip
    first = load_plan(plan_file(home / "plan.toml", **said)).digest
    assert load_plan(plan_file(home / "plan.toml", **said)).digest == first
    (home / "rules.toml").write_text(RULE.replace("0.5", "0.6"))
    assert load_plan(home / "plan.toml").digest != first


def test_an_effort_is_told_with_what_it_promises(home: Path) -> None:
    points = choose_points([Swept(1e-3, 0.004, 0.0, 0.25)], 1000)
    save_policy(home / "c", random_policy(FREE, operating_points=points))
    plan = load_plan(plan_file(home / "plan.toml", policy="c", effort="medium"))
    assert plan.spot().token_price == 1e-3
    text = "\n".join(describe(plan))
    assert "effort medium: may lose 1 point of exact match (not certified)" in text
    assert "on 1000 questions it lost 0.4 and saved 25%" in text
    composed = load_plan(plan_file(
        home / "over.toml", policies=["c", "a"], combine="mean", effort="medium",
        rules={"file": "rules.toml"},
    ))  # fmt: skip
    assert composed.spot().token_price == 1e-3
    at_once = describe(load_plan(plan_file(home / "none.toml", policy="a", effort="none")))
    assert "effort none: exits at once" in "\n".join(at_once)


WRONG: Mapping[str, tuple[str, str]] = {
    "unknown key": ('policy = "a"\nefort = "low"\n', ":2: efort: unknown"),
    "unknown section": ('policy = "a"\n[gaurd]\nfolder = "x"\n', ":2: gaurd: unknown"),
    "unknown key of a section": ('policy = "a"\n[audit]\nlogs = "x"\n', ":3: logs: unknown"),
    "a section that is a value": ('policy = "a"\naudit = "x"\n', ":2: audit is a section"),
    "a number as text": ('policy = "a"\ntoken_price = "1"\n', ":2: token_price must be a number"),
    "true for a number": ('policy = "a"\ntoken_price = true\n', "must be a number"),
    "a cap of none": ('policy = "a"\nmax_thinking_tokens = 0\n', ":2: max_thinking_tokens must"),
    "two prices": ('policy = "a"\ntoken_price = 1e-3\neffort = "low"\n', "say one of"),
    "half of the money": ('policy = "a"\nanswer_worth = 1.0\n', "go together"),
    "a negative price": ('policy = "a"\ntoken_price = -1.0\n', ":2: token price must be at least"),
    "no number": ('policy = "a"\ntoken_price = nan\n', ":2: token price must be at least"),
    "policy and policies": ('policy = "a"\npolicies = ["b"]\n', ":2: name policy or policies"),
    "a missing folder": ('\npolicy = "none"\n', ":2: "),
    "a share": ('policy = "a"\n[audit]\nlog = "l"\nshare = 2\n', ":4: share must lie in [0, 1]"),
    "a rule file": ('policy = "a"\n[rules]\nfile = "none.toml"\n', "none.toml"),
    "an effort without points": ('policy = "a"\neffort = "low"\n', ":2: this policy has no oper"),
    "an unknown effort": ('policy = "a"\neffort = "hard"\n', ":2: effort 'hard': it is one of"),
    "a loss without a certificate": ('policy = "a"\nmax_em_loss = 0.01\n', "rlbudget calibrate"),
    "a loss under an ensemble": (
        'policies = ["a", "b"]\ncombine = "mean"\nmax_em_loss = 0.5\n',
        ":3: a certificate covers",
    ),
    "an effort of a chooser": (
        'effort = "low"\n[chooser]\nfolder = "c"\nmodels = ["x", "y"]\n',
        ":1: a chooser has no op",
    ),
    "rules over a chooser": (
        '[chooser]\nfolder = "c"\nmodels = ["x", "y"]\n[rules]\nfile = "rules.toml"\n',
        ":4: nothing stands over a chooser's models: leave rules out",
    ),
    "rules over a cascade": (
        '[cascade]\nfolder = "c"\nlarge = "x"\n[rules]\nfile = "rules.toml"\n',
        ":4: nothing stands over a cascade: leave rules out",
    ),
    "loops as text": ('policy = "a"\nloops = "no"\n', ":2: loops must be true or false"),
    "an unknown key of the gateway": (
        'policy = "a"\n[upstream]\nurl = "x"\n',
        ":3: url: unknown",
    ),
    "an address that is none": ('policy = "a"\n[upstream]\nurls = [1]\n', ":3: urls: a list"),
    "no time": ('policy = "a"\n[upstream]\ntimeout = 0\n', ":3: timeout must be above 0"),
    "no toml": ('policy = "a\n', ":1: "),
    "deep": ("x = " + "[" * 5000, ":1: "),
    "empty": ("", ":1: name a policy"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line_with_the_place(home: Path, name: str) -> None:
    text, expected = WRONG[name]
    (home / "plan.toml").write_text(text)
    with pytest.raises(UserError) as refused:
        load_plan(home / "plan.toml")
    assert expected in str(refused.value)
    assert "plan.toml" in str(refused.value) or "none" in str(refused.value)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_values_of_a_wrong_kind_are_never_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    section = data.draw(st.sampled_from(sorted(KEYS)))
    key = data.draw(st.sampled_from(sorted(KEYS[section])))
    value = data.draw(st.sampled_from(["true", "-1", "1e400", "nan", '""', "[]", "[[1]]", "{}",
                                       "9" * 30, "1979-05-27", '"\\u0000"']))  # fmt: skip
    text = f"[{section}]\n{key} = {value}\n" if section else f"{key} = {value}\n"
    (folder / "plan.toml").write_text(text)
    with pytest.raises(UserError) as refused:
        load_plan(folder / "plan.toml")
    assert "\n" not in str(refused.value)


def test_an_engine_names_what_it_lacks(home: Path) -> None:
    from rlbudget.strategies.plan import LogSettings

    free, probe = random_policy(FREE), random_policy(PROBE, preset="probe")
    assert all(refusals(free, engine) == [] for engine in ENGINES.values())
    assert [bool(refusals(probe, e)) for e in (LOCAL, HF_GENERATE, HF_PROCESSOR, VLLM)] == [
        False, False, True, True,
    ]  # fmt: skip
    turns = random_policy((*FREE, "hedges", *TURN_SIGNALS), preset="turns")
    assert [bool(refusals(turns, e)) for e in (LOCAL, HF_GENERATE, HF_PROCESSOR, VLLM)] == [
        False, False, True, True,
    ]  # fmt: skip
    choosing = random_policy((*PROBE, "answer_entropy"), preset="probe")
    assert refusals(choosing, LOCAL) == []
    for engine in (HF_GENERATE, ENGINES["openai"], ENGINES["llama-server"]):
        assert "train without --choices" in refusals(choosing, engine)[0]
    assert "train without --choices" in refusals(choosing, LOCAL, options=False)[0]
    logged = Plan({"p": free}, audit=LogSettings(home / "log"))
    audited = Plan({"p": free}, audit=LogSettings(home / "log", share=0.1))
    assert refusals(logged, VLLM) == []
    assert "share = 0" in refusals(audited, VLLM)[0]
    assert "never sees a request end" in refusals(logged, SGLANG)[0]
    assert "chooser" in refusals(Plan({"p": free}, chooser=home), HF_GENERATE)[0]


def test_a_plan_is_told_in_words(home: Path) -> None:
    said = describe(load_plan(plan_file(
        home / "plan.toml", policies=["a", "b"], combine="mean", token_price=1e-3,
        max_thinking_tokens=77, answer_reserve=9, rules={"file": "rules.toml"},
        audit={"log": "log", "share": 0.02},
    )))  # fmt: skip
    text = "\n".join(said)
    for part in ("a, b decide by mean", "1 rule", "0.001", "77 tokens", "9 tokens", "2.0%"):
        assert part in text


def test_what_the_gateway_stands_before_may_stand_in_the_plan(home: Path) -> None:
    urls = ["http://a:1/v1", "http://b:2/v1"]
    said = plan_file(home / "plan.toml", policy="a", upstream={"urls": urls, "shadow": True})
    plan = load_plan(said)
    assert plan.upstream.urls == tuple(urls)
    assert plan.upstream.shadow


def test_money_is_a_price() -> None:
    # A right answer is worth 5 cents, a million tokens cost 2: a token costs 4e-5 answers.
    dial = Dial(answer_worth=0.05, price_per_million=2.0)
    assert dial.price(random_policy(FREE)) == pytest.approx(4e-5)
