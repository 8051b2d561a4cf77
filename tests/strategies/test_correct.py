from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from frozen_nets import policy_for, random_policy
from synthetic import make_table
from trace_makers import make_trace

from rlbudget.cli.main import main
from rlbudget.errors import UserError
from rlbudget.policy.folder import save_policy
from rlbudget.policy.outcomes import (
    NATURAL_END,
    Outcome,
    fixed_stops,
    full_stops,
    outcome,
    utility,
)
from rlbudget.policy.replay import Replay
from rlbudget.strategies.correction.correct import (
    OFF,
    Corrected,
    Correction,
    Refiner,
    Second,
    correct,
    doubts_of,
    tune,
)
from rlbudget.strategies.correction.doubt import (
    doubts_in_turn,
    exit_features,
    fit_doubt,
    stop_chances,
)
from rlbudget.strategies.correction.file import (
    load_correction,
    load_second_policy,
    save_correction,
)
from rlbudget.strategies.correction.fit import Fitted
from rlbudget.strategies.impact import ImpactModel
from rlbudget.strategies.impact_file import save_impact
from rlbudget.traces.store import TraceWriter
from rlbudget.traces.table import Split, TraceTable, joined, split_questions

PRICE = 1e-4


def _stopped_at(table: TraceTable, tokens: int) -> Replay:
    return Replay(table, fixed_stops(table, tokens), "none", np.zeros(len(table.thinking_tokens)))


@pytest.fixture(scope="module")
def table() -> TraceTable:
    made = make_table(1200, seed=6)
    made.signals["exit_confidence"] = made.probe_confidence
    made.signals["exit_entropy"] = 1 - made.probe_confidence
    return made


@pytest.fixture(scope="module")
def split(table: TraceTable) -> Split:
    return split_questions(table, seed=0)


@pytest.fixture(scope="module")
def doubt(split: Split) -> ImpactModel:
    policy = policy_for(split.train, "free")
    return fit_doubt(split.train, split.validation, policy, exit_features(split.train))


def test_what_is_resumed_costs_both_answers_and_gives_the_later_one(
    table: TraceTable, doubt: ImpactModel
) -> None:
    done = _stopped_at(table, 40)
    after = correct(Correction(doubt, -1.0, None), done)
    stopped = done.stops != NATURAL_END
    np.testing.assert_array_equal(after.resumed, stopped)
    np.testing.assert_array_equal(after.outcome.exact_match, table.final_exact_match)
    first = outcome(table, done.stops).answer
    expected = table.full_tokens + np.where(stopped, first, 0)
    np.testing.assert_array_equal(after.outcome.tokens, expected)
    np.testing.assert_array_equal(after.extra_tokens, expected - done.outcome.tokens)
    full = outcome(table, full_stops(table))
    lost = (full.exact_match == 1) & (done.outcome.exact_match == 0)
    assert lost.sum() > 50
    np.testing.assert_array_equal(after.lost, lost)
    assert after.share_recovered == 1
    saved = full.tokens.sum() - done.outcome.tokens.sum()
    assert after.share_of_saved == pytest.approx(after.extra_tokens.sum() / saved)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_each_round_exits_at_the_first_checkpoint_beyond_the_budget_and_the_least_doubted_stays(
    table: TraceTable, doubt: ImpactModel, rounds: int
) -> None:
    done = _stopped_at(table, 24)
    doubts, level = doubts_of(doubt, table), 0.2
    after = correct(Correction(doubt, level, 16, rounds), done, doubts)
    ended = kept_first = 0
    for trace in range(len(table)):
        if done.stops[trace] == NATURAL_END:
            assert after.resumed[trace] == 0
            continue
        rows = np.arange(table.offsets[trace], table.offsets[trace + 1])
        seen = [int(rows[done.stops[trace]])]
        natural = False
        for _ in range(rounds):
            if min(doubts[seen]) <= level:
                break
            late = rows[table.thinking_tokens[rows] >= table.thinking_tokens[seen[-1]] + 16]
            if not len(late):
                natural = True
                break
            seen.append(int(late[0]))
        assert after.resumed[trace] == len(seen) - 1 + natural
        answers = table.exit_answer_tokens[seen].sum()
        if natural:
            ended += 1
            assert after.outcome.exact_match[trace] == table.final_exact_match[trace]
            assert after.outcome.tokens[trace] == answers + table.full_tokens[trace]
            continue
        kept = min(reversed(seen), key=lambda row: doubts[row])
        kept_first += len(seen) > 1 and kept == seen[0]
        assert after.outcome.exact_match[trace] == table.exit_exact_match[kept]
        assert after.outcome.tokens[trace] == answers + table.thinking_tokens[seen[-1]]
    assert ended > 5
    assert kept_first > 5


