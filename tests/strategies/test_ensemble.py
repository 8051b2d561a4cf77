from __future__ import annotations

import numpy as np
import pytest
from frozen_nets import FREE, PRICES, policy_for, random_policy
from synthetic import make_table

from rlbudget.errors import UserError
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import NATURAL_END, RELATIVE_PRICES, token_price_of, utility
from rlbudget.policy.replay import replay
from rlbudget.strategies.ensemble import Blend, Combine, ensemble
from rlbudget.strategies.fit_blend import fit_blend
from rlbudget.strategies.steered import SteeredPolicy
from rlbudget.traces.table import TraceTable

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
    each = np.array([member.stop_probabilities(seen, PRICE) for member in MEMBERS])
    mean = ensemble(MEMBERS).stop_probabilities(seen, PRICE)
    np.testing.assert_allclose(mean, each.mean(axis=0))
    vote = ensemble(MEMBERS, combine="vote").stop_probabilities(seen, PRICE)
    np.testing.assert_array_equal(vote > 0.5, (each > 0.5).sum(axis=0) >= 2)


@pytest.mark.parametrize("combine", ["mean", "vote", Blend((0.7, -0.2, 0.4), 0.1, 0.2)])
def test_live_is_replay(combine: Combine | Blend) -> None:
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
    dear = ensemble(MEMBERS[:1], price_factors=[3.0]).stop_probabilities(seen, PRICE)
    np.testing.assert_array_equal(dear, MEMBERS[0].stop_probabilities(seen, 3 * PRICE))
    clipped = ensemble(MEMBERS[:1], price_factors=[1e9]).stop_probabilities(seen, PRICE)
    np.testing.assert_array_equal(clipped, MEMBERS[0].stop_probabilities(seen, PRICES[1]))


def test_members_that_do_not_fit_are_refused() -> None:
    other = random_policy(FREE[:-1], seed=1)
    for members, factors, said in (
        ([], None, "at least one"),
        ([MEMBERS[0], other], None, "one observation"),
        (MEMBERS, [1.0], "each member"),
        (MEMBERS, [1.0, 0.0, 1.0], "above 0"),
        ([MEMBERS[0], random_policy(FREE, price_range=(1.0, 2.0))], None, "no price"),
    ):
        with pytest.raises(UserError, match=said):
            ensemble(members, price_factors=factors)


def test_a_blend_is_a_logistic_regression_on_the_members_log_odds() -> None:
    seen = observe(TABLE, FREE)
    blend = Blend((0.7, -0.2, 0.4), 0.1, 0.2)
    together = ensemble(MEMBERS, combine=blend).stop_probabilities(seen, PRICE)
    each = np.array([member.stop_probabilities(seen, PRICE) for member in MEMBERS])
    odds = np.log(each / (1 - each)).clip(-12, 12)
    expected = 1 / (1 + np.exp(-(np.array([0.7, -0.2, 0.4]) @ odds + 0.1 * np.log10(PRICE) + 0.2)))
    np.testing.assert_allclose(together, expected, rtol=1e-6)
    alone = ensemble(MEMBERS[:1], combine=Blend((1.0,)))
    np.testing.assert_array_equal(
        replay(alone, TABLE, PRICE).stops, replay(MEMBERS[0], TABLE, PRICE).stops
    )


def test_a_fitted_blend_is_worth_more_than_the_mean() -> None:
    whole = make_table(260, seed=7)
    train, validation, fresh = (
        whole.take(range(*span)) for span in ((0, 120), (120, 160), (160, 260))
    )
    members = [policy_for(train, "free", seed) for seed in range(3)]
    fitted = fit_blend(members, train, validation)

    def worth(policy: SteeredPolicy, table: TraceTable) -> float:
        prices = [token_price_of(relative, train) for relative in RELATIVE_PRICES]
        low, high = policy.price_range
        return float(np.mean([utility(replay(policy, table, price).outcome, price).mean()
                              for price in prices if low <= price <= high]))  # fmt: skip

    start = ensemble(members, combine=Blend((1 / 3,) * 3))
    assert worth(fitted, fresh) > worth(start, fresh) + 0.02
    assert worth(fitted, fresh) > worth(ensemble(members), fresh) + 0.02
    assert fit_blend(members, train, validation).steering == fitted.steering


def test_what_cannot_be_blended_is_refused() -> None:
    for members, validation, said in (
        (MEMBERS, TABLE, "in the training and in the validation"),
        ([random_policy(FREE, price_range=(1.0, 2.0))], TABLE.take([]), "none of the relative"),
        ([policy_for(TABLE, "probe")], TABLE, "free preset"),
        ([], TABLE, "at least one"),
    ):
        with pytest.raises(UserError, match=said):
            fit_blend(members, TABLE, validation)
    with pytest.raises(UserError, match="blend is of 1 members, not 3"):
        ensemble(MEMBERS, combine=Blend((1.0,)))
