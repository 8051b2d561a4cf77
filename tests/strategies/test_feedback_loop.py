"""From served requests back to traces: what is logged is what a replay of the harvest does."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen_nets import policy_for
from plan_files import plan_file
from tiny_model import save_tiny_model, tiny_questions, tiny_task
from trace_makers import make_trace

from rlbudget.arrays import Float32s
from rlbudget.cli.main import main
from rlbudget.decoding.decode import decode
from rlbudget.decoding.decoded import Decoded
from rlbudget.decoding.record import record, record_one
from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.policy.folder import Policy, save_policy
from rlbudget.policy.network import Decision
from rlbudget.policy.observation import Preset
from rlbudget.policy.replay import replay
from rlbudget.strategies.feedback.audit import Audit, StreamEvaluator, audited
from rlbudget.strategies.feedback.entries import Entries, read_log
from rlbudget.strategies.feedback.harvest import audit_of, full_tokens, harvest, scored_trace
from rlbudget.strategies.feedback.log import (
    AUDITS,
    DECISIONS,
    DecisionLog,
    Feedback,
    LoggedRequest,
    Stop,
    feedback,
)
from rlbudget.strategies.feedback.production import as_json, streams_of
from rlbudget.strategies.feedback.registry import Registry
from rlbudget.strategies.plan import LogSettings, Plan
from rlbudget.tasks.task import Task
from rlbudget.traces.columns import table_of
from rlbudget.traces.store import load_table, load_traces

torch.set_num_threads(1)

N = 24
CAP = 48
PRICE = 1e-3
PROBE = 3
PRESETS: tuple[Preset, ...] = ("free", "probe")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(model_folder: Path) -> TransformersModel:
    return load_model(str(model_folder), profile="embedded")


@pytest.fixture(scope="module")
def policies(
    model: TransformersModel, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Policy]:
    out = tmp_path_factory.mktemp("traces")
    record(model, tiny_task(40), out, max_tokens=CAP, probe_tokens=PROBE)
    table = load_table(out)
    return {preset: policy_for(table, preset) for preset in PRESETS}


@dataclass(frozen=True)
class Logged:
    decoded: Decoded
    served: LoggedRequest | None


def logged(
    model: TransformersModel, question: str, policy: Any, folder: Path, share: float,
    request_id: str, **settings: Any,
) -> Logged:  # fmt: skip
    """Decode under a plan that logs, and what its log says."""
    plan = Plan({"policy": policy}, audit=LogSettings(folder, share))
    decoded = decode(model, question, plan, token_price=PRICE, request_id=request_id, **settings)
    found = read_log(folder).decisions.get(request_id) if folder.is_dir() else None
    return Logged(replace(decoded, request_id=None), found)


def served_of(made: Logged) -> LoggedRequest:
    assert made.served is not None
    return made.served


def serve(
    model: TransformersModel, policy: Policy, log: DecisionLog, i: int, share: float = 1.0
) -> Logged:
    return logged(model, tiny_questions(N)[i], policy, log.folder, share, f"r{i}", seed=1000 + i,
                  max_tokens=CAP, probe_tokens=PROBE)  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "n"),
    [*((preset, 10) for preset in PRESETS),
     *(pytest.param(preset, N, marks=pytest.mark.slow) for preset in PRESETS)],
)  # fmt: skip
def test_an_audited_request_is_the_decode_and_its_stop_the_policys(
    model: TransformersModel, policies: dict[str, Policy], preset: Preset, n: int, tmp_path: Path
) -> None:
    policy, log = policies[preset], DecisionLog(tmp_path / "log")
    never = replace_threshold(policy)
    for i in range(n):
        made = serve(model, policy, log, i)
        settings = {"seed": 1000 + i, "max_tokens": CAP, "probe_tokens": PROBE}
        full = decode(model, tiny_questions(N)[i], never, token_price=PRICE, **settings)
        assert made.decoded.text == full.text
        assert made.decoded.answer == full.answer
        assert made.decoded.reason == full.reason
        live = decode(model, tiny_questions(N)[i], policy, token_price=PRICE, **settings)
        stop = served_of(made).stop
        assert stop.reason == live.reason
        assert stop.stopped_at == live.stopped_at
        assert stop.stop_probability == pytest.approx(live.stop_probability, abs=1e-5)
        assert stop.thinking_tokens == live.thinking_tokens
        assert stop.probe_tokens == live.probe_tokens
        assert stop.answer_tokens == live.answer_tokens
        feedback(log.folder, f"r{i}", target="2")
    # log -> traces -> replay: the stops, their cost and the recorded trace are those logged.
    assert harvest(read_log(log.folder), tmp_path / "traces").n == n
    table = load_table(tmp_path / "traces", context=True)
    played = replay(policy, table, PRICE)
    entries = read_log(log.folder)
    assert 0 < (played.stops >= 0).sum() < n
    assert (played.outcome.probe > 0).any() == (preset != "free")
    for k, trace in enumerate(load_traces(tmp_path / "traces")):
        served = entries.decisions[trace.trace_id]
        assert served.stop.tokens == played.outcome.tokens[k]
        assert served.stop.thinking_tokens == played.outcome.thinking[k]
        assert (served.stop.stopped_at is None) == (played.stops[k] < 0)
        outcome = entries.outcomes[trace.trace_id]
        audit = audit_of(trace, served, outcome)
        assert audit is not None
        assert audit.stopped_exact_match == played.outcome.exact_match[k]
        assert audit.full_exact_match == trace.final.exact_match
        assert audit.full_tokens == table.full_tokens[k]
        task = tiny_task(N)
        one = Task("tiny", task.questions[int(trace.trace_id[1:]) :][:1], task.score)
        seed = 1000 + int(trace.trace_id[1:])
        recorded = record_one(model, one, seed=seed, max_tokens=CAP, probe_tokens=PROBE).trace
        assert [c.exit.answer for c in trace.checkpoints] == [
            c.exit.answer for c in recorded.checkpoints
        ]
        assert trace.final == replace(recorded.final, exact_match=trace.final.exact_match)
        assert trace.meta["row_seed"] == trace.seed == seed


def replace_threshold(policy: Policy) -> Policy:
    from rlbudget.policy.folder import make_policy

    return make_policy(
        policy.tensors, features=policy.features, preset=policy.preset,
        price_range=policy.price_range, threshold=1.0,
    )  # fmt: skip


def test_who_is_not_audited_is_served_as_ever(
    model: TransformersModel, policies: dict[str, Policy], tmp_path: Path
) -> None:
    log = DecisionLog(tmp_path)
    for i in range(5):
        made = serve(model, policies["probe"], log, i, share=0.0)
        plain = decode(
            model, tiny_questions(N)[i], policies["probe"], token_price=PRICE, seed=1000 + i,
            max_tokens=CAP, probe_tokens=PROBE,
        )  # fmt: skip
        assert made.decoded == plain
        assert not served_of(made).audited
        assert served_of(made).stop.tokens == plain.total_tokens
    assert not (tmp_path / AUDITS).exists()
    assert len(read_log(tmp_path).decisions) == 5


def test_whether_a_request_is_audited_depends_on_its_id_alone(
    model: TransformersModel, policies: dict[str, Policy], tmp_path: Path
) -> None:
    def drawn(request_id: str, question: str, policy: Policy, seed: int) -> bool:
        made = logged(model, question, policy, tmp_path, 0.5, request_id, seed=seed, max_tokens=8)
        return made.decoded.audited

    easy = [drawn(f"r{i}", "1?", policies["free"], 0) for i in range(12)]
    hard = [drawn(f"r{i}", tiny_questions(N)[i], policies["probe"], i) for i in range(12)]
    assert easy == hard
    assert 0 < sum(easy) < 12


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_unwritable_log_costs_nothing(
    model: TransformersModel,
    policies: dict[str, Policy],
    tmp_path: Path,
    share: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("")
    broken, whole = DecisionLog(tmp_path / "file"), DecisionLog(tmp_path / "log")
    with caplog.at_level(logging.WARNING, logger="rlbudget"):
        for i in range(3):
            lost = serve(model, policies["free"], broken, i, share=share)
            kept = serve(model, policies["free"], whole, i, share=share)
            assert lost.decoded == kept.decoded
    assert len(caplog.records) == 3  # one a log, and each decode makes one


class Broken:
    """A policy that breaks down at its second checkpoint."""

    features = ("thinking_tokens", "entropy_mean")
    price_range = (1e-5, 1.0)
    asked = 0

    def __call__(self, observation: Float32s, *, token_price: float) -> Decision:
        self.asked += 1
        if self.asked > 1:
            raise RuntimeError("out of order")
        return Decision(stop=False, stop_probability=0.25)


def test_a_failing_policy_is_logged_and_costs_no_audit(
    model: TransformersModel, tmp_path: Path
) -> None:
    question = next(
        q for q in tiny_questions(N)
        if decode(model, q, Broken(), token_price=PRICE, max_tokens=CAP).reason == "policy_failed"
    )  # fmt: skip
    made = logged(model, question, Broken(), tmp_path, 1.0, "r", max_tokens=CAP)
    assert served_of(made).stop.reason == "policy_failed"
    assert served_of(made).stop.stop_probability == 0.25
    assert made.decoded.message == "the policy failed: out of order"
    assert len(read_log(tmp_path).audits) == 1


def test_a_verdict_decides_what_equals_the_judged_answer() -> None:
    trace = make_trace(2)  # exits say 0, 1, 2; the end says 2
    right = scored_trace(trace, Feedback("t2", "", right=True))
    assert right is not None
    assert right.target == "2"
    assert [c.exit.exact_match for c in right.checkpoints] == [0, 0, 1]
    assert scored_trace(trace, Feedback("t2", "", right=False)) is None
    same = replace(
        trace,
        checkpoints=tuple(
            replace(c, exit=replace(c.exit, answer="2.0")) for c in trace.checkpoints
        ),
    )
    wrong = scored_trace(same, Feedback("t2", "", right=False))
    assert wrong is not None
    assert {wrong.final.exact_match, *(c.exit.exact_match for c in wrong.checkpoints)} == {0}
    told = scored_trace(trace, Feedback("t2", "", target="1"))
    assert told is not None
    assert [c.exit.exact_match for c in told.checkpoints] == [0, 1, 0]
    assert told.final.exact_match == 0


def test_the_scorer_is_the_tasks() -> None:
    trace = replace(make_trace(2), task="math", final=replace(make_trace(2).final, answer="1/2"))
    told = scored_trace(trace, Feedback("t2", "", target=r"\frac{1}{2}"))
    assert told is not None
    assert told.final.exact_match == 1
    strict = replace(trace, meta={**trace.meta, "scorer": "text"})
    told = scored_trace(strict, Feedback("t2", "", target=r"\frac{1}{2}"))
    assert told is not None
    assert told.final.exact_match == 0


def test_the_way_by_commands(
    model_folder: Path,
    policies: dict[str, Policy],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    registry, log = tmp_path / "registry", tmp_path / "log"
    Registry(registry).promote(Registry(registry).add(policies["free"]))
    files = {
        share: plan_file(tmp_path / f"{share}.toml", policy=registry,
                         audit={"log": log, "share": share})
        for share in (0.0, 1.0)
    }  # fmt: skip
    base = ["decode", "--model", str(model_folder), "--profile", "embedded", "--max-tokens", "24",
            "--plan"]  # fmt: skip
    main([*base, str(files[1.0]), "--request-id", "a", "What is 1 + 1?"])
    assert "Request a, audited" in capsys.readouterr().err
    main([*base, str(files[0.0]), "What is 1 + 1?"])
    drawn = re.search(r"^Request ([0-9a-f]{32})$", capsys.readouterr().err, re.MULTILINE)
    assert drawn
    main([*base, str(files[1.0]), "--request-id", "b", "What is 1 + 2?"])
    main(["feedback", str(log), "--request-id", "a", "--target", "2"])
    main(["feedback", str(log), "--request-id", drawn.group(1), "--right"])
    main(["harvest", str(log), "--out", str(tmp_path / "traces")])
    assert "1 traces written" in capsys.readouterr().err
    (trace,) = load_traces(tmp_path / "traces")
    assert trace.trace_id == "a"
    with (log / DECISIONS).open("a") as torn:
        torn.write('{"version": 1, "requ')
    main(["stream", str(log)])
    said = capsys.readouterr()
    assert re.search(r"^\s+version 1$", said.out, re.MULTILINE)
    assert re.search(r"requests\s+3$", said.out, re.MULTILINE)
    assert re.search(r"with an outcome\s+1$", said.out, re.MULTILINE)
    assert "1 damaged lines" in said.err
    main(["stream", str(log), "--json"])
    row = json.loads(capsys.readouterr().out)
    assert row == as_json(streams_of(read_log(log))[0])
    assert (row["requests"], row["audited"], row["waiting"], row["report"]["audits"]) == (
        3,
        2,
        1,
        1,
    )
    main(["feedback", str(log), "--request-id", "b", "--target", "3"])
    main(["harvest", str(log), "--out", str(tmp_path / "traces"), "--resume"])
    assert [t.trace_id for t in load_traces(tmp_path / "traces")] == ["a", "b"]
    with pytest.raises(UserError, match="2 are known"):
        harvest(read_log(log), tmp_path / "more", without=[tmp_path / "traces"])


def test_an_audit_under_rules_logs_the_stop_under_the_rules(
    model_folder: Path, model: TransformersModel, policies: dict[str, Policy], tmp_path: Path
) -> None:
    never = replace_threshold(policies["free"])
    question = next(
        q for q in tiny_questions(N)
        if decode(model, q, never, token_price=PRICE, max_tokens=32).thinking_tokens == 32
    )  # fmt: skip
    save_policy(tmp_path / "policy", policies["probe"])
    rules, log = tmp_path / "rules.toml", tmp_path / "log"
    stops = {}
    for name, effect in (("cut", "max_tokens = 16"), ("full", 'then = "full"')):
        rules.write_text(f'[[rule]]\nname = "{name}"\n{effect}\n')
        for share in ("0", "1"):
            plan = plan_file(
                tmp_path / "plan.toml",
                policy="policy",
                rules={"file": rules.name},
                audit={"log": log, "share": 0.5},
            )
            # The digest of a plan is that of its file: only the rules differ here.
            request_id = next(
                f"{name}{i}" for i in range(99) if audited(f"{name}{i}", 0.5) == (share == "1")
            )
            main(["decode", "--model", str(model_folder), "--profile", "embedded", "--plan",
                  str(plan), "--request-id", request_id, "--max-tokens", "32",
                  question])  # fmt: skip
            stops[name + share] = read_log(log).decisions[request_id].stop
    assert stops["cut0"] == replace(stops["cut1"], stop_probability=stops["cut0"].stop_probability)
    assert stops["full0"] == stops["full1"]
    assert stops["cut0"].stopped_at in (8, 16)
    assert stops["full0"].stopped_at is None
    decisions = read_log(log).decisions
    assert len({served.strategy for served in decisions.values()}) == 2
    assert [s.policy.count("+ strategy") for s in streams_of(read_log(log))] == [1, 1, 0]


def test_a_loss_that_rises_is_an_alarm_of_its_policy() -> None:
    decisions, audits, outcomes = {}, {}, {}
    for i in range(160):
        name = f"r{i}"
        trace = replace(make_trace(2), trace_id=name)  # exits say 0, 1, 2; the end says 2
        stop = Stop("policy", 24 if i < 100 else 8, 0.9, 8, 0, 4)
        time = f"2026-01-01T00:{i // 60:02}:{i % 60:02}"
        decisions[name] = LoggedRequest(name, time, "ab" * 32, 1, None, 1e-3, True, stop)
        audits[name], outcomes[name] = trace, Feedback(name, "", target="2")
    other = replace(decisions["r0"], request_id="x", registry_version=2, audited=False)
    entries = Entries({**decisions, "x": other}, audits, outcomes, 0)
    first, second, everything = streams_of(entries, window=60)
    assert (first.policy, second.policy, everything.policy) == ("version 1", "version 2", "all")
    assert 100 < int(first.alarms[0].request_id[1:]) < 112
    assert first.changed == pytest.approx(60 / 160)
    assert first.report.loss == pytest.approx(60 / 160)
    assert first.report.recent_loss == 1.0
    assert first.report.saving == pytest.approx(1 - 12 / 36)
    assert (second.audited, second.report.audits, second.alarms) == (0, 0, ())
    assert everything.alarms == first.alarms
    assert json.loads(json.dumps(as_json(second), allow_nan=False))["report"]["loss"] is None


def test_mistakes_are_one_line(
    model_folder: Path,
    policies: dict[str, Policy],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_policy(tmp_path / "policy", policies["free"])
    base = ["decode", "--model", str(model_folder), "Why?"]
    plain = ["--policy", str(tmp_path / "policy")]
    whole, wrong = (
        ["--plan", str(plan_file(tmp_path / f"{share}.toml", policy="policy",
                                 audit={"log": "log", "share": share}))]
        for share in (0.5, 1.5)
    )  # fmt: skip
    for arguments, expected in (
        ([*base, *plain, "--request-id", "a"], "the plan has no [audit]"),
        ([*base, *wrong], "1.5.toml:4: share must lie in"),
        ([*base, *whole, "--request-id", " "], "blank"),
        ([*base, *plain, *whole], "decode takes one of"),
        (["stream", str(tmp_path)], "no decision log"),
        (["feedback", str(tmp_path), "--request-id", "x", "--right", "--wrong"], "one of"),
        (["harvest", str(tmp_path), "--out", str(tmp_path / "out")], "no decision log"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert expected in capsys.readouterr().err


def test_equal_policies_have_equal_digests(policies: dict[str, Policy], tmp_path: Path) -> None:
    from rlbudget.policy.folder import load_policy

    save_policy(tmp_path / "policy", policies["free"])
    assert load_policy(tmp_path / "policy").digest == policies["free"].digest
    assert len({policy.digest for policy in policies.values()}) == len(PRESETS)
    assert replace_threshold(policies["free"]).digest != policies["free"].digest


def test_the_stream_counts_what_the_audits_say(
    model: TransformersModel, policies: dict[str, Policy], tmp_path: Path
) -> None:
    log = DecisionLog(tmp_path)
    for i in range(N):
        serve(model, policies["free"], log, i, share=0.6)
        if i % 3:
            feedback(tmp_path, f"r{i}", right=bool(i % 2))
    entries = read_log(tmp_path)
    (stream,) = streams_of(entries)
    audits = {name: d for name, d in entries.decisions.items() if d.audited}
    assert set(audits) == set(entries.audits)
    assert stream.audited == len(audits)
    assert stream.audited == stream.waiting + stream.undecided + stream.report.audits
    told = [n for n in audits if n in entries.outcomes]
    decided = [
        a for n in told
        if (a := audit_of(entries.audits[n], audits[n], entries.outcomes[n])) is not None
    ]  # fmt: skip
    # Every audit whose outcome was told counts, and the savings of all.
    assert 0 < len(decided) == len(told) == stream.report.audits < len(audits) < N
    assert stream.report.open == sum(a.may_be_right for a in decided) > 0
    assert stream.report.loss == pytest.approx(np.mean([a.loss for a in decided]))
    spent = [audits[n].stop.tokens / full_tokens(entries.audits[n]) for n in audits]
    assert stream.report.measured == len(audits)
    assert table_of([entries.audits[n] for n in audits]).final_exact_match.sum() == 0
    assert stream.report.saving == pytest.approx(np.mean([max(1 - s, -1) for s in spent]))


def test_verdicts_alone_do_not_bias_the_loss() -> None:
    """The loss of a policy whose stops gain as often as they lose lies in the interval, and the
    point is never below what is true."""
    rng = np.random.default_rng(3)
    told, known = StreamEvaluator(), StreamEvaluator()
    true = 0.0
    for _ in range(2000):
        full, early = (int(rng.random() < chance) for chance in (0.6, 0.6))
        answers = ["right" if full else "a", "right" if early else "b"]
        known.add(Audit(full, early, 100, 50))
        # A user says of the full answer whether it is right.
        early_told = int(answers[1] == answers[0]) if full else 0
        told.add(Audit(full, early_told, 100, 50, may_be_right=not full))
        true += (full - early) / 2000
    assert known.report.loss == pytest.approx(true)
    assert told.report.loss_interval[0] <= true <= told.report.loss_interval[1]
    assert told.report.loss >= true
    assert told.report.open > 0 == known.report.open


def test_a_target_tells_more_than_a_verdict_that_comes_after_it(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path)
    log.audit(make_trace(2))
    for told in ({"right": False}, {"target": "1"}, {"right": True}, {"target": "2"}):
        feedback(tmp_path, "t2", **told)
    outcome = read_log(tmp_path).outcomes["t2"]
    assert (outcome.target, outcome.right) == ("2", None)
    feedback(tmp_path, "t2", right=False)
    assert read_log(tmp_path).outcomes["t2"].target == "2"


@pytest.mark.parametrize(
    "wrong",
    [
        {"request_id": ["r"]}, {"request_id": {}}, {"request_id": None}, {"target": 5},
        {"target": ["2"]}, {"target": "  "}, {"right": "yes"}, {"right": 1}, {"time": 3},
        {"target": None}, {"right": True},
    ],
)  # fmt: skip
def test_an_outcome_of_a_wrong_kind_is_counted(tmp_path: Path, wrong: dict[str, Any]) -> None:
    log = DecisionLog(tmp_path)
    log.audit(make_trace(2))
    feedback(tmp_path, "t2", target="2")
    row = {"version": 1, "request_id": "t3", "time": "now", "target": "2", "right": None, **wrong}
    with (tmp_path / "outcomes.jsonl").open("a") as lines:
        lines.write(json.dumps(row) + "\n")
    entries = read_log(tmp_path)
    assert list(entries.outcomes) == ["t2"]
    assert entries.damaged == 1


def test_a_policy_of_a_verified_task_is_harvested_by_the_scorer_for_all() -> None:
    """A served request lacks what the task's own verifier needs."""
    trace = replace(make_trace(0), meta={"scorer": "verifier"}, target="")
    given = trace.final.answer
    scored = scored_trace(trace, Feedback("t0", "", target=given))
    assert scored is not None
    assert scored.final.exact_match == 1
    assert scored.meta["scorer"] == "auto"
    assert scored_trace(trace, Feedback("t0", "", right=True)) is not None
