"""One core under many threads, a request each: as one after the other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frozen_nets import random_policy
from tiny_model import tiny_tokenizer

from rlbudget.decoding.core import HF_PROCESSOR, Core, Failures, bind
from rlbudget.decoding.decoded import Ending
from rlbudget.decoding.request import Request
from rlbudget.policy.network import Decision
from rlbudget.strategies.compose import Strategy
from rlbudget.strategies.feedback.entries import read_log
from rlbudget.strategies.plan import LogSettings, Plan

THREADS = 8
EOS = 2
RULES = """
[[rule]]
name = "gold thinks for long"
metadata = { tier = "gold" }
min_tokens = 24
[[rule]]
name = "bulk thinks for little"
metadata = { tier = "bulk" }
max_tokens = 8
"""


@pytest.fixture(autouse=True)
def hurried_threads() -> Iterator[None]:
    """Threads that change places a thousand times more often find what is not safe."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_failures_of_many_threads_are_all_counted_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = Failures()

    def fail(_: int) -> None:
        for _ in range(2000):
            failures.add("broke")

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fail, range(THREADS)))
    assert failures.count == 2000 * THREADS
    assert len(caplog.records) == 1


class Breaks:
    """Works for every price but one."""

    features = ("thinking_tokens", "entropy_mean")
    price_range = (1e-5, 1e-2)
    preset = "free"
    threshold = 0.5

    def __call__(self, observation: Any, *, token_price: float) -> Decision:
        if token_price == BAD:
            raise RuntimeError("a bad price")
        return Decision(stop=bool(observation[0] >= 40), stop_probability=0.5)


BAD = 5e-3


def serve(core: Core, seed: int) -> Ending:
    """A decode of its own tier, price and signals."""
    rng = np.random.default_rng(seed)
    tier = ("gold", "bulk", "none")[seed % 3]
    price = (1e-4, 1e-3, BAD)[seed // 3 % 3]
    request = Request(
        core, question="2 + 2?", metadata={"tier": tier}, token_price=price, request_id=f"r{seed}"
    )
    for _ in range(60):
        token = request.forced(int(rng.integers(20, 250)))
        signals = np.abs(rng.normal(0.8, 0.6, 6))
        thinks = request.thinking
        request.push(int(rng.integers(20, 250)) if token is None else token,
                     signals if thinks else None)  # fmt: skip
        if request.done:
            break
    request.push(EOS)
    request.finish()
    return request.ending


@pytest.mark.parametrize("policy", [random_policy(seed=3), Breaks()])
def test_many_threads_through_one_core_decode_as_one_thread_does(
    policy: Any, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)

    def made(name: str) -> Core:
        strategy = Strategy(rules=rules) if not isinstance(policy, Breaks) else Strategy()
        plan = Plan({"policy": policy}, strategy, audit=LogSettings(tmp_path / name, 0.0))
        return bind(plan, tiny_tokenizer(320), HF_PROCESSOR, vocabulary_size=320, eos_ids=[EOS],
                    profile="embedded", stride=4, max_thinking_tokens=48)  # fmt: skip

    alone, together = made("alone"), made("together")
    expected = [serve(alone, seed) for seed in range(90)]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda seed: serve(together, seed), range(90)))
    assert found == expected
    assert together.failures.count == alone.failures.count
    assert {ending.reason for ending in expected} >= {"policy", "max_tokens"}
    assert (together.failures.count > 0) == isinstance(policy, Breaks)
    assert sorted(read_log(tmp_path / "together").decisions) == sorted(f"r{i}" for i in range(90))
    lines = [p.read_text().splitlines() for p in (tmp_path / "together").rglob("*.jsonl")]
    assert sum(map(len, lines)) == 90
