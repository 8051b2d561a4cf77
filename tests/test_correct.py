from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import make_table

from rlbudget.errors import UserError
from rlbudget.evaluate.outcomes import NATURAL_END, fixed_stops, outcome, utility
from rlbudget.evaluate.replay import Replay
from rlbudget.observation import feature_names
from rlbudget.strategies.correct import (
    EXIT_FEATURES,
    OFF,
    Resume,
    correct,
    majority,
    majority_answer,
    repaired,
    risk_at_stops,
    tune,
)
from rlbudget.strategies.impact import ImpactModel, fit_impact
from rlbudget.table import TraceTable, split_questions

PRICE = 1e-4


def _stopped_at(table: TraceTable, tokens: int) -> Replay:
    return Replay(table, fixed_stops(table, tokens), "none", np.zeros(len(table.thinking_tokens)))


@pytest.fixture(scope="module")
def table() -> TraceTable:
    made = make_table(1200, seed=6)
    made.signals["exit_entropy"] = 1 - made.probe_confidence
    return made


@pytest.fixture(scope="module")
def impact(table: TraceTable) -> ImpactModel:
    split = split_questions(table, seed=0)
    features = tuple(dict.fromkeys((*feature_names(table.signals, "free"), *EXIT_FEATURES)))
    return fit_impact(split.train, split.validation, features, epochs=25)


def test_what_is_resumed_costs_both_answers_and_gives_the_later_one(
    table: TraceTable, impact: ImpactModel
) -> None:
    done = _stopped_at(table, 40)
    everything = Resume(impact, -1.0, None)
    after = correct(everything, done)
    stopped = done.stops != NATURAL_END
    np.testing.assert_array_equal(after.resumed, stopped)
    np.testing.assert_array_equal(after.outcome.exact_match, table.final_exact_match)
    first = outcome(table, done.stops).answer
    expected = table.full_tokens + np.where(stopped, first, 0)
    np.testing.assert_array_equal(after.outcome.tokens, expected)
    np.testing.assert_array_equal(after.extra_tokens, expected - done.outcome.tokens)
    gained = after.outcome.exact_match - done.outcome.exact_match
    np.testing.assert_array_equal(gained, after.recovered.astype(int) - after.broken.astype(int))


def test_a_budget_exits_again_at_the_first_checkpoint_beyond_it(
    table: TraceTable, impact: ImpactModel
) -> None:
    done = _stopped_at(table, 24)
    after = correct(Resume(impact, -1.0, 20), done)
    for trace in np.flatnonzero(after.resumed)[:100].tolist():
        rows = slice(table.offsets[trace], table.offsets[trace + 1])
        tokens = table.thinking_tokens[rows]
        late = np.flatnonzero(tokens >= tokens[done.stops[trace]] + 20)
        if len(late):
            assert after.outcome.thinking[trace] == tokens[late[0]]
            assert after.outcome.exact_match[trace] == table.exit_exact_match[rows][late[0]]
        else:
            assert after.outcome.exact_match[trace] == table.final_exact_match[trace]


def test_off_changes_nothing_and_natural_ends_are_never_taken_back(
    table: TraceTable, impact: ImpactModel
) -> None:
    done = _stopped_at(table, 40)
    after = correct(Resume(impact, OFF, None), done)
    assert not after.resumed.any()
    np.testing.assert_array_equal(after.outcome.tokens, done.outcome.tokens)
    ends = done.stops == NATURAL_END
    assert ends.any()
    assert (risk_at_stops(Resume(impact, 0.0, None), done)[ends] == 0).all()


def test_a_tuned_correction_pays_on_other_questions_and_is_off_where_it_cannot(
    table: TraceTable, impact: ImpactModel
) -> None:
    split = split_questions(table, seed=0)
    resume = tune(impact, _stopped_at(split.validation, 32), PRICE, budgets=(None, 32))
    assert resume.threshold < OFF
    done = _stopped_at(split.held_out, 32)
    after = correct(resume, done)
    assert utility(after.outcome, PRICE).mean() > utility(done.outcome, PRICE).mean()
    assert tune(impact, _stopped_at(split.validation, 32), 1.0).threshold == OFF
    bounded = tune(impact, _stopped_at(split.validation, 32), PRICE, most_extra=0.1)
    before = _stopped_at(split.validation, 32)
    saved = split.validation.full_tokens.sum() - before.outcome.tokens.sum()
    assert correct(bounded, before).extra_tokens.sum() <= 0.1 * saved
    with pytest.raises(UserError, match="most_extra"):
        tune(impact, before, PRICE, most_extra=-1)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("12", "12"), (" 12. ", "12"), ("$12$", "12"), (r"\boxed{12}", "12"), ("x = 7", "7"),
        ("So the answer is 1,234.00", "1234"), ("-3.0", "-3"), ("3.50", "3.50"),
        ("Monday", "Monday"), ("1,2", "1,2"), ("", ""),
    ],
)  # fmt: skip
def test_wrapping_is_taken_away(written: str, meant: str) -> None:
    assert repaired(written) == meant


@given(st.text())
def test_whatever_is_repaired_comes_out_stripped(text: str) -> None:
    once = repaired(text)
    assert once == once.strip()


@given(st.integers(-(10**9), 10**9))
def test_a_plain_number_stays(number: int) -> None:
    assert repaired(str(number)) == str(number)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12))
def test_the_majority_is_the_most_frequent_answer_and_the_latest_of_equals(
    answers: list[str],
) -> None:
    found = majority_answer(answers)
    counts = {answer: answers.count(answer) for answer in answers}
    assert counts[found] == max(counts.values())
    equals = [answer for answer in counts if counts[answer] == counts[found]]
    assert found == next(answer for answer in reversed(answers) if answer in equals)


def test_a_replay_votes_as_the_answers_themselves_do(table: TraceTable) -> None:
    done = Replay(table, fixed_stops(table, 40), "until_stop", np.zeros(len(table.thinking_tokens)))
    voted = majority(done)
    np.testing.assert_array_equal(voted.tokens, done.outcome.tokens)
    changed = 0
    for trace in range(len(table)):
        if done.stops[trace] == NATURAL_END:
            assert voted.exact_match[trace] == table.final_exact_match[trace]
            continue
        start = int(table.offsets[trace])
        stop = start + int(done.stops[trace])
        answers = [str(code) for code in table.probe_answer[start : stop + 1]]
        chosen = majority_answer(answers)
        row = start + max(i for i, answer in enumerate(answers) if answer == chosen)
        assert voted.exact_match[trace] == table.exit_exact_match[row]
        changed += chosen != answers[-1]
    assert changed > 10
    with pytest.raises(UserError, match="trial answers"):
        majority(_stopped_at(table, 40))
