from __future__ import annotations

import operator
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbudget.strategies.correction.recheck import LONGEST, thinking_checks, value_of

SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def _written(inner: st.SearchStrategy[tuple[str, int]]) -> st.SearchStrategy[tuple[str, int]]:
    return st.tuples(inner, st.sampled_from(sorted(SIGNS)), inner).map(
        lambda parts: (
            f"({parts[0][0]} {parts[1]} {parts[2][0]})",
            SIGNS[parts[1]](parts[0][1], parts[2][1]),
        )
    )


@given(st.recursive(st.integers(0, 99).map(lambda n: (str(n), n)), _written, max_leaves=12))
def test_an_expression_comes_to_its_value(written: tuple[str, int]) -> None:
    text, value = written
    assert value_of(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7 - 2 - 1", 4), ("2 + 3 * 4", 14), ("12 / 4 / 3", 1), ("-(2 - 5) / 4", Fraction(3, 4)),
        ("5 - -3", 8), ("12.5 * 2", 25), ("6 \u00d7 7 \u2212 2", 40), ("1 / 3", Fraction(1, 3)),
    ],
)  # fmt: skip
def test_signs_bind_as_they_should(text: str, value: Fraction) -> None:
    assert value_of(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "2 +", "1 / 0", "1 / (2 - 2)", "(1", "1)", "1 2", "x", "2x", "3*n", "2 ** 3",
     "1e5", "05 + 1", "1.2.3",
     "__import__('os')", "9" * 31, "(" * 60 + "1" + ")" * 60, "1+" * LONGEST + "1"],
)  # fmt: skip
def test_what_is_no_plain_arithmetic_has_no_value(text: str) -> None:
    assert value_of(text) is None


@pytest.mark.parametrize(
    ("thinking", "answer", "checks"),
    [
        ("1+4-7=-2; +4+5=7 so 7. ", "7", (1, 1, 1)),
        ("Quick look: 0+12+28=30 so 30. Done", "30", (-1, -1, 1)),
        ("2+2=5 so 5. Wait, let me check: 2+2=4 so 4. ", "4", (-1, 1, 1)),
        ("3-4+2=-1+2=1 so 1. ", "1", (1, 1, 1)),
        ("3-4+2=-1+3=1 so 1. ", "1", (-1, -1, 1)),
        ("cat 7*4=28; bee 5*6=30, 58 so 58. ", "59", (1, 1, -1)),
        ("cat 7*4=28; bee 5*6=30, 58 so 58. ", "30", (1, 1, 0)),
        ("It is 2+3=", "5", (0, 0, -1)),  # not finished
        ("It is 2+3=4", "5", (0, 0, -1)),  # the number may go on
        ("by moving: 185+11=196; 196/14=14 so", "14", (1, 1, 1)),
        ("so Monday. ", "Monday", (0, 0, 1)),
        ("", "4", (0, 0, -1)),
    ],
)
def test_what_was_thought_is_worked_out(
    thinking: str, answer: str, checks: tuple[float, float, float]
) -> None:
    assert tuple(thinking_checks(thinking, answer).values()) == checks


@given(st.text(max_size=200), st.text(max_size=20))
def test_no_text_breaks_a_check(text: str, answer: str) -> None:
    assert set(thinking_checks(text, answer).values()) <= {-1, 0, 1}


def test_long_runs_of_signs_take_no_time() -> None:
    begun = time.process_time()
    for text in ("1" * 20_000, "1+" * 10_000, "=" * 20_000, "(" * 20_000, "1=" * 10_000):
        thinking_checks(text, "1")
    assert time.process_time() - begun < 10
