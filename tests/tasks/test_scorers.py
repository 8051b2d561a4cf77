"""Scorers by name: forms of answers that are the same, and forms that are not."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbudget.errors import UserError
from rlbudget.tasks.scorers import (
    exact_match_math,
    exact_match_text,
    find_scorer,
    plain_number,
    vote_key,
)
from rlbudget.tasks.values import value_key

SAME = [
    ("1,234", "1234"), ("1{,}234", "1234"), ("1,\\!234", "1234"), ("1\\,234", "1234"),
    ("1 234", "1234"), ("1\u202f234", "1234"), ("\uff11\uff12\uff13\uff14", "1234"),
    ("\u20ac1,234", "1234"), ("1.234e3", "1234"), ("1.234 x 10^3", "1234"),
    ("1.234\\times 10^{3}", "1234"), ("\\$32,\\!348", "32348"), ("01234", "1234"),
    ("\\dfrac{14}{3}", "\\frac{14}{3}"), ("\\frac43", "4/3"), ("0.25", "\\frac14"),
    ("1\\frac{4}{5}", "9/5"), ("1\u00bd", "1.5"), ("0.\\overline{3}", "\\frac{1}{3}"),
    ("15\\%", "15"), ("15%", "0.15"), ("90 degrees", "90^\\circ"), ("90\u00b0", "90^\\circ"),
    ("5.4", "5.4 \\text{ cents}"), ("864 square inches", "864 \\mbox{ inches}^2"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\pi/2)"), ("x = 5", "5"), ("5", "x=5"),
    ("-2,1", "1,-2"), ("1 and -2", "1,-2"), ("\\{-2,1\\}", "\\{1,-2\\}"),
    ("-2 \\le x \\le 7", "x \\in [-2,7]"), ("[-2,7]", "x \\in [-2,7]"), ("x > 3", "(3,\\infty)"),
    ("(0,9)\\cup(9,36)", "(9,36) \\cup (0,9)"), ("1+\\sqrt{19},1-\\sqrt{19}", "1 \\pm \\sqrt{19}"),
    ("y=2x+3", "2x+3"), ("52_{8}", "52_8"), ("52 base 8", "52_8"), ("q*(-1)+p", "p - q"),
    ("2\\sqrt{3}", "\\sqrt{12}"), ("(x+1)^2", "x^2+2x+1"), ("7y-5x-11z=4", "5x-7y+11z+4=0"),
    ("Evelyn", "\\text{Evelyn}"), ("\\textbf{evelyn}", "\\text{Evelyn}"), ("C", "\\text{(C)}"),
    ("3:2", "3/2"), ("two", "2"), ("\u22125", "-5"), ("\u221a2", "\\sqrt{2}"),
    ("\\begin{bmatrix}1\\\\2\\end{bmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
]  # fmt: skip
OTHER = [
    ("12,34", "1234"), ("1.234", "1234"), ("-1234", "1234"), ("(3,4)", "(3,4]"),
    ("(4,3)", "(3,4)"), ("52_9", "52_8"), ("52", "52_8"), ("2021", "\\pm 2021"), ("x<3", "x>3"),
    ("x \\le 3", "x < 3"), ("(1,2)", "\\{1,2\\}"), ("1,2,3", "1,2"), ("1", "1,2"),
    ("\\frac{1}{2^{98}}", "\\frac{1}{2^{99}}"), ("3r^2", "3R^2"), ("2x-3", "2x+3"),
    ("12:00", "1:00"),
    ("5 cm", "5 m"), ("5 cm", "5 \\text{ cm}^2"), ("x=3, y=5", "x=5, y=3"), ("3.14", "\\pi"),
    ("\\begin{pmatrix}2\\\\1\\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
    ("even", "\\text{odd}"), ("not even", "\\text{even}"), ("18^2", "18"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "target"), SAME)
def test_forms_of_one_answer_are_equal(answer: str, target: str) -> None:
    assert exact_match_math(answer, target) == 1
    assert exact_match_math(f"Thus \\boxed{{{answer}}}. Great!", target) == 1


@pytest.mark.parametrize(("answer", "target"), OTHER)
def test_other_answers_are_other(answer: str, target: str) -> None:
    assert exact_match_math(answer, target) == 0
    assert exact_match_math(f"\\boxed{{{answer}}}", target) == 0


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("1/2", "12"), ("3:15", "315"), ("(1,2)", "(12)"), ("{1,23}", "{12,3}"), ("x<3", "x>3"),
        ("> 18", "18"), ("-x", "x"), ("A+", "A-"), ("C++", "C#"), ("C#", "C"), ("2*3", "23"),
        ("10^5", "105"), ("1.5", "15"), ("x\u00b2", "x2"), ("not Paris", "Paris"),
    ],
)  # fmt: skip
def test_marks_that_carry_meaning_are_kept_in_text(answer: str, target: str) -> None:
    assert exact_match_text(answer, target) == 0


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("(3.14)", "3.14"), ("U.S.A.", "USA"), ("1914-1918", "1914\u20131918"), ("033", "33"),
        ("The answer is **the Eiffel Tower**.", "Eiffel tower"), ("\u201cParis\u201d", "paris"),
        ("<think>Rome</think>Paris", "Paris"), ("\\boxed{\\text{Paris}}", "Paris"),
        ("cafe\u0301", "caf\u00e9"),
    ],
)  # fmt: skip
def test_dress_is_no_part_of_a_text(answer: str, target: str) -> None:
    assert exact_match_text(answer, target) == 1


LETTERS = ("A", "B", "C", "D")
QUESTION = "Capital of France?\nA. Rome\nB. Paris\nC. Bern\nD. None of these"


@pytest.mark.parametrize(
    "text",
    [
        "B", "(B)", "B.", "b", "**B**", "\\boxed{B}", "\\boxed{\\text{B}}", "The answer is (B).",
        "Answer: B", "B. Paris", "(B) Paris", "Option B is correct.", "Paris",
        "A is Rome, so it is not A. The correct answer is B.",
    ],
)  # fmt: skip
def test_an_option_is_named_by_letter_or_text(text: str) -> None:
    scorer = find_scorer("choice")
    assert scorer.score(text, "B", options=LETTERS, question=QUESTION) == 1
    assert scorer.score(text, "A", options=LETTERS, question=QUESTION) == 0


@pytest.mark.parametrize("text", ["A, B", "A or B", "neither", "", "A circle", "not B", "B. Rome"])
def test_several_options_or_none_are_no_choice(text: str) -> None:
    scorer = find_scorer("choice")
    assert scorer.score(text, "B", options=LETTERS, question=QUESTION) == 0


def test_options_that_are_texts_have_letters() -> None:
    scorer = find_scorer("choice")
    options = ("Rome", "Paris")
    for text in ("Paris", "B", "(B) Paris", "\\boxed{B}", "The answer is Paris."):
        assert scorer.score(text, "Paris", options=options) == 1
        assert scorer.score(text, "B", options=options) == 1
        assert scorer.score(text, "Rome", options=options) == 0


def test_auto_goes_by_the_target() -> None:
    auto = find_scorer("auto")
    assert auto.score("It is \\boxed{0.5}", "1/2") == 1
    assert auto.score("C++", "C#") == 0
    assert auto.score("The answer is **B**.", "B") == 1
    assert auto.score("The answer is the Eiffel Tower.", "Eiffel Tower") == 1
    assert auto.score("1914", "1914-1918") == 0


def test_exact_keeps_everything_but_space_at_the_ends() -> None:
    exact = find_scorer("exact")
    assert exact.score(" a b\n", "a b") == 1
    assert exact.score("A b", "a b") == 0


def test_number_wants_a_number() -> None:
    number = find_scorer("number")
    assert number.score("It costs $18.00.", "18") == 1
    assert number.score("It costs more than 18.", "18") == 0
    assert number.score("x+18", "18") == 0


def test_a_pattern_finds_its_last_match() -> None:
    scorer = find_scorer(r"regex:ANSWER=(\w+)")
    assert scorer.score("ANSWER=a ANSWER=b", "b") == 1
    assert scorer.score("nothing", "b") == 0
    assert find_scorer(r"regex:[a-z]+").score("ONE two THREE four", "four") == 1


def test_a_pattern_that_would_match_for_ever_finds_nothing() -> None:
    scorer = find_scorer(r"regex:(a+)+$")
    started = time.monotonic()
    assert scorer.score("a" * 60 + "!", "a") == 0
    assert time.monotonic() - started < 120  # two seconds, and the start of a process
    assert scorer.score("It is aaa", "aaa") == 1


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_scorer.py").write_text(
        "def same(answer, target):\n    return len(answer) / len(target)\n"
        "def broken(answer, target):\n    return 1 / 0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    scorer = find_scorer("python:own_scorer.same")
    assert scorer.score("abc", "xyz") == 1
    assert scorer.score("ab", "xyz") == 0
    with pytest.raises(UserError, match=r"own_scorer\.broken failed"):
        find_scorer("python:own_scorer.broken").score("a", "b")
    sys.modules.pop("own_scorer", None)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nope", "no scorer 'nope'; there are: auto, exact"),
        ("regex:(", "not a regular expression"),
        ("python:nowhere.f", "No module named 'nowhere'"),
        ("python:math", "name a function"),
    ],
)
def test_a_wrong_name_is_one_line(name: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        find_scorer(name)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "group",
    [
        ("18", "18.0", "$18", "\\boxed{18}", "The answer is **18**.", "18 dollars"),
        ("1/2", "0.5", "\\frac{1}{2}", "\\dfrac12"),
        ("Paris", "paris", "Paris.", "**Paris**"),
        ("1, 2", "2 and 1"),
        ("x=3", "3"),
        ("x+1", "1+x", "x + 1", "(2x+2)/2", "\\frac{2x+2}{2}", "\\frac{x^2-1}{x-1}"),
        ("2\\sqrt{3}", "2\\sqrt 3", "\\sqrt{12}", "\\sqrt3 \\cdot 2", "12^{1/2}"),
        ("1024", "2^{10}", "\\sqrt{2^{20}}"),
        ("\\frac{\\pi}{2}", "\\pi/2", "\\frac12 \\cdot \\pi"),
        ("-(a-b)", "b - a"),
    ],
)
def test_what_says_the_same_is_one_vote(group: tuple[str, ...]) -> None:
    assert len({vote_key(text) for text in group}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x+1", "x-1"), ("xy", "x+y"), ("x^2", "2x"), ("-x^2", "(-x)^2"), ("1/2x", "2x"),
        ("\\sqrt{2}", "1.41421356"), ("x^{64}", "x^{63}"), ("9^{9^{9}}", "9^{9^{8}}"),
        ("1/0", "2/0"), ("\\sqrt{-1}", "\\sqrt{-2}"), ("x2", "2x + 1"), ("act+1", "cat+1"),
        ("(" * 90 + "x" + ")" * 20, "x"), ("\\sin x", "\\cos x"), ("x" * 200, "x"),
    ],
)  # fmt: skip
def test_formulas_of_other_values_or_of_none_are_other_votes(one: str, other: str) -> None:
    assert vote_key(one, "math") != vote_key(other, "math")


@given(st.text("x12+-*/^(){}\\frac sqrt[]. ", max_size=40))
def test_no_text_breaks_the_value_of_a_formula(text: str) -> None:
    hash(value_key(text))


@given(st.fractions())
def test_fractions_are_read_exactly(value: object) -> None:
    text = str(value)
    assert exact_match_math(text, text) == 1
    assert plain_number(text) in (value, None)


def test_text_votes_are_the_text_scorers() -> None:
    assert vote_key("1/2", "text") != vote_key("0.5", "text")
    assert vote_key("A b", "exact") != vote_key("a b", "exact")


ANSWERS = Path(__file__).with_name("answers.jsonl")


def test_answers_as_models_write_them_are_scored_as_a_reader_would() -> None:
    """Each line a text, a target and whether a careful reader takes it for right."""
    off = []
    for line in ANSWERS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        scored = find_scorer(row["scorer"]).score(
            row["text"],
            row["target"],
            options=row.get("options", ()),
            question=row.get("question", ""),
        )
        if scored != row["right"]:
            off.append(row)
    assert off == []


@pytest.mark.parametrize("name", ["auto", "text", "number", "math"])
@pytest.mark.parametrize(
    ("answer", "target", "right"),
    [
        ("\u20ac5", "$5", 0), ("\u00a35", "$5", 0), ("$5", "\u20ac5", 0), (r"\$5", "\u20ac5", 0),
        ("\u20ac5", "\u20ac5", 1), ("5", "\u20ac5", 1), ("\u20ac5", "5", 1), ("$5$", "\u20ac5", 1),
    ],
)  # fmt: skip
def test_one_currency_is_not_another(name: str, answer: str, target: str, right: int) -> None:
    assert find_scorer(name).score(answer, target) == right