def test_off_changes_nothing(table: TraceTable, doubt: ImpactModel) -> None:
    done = _stopped_at(table, 40)
    after = correct(Correction(doubt, OFF, None), done)
    assert not after.resumed.any()
    np.testing.assert_array_equal(after.outcome.tokens, done.outcome.tokens)
    assert after.gained_per_100_tokens == 0
    assert Correction(doubt, OFF, None).off


def test_a_tuned_correction_pays_on_other_questions_and_is_off_where_it_cannot(
    split: Split, doubt: ImpactModel
) -> None:
    before = _stopped_at(split.validation, 32)
    doubts = doubts_of(doubt, split.validation)
    plans = ((None, 1), (32, 1), (16, 2))
    best = tune(doubt, before, doubts, PRICE, plans=plans)
    assert best.threshold < OFF
    done = _stopped_at(split.held_out, 32)
    after = correct(best, done)
    assert utility(after.outcome, PRICE).mean() > utility(done.outcome, PRICE).mean()
    assert tune(doubt, before, doubts, 1.0, plans=plans).off
    bounded = tune(doubt, before, doubts, PRICE, most_extra=0.1, plans=plans)
    answers = tune(doubt, before, doubts, PRICE, most_extra=0.1, aim="answers", plans=plans)
    shares = [correct(one, before, doubts) for one in (bounded, answers)]
    assert all(0 < one.share_of_saved <= 0.1 for one in shares)
    assert shares[1].outcome.exact_match.mean() >= shares[0].outcome.exact_match.mean()
    gains = [(utility(one.outcome, PRICE) - utility(one.before, PRICE)).mean() for one in shares]
    assert gains[0] >= gains[1] >= gains[0] / 2 > 0
    with pytest.raises(UserError, match="most_extra"):
        tune(doubt, before, doubts, PRICE, most_extra=-1)


def test_a_doubt_tells_right_from_wrong_on_unseen_questions(
    split: Split, doubt: ImpactModel
) -> None:
    held_out = split.held_out
    doubts, wrong = doubts_of(doubt, held_out), held_out.exit_exact_match == 0
    assert doubts[wrong].mean() > doubts[~wrong].mean() + 0.2
    policy = policy_for(split.train, "free")
    features = exit_features(split.train)
    in_turn = doubts_in_turn(split.train, split.validation, policy, features)
    wrong = split.train.exit_exact_match == 0
    assert in_turn[wrong].mean() > in_turn[~wrong].mean() + 0.2
    assert not np.array_equal(in_turn, doubts_of(doubt, split.train))


def test_stop_chances_are_those_of_a_policy_that_tosses_a_coin(split: Split) -> None:
    policy = policy_for(split.train, "free")
    chances = stop_chances(policy, split.train)
    ends = np.bincount(split.train.trace_of_row, chances, len(split.train))
    assert (chances >= 0).all()
    assert (ends <= 1 + 1e-9).all()
    assert ends.max() > 0.1


def test_joined_tables_hold_both(split: Split) -> None:
    both = joined([split.train, split.validation])
    n = len(split.train)
    for part, rows in ((split.train, range(n)), (split.validation, range(n, len(both)))):
        taken = both.take(list(rows))
        np.testing.assert_array_equal(taken.exit_exact_match, part.exit_exact_match)
        np.testing.assert_array_equal(taken.signals["exit_entropy"],
                                      part.signals["exit_entropy"])  # fmt: skip
        np.testing.assert_array_equal(taken.question_ids, part.question_ids)


def test_a_correction_is_the_same_after_a_file(tmp_path: Path, doubt: ImpactModel) -> None:
    for given_one in (
        Correction(doubt, 0.25, 16, 2),
        Correction(doubt, OFF, None),
    ):
        save_correction(tmp_path / "c.safetensors", given_one)
        found = load_correction(tmp_path / "c.safetensors")
        plans = [(c.threshold, c.budget, c.rounds) for c in (given_one, found)]
        assert plans[0] == plans[1]
        seen = np.random.default_rng(0).normal(size=(5, len(doubt.features)))
        np.testing.assert_array_equal(found.doubt.risk(seen), doubt.risk(seen))
    with pytest.raises(UserError, match="there is no correction"):
        load_correction(tmp_path / "none.safetensors")
    save_impact(tmp_path / "impact.safetensors", doubt)
    with pytest.raises(UserError, match="is not a correction"):
        load_correction(tmp_path / "impact.safetensors")


