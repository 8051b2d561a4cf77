"""Fitting a blend, the meta-model of an ensemble: a logistic regression on its members' chances.

What it learns at a checkpoint is whether stopping earns more than continuing. What continuing earns
depends on the stops that follow, so this is policy iteration: the record gives the return of both
actions at every checkpoint under the present blend, a weighted logistic regression ("is stopping
better", weighted by how much better and by the chance to get there) gives the next blend, and the
best of all rounds on the validation questions is kept. The first is the plain mean of log-odds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlbudget.agents.exact import values_of
from rlbudget.agents.validation import gap_weight
from rlbudget.arrays import Floats
from rlbudget.console import Advance
from rlbudget.errors import UserError, missing_extra
from rlbudget.evaluate.unseen import fitted_to, split_unseen
from rlbudget.evaluate.verdicts import Paired, extremes, most_utility, paired
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import RELATIVE_PRICES, token_price_of, utility
from rlbudget.policy.prices import in_range
from rlbudget.policy.replay import replay
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.strategies.blend import SavedBlend, policy_digest, save_blend
from rlbudget.strategies.ensemble import Blend, Ensemble, ensemble, log_odds
from rlbudget.strategies.steered import SteeredPolicy
from rlbudget.traces.sampling import load_sample
from rlbudget.traces.store import digest
from rlbudget.traces.table import TraceTable

try:
    from sklearn.linear_model import LogisticRegression
except ImportError as missing:
    raise missing_extra("train", "scikit-learn") from missing

ROUNDS = 4
EXPLORATION = 0.1
"""least chance of either action where it is counted who gets to a checkpoint"""


def fit_blend(
    members: Sequence[Policy],
    train: TraceTable,
    validation: TraceTable,
    *,
    price_factors: Sequence[float] | None = None,
    progress: Advance | None = None,
) -> SteeredPolicy:
    """An ensemble whose members are weighed as is best on recorded traces.

    The two tables must share no question. It is fitted at the relative prices of the training
    traces that all members serve. Raises ``UserError`` as ``ensemble`` does, for a shared question,
    for members that serve none of these prices and for the ``probe`` preset.
    """
    blend = Blend((1 / max(len(members), 1),) * len(members))
    best = ensemble(members, combine=blend, price_factors=price_factors)
    if best.preset != "free":
        raise UserError("a blend is fitted to policies of the free preset")
    if np.intersect1d(train.question_ids, validation.question_ids).size:
        raise UserError("a question is both in the training and in the validation traces")
    prices = list(_prices(train, best).values())
    if not prices:
        raise UserError("the members serve none of the relative prices of these traces")
    one_price = len(set(best.price_range)) == 1
    weigh = np.ones_like if one_price else gap_weight(train, best.price_range)
    weights = weigh(np.array(prices))
    assert isinstance(best.steering, Ensemble)
    seen, rows = observe(train, best.features), len(train.thinking_tokens)
    chances = [best.steering.of_members(seen, price) for price in prices]
    columns = [
        np.stack([*map(log_odds, each), np.full(rows, np.log10(price))], axis=1)
        for each, price in zip(chances, prices, strict=True)
    ]
    x = np.concatenate(columns)
    highest = _worth(best, validation, prices, weights)
    for done in range(ROUNDS):
        if progress is not None:
            progress(done, ROUNDS)
        gains = []
        for each, price, weight in zip(chances, prices, weights, strict=True):
            tokens = train.thinking_tokens + train.exit_answer_tokens
            exits = train.exit_exact_match - price * tokens
            natural = train.final_exact_match - price * train.full_tokens
            stop = blend.chance(each, price)
            values = values_of(stop, exits, natural, train.offsets, EXPLORATION)
            gains.append(weight * values.reach * (exits - values.go_on))
        gain = np.concatenate(gains)
        if len(np.unique(gain > 0)) < 2:
            break
        share = np.abs(gain) / np.abs(gain).mean()
        head = LogisticRegression(solver="newton-cholesky").fit(x, gain > 0, share)
        *each_weight, price_weight = head.coef_[0].tolist()
        blend = Blend(tuple(each_weight), price_weight, float(head.intercept_[0]))
        fitted = ensemble(members, combine=blend, price_factors=price_factors)
        worth = _worth(fitted, validation, prices, weights)
        if worth > highest:
            best, highest = fitted, worth
    if progress is not None:
        progress(ROUNDS, ROUNDS)
    return best


@dataclass(frozen=True, slots=True)
class FittedBlend:
    """What a blend earns on held-out questions."""

    questions: int
    """held out"""
    prices: tuple[float, ...]
    """relative prices that all members serve"""
    utilities: Mapping[str, tuple[float, ...]]
    """way -> mean held-out utility at each of them: every member, the mean, the blend"""
    over_mean: Paired
    """utility of the blend minus that of the mean of chances, over the prices"""
    notes: tuple[str, ...]


def fit_blend_file(
    policies: Mapping[str, Policy],
    traces: Path,
    out: Path,
    *,
    price_factors: Sequence[float] = (),
    progress: Advance | None = None,
) -> FittedBlend:
    """Fit a blend on the policies' training questions, choose on the validation ones, save it.

    One policy with several ``price_factors`` is blended with itself at these prices. The split is
    that of the policies, as in ``rlbudget evaluate``. Raises ``UserError`` as ``fit_blend`` and
    ``split_unseen`` do.
    """
    fitted_before = {name: fitted_to(p) for name, p in policies.items()}
    unseen = split_unseen(load_sample(traces, context=True).table, traces, fitted_before)
    split = unseen.split
    names, members = list(policies), list(policies.values())
    if len(members) == 1 and len(price_factors) > 1:
        members = members * len(price_factors)
        names = [f"{names[0]} x {factor:g}" for factor in price_factors]
    factors = list(price_factors) or None
    fitted = fit_blend(
        members, split.train, split.validation, price_factors=factors, progress=progress
    )
    steering = fitted.steering
    assert isinstance(steering, Ensemble)
    assert isinstance(steering.combine, Blend)
    digests = tuple(map(policy_digest, members))
    trained = {"digest": digest(traces), "split_seed": unseen.seed, "seen": unseen.used}
    save_blend(out, SavedBlend(steering.combine, steering.price_factors, digests, trained))

    ways: dict[str, StopPolicy] = {
        name: ensemble([member], price_factors=factors and [factors[place]])
        for place, (name, member) in enumerate(zip(names, members, strict=True))
    }
    ways |= {"mean": ensemble(members, price_factors=factors), "blend": fitted}
    prices, held_out = _prices(split.train, fitted), split.held_out
    done = {
        name: [replay(way, held_out, p).outcome for p in prices.values()]
        for name, way in ways.items()
    }
    each: dict[str, Floats] = {
        name: np.array([utility(one, p) for one, p in zip(of, prices.values(), strict=True)])
        for name, of in done.items()
    }
    both_ends = extremes(held_out)
    most = [
        most_utility(p, blend, mean, *both_ends)
        for p, blend, mean in zip(prices.values(), done["blend"], done["mean"], strict=True)
    ]
    ahead = (each["blend"] - each["mean"]).mean(axis=0)
    return FittedBlend(
        questions=len(np.unique(held_out.question_ids)),
        prices=tuple(prices),
        utilities={name: tuple(map(float, u.mean(axis=1))) for name, u in each.items()},
        over_mean=paired(ahead, held_out.question_ids, most=float(np.mean(most))),
        notes=tuple(unseen.notes),
    )


def _prices(train: TraceTable, policy: StopPolicy) -> dict[float, float]:
    """Relative price -> token price, of those that a policy serves."""
    prices = {relative: token_price_of(relative, train) for relative in RELATIVE_PRICES}
    return {each: price for each, price in prices.items() if in_range(price, policy.price_range)}


def _worth(
    policy: SteeredPolicy, table: TraceTable, prices: Sequence[float], weights: Floats
) -> float:
    """Mean utility over the prices, each weighted by what there is to gain."""
    seen = observe(table, policy.features)
    means = [
        float(utility(replay(policy, table, price, seen).outcome, price).mean()) for price in prices
    ]
    return float(np.dot(weights, means))
