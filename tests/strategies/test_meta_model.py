"""Choosing a member: what is paid when, the oracle, the better by task, gradient boosting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from frozen_nets import policy_for
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_makers import make_pair
from trace_makers import make_trace

from rlbudget.errors import UserError
from rlbudget.policy.handover import in_large_tokens
from rlbudget.policy.outcomes import RELATIVE_PRICES, token_price_of, utility
from rlbudget.policy.replay import replay
from rlbudget.strategies.members import (
    WHEN,
    DecodedPair,
    When,
    better_by_task,
    chosen,
    decode_both,
    oracle_takes_large,
)
from rlbudget.strategies.meta_model import MetaModel, fit_meta_model, running_record
from rlbudget.traces.pairs import load_pair, pair_tables, split_pair
from rlbudget.traces.store import TraceWriter

PAIR = make_pair(400, seed=11)
SPLIT = split_pair(PAIR)
PRICES = [token_price_of(relative, SPLIT.train.large) for relative in RELATIVE_PRICES]
SMALL, LARGE = policy_for(PAIR.small, "free"), policy_for(PAIR.large, "free", 1)
TRAIN, VALIDATION, HELD_OUT = (
    decode_both(part, PRICES, small=SMALL, large=LARGE)
    for part in (SPLIT.train, SPLIT.validation, SPLIT.held_out)
)


def value(decoded: DecodedPair, takes_large: np.ndarray, when: When) -> float:
    return float(utility(chosen(decoded, takes_large, when), decoded.token_price).mean())


def test_each_member_is_served_by_its_policy_at_its_own_price() -> None:
    decoded, price = HELD_OUT[2], PRICES[2]
    pair = SPLIT.held_out
    low, high = SMALL.price_range
    small = replay(SMALL, pair.small, min(max(price * pair.ratio, low), high))
    np.testing.assert_array_equal(decoded.small.stops, small.stops)
    np.testing.assert_array_equal(decoded.large.stops, replay(LARGE, pair.large, price).stops)


def test_what_is_paid_depends_on_when_it_is_chosen() -> None:
    decoded = HELD_OUT[1]
    small = in_large_tokens(decoded.small.outcome, PAIR.ratio).tokens
    large = decoded.large.outcome.tokens
    paid = {"before": (small, large), "after_small": (small, small + large),
            "after_both": (small + large, small + large)}  # fmt: skip
    n = len(small)
    for when in WHEN:
        for takes_large in (False, True):
            outcome = chosen(decoded, np.full(n, takes_large), when)
            np.testing.assert_allclose(outcome.tokens, paid[when][takes_large])
            member = decoded.large if takes_large else decoded.small
            np.testing.assert_array_equal(outcome.exact_match, member.outcome.exact_match)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), when=st.sampled_from(WHEN))
def test_the_oracle_chooser_is_never_beaten(seed: int, share: float, when: When) -> None:
    for decoded in HELD_OUT[::2]:
        price = decoded.token_price
        takes_large = np.random.default_rng(seed).random(len(decoded.pair)) < share
        best = utility(chosen(decoded, oracle_takes_large(decoded)), price)
        assert (utility(chosen(decoded, takes_large, when), price) <= best + 1e-12).all()


def test_by_task_the_better_member_is_taken() -> None:
    decoded = TRAIN[0]
    choice = better_by_task([decoded, VALIDATION[0]])
    assert choice.known == {"easy", "hard", "mixed"}
    assert "hard" in choice.large
    says = choice.takes_large(SPLIT.held_out)
    for task in choice.known:
        own = SPLIT.held_out.tasks == task
        assert (says[own] == (task in choice.large)).all()
    unknown = pair_tables(PAIR.small, PAIR.large, ratio=0.5, tasks=["new"] * len(PAIR))
    assert (choice.takes_large(unknown) == choice.otherwise).all()


def test_the_record_of_a_question_holds_those_before_it_alone() -> None:
    twice = pair_tables(
        *(table.take(np.repeat(np.arange(40), 2)) for table in (PAIR.small, PAIR.large)),
        ratio=0.5,
        tasks=np.repeat(PAIR.tasks[:40], 2).tolist(),
    )
    before, after = running_record(twice)
    assert np.isnan(before[:2]).all()
    np.testing.assert_array_equal(before[::2], before[1::2])
    partly, _ = running_record(twice.take(range(20)))
    np.testing.assert_array_equal(partly, before[:20])
    task = str(twice.tasks[0])
    own = twice.tasks == task
    whole = twice.small.final_exact_match.mean()
    expected = (twice.small.final_exact_match[own].sum() + 10 * whole) / (own.sum() + 10)
    assert after.of(task)[0] == pytest.approx(expected)
    assert after.of("never seen")[0] == pytest.approx(whole)


@pytest.mark.parametrize("when", WHEN)
def test_the_meta_model_is_worth_more_than_either_member(when: When) -> None:
    model = fit_meta_model(TRAIN[::2], VALIDATION[::2], when)
    assert model.classifier is not None
    for part, low in ((VALIDATION[::2], 0.0), (HELD_OUT, 0.01)):
        means = np.array(
            [
                [
                    value(decoded, model.takes_large(decoded), when),
                    value(decoded, np.zeros(len(decoded.pair), bool), when),
                    value(decoded, np.ones(len(decoded.pair), bool), when),
                ]
                for decoded in part
            ]
        ).mean(axis=0)
        assert means[0] >= means[1:].max() + low


def test_where_one_member_is_always_better_it_is_always_taken() -> None:
    # The same model twice: the one whose tokens cost half.
    cheap = pair_tables(PAIR.small, PAIR.small, ratio=0.5)
    parts = split_pair(cheap)
    model = fit_meta_model(
        decode_both(parts.train, PRICES), decode_both(parts.validation, PRICES), "before"
    )
    assert model.classifier is None
    assert not model.prefers_large("1 + 1?", task="all", token_price=PRICES[0])


def test_a_live_choice_is_that_of_the_replay(tmp_path: Path) -> None:
    for name in ("small", "large"):
        with TraceWriter(tmp_path / name) as writer:
            for i in range(20):
                writer.add(make_trace(i * 10 ** (i % 9)))
    pair = load_pair(tmp_path / "small", tmp_path / "large", ratio=0.5)
    fitted = fit_meta_model(TRAIN, VALIDATION, "before")
    assert fitted.classifier is not None
    again = fit_meta_model(TRAIN, VALIDATION, "before")
    says = fitted.takes_large(decode_both(pair, [PRICES[0]])[0])
    np.testing.assert_array_equal(says, again.takes_large(decode_both(pair, [PRICES[0]])[0]))
    questions = [f"What is {i * 10 ** (i % 9)}?" for i in range(20)]
    live = [fitted.prefers_large(q, task="made", token_price=PRICES[0]) for q in questions]
    assert says.tolist() == live


def test_what_cannot_be_chosen_is_refused() -> None:
    with pytest.raises(UserError, match="in the training and in the validation"):
        fit_meta_model(TRAIN, TRAIN, "before")
    later = MetaModel("after_both", running_record(PAIR)[1], None, True, np.arange(3))
    with pytest.raises(ValueError, match="needs decodes"):
        later.prefers_large("?", task="all", token_price=1e-3)
