"""Signals of the text follow from the text and the checkpoints, from nothing else."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbudget.policy.observation import feature_names
from rlbudget.signals.text import TEXT_SIGNALS, TextWindow
from rlbudget.signals.tokens import SIGNALS

THINKING = (
    "Let me see: 3 + 4 = 7, so the answer is 7. Wait, maybe not. 3 + 4 is 7; indeed 7.\n"
    "Therefore \\boxed{7}. Hmm, 1,200 / 100 = 12, so 12."
)


def read(text: str, cuts: list[int], pieces: int = 1) -> list[dict[str, float]]:
    """The signals at each cut, the text between two of them pushed in so many pieces."""
    window, found = TextWindow(), []
    for start, stop in pairwise([0, *cuts]):
        part = text[start:stop]
        for place in np.array_split(np.arange(len(part)), pieces):
            window.push("".join(part[i] for i in place))
        found.append(window.read())
    return found


@given(st.text(max_size=120), st.data())
def test_the_pieces_in_which_a_text_comes_make_no_difference(
    text: str, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=5)) | {len(text)})
    whole = read(text, cuts)
    assert whole == read(text, cuts, pieces=7)
    for signals in whole:
        assert tuple(signals) == TEXT_SIGNALS
        assert all(math.isfinite(value) and value >= 0 for value in signals.values())


def test_lengths_numbers_and_words_are_counted() -> None:
    (signals,) = read(THINKING, [len(THINKING)])
    assert signals["text_characters"] == len(THINKING)
    assert signals["text_digits"] == pytest.approx(sum(map(str.isdigit, THINKING)) / len(THINKING))
    assert signals["text_numbers"] == 13
    assert signals["text_new_numbers"] == pytest.approx(6 / 13)  # 3 4 7 1200 100 12
    assert signals["text_hedges"] == 3  # wait, maybe, hmm
    assert signals["text_conclusions"] == 5  # so, answer, therefore, boxed, so
    assert signals["text_checks"] == 1


def test_equal_claims_are_counted_in_a_row() -> None:
    first = THINKING.index("Hmm")
    before, after = read(THINKING, [first, len(THINKING)])
    assert (before["text_claims"], before["text_claim_streak"]) == (3, 3)
    assert (before["text_claim_kinds"], before["text_claim_share"]) == (1, 1)
    assert before["text_claim_again"] == 5  # 7 was written five times
    assert (after["text_claims"], after["text_claim_streak"]) == (1, 1)
    assert after["text_claim_kinds"] == 2
    assert after["text_claim_share"] == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("text", "streak"),
    [
        ("The answer is (B). So B it is: the answer is B.", 2),
        ("so 7. so 8. so 8.", 2),
        ("so \\boxed{x+1}. Thus \\boxed{x+1}.", 2),
        ("it is 7. it is 7.", 0),
        ("so 7", 0),  # the number may go on
        ("so 7 ", 1),  # an open sentence counts for now
    ],
)
def test_a_claim_names_a_value(text: str, streak: int) -> None:
    assert read(text, [len(text)])[0]["text_claim_streak"] == streak


def test_a_word_that_a_checkpoint_cuts_counts_once_it_is_whole() -> None:
    one, two = read("ab wai", [6])[0], read("ab wait, so", [6, 11])
    assert one["text_hedges"] == two[0]["text_hedges"] == 0
    assert two[1]["text_hedges"] == 1


def test_what_was_written_before_is_told_from_what_is_new() -> None:
    line = "one two three four five six. "
    new, again = read(line * 2, [len(line), 2 * len(line)])
    assert new["text_repeats"] == 0
    assert again["text_repeats"] > 0.5


def test_writing_without_spaces_is_read_and_memory_stays_bounded() -> None:
    window = TextWindow()
    for _ in range(300):
        window.push("所以答案是" * 40)
        signals = window.read()
    assert signals["text_characters"] == 200
    assert len(window._rest) + len(window._open) < 1000


def test_text_signals_are_features_only_where_there_are_no_others() -> None:
    of_text = feature_names(TEXT_SIGNALS, "free")
    assert {name.partition(".")[0] for name in of_text} == {"thinking_tokens", *TEXT_SIGNALS}
    assert feature_names((*SIGNALS, *TEXT_SIGNALS), "free") == feature_names(SIGNALS, "free")
