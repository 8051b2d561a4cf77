"""``runs/quality/answer_pairs.py``: what it calls right is right, what it calls wrong is wrong."""

from __future__ import annotations

from fractions import Fraction

import pytest

from runs.quality.answer_pairs import Pair, all_pairs, right, wrong
from runs.quality.answer_shapes import same_answer, shape_of

TARGETS = [
    "0",
    "1",
    "-1",
    "7",
    "-15",
    "1,250",
    "4{,}000",
    "2.75",
    ".5",
    "\\frac{5}{8}",
    "-\\frac58",
    "\\dfrac{7}{3}",
    "2\\frac{1}{4}",
    "\\$12.50",
    "45^\\circ",
    "180^\\circ",
    "21\\mbox{ cm}^2",
    "4\\sqrt{7}",
    "\\frac{\\sqrt{5}}{5}",
    "6 \\pi",
    "3x^2 - 5x + 2",
    "4 - 9i",
    "13_7",
    "(3,-8)",
    "(5,5)",
    "[1,6)",
    "(-\\infty, 4]",
    "(0,1) \\cup (3,5)",
    "x \\in [-4,9]",
    "2, -6",
    "\\{1,4\\}",
    "5 \\pm \\sqrt{3}",
    "\\begin{pmatrix} 1 \\\\ -2 \\end{pmatrix}",
    "y = 3x - 1",
    "\\text{even}",
    "\\text{(B)}",
]


def texts_of(pairs: list[Pair], kind: str) -> list[str]:
    return [pair.answer for pair in pairs if pair.kind == kind]


@pytest.mark.parametrize("target", TARGETS)
def test_no_text_is_both_right_and_wrong(target: str) -> None:
    good = {pair.answer for pair in right(target)}
    bad = {pair.answer for pair in wrong(target, TARGETS)}
    assert len(good) > 20
    assert len(bad) > 10
    assert not good & bad


@pytest.mark.parametrize("target", TARGETS)
def test_no_wrong_formula_has_the_value_of_the_target(target: str) -> None:
    for pair in wrong(target, TARGETS):
        if pair.bare:
            assert not same_answer(pair.answer, target), pair


def test_the_same_seed_gives_the_same_pairs() -> None:
    assert all_pairs(TARGETS, seed=3) == all_pairs(TARGETS, seed=3)
    assert all_pairs(TARGETS, seed=3) != all_pairs(TARGETS, seed=4)


def test_no_pair_comes_twice() -> None:
    pairs = all_pairs([*TARGETS, *TARGETS])
    assert len(pairs) == len(set(pairs))


def test_zero_is_not_negated_nor_multiplied() -> None:
    kinds = {pair.kind for pair in wrong("0", TARGETS)}
    assert not kinds & {"sign", "both signs", "inverse", "times x", "words: minus X"}
    assert not {kind for kind in kinds if "thousand" in kind}


@pytest.mark.parametrize("target", ["1", "-1"])
def test_one_is_neither_inverted_nor_squared(target: str) -> None:
    assert not {"inverse", "square"} & {pair.kind for pair in wrong(target, TARGETS)}


def test_half_a_turn_is_not_negated() -> None:
    kinds = {pair.kind for pair in wrong("180^\\circ", TARGETS)}
    assert not kinds & {"sign", "both signs", "words: minus X"}
    assert "sign" in {pair.kind for pair in wrong("45^\\circ", TARGETS)}


def test_a_pair_of_equals_is_not_swapped() -> None:
    assert not texts_of(wrong("(5,5)", TARGETS), "reversed")
    assert texts_of(wrong("(3,-8)", TARGETS), "reversed")


def test_infinity_gets_no_closed_end() -> None:
    kinds = {pair.kind for pair in wrong("(-\\infty, 4]", TARGETS)}
    assert "left end" not in kinds
    assert "right end" in kinds


def test_separators_stand_in_numbers_over_a_thousand_only() -> None:
    assert not [pair for pair in right("999") if "thousands" in pair.kind]
    assert "1,250" in texts_of(right("1250"), "thousands: comma")
    assert "1250" in texts_of(right("1,250"), "thousands: no separator")


def test_negative_numbers_get_no_unit() -> None:
    assert not [pair for pair in right("-15") if "dollars" in pair.answer or "cm" in pair.answer]
    assert "7 dollars" in texts_of(right("7"), "+ dollars")


def test_points_are_not_reversed_as_lists_are() -> None:
    assert not texts_of(right("(3,-8)"), "list reversed")
    assert texts_of(right("2, -6"), "list reversed") == ["-6, 2"]


@pytest.mark.parametrize(
    ("target", "kind", "value"),
    [
        ("1,250", "number", Fraction(1250)),
        ("11,\\! 111,\\! 100", "number", Fraction(11111100)),
        ("\\$12.50", "number", Fraction(25, 2)),
        ("-\\frac58", "fraction", Fraction(-5, 8)),
        ("2\\frac{1}{4}", "mixed", Fraction(9, 4)),
        ("13_7", "base", None),
        ("(3,-8)", "point", None),
        ("[1,6)", "interval", None),
        ("2, -6", "list", None),
        ("3x^2 - 5x + 2", "sum", None),
        ("(a+5)(b+2)", "term", None),
        ("y = 3x - 1", "equation", None),
    ],
)
def test_a_target_is_read_as_what_it_is(target: str, kind: str, value: Fraction | None) -> None:
    shape = shape_of(target)
    assert (shape.kind, shape.value) == (kind, value)


@pytest.mark.parametrize(
    ("left", "right_"),
    [("30^\\circ", "30"), ("x=5", "5"), ("\\frac14", "0.25"), ("(1, 2)", "\\left(1,2\\right)")],
)
def test_answers_that_somebody_would_call_equal_are_no_wrong_pair(left: str, right_: str) -> None:
    assert same_answer(left, right_)
