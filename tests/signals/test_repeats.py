"""Repetition of tokens against its plain definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlbudget.policy.observation import PRESETS, feature_names
from rlbudget.signals.repeats import GRAM, TOKEN_REPEATS, TokenRepeats
from rlbudget.signals.tokens import SIGNALS


def plain(ids: list[int], since: int) -> float:
    """The share of ``ids[since:]`` that end a sequence of ``GRAM`` tokens which stood before."""
    again = 0
    for place in range(since, len(ids)):
        last = ids[place - GRAM + 1 : place + 1]
        before = (ids[k : k + GRAM] for k in range(place - GRAM + 1))
        again += place + 1 >= GRAM and last in before
    return again / max(len(ids) - since, 1)


@given(
    st.lists(st.sampled_from([0, 1, 7, 2**18]), max_size=80),
    st.lists(st.integers(0, 12), max_size=12),
)
def test_it_is_the_share_of_tokens_that_end_a_sequence_written_before(
    ids: list[int], steps: list[int]
) -> None:
    window, at = TokenRepeats(), 0
    for step in steps:
        # Later tokens change nothing: only those up to the checkpoint are given.
        until = min(at + step, len(ids))
        window.push(ids[at : (at + until) // 2])
        window.push(ids[(at + until) // 2 : until])
        assert window.read() == plain(ids[:until], at)
        assert window.tokens == until
        at = until


def test_a_loop_repeats_all_of_it_and_new_thoughts_nothing() -> None:
    window = TokenRepeats()
    window.push(range(64))
    assert window.read() == 0
    window.push([*range(64), *range(64)])
    assert window.read() == (128 - GRAM + 1) / 128
    assert window.read() == 0


def test_no_preset_sees_repetition_that_is_not_asked_for() -> None:
    for preset in PRESETS:
        plain = feature_names(SIGNALS, preset)
        assert feature_names((*SIGNALS, TOKEN_REPEATS), preset) == plain
        asked = feature_names((*SIGNALS, TOKEN_REPEATS), preset, repeats=True)
        assert {*asked} - {*plain} == {TOKEN_REPEATS, f"{TOKEN_REPEATS}.ema"}
        assert feature_names(SIGNALS, preset, repeats=True) == plain
