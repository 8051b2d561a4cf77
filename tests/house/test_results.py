"""The kept results: a row whose interval cannot tell is not met; and the script of the contests."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from runs.common import RESULTS
from runs.quality import contests

INTERVAL = re.compile(r"\[([+-]?[\d.]+), ([+-]?[\d.]+)\]")


def rows_of(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    return rows


@pytest.mark.parametrize("name", ["ablation", "learned_probing"])
def test_a_row_with_an_interval_around_zero_is_not_met(name: str) -> None:
    for row in rows_of(name):
        ends = [(float(low), float(high)) for low, high in INTERVAL.findall(row["reached"])]
        assert ends
        if any(low <= 0 <= high for low, high in ends):
            assert not row["met"], row["row"]


def test_a_strategy_that_cannot_be_told_from_none_is_not_met() -> None:
    for row in rows_of("strategies"):
        assert not (row["met"] and "(cannot tell)" in row["reached"]), row["row"]


@pytest.mark.parametrize("n", [2, 8, 20])
@pytest.mark.parametrize("which", ["WORSE", "ELSE_WORSE"])
def test_few_questions_promote_no_worse_challenger(which: str, n: int) -> None:
    challenger = getattr(contests, which)
    assert challenger.difference == pytest.approx(-0.026)
    found = contests.held(challenger, n, 150)
    assert found.contest.mean() <= 0.05
    assert found.bootstrap.mean() > found.contest.mean()


def test_a_challenger_that_saves_for_nothing_is_promoted_on_500_questions() -> None:
    assert contests.held(contests.GOOD[1], 500, 5).contest.all()


@pytest.mark.parametrize(("promoted", "met"), [(0, True), (2, True), (5, False), (10, False)])
def test_a_share_that_may_be_above_the_most_is_not_met(promoted: int, met: bool) -> None:
    shares = (np.arange(200) < promoted).astype(np.float64)
    row = contests.row(contests.WORSE, 20, 200, contests.Promoted(shares, shares))
    assert row["met"] is met
