"""A cascade live: as in replay on a recorded pair, and no fault costs the answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen_nets import policy_for, random_tensors
from tiny_model import save_tiny_model, tiny_task

from rlbudget.decoding.decode import decode, second_model
from rlbudget.decoding.decoded import Decoded
from rlbudget.decoding.record import record
from rlbudget.models import load_model
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.policy.cascade import Cascade, CascadeDecision, cascade_features, make_cascade
from rlbudget.policy.handover import served
from rlbudget.policy.observation import observe
from rlbudget.policy.replay_cascade import CascadeReplay, replay_cascade
from rlbudget.strategies.plan import Plan
from rlbudget.tasks import load_task
from rlbudget.tasks.scorers import extracted
from rlbudget.traces.pairs import Pair, load_pair, with_natural_end
from rlbudget.traces.store import load_traces
from rlbudget.traces.trace import Trace

torch.set_num_threads(1)

PRICE = 1e-3


@dataclass(frozen=True)
class Recorded:
    """One model at two temperatures on the same questions."""

    model: TransformersModel
    pair: Pair
    traces: dict[str, tuple[Trace, Trace]]
    settings: dict[str, dict[str, Any]]


def recorded(model: TransformersModel, task: Any, folder: Path, cap: int) -> Recorded:
    settings = {
        "small": {"temperature": 1.2, "max_tokens": cap, "stride": 8},
        "large": {"temperature": 0.7, "max_tokens": cap, "stride": 8},
    }
    for name, own in settings.items():
        record(model, task, folder / name, probe_tokens=0, batch_size=32, **own)
    small, large = ({t.question_id: t for t in load_traces(folder / name)} for name in settings)
    return Recorded(
        model,
        load_pair(folder / "small", folder / "large", ratio=0.25),
        {question: (small[question], large[question]) for question in small},
        settings,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("pair")
    model = load_model(str(save_tiny_model(folder / "model")), profile="embedded")
    return recorded(model, tiny_task(32), folder, 48)


def random_cascade(
    case: Recorded, seed: int = 0, bias: tuple[float, float, float] = (1.2, 0.0, 0.0)
) -> Cascade:
    """A network that nobody trained."""
    features = cascade_features(case.pair.small)
    seen = observe(with_natural_end(case.pair.small), features)
    tensors = random_tensors(len(features), seed, hidden=(16,), actions=3)
    tensors |= {"obs_mean": seen.mean(axis=0), "obs_std": seen.std(axis=0) + 1e-2}
    tensors["action_net.weight"] *= 4
    tensors["action_net.bias"] = np.array(bias, dtype=np.float32)
    return make_cascade(
        tensors, features=features, price_range=(1e-4, 1e-2), ratio=0.25, clip=5.0,
        trained={"recorded": case.settings},
    )  # fmt: skip


def through(
    case: Recorded, question: str, cascade: Any, *, seed: int, large_policy: Any = None
) -> Decoded:
    plan = Plan({}, cascade=cascade, large_model="large", large_policy=large_policy)
    return decode(case.model, question, plan, token_price=PRICE, seed=seed,
                  second=second_model(case.model, plan, seed=seed))  # fmt: skip


def ways_to_end(done: CascadeReplay, pair: Pair) -> list[int]:
    """How often the small model is left before and at its end, by a stop and by a handover."""
    ended = done.ends == pair.small.lengths
    return [
        int((escalated & there).sum())
        for escalated in (done.escalated, ~done.escalated)
        for there in (ended, ~ended)
    ]


def check_live_is_replay(case: Recorded) -> None:
    pair, policy = case.pair, policy_for(case.pair.large, "free", 1)
    large = served(policy, pair.large, PRICE)
    played = ((c, replay_cascade(c, pair, PRICE, large.outcome))
              for c in (random_cascade(case, seed) for seed in range(200)))  # fmt: skip
    cascade, done = next((c, d) for c, d in played if min(ways_to_end(d, pair)) >= 2)
    ended = done.ends == pair.small.lengths
    for i, question in enumerate(pair.question_ids.tolist()):
        small_trace, large_trace = case.traces[question]
        live = through(case, small_trace.question, cascade, large_policy=policy,
                       seed=small_trace.meta["row_seed"])  # fmt: skip
        assert live.message is None
        assert (live.reason == "escalate") == (live.second is not None) == done.escalated[i]
        assert live.total_tokens == pytest.approx(done.outcome.tokens[i], abs=1e-9)
        if live.second is not None:
            stop = int(large.stops[i])
            chosen = large_trace.final if stop < 0 else large_trace.checkpoints[stop].exit
        elif ended[i]:
            chosen = small_trace.final
            assert live.reason == ("natural" if small_trace.meta["natural"] else "max_tokens")
        else:
            chosen = small_trace.checkpoints[int(done.ends[i])].exit
            assert live.reason == "policy"
        assert live.answer == extracted(chosen.answer)


def test_live_is_replay(tiny: Recorded) -> None:
    check_live_is_replay(tiny)


@pytest.mark.slow
def test_live_is_replay_on_two_temperatures_of_the_embedded_model(tmp_path: Path) -> None:
    model = load_model("embedded")
    check_live_is_replay(recorded(model, load_task("embedded", n=60, seed=1), tmp_path, 512))


@dataclass(frozen=True)
class Broken:
    """A cascade that stops working at its second decision."""

    features: tuple[str, ...]
    says: float | Exception
    config: dict[str, Any]
    asked: list[float]
    price_range: tuple[float, float] = (1e-4, 1e-2)
    ratio: float = 0.25

    def __call__(self, observation: Any, *, token_price: float) -> CascadeDecision:
        self.asked.append(token_price)
        if len(self.asked) == 1:
            return CascadeDecision(0, (1.0, 0.0, 0.0))
        if isinstance(self.says, Exception):
            raise self.says
        return CascadeDecision(2, (self.says, 0.0, 0.0))


@pytest.mark.parametrize("says", [RuntimeError("out of order"), float("nan")])
def test_a_failing_cascade_never_costs_the_answer(tiny: Recorded, says: float | Exception) -> None:
    trace = next(s for s, _ in tiny.traces.values() if len(s.checkpoints) >= 3)
    features = cascade_features(tiny.pair.small)
    broken: Any = Broken(features, says, {"trained": {"recorded": tiny.settings}}, [])
    live = through(tiny, trace.question, broken, seed=trace.meta["row_seed"])
    assert len(broken.asked) == 2
    assert live.reason == "policy_failed"
    assert live.message is not None
    assert ("out of order" if isinstance(says, Exception) else "nan") in live.message
    assert live.second is None
    assert live.answer == extracted(trace.final.answer)
    assert live.thinking_tokens == trace.final.thinking_tokens
    assert live.answer_tokens == trace.final.answer_tokens


def test_a_large_model_that_fails_never_costs_the_answer(tiny: Recorded) -> None:
    small, _ = tiny.traces[next(iter(tiny.traces))]
    asks = random_cascade(tiny, bias=(-99.0, -99.0, 99.0))
    trained = {"recorded": {**tiny.settings, "large": {"max_tokens": 10**6}}}
    asks = make_cascade(asks.tensors, features=asks.features, price_range=asks.price_range,
                        ratio=asks.ratio, clip=5.0, trained=trained)  # fmt: skip
    live = through(tiny, small.question, asks, seed=small.meta["row_seed"])
    assert live.reason == "policy_failed"
    assert "do not fit into the model's context" in str(live.message)
    assert live.answer == extracted(small.final.answer)
    assert live.total_tokens == 0.25 * (small.final.thinking_tokens + small.final.answer_tokens)
