"""Plans of several parts on one request: what each part does stays its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from test_request_kinds import (
    END,
    EOS,
    SIGNAL,
    Scripted,
    core,
    corrected,
    doubting,
    fork,
    spell,
)
from test_request_kinds import decode as through

from rlbudget.decoding.aside import Fork
from rlbudget.decoding.core import HF_GENERATE, Core, HandOver
from rlbudget.decoding.decode import decode as decode_with
from rlbudget.decoding.decoded import Decoded
from rlbudget.decoding.request import Request
from rlbudget.models import load_model
from rlbudget.models.reading import Continuation
from rlbudget.policy.cascade import ESCALATE, CascadeDecision
from rlbudget.strategies.feedback.entries import read_log
from rlbudget.strategies.plan import LogSettings, Plan

LARGE = Decoded(
    answer="9", text="so 9</think>9", thinking_tokens=40, probe_tokens=0, answer_tokens=3,
    stopped=False, stopped_at=None, reason="natural", stop_probability=None, message=None,
)  # fmt: skip


@dataclass
class Doubting:
    """A cascade that stops, or hands over, from a count of thinking tokens on."""

    at: int
    action: int = ESCALATE
    features: tuple[str, ...] = ("thinking_tokens", "entropy_mean")
    price_range: tuple[float, float] = (1e-4, 1e-2)
    ratio: float = 0.25
    config: dict[str, Any] = field(
        default_factory=lambda: {"trained": {"recorded": {"small": {}, "large": {}}}}
    )
    digest: str = "d"

    def __call__(self, observation: Any, *, token_price: float) -> CascadeDecision:
        acts = observation[0] >= self.at
        return CascadeDecision(self.action if acts else 0, (0.0, 0.0, 1.0))


def cascaded(cascade: Any, log: Path, share: float) -> Core:
    plan = Plan({}, cascade=cascade, large_model="large", audit=LogSettings(log, share))
    return core(plan, engine=HF_GENERATE, profile="embedded", token_price=1e-3,
                second=lambda _: LARGE)  # fmt: skip


def decode(made: Core, ids: Sequence[int], exits: str = "7") -> Request:
    request = Request(made, question="2?", request_id="r")
    for token in ids:
        if request.done:
            break
        must = request.forced(token)
        wish = request.push(token if must is None else must, SIGNAL)
        while wish is not None:
            if isinstance(wish, HandOver):
                wish = request.handed_over(made.hand_over(wish))
            else:
                assert isinstance(wish, Fork)
                fork(request, wish, exits)
                wish = None
    request.close()
    return request


def test_an_audited_cascade_runs_to_its_end_and_notes_the_handover(tmp_path: Path) -> None:
    stream = [9] * 14 + [END, *spell("7"), EOS]
    live = decode(cascaded(Doubting(8), tmp_path / "live", 0.0), stream).decoded()
    assert (live.reason, live.answer, live.second) == ("escalate", "9", LARGE)
    full = decode(cascaded(Doubting(8), tmp_path / "audit", 1.0), stream).decoded()
    assert (full.reason, full.answer, full.second) == ("natural", "7", None)
    assert full.audited
    (served,) = read_log(tmp_path / "live").decisions.values()
    (logged,) = read_log(tmp_path / "audit").decisions.values()
    (audit,) = read_log(tmp_path / "audit").audits.values()
    assert (served.escalated, served.stop.reason) == (True, "escalate")
    assert served.answered_by == "large"
    assert (logged.stop.reason, logged.stop.stopped_at) == ("escalate", 8)
    assert logged.answered_by is None
    assert [point.thinking_tokens for point in audit.checkpoints] == [4, 8, 12]


# --- room for the answer


@pytest.mark.parametrize("reserve", [None, 9, 30])
def test_a_plan_says_how_many_tokens_are_kept_for_the_answer(reserve: int | None) -> None:
    plan = Plan({"policy": Scripted()}, answer_reserve=reserve)
    made = core(plan, profile="embedded")
    own = len(made.vocabulary.exit_ids) + made.profile.max_answer_tokens
    assert made.reserve == (own if reserve is None else reserve)
    request = Request(made, max_new_tokens=50)
    assert request.room == 50 - made.reserve
    for token in range(20, 90):
        must = request.forced()
        request.push(token if must is None else must, SIGNAL)
        if not request.thinking:
            break
    assert request.ending.thinking_tokens == 50 - made.reserve
    assert request.ending.reason == "max_tokens"


def test_a_small_reserve_costs_no_answer_where_no_engine_caps_it() -> None:
    model = load_model("embedded")
    plans = [Plan({"policy": Scripted()}, answer_reserve=reserve) for reserve in (None, 1)]
    question = "State the final answer to the following arithmetic problem: 3 + 4 + 2 ="
    usual, small = (
        decode_with(model, question, plan, token_price=1e-3, temperature=0.0, max_tokens=8)
        for plan in plans
    )
    assert small == usual
    assert usual.answer_tokens > 1


# --- a second end of the thinking, in the answer


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_second_end_in_the_answer_of_a_corrected_decode_ends_nothing_twice(
    share: float, tmp_path: Path
) -> None:
    """The model doubts on in its answer, and ends that too: what stands last is the answer."""
    stream = [9] * 12 + [END, *spell("5 wait"), END, *spell("4"), EOS]
    made = corrected(doubting(5.0), tmp_path, share)
    done = through(made, stream, ["1", "2", "3"]).decoded()
    assert (done.answer, done.reason, done.thinking_tokens) == ("4", "natural", 12)
    assert done.answer_tokens == len(stream) - 12 + (0 if share else 3)


def test_a_second_end_in_an_exit_written_aside_is_read_as_in_any_answer(tmp_path: Path) -> None:
    request = Request(corrected(doubting(-5.0), tmp_path), question="2?", request_id="r")
    for _ in range(8):
        wish = request.push(9, SIGNAL)
    assert isinstance(wish, Fork)
    written = (*spell("5 wait"), END, *spell("4"), EOS)
    assert request.forked(Continuation(written, (-0.1,) * len(written), 0.1)) is None
    request.close()
    assert (request.decoded().answer, request.ending.reason) == ("4", "policy")