def test_the_command_keeps_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with TraceWriter(tmp_path / "traces") as writer:
        for i in range(90):
            made = make_trace(i % 3, checkpoints=4)  # right at one of three checkpoints
            writer.add(replace(made, trace_id=f"t{i}", question_id=f"q{i}"))
    # It always stops at the first checkpoint, where two of three answers are wrong.
    save_policy(tmp_path / "policy", random_policy(threshold=1e-12, price_range=(1e-5, 1.0)))
    file = tmp_path / "correction.safetensors"
    for price, off in ((1e-5, False), (0.1, True)):
        main(["correct", str(tmp_path / "policy"), str(tmp_path / "traces"), "--out", str(file),
              "--token-price", str(price), "--most-extra", "2"])  # fmt: skip
        said = capsys.readouterr().out
        assert load_correction(file).off == off
        assert said.startswith("OFF") == off
        assert ("27 held-out questions" in said) != off
        assert ("worth it." in said) != off


@pytest.mark.parametrize(
    ("recovered", "n", "said"),
    [
        (1.0, 40, ": worth it."),
        (0.0, 400, ": not worth it."),
        (1.0, 3, "too few questions to tell whether it is worth it."),
        (0.0, 40, "too few questions to tell whether it is worth it."),
    ],
)
def test_what_a_correction_is_worth_has_three_values(
    doubt: ImpactModel, recovered: float, n: int, said: str
) -> None:
    def of(exact_match: float, tokens: float) -> Outcome:
        return Outcome(np.full(n, exact_match), np.full(n, tokens), np.zeros(n), np.zeros(n))

    resumed = np.ones(n, dtype=np.int64)
    done = Corrected(of(0, 50), of(recovered, 100), resumed, of(1, 100))
    questions = np.array([f"q{k}" for k in range(n)])
    fitted = Fitted(Correction(doubt, 0.5, None), done, questions, token_price=1e-3)
    assert fitted.lines()[-1].endswith(said)


def test_a_refined_exit_is_the_second_models_and_both_are_paid(
    table: TraceTable, doubt: ImpactModel
) -> None:
    done, doubts = _stopped_at(table, 24), doubts_of(doubt, table)
    n = len(table)
    second = Second(
        Outcome(np.ones(n), np.full(n, 50.0), np.zeros(n), np.full(n, 5.0)), Refiner(4.0)
    )
    after = correct(Correction(doubt, -1.0, None, 1, second.model), done, doubts, second)
    stopped = done.stops != NATURAL_END
    np.testing.assert_array_equal(after.resumed, stopped)
    np.testing.assert_array_equal(after.outcome.exact_match[stopped], 1)
    np.testing.assert_allclose(after.outcome.tokens, done.outcome.tokens + 220 * stopped)
    assert after.share_recovered == 1
    tuned = tune(doubt, done, doubts, PRICE, second=second)
    assert tuned.second == second.model
    assert correct(tuned, done, doubts, second).resumed.sum() > 0
    assert tune(doubt, done, doubts, 1.0, second=second).off
    with pytest.raises(UserError, match="second model costs 0"):
        tune(doubt, done, doubts, PRICE, second=Second(second.outcome, Refiner(0.0)))
    few = Second(outcome(table.take([0]), np.array([-1])), second.model)
    with pytest.raises(ValueError, match="outcomes"):
        correct(tuned, done, doubts, few)


def test_a_doubt_for_a_second_model_is_low_where_that_is_wrong_too(split: Split) -> None:
    policy, features = policy_for(split.train, "free"), exit_features(split.train)
    means = []
    for right in (0.0, 1.0):
        second = (np.full(len(split.train), right), np.full(len(split.validation), right))
        # One of each kind, so that there is something to tell apart in both parts.
        model = fit_doubt(split.train, split.validation, policy, features, second=second)
        means.append(doubts_of(model, split.held_out).mean())
    assert means[0] < 0.5 < means[1]


def test_a_correction_by_a_second_model_is_kept_as_a_file_or_a_folder(
    doubt: ImpactModel, tmp_path: Path
) -> None:
    plan = Correction(doubt, 0.4, None, 1, Refiner(96.0, {"stride": 16}))
    policy = random_policy()
    save_correction(tmp_path / "c.safetensors", plan)
    save_correction(tmp_path / "folder", plan, policy)
    for path in (tmp_path / "c.safetensors", tmp_path / "folder"):
        again = load_correction(path)
        assert (again.threshold, again.second) == (0.4, plan.second)
    assert load_second_policy(tmp_path / "c.safetensors") is None
    assert load_second_policy(tmp_path / "folder") == policy
    with pytest.raises(UserError, match="is a folder"):
        save_correction(tmp_path / "d.safetensors", plan, policy)
