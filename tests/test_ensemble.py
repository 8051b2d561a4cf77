from __future__ import annotations

import numpy as np
import pytest
from frozen_nets import FREE, PRICES, random_policy
from synthetic import make_table

from rlbudget.errors import UserError
from rlbudget.evaluate.outcomes import NATURAL_END
from rlbudget.evaluate.replay import replay
from rlbudget.observation import feature_names, observe
from rlbudget.strategies.ensemble import Combine, ensemble

PRICE = 1e-3
MEMBERS = [random_policy(FREE, seed=seed) for seed in range(3)]
TABLE = make_table(60, seed=2)


def test_one_member_alone_is_itself() -> None:
    alone = replay(MEMBERS[0], TABLE, PRICE)
    for combine in ("mean", "vote"):
        together = replay(ensemble(MEMBERS[:1], combine=combine), TABLE, PRICE)  # type: ignore[arg-type]
        np.testing.assert_array_equal(together.stops, alone.stops)


def test_the_mean_is_the_mean_and_the_vote_is_the_majority() -> None:
    seen = observe(TABLE, FREE)
    each = np.array([member.chances(seen, PRICE)[0] for member in MEMBERS])
    mean = ensemble(MEMBERS).chances(seen, PRICE)[0]
    np.testing.assert_allclose(mean, each.mean(axis=0))
    vote = ensemble(MEMBERS, combine="vote").chances(seen, PRICE)[0]
    np.testing.assert_array_equal(vote > 0.5, (each > 0.5).sum(axis=0) >= 2)


@pytest.mark.parametrize("combine", ["mean", "vote"])
def test_live_is_replay(combine: Combine) -> None:
    together = ensemble(MEMBERS, combine=combine, price_factors=[0.5, 1.0, 2.0])
    done = replay(together, TABLE, PRICE)
    seen = observe(TABLE, FREE)
    assert (done.stops != NATURAL_END).any()
    for trace, stop in enumerate(done.stops.tolist()):
        rows = seen[TABLE.offsets[trace] : TABLE.offsets[trace + 1]]
        live = [together(row, token_price=PRICE).stop for row in rows]
        assert stop == (live.index(True) if any(live) else NATURAL_END)


def test_factors_scale_the_price_within_each_members_range() -> None:
    seen = observe(TABLE, FREE)
    dear = ensemble(MEMBERS[:1], price_factors=[3.0]).chances(seen, PRICE)[0]
    np.testing.assert_array_equal(dear, MEMBERS[0].chances(seen, 3 * PRICE)[0])
    clipped = ensemble(MEMBERS[:1], price_factors=[1e9]).chances(seen, PRICE)[0]
    np.testing.assert_array_equal(clipped, MEMBERS[0].chances(seen, PRICES[1])[0])


def test_members_that_do_not_fit_are_refused() -> None:
    other = random_policy(FREE[:-1], seed=1)
    look = random_policy(feature_names(TABLE.signals, "look"), preset="look")
    for members, factors, said in (
        ([], None, "at least one"),
        ([MEMBERS[0], other], None, "one observation"),
        ([look], None, "look"),
        (MEMBERS, [1.0], "each member"),
        (MEMBERS, [1.0, 0.0, 1.0], "above 0"),
        ([MEMBERS[0], random_policy(FREE, price_range=(1.0, 2.0))], None, "no price"),
    ):
        with pytest.raises(UserError, match=said):
            ensemble(members, price_factors=factors)
