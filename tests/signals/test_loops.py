"""Loops: found as soon as they stand, and nowhere else."""

from __future__ import annotations

import random
import statistics
import time

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from rlbudget.signals.loops import LEAST, LONGEST, REPEATS, Loops, tokens_needed

SLOW_MACHINE = 5
"""times that a token may take longer here than where it was measured"""


def found(tokens: list[int]) -> list[int]:
    loops = Loops()
    return [loops.push(token) for token in tokens]


def by_comparing_all(tokens: list[int]) -> list[bool]:
    """Whether a loop of any period stands after each token."""
    runs, stands = [0] * (LONGEST + 1), []
    for place, token in enumerate(tokens):
        for p in range(1, min(place, LONGEST) + 1):
            runs[p] = runs[p] + 1 if tokens[place - p] == token else 0
        stands.append(any(run + p >= tokens_needed(p) for p, run in enumerate(runs) if p))
    return stands


def primitive(word: list[int]) -> bool:
    doubled = word + word
    return all(doubled[k : k + len(word)] != word for k in range(1, len(word)))


@settings(deadline=None, max_examples=40)
@given(
    before=st.lists(st.integers(0, 3), max_size=80),
    word=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    earlier=st.integers(0, 5),
    few=st.integers(1, 4),
)
@example([], [0] * 9 + [1] + [0] * 10 + [1], 0, 2)  # every short gram is there twice
@example([9], list(range(40)), 5, 50)  # once before, not for long enough
def test_a_loop_is_found_when_it_stands_and_not_before(
    before: list[int], word: list[int], earlier: int, few: int
) -> None:
    word = [token % few for token in word]
    tokens = word * earlier + before + word * (tokens_needed(len(word)) // len(word) + 2)
    stands = by_comparing_all(tokens)
    loops = found(tokens)
    first = stands.index(True)
    assert [bool(p) for p in loops[:first]] == stands[:first]
    within = loops[first : first + len(word)]
    assert any(within)
    period = next(p for p in within if p)
    assert tokens[-2 * period :][:period] == tokens[-period:]


@settings(deadline=None, max_examples=60)
@given(period=st.integers(1, LONGEST), seed=st.integers(0, 10**6), size=st.integers(2, 50_000))
def test_every_period_is_found_and_named(period: int, seed: int, size: int) -> None:
    rng = random.Random(seed)
    word = [rng.randrange(size) for _ in range(period)]
    assume(primitive(word))
    before = [rng.randrange(size, 2 * size) for _ in range(rng.randrange(1500))]
    rounds = max(4, -(-tokens_needed(period) // period))
    loops = found(before + word * rounds)
    assert loops[-1] == period
    assert not any(loops[: len(before) + tokens_needed(period) - 1])


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 50_000))
def test_random_text_is_no_loop(seed: int, size: int) -> None:
    rng = random.Random(seed)
    assert not any(found([rng.randrange(size) for _ in range(3000)]))


def test_a_loop_ends_where_it_is_broken_and_memory_stays_bounded() -> None:
    loops = Loops()
    for token in list(range(40)) * 1000:
        stands = loops.push(token)
    assert stands == 40
    assert loops.push(-1) == 0
    assert len(loops._history) <= 8 * LONGEST
    assert len(loops._last) <= 8 * LONGEST
    for token in list(range(40)) * 7:
        stands = loops.push(token)
    assert stands == 40


def test_tokens_of_any_size_are_told_apart() -> None:
    words = ["the", " same", " again", ".", "\n"] * 20
    numbers = [hash(word) for word in words]
    assert found(numbers * 5)[-1] == 5
    assert not any(found([2**70 + i for i in range(2000)]))


@pytest.mark.parametrize(
    "text",
    [
        "| 0 | 0 |\n" * 25,
        "| a | b | c |\n" + "|---|---|---|\n" + "| 0 | 1 | 0 |\n" * 12,
        "1/3 = 0." + "3" * 200,
        "-" * 120 + "\n" + "=" * 120,
        "\\begin{pmatrix}" + ("0 & " * 9 + "0 \\\\\n") * 5 + "\\end{pmatrix}",
        "- the cell is empty\n" * 12,
        "Wait, let me check this again: 17 + 25 = 42. " * 2,
    ],
)
def test_rows_digits_and_lists_are_no_loops(text: str) -> None:
    assert not any(found([ord(character) for character in text]))


def test_the_thresholds_follow_from_the_constants() -> None:
    assert tokens_needed(1) == tokens_needed(LEAST // REPEATS) == LEAST
    assert tokens_needed(LONGEST) == REPEATS * LONGEST


def test_a_token_takes_microseconds() -> None:
    rng = random.Random(0)
    tokens = [int(rng.paretovariate(0.3)) % 50_000 for _ in range(20_000)]
    loops, times = Loops(), []
    for token in tokens:
        begun = time.perf_counter_ns()
        loops.push(token)
        times.append(time.perf_counter_ns() - begun)
    assert statistics.median(times) <= 2000 * SLOW_MACHINE
