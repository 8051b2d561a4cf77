"""Experiments: arms that stick, differences without bias, intervals that hold at all times."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_makers import make_trace

from rlbudget.errors import UserError
from rlbudget.strategies.experiments.betting import counted, interval
from rlbudget.strategies.experiments.design import (
    Arm,
    ArmStatus,
    Design,
    Experiment,
    design_of,
    draw,
)
from rlbudget.strategies.experiments.results import (
    Compared,
    as_json,
    difference_of,
    results_of,
    values_of,
    verdict_of,
)
from rlbudget.strategies.feedback.entries import Entries
from rlbudget.strategies.feedback.log import Feedback, LoggedRequest, Stop
from rlbudget.traces.trace import Trace

TWO = Design("two", (Arm("control"), Arm("arm")))


@given(st.lists(st.sampled_from([-1.0, -0.25, 0.0, 0.5, 1.0]), min_size=1, max_size=60))
@settings(deadline=None, max_examples=60)
def test_an_interval_holds_its_mean_and_depends_on_no_order(values: list[float]) -> None:
    seen = counted(values, low=-1, high=1)
    low, high = interval(seen, 0.95)
    assert -1 <= low <= seen.mean <= high <= 1
    assert interval(counted(values[::-1], low=-1, high=1), 0.95) == (low, high)
    wide = interval(seen, 0.999)
    assert wide[0] <= low
    assert wide[1] >= high


def test_an_interval_narrows_and_more_so_without_spread() -> None:
    widths = []
    for n in (10, 100, 1_000, 10_000):
        low, high = interval(counted([0.0, 1.0] * (n // 2), low=0, high=1), 0.95)
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.06
    low, high = interval(counted([0.5] * 10_000, low=0, high=1), 0.95)
    assert high - low < 0.005


def test_without_a_value_everything_is_possible() -> None:
    assert interval(counted([], low=-2, high=3), 0.95) == (-2, 3)
    assert math.isnan(counted([], low=0, high=1).mean)


@pytest.mark.parametrize("value", [1.1, -1.1, float("nan"), float("inf")])
def test_a_value_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="out of"):
        counted([0.0, value], low=-1, high=1)


def test_an_interval_misses_the_mean_in_few_streams_however_often_one_looks() -> None:
    rng, missed = np.random.default_rng(0), 0
    for _ in range(120):
        values = (rng.random(400) < 0.1).astype(float)
        looks = (interval(counted(values[:n], low=0, high=1), 0.9) for n in range(10, 401, 30))
        missed += any(not low <= 0.1 <= high for low, high in looks)
    assert missed <= 12


def test_a_difference_has_no_bias_whatever_is_usual() -> None:
    arm, control = np.array([0.2, 0.8, 0.8]), np.array([0.5, 0.1])
    for chance in (0.5, 0.2):
        for usual in (0.0, 0.4, 1.0):
            means = [
                np.mean([difference_of([(inside, v)], chance=chance, low=0, high=1,
                                       usual=usual).mean for v in some])
                for inside, some in ((True, arm), (False, control))
            ]  # fmt: skip
            expected = chance * means[0] + (1 - chance) * means[1]
            assert expected == pytest.approx(arm.mean() - control.mean())


def test_a_unit_keeps_its_arm_and_arms_get_their_shares() -> None:
    design = Design("d", (Arm("a", 1.0), Arm("b", 2.0), Arm("c", 1.0)), share=0.5)
    live = ("a", "b", "c")
    drawn = {f"u{i}": draw(design, f"u{i}", live) for i in range(4_000)}
    assert all(draw(design, unit, live) == one for unit, one in drawn.items())
    inside = [one for one in drawn.values() if one is not None]
    assert len(inside) / 4_000 == pytest.approx(0.5, abs=0.03)
    for arm, share in (("a", 0.25), ("b", 0.5), ("c", 0.25)):
        found = [one for one in inside if one.arm.name == arm]
        assert len(found) / len(inside) == pytest.approx(share, abs=0.035)
        assert {one.propensity for one in found} == {share}


def test_when_an_arm_is_stopped_only_its_own_units_move() -> None:
    design = Design("d", (Arm("a"), Arm("b"), Arm("c", 2.0)))
    moved: dict[str, int] = {}
    for i in range(2_000):
        before = draw(design, f"u{i}", ("a", "b", "c"))
        after = draw(design, f"u{i}", ("a", "c"))
        assert before is not None
        assert after is not None
        if before.arm.name != "b":
            assert after.arm == before.arm
        else:
            moved[after.arm.name] = moved.get(after.arm.name, 0) + 1
        assert after.propensity == pytest.approx(after.arm.weight / 3)
    assert moved["c"] / moved["a"] == pytest.approx(2, abs=0.5)
    assert draw(design, "u", ()) is None


def test_experiments_draw_apart_from_each_other() -> None:
    other = replace(TWO, name="other")
    arms = [
        [drawn.arm.name for i in range(400) if (drawn := draw(design, f"u{i}", ("control", "arm")))]
        for design in (TWO, other)
    ]
    same = sum(a == b for a, b in zip(*arms, strict=True))
    assert 140 < same < 260


def request(number: int, arm: str | None, **changes: Any) -> LoggedRequest:
    given = LoggedRequest(
        f"r{number}", "2026-11-27T00:00:00.000+00:00", "ab" * 32, None, None, 1e-3, False,
        Stop("policy", 16, 0.75, 100, 0, 20), experiment="two", arm=arm, propensity=0.5,
        unit=f"u{number}",
    )  # fmt: skip
    return replace(given, **changes)


def entries_of(*requests: LoggedRequest, **more: Any) -> Entries:
    decisions = {one.request_id: one for one in requests}
    return Entries(**{"decisions": decisions, "audits": {}, "outcomes": {}, "damaged": 0, **more})


def audited_trace(name: str, answers: dict[int, str], final: str) -> Trace:
    made = make_trace(4)
    points = tuple(
        replace(made.checkpoints[0], thinking_tokens=at,
                exit=replace(made.checkpoints[0].exit, answer=answer))
        for at, answer in answers.items()
    )  # fmt: skip
    return replace(made, trace_id=name, target="", checkpoints=points, task="",
                   final=replace(made.final, answer=final))  # fmt: skip


def test_a_unit_counts_once_and_others_not_at_all() -> None:
    found = values_of(TWO, entries_of(
        request(0, "control"),
        request(1, "control", unit="u0", stop=Stop("policy", 1, None, 1, 0, 0)),
        request(2, "arm", stop=Stop("natural", None, None, 9**9, 0, 0)),
        request(3, "arm", experiment="another"),
        request(4, None),
        request(5, "unknown"),
        ratings={"r1": 0.5, "r2": 1.0, "r3": 0.0},
    ))  # fmt: skip
    assert [(one.arm, one.value) for one in found.tokens] == [
        ("control", 120.0), ("arm", float(TWO.most_tokens))
    ]  # fmt: skip
    assert [(one.arm, one.value) for one in found.satisfaction] == [("control", 0.5), ("arm", 1.0)]


def test_exact_match_is_what_audited_stops_lost() -> None:
    traces = {
        "r0": audited_trace("r0", {16: "7", 32: "9"}, "9"),
        "r1": audited_trace("r1", {16: "9"}, "9"),
        "r2": audited_trace("r2", {16: "9"}, "8"),
    }
    told = {name: Feedback(name, "", target="9") for name in traces}
    requests = [request(n, "arm", audited=True) for n in range(3)]
    all_known = entries_of(*requests, audits=traces, outcomes=told, ratings={"r0": 1.0})
    found = values_of(TWO, all_known)
    assert [one.value for one in found.exact_match] == [-1.0, 0.0, 1.0]
    # Whoever was audited saw the full answer: that says nothing of the arm.
    assert found.satisfaction == ()
    agreed = values_of(replace(TWO, measure="agreement"), replace(all_known, outcomes={}))
    assert [one.value for one in agreed.exact_match] == [-1.0, 0.0, -1.0]
    assert values_of(TWO, replace(all_known, outcomes={})).exact_match == ()


def compared(low: float, high: float, n: int = 100) -> Compared:
    return Compared(n, (low + high) / 2, (low, high), 0.0, 0.0)


@pytest.mark.parametrize(
    ("tokens", "match", "content", "verdict"),
    [
        ((-90, -10), (-0.01, 0.01), (-0.01, 0.1), "wins"),
        ((-90, -10), (-0.01, 0.01), None, "wins"),
        ((-90, 10), (-0.01, 0.01), None, "open"),
        ((-90, -10), (-0.03, 0.01), None, "open"),
        ((-90, -10), (-0.01, 0.01), (-0.2, 0.1), "open"),
        ((-90, -10), (-0.05, -0.021), (-0.2, 0.1), "loses exact match"),
        ((-90, -10), (-0.05, -0.019), (-0.2, 0.1), "open"),
        ((-90, -10), (-0.01, 0.01), (-0.2, -0.06), "loses satisfaction"),
        ((1, 10), (-0.01, 0.01), None, "costs tokens"),
    ],
)
def test_guard_rails_come_first(
    tokens: tuple[float, float], match: tuple[float, float],
    content: tuple[float, float] | None, verdict: str,
) -> None:  # fmt: skip
    told = compared(-1, 1, 0) if content is None else compared(*content)
    measured = {"tokens": compared(*tokens), "satisfaction": told}
    assert verdict_of(TWO, exact_match=compared(*match), **measured) == verdict
    if verdict == "open":
        done = compared(*match, n=TWO.size)
        assert verdict_of(TWO, exact_match=done, **measured) == "undecided"


def test_a_result_is_shown_beside_its_control() -> None:
    requests = [
        request(n, "arm" if n % 2 else "control",
                stop=Stop("policy", 16, 0.5, 100 if n % 2 else 200, 0, 0))
        for n in range(400)
    ]  # fmt: skip
    design = replace(TWO, most_tokens=400, usual_tokens=150)
    experiment = Experiment(design, "", arms={"control": ArmStatus(), "arm": ArmStatus()})
    (result,) = results_of(experiment, values_of(design, entries_of(*requests)))
    assert result.requests == 200
    assert result.tokens.mean == -100
    assert result.tokens.interval[0] <= -100 <= result.tokens.interval[1] < 0
    saved, least, most = result.saving
    assert saved == 0.5
    assert 0 < least <= saved <= most
    assert result.verdict == "open"
    row = as_json(result)
    assert row["exact_match"]["difference"] is None
    assert row["tokens"]["units"] == 400


def wrong(why: str, *path: str | int) -> NoReturn:
    raise UserError(f"{'.'.join(map(str, path))}: {why}")


ARMS = [{"name": "a"}, {"name": "b", "token_price": 1e-3}]


def test_a_design_is_read() -> None:
    said = {"name": "x", "arms": ARMS, "by": "user", "margin": 0.01, "exclude": ["team=a"]}
    design = design_of(said, wrong)
    assert design.control.name == "a"
    assert design.arms[1].dial.token_price == 1e-3
    assert (design.by, design.margin, design.exclude) == ("user", 0.01, ("team=a",))
    assert design.each == pytest.approx(1 - 0.05 / 3)


@pytest.mark.parametrize(
    ("said", "where"),
    [
        ({"arms": [{"name": "a"}]}, "arms: 2 to"),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, "a name of its own"),
        ({"arms": [*ARMS, 3]}, "arms.2: an arm is"),
        ({"arms": [{"name": "a"}, {}]}, "arms.1: an arm needs"),
        ({"arms": [{"name": "a"}, {"name": "b/c"}]}, "arms.1: an arm needs"),
        ({"arms": [{"name": "a"}, {"name": "b", "wieght": 1}]}, "arms.1.wieght: wieght: unknown"),
        ({"arms": [{"name": "a"}, {"name": "b", "weight": 0}]}, "arms.1.weight"),
        ({"arms": [{"name": "a"}, {"name": "b", "weight": 1e-3}]}, "arms.1.weight: weight: at"),
        ({"arms": [{"name": "a"}, {"name": "b", "weight": True}]}, "arms.1.weight"),
        ({"arms": [{"name": "a"}, {"name": "b", "weight": float("nan")}]}, "arms.1.weight"),
        ({"arms": [{"name": "a"}, {"name": "b", "token_price": -1}]}, "arms.1.token_price"),
        ({"arms": [{"name": "a"}, {"name": "b", "effort": "huge"}]}, "arms.1.effort"),
        ({"arms": [{"name": "a"}, {"name": "b", "off": True, "effort": "low"}]}, "arms.1.effort"),
        ({"arms": [{"name": "a"}, {"name": "b", "thinking_budget": 0}]}, "thinking_budget"),
        ({"arms": ARMS, "by": "moon"}, "by: by"),
        ({"arms": ARMS, "measure": "x"}, "measure: measure"),
        ({"arms": ARMS, "share": 0}, "share: share"),
        ({"arms": ARMS, "margin": 1.5}, "margin: margin"),
        ({"arms": ARMS, "confidence": float("nan")}, "confidence: confidence"),
        ({"arms": ARMS, "size": 0.5}, "size: size"),
        ({"arms": ARMS, "exclude": ["team"]}, "exclude.0: exclude"),
        ({"arms": ARMS, "name": "a b"}, "name: name"),
        ({"arms": ARMS, "sample": 3}, "sample: sample: unknown"),
    ],
)
def test_a_mistake_in_a_design_is_told_where_it_is(said: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError) as caught:
        design_of(said, wrong)
    assert str(caught.value).startswith(where) or where in str(caught.value)
    assert "\n" not in str(caught.value)
