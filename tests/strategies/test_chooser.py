"""Choosing among models: what is paid when, the oracle, the best by task, the chooser."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from frozen_nets import policy_for
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_makers import make_together
from trace_makers import make_trace

from rlbudget.errors import UserError
from rlbudget.policy.handover import in_large_tokens
from rlbudget.policy.outcomes import utility
from rlbudget.policy.replay import replay
from rlbudget.policy.sealed import seal
from rlbudget.strategies.chooser.chooser import Chooser, MemberOf
from rlbudget.strategies.chooser.fit import fit, load_together, token_prices_of
from rlbudget.strategies.chooser.folder import chooser_digest, load_chooser, save_chooser
from rlbudget.strategies.chooser.members import (
    WHEN,
    Played,
    When,
    best_by_task,
    chosen,
    oracle_choice,
    play,
)
from rlbudget.strategies.chooser.record import TrackRecord, running_record
from rlbudget.strategies.chooser.together import split_together
from rlbudget.traces.store import TraceWriter

TOGETHER = make_together(500, seed=11)
SPLIT = split_together(TOGETHER)
PRICES = token_prices_of(SPLIT.train)
POLICIES = tuple(
    policy_for(member.table, "free", seed) for seed, member in enumerate(TOGETHER.members)
)
MEMBERS = tuple(
    MemberOf(name, member.ratio, policy, {"stride": 8})
    for name, member, policy in zip(("small", "large"), TOGETHER.members, POLICIES, strict=True)
)
TRAIN, VALIDATION, HELD_OUT = (
    play(part, PRICES, POLICIES) for part in (SPLIT.train, SPLIT.validation, SPLIT.held_out)
)
THREE = make_together(60, seed=3, copies=2)


@pytest.fixture(scope="module")
def chooser() -> Chooser:
    return fit(SPLIT.train, SPLIT.validation, MEMBERS)


def value(played: Played, choice: np.ndarray, when: When) -> float:
    return float(utility(chosen(played, choice, when), played.token_price).mean())


def test_each_member_is_served_by_its_policy_at_its_own_price() -> None:
    played, price = HELD_OUT[2], PRICES[2]
    for member, policy, done in zip(SPLIT.held_out.members, POLICIES, played.replays, strict=True):
        low, high = policy.price_range
        own = min(max(price * member.ratio, low), high)
        np.testing.assert_array_equal(done.stops, replay(policy, member.table, own).stops)


def test_what_is_paid_depends_on_when_it_is_chosen() -> None:
    played = play(THREE, [1e-3], (None, POLICIES[0], POLICIES[1]))[0]
    tokens = [
        in_large_tokens(done.outcome, member.ratio).tokens
        for done, member in zip(played.replays, THREE.members, strict=True)
    ]
    paid = {
        "before": tokens,
        "after_first": [tokens[0], tokens[0] + tokens[1], tokens[0] + tokens[2]],
        "after_all": [sum(tokens)] * 3,
    }
    for when in WHEN:
        for place in range(3):
            outcome = chosen(played, np.full(len(THREE), place), when)
            np.testing.assert_allclose(outcome.tokens, paid[when][place])
            np.testing.assert_array_equal(outcome.exact_match, played.alone[place].exact_match)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), when=st.sampled_from(WHEN))
def test_the_oracle_chooser_is_never_beaten(seed: int, when: When) -> None:
    for played in HELD_OUT[::2]:
        price, n = played.token_price, len(played.together)
        choice = np.random.default_rng(seed).integers(0, 2, n)
        best = utility(chosen(played, oracle_choice(played), "before"), price)
        assert (utility(chosen(played, choice, when), price) <= best + 1e-12).all()


def test_by_task_the_best_member_is_taken() -> None:
    known = [TRAIN[0], VALIDATION[0]]
    choice = best_by_task(known, ["easy", "hard", "never seen"])
    tasks = np.concatenate([part.together.tasks for part in known])
    for place, task in enumerate(("easy", "hard")):
        earned = [
            np.concatenate([utility(part.alone[member], PRICES[0]) for part in known])
            for member in (0, 1)
        ]
        assert choice[place] == np.argmax([own[tasks == task].mean() for own in earned])
    assert choice[1] == 1
    assert choice[2] == np.argmax([own.mean() for own in earned])


def test_the_record_of_a_question_holds_those_before_it_alone() -> None:
    twice = THREE.take(np.repeat(np.arange(40), 2))
    members = (None, None, None)
    before, after = running_record(play(twice, [1e-4, 1e-3], members))
    assert before.shape == (80, 2, 2, 3)
    assert np.isnan(before[:2]).all()
    np.testing.assert_array_equal(before[::2], before[1::2])
    partly, _ = running_record(play(twice.take(range(20)), [1e-4, 1e-3], members))
    np.testing.assert_array_equal(partly, before[:20])
    task, table = str(twice.tasks[0]), twice.members[0].table
    own, whole = twice.tasks == task, table.final_exact_match.mean()
    expected = (table.final_exact_match[own].sum() + 10 * whole) / (own.sum() + 10)
    assert after.of(task)[0, 0, 0] == pytest.approx(expected)
    assert after.of("never seen")[0, 1, 0] == pytest.approx(whole)


def test_a_record_counts_only_members_that_were_asked() -> None:
    record = TrackRecord((1, 2))
    record.add("t", [[1.0, np.nan]], [[10.0, np.nan]])
    record.add("t", [[0.0, 1.0]], [[20.0, 5.0]])
    np.testing.assert_allclose(record.of("t")[:, 0], [[0.5, 1.0], [15.0, 5.0]])


def test_a_chooser_earns_more_than_every_member_alone(chooser: Chooser) -> None:
    assert {way.always for way in chooser.ways} == {None}
    for part, low in ((VALIDATION, 0.0), (HELD_OUT, 0.01)):
        for played in part[::2]:
            own = utility(chooser.replay(played), played.token_price).mean()
            alone = [utility(one, played.token_price).mean() for one in played.alone]
            assert own >= max(alone) + low


def test_three_members_are_chosen_from(tmp_path: Path) -> None:
    three = make_together(150, seed=5, copies=2)
    parts = split_together(three)
    members = [MemberOf(f"m{place}", one.ratio, None, {})
               for place, one in enumerate(three.members)]  # fmt: skip
    chooser = fit(parts.train, parts.validation, members)
    for played in play(parts.held_out, chooser.token_prices.tolist(), [None] * 3):
        assert chooser.replay(played).tokens.min() > 0
    save_chooser(tmp_path / "three", chooser)
    assert len(load_chooser(tmp_path / "three").members) == 3


def test_where_one_member_is_always_better_it_is_always_taken() -> None:
    # The same model twice: the one whose tokens cost half.
    large = TOGETHER.members[1]
    same = replace(TOGETHER, members=(replace(large, ratio=0.5), large))
    parts = split_together(same)
    members = (MemberOf("half", 0.5, None, {}), MemberOf("whole", 1.0, None, {}))
    chooser = fit(parts.train, parts.validation, members)
    assert {str(way) for way in chooser.ways} == {"always 0"}
    assert chooser.wrong == {}


def test_a_folder_holds_the_whole_chooser(chooser: Chooser, tmp_path: Path) -> None:
    save_chooser(tmp_path / "chooser", chooser)
    again = load_chooser(tmp_path / "chooser")
    assert again.ways == chooser.ways
    assert [member.name for member in again.members] == ["small", "large"]
    assert again.members[0].recorded == {"stride": 8}
    assert chooser_digest(again) == chooser_digest(chooser)
    for played in HELD_OUT:
        np.testing.assert_array_equal(again.choices(played), chooser.choices(played))


def test_a_folder_that_is_no_chooser_is_one_clear_line(chooser: Chooser, tmp_path: Path) -> None:
    folder = tmp_path / "chooser"
    with pytest.raises(UserError, match="there is no chooser"):
        load_chooser(folder)
    save_chooser(folder, chooser)
    content = json.loads((folder / "config.json").read_text())
    for change, said in (
        ({"version": 9}, "version 9"),
        ({"ways": content["ways"][:-1]}, "do not fit"),
        ({"ways": [{"when": "later", "always": None}] * 6}, "invalid enum value 'later'"),
        ({"ways": [{"when": "before", "always": 7}] * 6}, "no member 7"),
        ({"features": {}}, "lacks what it needs"),
    ):
        (folder / "config.json").write_bytes(seal(content | change))
        with pytest.raises(UserError, match=said):
            load_chooser(folder)
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "chooser.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not a chooser"):
        load_chooser(folder)


def test_what_cannot_be_fitted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="in the training and in the validation"):
        fit(SPLIT.train, SPLIT.train, MEMBERS)
    for name, numbers in (("a", range(6)), ("b", range(6, 9))):
        with TraceWriter(tmp_path / name) as writer:
            for i in numbers:
                writer.add(make_trace(i))
    both = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(UserError, match="no question in common"):
        load_together(both, ratios=(1, 1))
    with pytest.raises(UserError, match="ratio is 2"):
        load_together(both, ratios=(2, 1))
    with pytest.raises(UserError, match="at least two"):
        load_together(both[:1], ratios=(1,))


def test_a_chooser_is_served_without_what_fits_it(chooser: Chooser, tmp_path: Path) -> None:
    save_chooser(tmp_path / "chooser", chooser)
    code = (
        "import sys; from rlbudget.strategies.chooser.folder import load_chooser;"
        "import rlbudget.decoding.chosen;"
        f"load_chooser({str(tmp_path / 'chooser')!r});"
        "loaded = {name.partition('.')[0] for name in sys.modules};"
        "assert not loaded & {'sklearn', 'scipy', 'pyarrow', 'torch', 'gymnasium'}, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
