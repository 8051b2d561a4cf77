"""Texts are cut at the end of a word or a sentence, with an ellipsis where something is missing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlbudget.evaluate.excerpt import MOST, beginning, ending, excerpts

WORDS = st.lists(st.text("abc", min_size=1, max_size=9), max_size=60).map(" ".join)


@given(WORDS, st.integers(20, 120))
def test_no_word_is_cut(text: str, most: int) -> None:
    words, first, last = text.split(), beginning(text, most), ending(text, most)
    assert max(len(first), len(last)) <= most + 2
    if first != text:
        *kept, dots = first.split()
        assert (kept, dots) == (words[: len(kept)], "…")
    if last != text:
        dots, *kept = last.split()
        assert (kept, dots) == (words[len(words) - len(kept) :], "…")


def test_a_sentence_ends_the_excerpt_where_one_ends_late_enough() -> None:
    text = "Ann has 3.5 pears and Bo has 4. They share them. How many does each of them get then?"
    assert beginning(text, 60) == "Ann has 3.5 pears and Bo has 4. They share them. …"
    assert beginning(text, 75) == "Ann has 3.5 pears and Bo has 4. They share them. …"
    assert beginning(text, 30) == "Ann has 3.5 pears and Bo has …"
    assert beginning(text, 200) == text
    assert (
        beginning("8 deer, 30 birds, 7 fish and 9 very large spiders", 24) == "8 deer, 30 birds, …"
    )


def test_what_has_no_gaps_is_cut_anyway() -> None:
    assert beginning("7" * 500, 100) == "7" * 100 + " …"
    assert ending("7" * 500, 100) == "… " + "7" * 100
    assert beginning("今天是星期一。" * 40, 100) == "今天是星期一。" * 14 + " …"


def test_an_instruction_that_several_questions_begin_with_is_passed_over() -> None:
    told = "Answer the question below and put the answer into a box. "
    assert excerpts([told + "What is 2 + 3?", told + "Who\nwas  first?"]) == [
        "… What is 2 + 3?", "… Who was first?",
    ]  # fmt: skip
    assert excerpts([told + "What is 2 + 3?"] * 2) == [told + "What is 2 + 3?"] * 2
    assert excerpts(["What is 2 + 3?", "What is 2 + 4?"]) == ["What is 2 + 3?", "What is 2 + 4?"]
    sums = [f"State the answer to the following arithmetic problem: {n} + 1 =" for n in (2, 3)]
    assert excerpts([*sums, told + "Who?", "Who?"]) == [
        "… 2 + 1 =", "… 3 + 1 =", told + "Who?", "Who?",
    ]  # fmt: skip
    long = [told + f"{i} pears " + "and so on " * 40 for i in range(3)]
    assert all(len(line) <= MOST + 4 for line in excerpts(long))
    assert excerpts([]) == []
