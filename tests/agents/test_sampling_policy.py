"""A policy of when to stop drawing: what it sees of the votes, and voters whose skill is known."""

from __future__ import annotations

import numpy as np
import pytest

from rlbudget.agents.rules.sampling import AC_BETA
from rlbudget.policy.observation import features_of, observe
from rlbudget.policy.outcomes import NATURAL_END
from rlbudget.policy.row_observer import RowObserver
from runs.quality.voters import POOLS, Voters, voted

LEAD = "vote_lead.odds"


def test_it_sees_the_odds_of_the_lead_live_as_in_a_replay_bit_by_bit() -> None:
    table = voted(POOLS[1], 6, 30, 2, seed=1)
    features = features_of(table, "free")
    assert LEAD in features
    whole = observe(table, features)
    for start, end in zip(table.offsets[:-1], table.offsets[1:], strict=True):
        observer = RowObserver(features)
        for row in range(start, end):
            signals = {name: float(column[row]) for name, column in table.signals.items()}
            live = observer.update(int(table.thinking_tokens[row]), signals)
            np.testing.assert_array_equal(live, whole[row])


@pytest.mark.parametrize("threshold", [0.95, 0.9999])
def test_a_bound_on_those_odds_is_adaptive_consistency(threshold: float) -> None:
    table = voted(POOLS[1], 20, 40, 2, seed=2)
    odds = observe(table, (LEAD,))[:, 0]
    says = odds >= np.log(threshold / (1 - threshold))
    stops = np.asarray(AC_BETA.stops(table, {"threshold": threshold}))
    for i, stop in enumerate(stops):
        own = np.flatnonzero(says[table.offsets[i] : table.offsets[i + 1]])
        assert stop == (own[0] if len(own) else NATURAL_END)


def test_voters_are_right_as_often_as_their_skill_says() -> None:
    for pool in POOLS:
        table = voted(pool, 300, 3, 1, seed=3)
        first = table.exit_exact_match[table.offsets[:-1]].mean()
        a, b = pool.skill
        assert first == pytest.approx(a / (a + b), abs=0.08)


def test_a_lure_wins_votes_that_other_wrong_answers_do_not() -> None:
    for lure in (1 / 6, 0.9):
        table = voted(Voters("wrong", (1.0, 50.0), lure), 40, 30, 1, seed=4)
        share = table.signals["vote_share"][table.offsets[1:] - 1].mean()
        assert share > 0.8 if lure == 0.9 else share < 0.45
