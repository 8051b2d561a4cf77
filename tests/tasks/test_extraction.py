"""Where an answer stands in a text, and what is not the answer."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlbudget.tasks.expressions import read
from rlbudget.tasks.extraction import after_thinking, answer_in
from rlbudget.tasks.scorers import exact_match_math, extracted, vote_key


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{17}. Wait, it is \\boxed{18}.", "18"),
        ("\\boxed{18} and then \\boxed{17", "18"),
        ("so \\boxed{\\frac{1}{\\sqrt{2}}}. Hope this helps!", "\\frac{1}{\\sqrt{2}}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{3} and \\boxed{5}", "3, 5"),
        ("Put it in \\boxed{}: \\boxed{5}", "5"),
        ("$\\fbox{18}$", "18"),
        ("9 + 9 = <<9+9=18>>18\n#### 18", "18"),
        ("#### Step 4\nSo it is 18.", "18"),
        ("The answer is 17.\nNo: the answer is **18**.", "18"),
        ("**Answer:** 18\n\nLet me know if you have questions!", "18"),
        ("The final answer is:\n\n$$\n18\n$$\n\nThat is correct.", "18"),
        ("The answer is correct: she has 18 eggs.", "18"),
        ("Final Answer\n18", "18"),
        ("\u7b54\u6848\u662f 18\u3002", "18"),
        ("First 9, then 18.", "18"),
        ("She spent 5 hours and earned 90 dollars.", "90 dollars"),
        ("So x = 3 or x = 5.", "x = 3 or x = 5"),
        ("", ""),
    ],
)
def test_the_answer_is_found(text: str, answer: str) -> None:
    assert answer_in(text).strip("$ ") == answer


def test_a_box_is_found_however_much_follows() -> None:
    check = "We verify it once more, step by step, and find that it holds. "
    for times in (0, 5, 500, 5000):
        assert answer_in("\\boxed{18}. " + times * check) == "18"


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>17</think>18", "18"),
        ("17</think>18</think>19", "19"),
        ("[THINK]17[/THINK]18", "18"),
        ("\u25c1think\u25b717\u25c1/think\u25b718", "18"),
        ("<think>it is \\boxed{18}", ""),
        ("18", "18"),
    ],
)
def test_only_what_follows_the_last_end_of_thinking_counts(text: str, rest: str) -> None:
    assert after_thinking(text) == rest


@pytest.mark.parametrize(
    "text",
    [
        "more than 18", "less than 18", "at least 18", "not 18", "18 or more", "18 and 19",
        "18 or 19", "18 thousand", "18 and a half", "The answer is not 18.", "> 18",
        "There are fewer than 18.", "\\boxed{18} is wrong, so \\boxed{19}", "18_9", "(18, 19)",
        "The answer is more than 18.", "17 of the 18 eggs break, so 17.", "18:00",
    ],
)  # fmt: skip
def test_the_right_number_is_not_always_the_answer(text: str) -> None:
    assert exact_match_math(text, "18") == 0


HOSTILE = {
    "braces": "{", "boxes": "\\boxed{", "empty boxes": "\\boxed{}", "closed boxes": "\\boxed{1}",
    "digits": "1", "backslashes": "\\", "dollars": "$", "answers": "answer is ", "bold": "**a ",
    "fractions": "\\frac{", "accents": "a\u0301", "lists": "1,2", "displays": "\\[",
    "marks": "#### 1\n", "powers": "9^", "thinking": "<think>", "roots": "\u221a(",
    "conjunctions": "1 and ", "options": "(A) ", "words": "the ", "answers to": "answer to ",
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_million_hostile_characters_take_no_time(kind: str) -> None:
    text = HOSTILE[kind] * (10**6 // len(HOSTILE[kind]))
    begun = time.process_time()
    assert exact_match_math(text, "17") == 0
    extracted(text)
    assert time.process_time() - begun < 0.5


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("19xae^{}()[]\\/+-*$ .,!%=|_#<>\n&boxed"), max_size=40) | st.text())
def test_any_text_is_read_without_a_fault(text: str) -> None:
    assert isinstance(answer_in(text), str)
    assert answer_in(text, "text") in (answer_in(text, "text"),)
    read(text)
    vote_key(text)


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**15), 10**15))
def test_a_number_is_found_however_it_is_dressed(number: int) -> None:
    for text in (
        f"{number}", f"{number:,}", f"**{number}**", f"\\boxed{{{number}}}", f"${number}$.",
        f"The answer is {number}.", f"So it is {number:,} dollars.", f"#### {number}",
        f"x = {number}", f"The answer is **{number}**.\n\nI hope it helps.",
    ):  # fmt: skip
        assert exact_match_math(text, str(number)) == 1, text
        assert exact_match_math(text, str(number + 1)) == 0, text
