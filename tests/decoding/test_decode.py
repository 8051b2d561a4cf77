from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from frozen_nets import policy_for
from tiny_model import save_tiny_model, tiny_task

from rlbudget.agents.clone import try_rules
from rlbudget.agents.rules.unprobed import FULL
from rlbudget.agents.tuned_rule import tuned_rule
from rlbudget.arrays import Float32s
from rlbudget.decoding.decode import decode
from rlbudget.decoding.record import record
from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.policy.folder import Policy, make_policy
from rlbudget.policy.network import Decision
from rlbudget.policy.observation import Preset, feature_names, preset_of
from rlbudget.policy.outcomes import charged_by, full_stops, outcome
from rlbudget.policy.replay import replay
from rlbudget.signals.tokens import PAID_SIGNALS
from rlbudget.tasks import load_task
from rlbudget.tasks.scorers import extracted
from rlbudget.traces.store import load_table, load_traces

torch.set_num_threads(1)

N = 60
CAP = 48
PRICE = 1e-3
PROBE = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TransformersModel:
    return load_model(str(save_tiny_model(tmp_path_factory.mktemp("model"))), profile="embedded")


@pytest.fixture(scope="module")
def traces(model: TransformersModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("traces")
    record(model, tiny_task(N), out, max_tokens=CAP, batch_size=30, probe_tokens=PROBE)
    return out


@pytest.fixture(scope="module")
def embedded() -> TransformersModel:
    return load_model("embedded")


@pytest.fixture(scope="module")
def embedded_traces(embedded: TransformersModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embedded")
    record(embedded, load_task("embedded", n=N), out, max_tokens=160, probe_tokens=PROBE)
    return out


@pytest.mark.parametrize("preset", ["free", "probe"])
def test_replay_equals_live(model: TransformersModel, traces: Path, preset: Preset) -> None:
    check_live(model, traces, policy_for(load_table(traces), preset), CAP)


def test_trial_answers_at_turns_of_thought_live_as_in_replay(
    embedded: TransformersModel, embedded_traces: Path
) -> None:
    table = load_table(embedded_traces)
    turned = np.nan_to_num(table.signals["hedges"]) > 0
    assert 0.05 < turned.mean() < 0.95
    policy = policy_for(table, "turns", seed=1)
    assert replay(policy, table, PRICE).outcome.probe.sum() <= table.probe_tokens[turned].sum()
    check_live(embedded, embedded_traces, policy, 160)


@pytest.mark.parametrize("name", ["deer", "dynasor", "entropy"])
def test_a_frozen_rule_decides_and_pays_live_as_the_rule_does(
    embedded: TransformersModel, embedded_traces: Path, name: str
) -> None:
    table, few = load_table(embedded_traces), 12
    some = [
        one
        for one in try_rules(table)
        if one.rule.name == name and 3 <= (one.stops[:few] >= 0).sum() <= few - 2
    ]
    chosen = some[len(some) // 2]
    tuned = tuned_rule(name, table, [chosen], [0.0])
    policy = make_policy(
        tuned.tensors, features=tuned.features, preset=preset_of(tuned.features),
        price_range=(PRICE, PRICE),
    )  # fmt: skip
    np.testing.assert_array_equal(replay(policy, table, PRICE).stops, chosen.stops)
    check_live(embedded, embedded_traces, policy, 160, first=few)


def test_a_frozen_rule_makes_no_trial_answer_at_a_price_at_which_it_never_stops(
    embedded: TransformersModel, embedded_traces: Path
) -> None:
    table = load_table(embedded_traces)
    chosen = next(one for one in try_rules(table) if one.rule.name == "confidence")
    full = replace(chosen, rule=FULL, parameters={}, stops=full_stops(table))
    tuned = tuned_rule("confidence", table, [full, chosen], [-1.0, 1.0])
    policy = make_policy(
        tuned.tensors, features=tuned.features, preset=preset_of(tuned.features),
        price_range=(PRICE, 4 * PRICE), stops_from=2 * PRICE,
    )  # fmt: skip
    longest = max(load_traces(embedded_traces), key=lambda trace: trace.final.thinking_tokens)
    for price, looks in ((PRICE, False), (4 * PRICE, True)):
        assert (replay(policy, table, price).outcome.probe.sum() > 0) == looks
        live = decode(embedded, longest.question, policy, token_price=price, probe_tokens=PROBE)
        assert (live.probe_tokens > 0) == looks
        assert live.message is None


def check_live(
    model: TransformersModel, traces: Path, policy: Policy, cap: int, first: int = N
) -> None:
    """Each of the first decodes ends where the replay of its trace does and costs as much."""
    table = load_table(traces)
    played = replay(policy, table, PRICE)
    stops, replayed = played.stops, played.outcome
    assert (replayed.probe > 0).any() == (policy.preset != "free")
    by_id = {trace.trace_id: trace for trace in load_traces(traces)}
    assert len(table) == N
    for i, trace_id in enumerate(table.trace_ids.tolist()[:first]):
        trace = by_id[trace_id]
        live = decode(
            model,
            trace.question,
            policy,
            token_price=PRICE,
            seed=trace.meta["row_seed"],
            max_tokens=cap,
            probe_tokens=PROBE,
            options=trace.meta.get("options", ()),
        )
        recorded = trace.checkpoints[stops[i]].exit if stops[i] >= 0 else trace.final
        assert live.stopped == (stops[i] >= 0)
        assert live.answer == extracted(recorded.answer)
        assert live.answer_tokens == recorded.answer_tokens
        assert live.thinking_tokens == replayed.thinking[i]
        assert live.probe_tokens == replayed.probe[i]
        assert live.total_tokens == replayed.tokens[i]
        if live.stopped:
            assert live.reason == "policy"
            assert live.stopped_at == live.thinking_tokens
            assert live.stop_probability is not None
            assert live.stop_probability > policy.threshold
        else:
            assert live.reason == ("natural" if trace.meta["natural"] else "max_tokens")
            assert live.stopped_at is None
        assert live.message is None
    assert first // 12 <= (stops[:first] >= 0).sum() <= first - first // 12


def test_what_a_policy_pays_for_is_seen_and_charged_live_as_in_replay(
    model: TransformersModel, tmp_path: Path
) -> None:
    choices = (("yes", "no"), ("2", "12", "1/2"), ())
    questions = tuple(
        replace(q, options=choices[i % 3], target=(*choices[i % 3], "2")[0])
        for i, q in enumerate(tiny_task(N).questions)
    )
    task = replace(tiny_task(N), questions=questions)
    record(model, task, tmp_path, max_tokens=CAP, batch_size=30, probe_tokens=PROBE)
    table = load_table(tmp_path)
    features = feature_names(table.signals, "probe", choices=True, exits=True)
    assert {feature.partition(".")[0] for feature in features} >= {*PAID_SIGNALS}
    policy = policy_for(table, "probe", features=features)
    played = replay(policy, table, PRICE)
    plain = outcome(table, played.stops, probes_charged="until_stop")
    looks = np.where(played.stops < 0, table.lengths, played.stops + 1)
    assert (played.outcome.probe >= plain.probe + looks).all()
    assert (played.outcome.probe > plain.probe + looks).sum() > N / 3
    check_live(model, tmp_path, policy, CAP)
    with pytest.raises(UserError, match="answer option"):
        decode(model, questions[0].question, policy, token_price=PRICE)


def test_what_is_paid_for_at_turns_of_thought_is_paid_there_alone(
    embedded: TransformersModel, embedded_traces: Path
) -> None:
    table = load_table(embedded_traces)
    policy = policy_for(
        table, "turns", seed=1, features=feature_names(table.signals, "turns", exits=True)
    )
    played = replay(policy, table, PRICE)
    bare = charged_by("turns", table, feature_names(table.signals, "turns"))
    without = outcome(table, played.stops, probes_charged=bare).probe
    looks = outcome(table, played.stops, probes_charged=np.asarray(bare) > 0)
    assert (played.outcome.probe >= without).all()
    assert (played.outcome.probe > without).sum() == (looks.probe > 0).sum() > 5
    check_live(embedded, embedded_traces, policy, 160)


@dataclass
class Broken:
    """A policy that stops working at a checkpoint."""

    features: tuple[str, ...]
    says: float | Exception
    price_range: tuple[float, float] = (1e-5, 1.0)
    good: int = 1

    def __call__(self, observation: Float32s, *, token_price: float) -> Decision:
        if self.good > 0:
            self.good -= 1
            return Decision(stop=False, stop_probability=0.25)
        if isinstance(self.says, Exception):
            raise self.says
        return Decision(stop=True, stop_probability=self.says)


@pytest.mark.parametrize("says", [RuntimeError("out of order"), float("nan")])
def test_a_failing_policy_never_costs_the_answer(
    model: TransformersModel, traces: Path, says: float | Exception
) -> None:
    trace = next(t for t in load_traces(traces) if len(t.checkpoints) >= 3)
    live = decode(
        model,
        trace.question,
        Broken(("thinking_tokens", "entropy_mean"), says),
        token_price=PRICE,
        seed=trace.meta["row_seed"],
        max_tokens=CAP,
    )
    assert live.reason == "policy_failed"
    assert live.message is not None
    assert ("out of order" if isinstance(says, Exception) else "nan") in live.message
    assert not live.stopped
    assert live.stop_probability == 0.25
    assert live.answer == extracted(trace.final.answer)
    assert live.thinking_tokens == trace.final.thinking_tokens
    assert live.answer_tokens == trace.final.answer_tokens


def test_the_text_of_a_stop_holds_the_thinking_the_exit_and_the_answer(
    model: TransformersModel, traces: Path
) -> None:
    trace = next(t for t in load_traces(traces) if t.checkpoints)
    policy = Broken(("thinking_tokens",), 1.0, good=0)
    live = decode(model, trace.question, policy, token_price=PRICE, seed=trace.meta["row_seed"])
    assert live.stopped_at == 8
    assert "</think>" in live.text
    # Untrained, the model also writes the end of thinking into its answers; they leave it out.
    assert live.answer in live.text.replace("</think>", "")
    assert live.answer == extracted(trace.checkpoints[0].exit.answer)


def test_a_price_outside_the_range_is_refused(model: TransformersModel) -> None:
    policy = Broken(("thinking_tokens",), 0.0)
    with pytest.raises(UserError, match="token price 2"):
        decode(model, "What is 1 + 1?", policy, token_price=2.0)
