"""Ensemble, guard and rules put together: the order, live as in replay, files, mistakes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen_nets import FREE, policy_for, random_policy
from synthetic import make_table
from tiny_model import save_tiny_model, tiny_task
from trace_makers import traces_of

from rlbudget.decoding.decode import decode
from rlbudget.decoding.record import record
from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import NATURAL_END
from rlbudget.policy.replay import replay
from rlbudget.policy.sealed import seal
from rlbudget.policy.stop_policy import Full
from rlbudget.strategies.blend import SavedBlend, load_blend, policy_digest, save_blend
from rlbudget.strategies.compose import Composed, Strategy, compose, requests_of, stages
from rlbudget.strategies.ensemble import Blend, ensemble
from rlbudget.strategies.hybrid import RequestFacts
from rlbudget.strategies.impact import Guard, ImpactModel
from rlbudget.strategies.impact_file import save_impact
from rlbudget.strategies.steered import steered
from rlbudget.traces.store import load_table, load_traces
from rlbudget.traces.table import TraceTable

torch.set_num_threads(1)

PRICE = 1e-3
CAP = 48
TABLE = make_table(80, seed=3)
POLICIES = {name: policy_for(TABLE, "free", seed) for seed, name in enumerate(("a", "b", "c"))}
FEATURES = POLICIES["a"].features
RULES = """
[[rule]]
name = "even ones end early"
task = "even"
max_tokens = 16

