"""The controller: the replay's decisions from a live stream, and no fault that costs an answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from frozen_nets import FREE, PRICES, random_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_table

from rlbudget.errors import UserError
from rlbudget.policy.controller import CONTINUE, Controller
from rlbudget.policy.folder import Policy
from rlbudget.policy.network import Decision
from rlbudget.policy.observation import feature_names, observe
from rlbudget.signals.tokens import SIGNALS, Window
from rlbudget.traces.columns import table_of
from rlbudget.traces.trace import Checkpoint, Exit, Final, Probe, Trace

PROBE = feature_names(SIGNALS, "probe")
NONE = (False, False, False)
PRICE = 1e-3


@dataclass(frozen=True)
class Says:
    """A policy that gives one answer to everything, or raises it."""

    answer: Any
    features: tuple[str, ...] = FREE
    price_range: tuple[float, float] = PRICES

    def __call__(self, observation: Any, *, token_price: float) -> Decision:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return Decision(stop=True, stop_probability=self.answer)


def tokens(n: int, seed: int = 0) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=6), rng.random(3) < 0.2) for _ in range(n)]


def recorded(stream: Sequence[tuple[Any, Any]], stride: int, probes: bool) -> Trace:
    """The trace a recorder would write of this stream of tokens."""
    window, checkpoints = Window(1), []
    for count, (values, flags) in enumerate(stream, start=1):
        window.push(values[None], flags[None])
        if count % stride == 0:
            signals = {name: float(value[0]) for name, value in window.read().items()}
            probe = probe_at(count) if probes else None
            checkpoints.append(Checkpoint(count, signals, Exit("1", 1, 3), probe))
    return Trace("t", "q", "task", "1?", "1", "m", 0, Final("1", 1, len(stream) + 1, 3),
                 tuple(checkpoints))  # fmt: skip


def probe_at(count: int) -> Probe:
    return Probe(answer=str(count // 3 % 4), confidence=(count % 7) / 7, tokens=2)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 60),
    stride=st.integers(1, 9),
    seed=st.integers(0, 10**6),
    probes=st.booleans(),
)
def test_pushed_tokens_checkpoints_and_the_replay_decide_alike_bit_for_bit(
    n: int, stride: int, seed: int, probes: bool
) -> None:
    policy = random_policy(PROBE if probes else FREE, preset="probe" if probes else "free")
    stream = tokens(n, seed)
    trace = recorded(stream, stride, probes)
    pushed, summed = (Controller(policy, token_price=PRICE, stride=s) for s in (stride, None))
    live = []
    for count, token in enumerate(stream, start=1):
        decision = pushed.push(*token, probe=lambda count=count: probe_at(count))  # type: ignore[misc]
        assert (decision is not None) == (count % stride == 0)
        live += [] if decision is None else [decision]
    again = [summed.at_checkpoint(c.signals, c.thinking_tokens, c.probe) for c in trace.checkpoints]
    assert pushed.failed is summed.failed is None
    assert live == again
    assert pushed.thinking_tokens == n
    if trace.checkpoints:
        observations = observe(table_of([trace]), policy.features)
        replay = policy.stop_probabilities(observations, PRICE)
        assert [d.stop_probability for d in live] == replay.tolist()
        assert [d.stop for d in live] == (replay > policy.threshold).tolist()


def test_it_decides_as_the_replay_of_recorded_traces_does() -> None:
    table = make_table(30)
    policy = random_policy(PROBE, preset="probe")
    replay = policy.stop_probabilities(observe(table, PROBE), PRICE)
    for i in range(len(table)):
        controller = Controller(policy, token_price=PRICE)
        for row in range(*table.offsets[i : i + 2]):
            decision = controller.at_checkpoint(
                {name: column[row] for name, column in table.signals.items()},
                int(table.thinking_tokens[row]),
                Probe(f"answer {table.probe_answer[row]}", table.probe_confidence[row], 1),
            )
            assert decision.stop_probability == replay[row]


def test_a_signal_left_out_keeps_its_last_value() -> None:
    policy = random_policy()
    first, second = (dict.fromkeys(SIGNALS, value) for value in (0.5, 0.7))
    said = []
    for later in ({**second, "entropy_mean": 0.5}, {k: v for k, v in second.items()
                                                     if k != "entropy_mean"}):  # fmt: skip
        controller = Controller(policy, token_price=PRICE)
        controller.at_checkpoint(first, 8)
        said.append(controller.at_checkpoint(later, 16))
        assert controller.failed is None
    assert said[0] == said[1]


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "rlbudget"]


@pytest.mark.parametrize("name", range(6))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_token_signal_that_is_no_number_switches_it_off_once_and_for_all(
    name: int, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    controller = Controller(Says(0.9), token_price=PRICE, stride=2)
    stream = tokens(20)
    assert [controller.push(*token) for token in stream[:2]] == [None, Decision(True, 0.9)]
    bad = np.zeros(6)
    bad[name] = value
    assert controller.push(bad, NONE) is None
    assert controller.failed is not None
    assert f"is {value}" in controller.failed
    assert [controller.push(*token) for token in stream[:7]] == [CONTINUE, None] * 3 + [CONTINUE]
    assert controller.at_checkpoint(dict.fromkeys(SIGNALS, 1.0), 99) == CONTINUE
    assert not CONTINUE.stop
    assert len(failures(caplog)) == 1
    assert controller.failed in failures(caplog)[0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (ValueError("observation: entropy_mean is nan"), "entropy_mean is nan"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (float("nan"), "stop_probability is nan"),
        (None, "must be real number"),
    ],
)
def test_a_policy_that_fails_never_costs_the_decode(
    answer: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    controller = Controller(Says(answer), token_price=PRICE, stride=4)
    decisions = [controller.push(*token) for token in tokens(40)]
    assert decisions == [None, None, None, CONTINUE] * 10
    assert controller.failed is not None
    assert said in controller.failed
    assert len(failures(caplog)) == 1


def test_an_interrupt_is_not_a_fault() -> None:
    controller = Controller(Says(KeyboardInterrupt()), token_price=PRICE)
    with pytest.raises(KeyboardInterrupt):
        controller.at_checkpoint(dict.fromkeys(SIGNALS, 1.0), 8)
    assert controller.failed is None


@pytest.mark.parametrize(
    ("signals", "said"),
    [
        ({"entropy_mean": np.nan}, "entropy_mean is nan"),
        ({"entropy_mean": None}, "must be real number"),
        ({"entropy_mean": "0.5"}, "must be real number"),
        ({"temperature": 1.0}, "no signal that the policy was trained on"),
        ({}, "no signal that the policy was trained on"),
        (None, "not iterable"),
    ],
)
def test_signals_that_make_no_sense_switch_it_off(signals: Any, said: str) -> None:
    controller = Controller(random_policy(), token_price=PRICE)
    assert controller.at_checkpoint(signals, 8) == CONTINUE
    assert controller.failed is not None
    assert said in controller.failed


def test_token_signals_of_another_shape_switch_it_off() -> None:
    for bad in (np.zeros(3), np.zeros((1, 4)), "four", None, [0, 0, 0, [1]]):
        controller = Controller(random_policy(), token_price=PRICE, stride=1)
        assert controller.push(bad, NONE) == CONTINUE  # type: ignore[arg-type]
        assert controller.failed


def test_a_probe_is_made_only_where_the_policy_looks_at_it() -> None:
    made: list[int] = []
    controller = Controller(random_policy(PROBE, preset="probe"), token_price=PRICE, stride=5)

    def probe() -> Probe:
        made.append(controller.thinking_tokens)
        if len(made) == 3:
            raise RuntimeError("out of memory")
        return Probe("7", 0.5, 2)

    for token in tokens(40):
        controller.push(*token, probe=probe)
    assert made == [5, 10, 15]
    assert controller.failed == "out of memory"
    assert not controller.forks_often

    free = Controller(random_policy(), token_price=PRICE, stride=5)
    assert not free.forks_often
    for token in tokens(10):
        free.push(*token, probe=probe)
    assert made == [5, 10, 15]


@pytest.mark.parametrize("probe", [None, Probe("7", float("nan"), 2)])
def test_a_probe_policy_without_a_sound_probe_is_off(probe: Probe | None) -> None:
    controller = Controller(random_policy(PROBE, preset="probe"), token_price=PRICE)
    assert controller.forks_often
    assert controller.at_checkpoint(dict.fromkeys(SIGNALS, 1.0), 8, probe) == CONTINUE
    assert controller.failed


def test_mistakes_of_the_caller_are_told_before_the_decode() -> None:
    policy = random_policy()
    with pytest.raises(UserError, match="token price 1: this policy serves prices from 1e-05"):
        Controller(policy, token_price=1)
    with pytest.raises(UserError, match="token price nan"):
        Controller(policy, token_price=float("nan"))
    with pytest.raises(UserError, match="stride 0"):
        Controller(policy, token_price=PRICE, stride=0)
    with pytest.raises(UserError, match="not made from tokens: temperature"):
        Controller(random_policy((*FREE, "temperature")), token_price=PRICE, stride=8)
    with pytest.raises(ValueError, match="made without a stride"):
        Controller(policy, token_price=PRICE).push(np.zeros(6), NONE)


def test_requests_do_not_share_memory() -> None:
    policy: Policy = random_policy()
    lone, one, two = (Controller(policy, token_price=PRICE, stride=3) for _ in range(3))
    other = tokens(12, seed=9)
    for token, noise in zip(tokens(12), other, strict=True):
        expected = lone.push(*token)
        assert one.push(*token) == expected
        two.push(*noise)


def test_the_log_is_silent_while_all_is_well(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        controller = Controller(random_policy(), token_price=PRICE, stride=2)
        for token in tokens(20):
            controller.push(*token)
    assert failures(caplog) == []


def test_a_controller_that_is_used_for_a_second_request_raises() -> None:
    """Its checkpoints do not come one after the other."""
    policy = random_policy(FREE)
    controller = Controller(policy, token_price=1e-3)
    signals = dict.fromkeys(SIGNALS, 1.0)
    for tokens in (8, 16):
        controller.at_checkpoint(signals, tokens)
    for tokens in (8, 16):
        with pytest.raises(ValueError, match="a controller decides for one request"):
            controller.at_checkpoint(signals, tokens)
    controller.at_checkpoint(signals, 24)