[[rule]]
name = "ones think on"
question = "1"
min_tokens = 24
"""


def some_guard(table: TraceTable, seed: int = 0) -> ImpactModel:
    """Random weights on the normalised observation: it allows about half of the stops at 0.5."""
    seen = observe(table, FEATURES).astype(np.float64)
    weight = np.random.default_rng(seed).normal(0, 0.2, (seen.shape[1], 1))
    mean, std = seen.mean(axis=0), seen.std(axis=0) + 1e-3
    return ImpactModel(FEATURES, mean, std, (weight,), (np.zeros(1),))


GUARD = some_guard(TABLE)
BLEND = SavedBlend(Blend((0.7, -0.2, 0.4), 0.1, 0.2), (0.5, 1.0, 2.0),
                   tuple(map(policy_digest, POLICIES.values())))  # fmt: skip


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    (tmp_path / "rules.toml").write_text(RULES)
    return tmp_path / "rules.toml"


def live_stops(composed: Composed, table: TraceTable) -> list[int]:
    """Decision by decision, each trace as a request of its own."""
    seen, requests = observe(table, FEATURES), requests_of(traces_of(table))
    found = []
    for i, trace_id in enumerate(table.trace_ids.tolist()):
        served = composed.serve(requests[trace_id])
        rows = seen[table.offsets[i] : table.offsets[i + 1]]
        says = [served(row, token_price=PRICE).stop for row in rows]
        found.append(says.index(True) if any(says) else NATURAL_END)
    return found


@pytest.mark.parametrize("combine", ["mean", "vote", BLEND, None])
@pytest.mark.parametrize("guard", [GUARD, None])
def test_live_is_replay(combine: Any, guard: ImpactModel | None, rules: Path) -> None:
    for given in (None, rules):
        strategy = Strategy(combine, guard=guard, max_risk=0.5, rules=given)
        policies = POLICIES if combine else {"a": POLICIES["a"]}
        composed = compose(policies, strategy)
        done = composed.replay(TABLE, PRICE, requests_of(traces_of(TABLE)))
        assert (done.stops != NATURAL_END).any()
        assert live_stops(composed, TABLE) == done.stops.tolist()


def test_the_guard_stands_over_the_ensemble_and_the_rules_over_the_guard(rules: Path) -> None:
    seen, risk = observe(TABLE, FEATURES), GUARD.risk(observe(TABLE, FEATURES))
    bare = ensemble(list(POLICIES.values()))
    plain = bare.stop_probabilities(seen, PRICE)
    strategy = Strategy("mean", guard=GUARD, max_risk=0.5)
    guarded = compose(POLICIES, strategy).policy.stop_probabilities(seen, PRICE)
    np.testing.assert_array_equal(guarded, np.where(risk <= 0.5, plain, 0.0))
    # Where nothing may stop, the rules still do.
    shut = compose(POLICIES, replace(strategy, max_risk=0.0, rules=rules))
    done = shut.replay(TABLE, PRICE, requests_of(traces_of(TABLE)))
    even = np.arange(len(TABLE)) % 2 == 0
    stopped = done.stops != NATURAL_END
    assert stopped[even & (TABLE.lengths > 3)].all()
    assert not stopped[~even].any()


def test_one_policy_without_a_strategy_is_itself() -> None:
    alone = compose({"a": POLICIES["a"]}, Strategy())
    assert alone.name == "a"
    assert alone.policy is POLICIES["a"]
    np.testing.assert_array_equal(
        alone.replay(TABLE, PRICE).stops, replay(POLICIES["a"], TABLE, PRICE).stops
    )


def test_versions_of_one_policy_are_its_prices() -> None:
    seen = observe(TABLE, FEATURES)
    factors = (0.5, 1.0, 2.0)
    versions = compose({"a": POLICIES["a"]}, Strategy("mean", factors))
    each = [POLICIES["a"].stop_probabilities(seen, factor * PRICE) for factor in factors]
    together = versions.policy.stop_probabilities(seen, PRICE)
    np.testing.assert_allclose(together, np.mean(each, axis=0))


def test_rules_may_name_a_policy_which_is_guarded_too(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('[[rule]]\nname = "b"\ntask = "odd"\npolicy = "b"\n')
    two = {name: POLICIES[name] for name in "ab"}
    requests = requests_of(traces_of(TABLE))
    bare = compose(two, Strategy(rules=file)).replay(TABLE, PRICE, requests).stops
    a, b = (replay(POLICIES[name], TABLE, PRICE).stops for name in "ab")
    even = np.arange(len(TABLE)) % 2 == 0
    np.testing.assert_array_equal(bare, np.where(even, a, b))
    shut = compose(two, Strategy(guard=GUARD, max_risk=0.0, rules=file))
    assert (shut.replay(TABLE, PRICE, requests).stops == NATURAL_END).all()


def test_stages_add_one_part_at_a_time(rules: Path) -> None:
    whole = Strategy("vote", guard=GUARD, rules=rules)
    assert [s.name for s in stages(POLICIES, whole)] == ["vote", "vote+guard", "vote+guard+rules"]
    apart = stages(POLICIES, Strategy(guard=GUARD))
    assert [stage.name for stage in apart] == ["a+guard", "b+guard", "c+guard"]
    assert [s.name for s in stages(POLICIES, Strategy(rules=rules))] == [
        "a+rules", "b+rules", "c+rules",
    ]  # fmt: skip
    assert stages(POLICIES, Strategy()) == []


def test_a_guarded_decode_is_its_replay_and_knows_how_sure_its_exit_is(
    tmp_path: Path, rules: Path
) -> None:
    model = load_model(str(save_tiny_model(tmp_path / "model")), profile="embedded")
    record(model, tiny_task(36), tmp_path / "traces", max_tokens=CAP, batch_size=36)
    table, traces = load_table(tmp_path / "traces"), load_traces(tmp_path / "traces")
    by_id = {trace.trace_id: trace for trace in traces}
    policies = {name: policy_for(table, "free", seed) for seed, name in enumerate("ab")}
    guard = some_guard(table, seed=1)
    strategy = Strategy("mean", guard=guard, max_risk=0.7, rules=rules)
    composed = compose(policies, strategy)
    done = composed.replay(table, PRICE, requests_of(traces))
    risk = guard.risk(observe(table, FEATURES))
    stopped = 0
    for i, trace_id in enumerate(table.trace_ids.tolist()):
        trace = by_id[trace_id]
        served = composed.serve(RequestFacts(trace.question, trace.task, trace.meta))
        seed = trace.meta["row_seed"]
        live = decode(model, trace.question, served, token_price=PRICE, seed=seed, max_tokens=CAP)
        assert live.message is None
        assert live.thinking_tokens == done.outcome.thinking[i]
        assert live.total_tokens == done.outcome.tokens[i]
        if live.stopped:
            stopped += 1
            row = table.offsets[i] + done.stops[i]
            assert served.confidence == pytest.approx(1 - risk[row], abs=1e-4)
    assert 3 <= stopped <= len(table) - 3


def test_a_broken_guard_does_not_cost_the_answer(tmp_path: Path) -> None:
    model = load_model(str(save_tiny_model(tmp_path)), profile="embedded")
    policy = random_policy(preset="free")
    fewer = replace(GUARD, features=FEATURES[:-1], mean=GUARD.mean[:-1], std=GUARD.std[:-1])
    broken = steered(policy, Guard(policy, fewer, 0.5))
    served = Composed("broken", broken, fewer).serve(RequestFacts("Why?"))
    decoded = decode(model, "Why?", served, token_price=PRICE, max_tokens=CAP)
    assert decoded.reason == "policy_failed"
    assert not decoded.stopped
    whole = decode(model, "Why?", Full(), token_price=PRICE, max_tokens=CAP)
    assert decoded.answer == whole.answer
    assert decoded.total_tokens == whole.total_tokens


def test_the_guard_is_asked_once_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    risk = ImpactModel.alone

    def counted(model: ImpactModel, observation: Any) -> float:
        asked.append(1)
        return risk(model, observation)

    monkeypatch.setattr(ImpactModel, "alone", counted)
    served = compose({"a": POLICIES["a"]}, Strategy(guard=GUARD)).serve(RequestFacts("Why?"))
    for row in observe(TABLE, FEATURES)[:5]:
        served(row, token_price=PRICE)
    assert len(asked) == 5
    assert served.confidence is not None


def test_a_saved_blend_is_the_same_blend(tmp_path: Path) -> None:
    trained = {"digest": "ab", "split_seed": 3}
    saved = replace(BLEND, trained=trained)
    save_blend(tmp_path / "blend.json", saved)
    again = load_blend(tmp_path / "blend.json")
    assert again == saved
    members = list(POLICIES.values())
    expected = ensemble(members, combine=saved.blend, price_factors=saved.price_factors)
    assert again.of(members) == expected
    with pytest.raises(UserError, match="same order"):
        again.of(members[::-1])
    with pytest.raises(UserError, match="same order"):
        again.of(members[:2])


WRITTEN = {"format": "rlbudget-blend", "version": 1, "weights": [1], "price_weight": 0, "offset": 0,
           "price_factors": [1], "members": ["0" * 64], "trained": {}}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not JSON", "is not a blend"),
        ("[1]", "is not a blend"),
        ("{}", "another kind of file"),
        ('{"format": "rlbudget-blend", "version": 2}', "version 2"),
        ('{"format": "rlbudget-blend", "version": 1, "weights": [1]}', "was altered"),
        (seal({**WRITTEN, "members": []}).decode(), "one weight"),
        (seal({**WRITTEN, "offset": "0"}).decode(), "expected float, got str at .offset"),
        (seal({**WRITTEN, "more": 0}).decode(), "unknown field more"),
    ],
)  # fmt: skip
def test_what_is_no_blend_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "blend.json").write_text(content)
    with pytest.raises(UserError, match=said):
        load_blend(tmp_path / "blend.json")
    save_impact(tmp_path / "impact", GUARD)
    with pytest.raises(UserError, match="is not a blend"):
        load_blend(tmp_path / "impact")


Policies = dict[str, Policy]


@pytest.mark.parametrize(
    ("policies", "strategy", "said"),
    [
        ({}, Strategy(), "at least one policy"),
        (POLICIES, Strategy(), "say how to combine"),
        (POLICIES, Strategy(price_factors=(1.0,)), "price factors"),
        (POLICIES, Strategy(BLEND, (1.0, 1.0, 1.0)), "its own price factors"),
        (POLICIES, Strategy("mean", (1.0, 2.0)), "each member"),
        ({"mean": POLICIES["a"]}, Strategy("mean"), "called 'mean'"),
        ({"a": random_policy(FREE[:-1])}, Strategy(guard=GUARD), "another observation"),
        ({"a": POLICIES["a"]}, Strategy(guard=GUARD, max_risk=1.5), "max_risk"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    policies: Policies, strategy: Strategy, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        compose(policies, strategy)
