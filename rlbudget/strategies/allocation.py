"""A budget of tokens for many requests: the one price at which what they spend meets it.

What a request is worth at a token price is a point of the concave hull of its value curve, exact
match over tokens: the one where the next token gains less than its price. Where all requests are
served at one price, the last token of each gains the same, and no way of moving tokens from one to
another gains anything; greedy on the hulls is the optimum. So a budget is met by a price, and the
price is found on recorded traces: ``spending`` says what a request spends in the mean at each.
While a batch is served what was spent so far corrects the prediction (``next_price``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from rlbudget.arrays import Floats, Ints
from rlbudget.errors import UserError
from rlbudget.policy.outcomes import operating_prices
from rlbudget.policy.prices import PriceRange, middle_price, nearest_price
from rlbudget.policy.replay import replay
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.traces.table import TraceTable

_TRUST = 20.0
"""requests that the recorded curve is worth beside what is seen of the batch"""
_FEW = 5.0
"""requests after which an unknown curve is first followed"""
_SLOPE = -0.25
"""log tokens for each unit of the log price, where nothing was recorded"""


@dataclass(frozen=True, slots=True)
class Curve:
    """What a request spends and gives at each price, in the mean of recorded ones."""

    prices: Floats
    """(k,) rising"""
    tokens: Floats
    """(k,) never rising"""
    exact_match: Floats
    """(k,)"""


@dataclass(frozen=True, slots=True)
class Batch:
    """A budget that is being spent; small and plain."""

    budget: float
    """tokens, of all requests that are not exempt"""
    requests: int
    """that are not exempt"""
    spent: float = 0.0
    done: int = 0
    predicted: float = 0.0
    """what the requests that are done were predicted to spend"""


def spending(policy: StopPolicy, table: TraceTable) -> Curve:
    """The curve of a policy on recorded traces; raises ``UserError`` for none."""
    if not len(table):
        raise UserError("no traces: what a price spends is read off recorded ones")
    prices = operating_prices(policy.price_range)
    found = [replay(policy, table, price).outcome for price in prices]
    tokens = np.array([one.tokens.mean() for one in found])
    return Curve(
        np.array(prices),
        np.minimum.accumulate(tokens),
        np.array([one.exact_match.mean() for one in found]),
    )


def hull(tokens: Floats, value: Floats) -> Ints:
    """Which points of a value curve lie on its concave hull, by rising tokens: the places at which
    some price stops. Points are (k,) each, in any order."""  # fmt: skip
    order = np.lexsort((-value, tokens))
    kept: list[int] = []
    for place in order.tolist():
        if kept and value[place] <= value[kept[-1]]:
            continue
        while len(kept) > 1:
            a, b = kept[-2], kept[-1]
            before = (value[b] - value[a]) * (tokens[place] - tokens[b])
            if before > (value[place] - value[b]) * (tokens[b] - tokens[a]):
                break
            kept.pop()
        kept.append(place)
    return np.array(kept, dtype=np.int64)


def price_for(curve: Curve, tokens: float) -> float:
    """The price at which a request spends so many tokens in the mean; an end of the curve where
    that is out of its reach."""  # fmt: skip
    if tokens >= curve.tokens[0]:
        return float(curve.prices[0])
    if tokens <= curve.tokens[-1]:
        return float(curve.prices[-1])
    # np.interp wants rising places; of equal ones the lowest price is worth the most.
    found = np.interp(tokens, curve.tokens[::-1], np.log(curve.prices)[::-1])
    return float(math.exp(found))


def tokens_at(curve: Curve, price: float) -> float:
    """What a request spends at a price, in the mean."""
    return float(np.interp(math.log(price), np.log(curve.prices), curve.tokens))


def unknown_curve(known: PriceRange, tokens: float) -> Curve:
    """A curve to begin with where nothing was recorded: ``tokens`` in the middle of the range."""
    prices = np.geomspace(*known, 33)
    away = np.log(prices / middle_price(known))
    return Curve(prices, tokens * np.exp(_SLOPE * away), np.full(33, np.nan))


def next_price(batch: Batch, curve: Curve, known: PriceRange) -> float:
    """The price of the next request: at which those that are left are predicted to spend what is
    left, the prediction being corrected by what was spent so far."""  # fmt: skip
    left = max(batch.requests - batch.done, 1)
    allowed = max(batch.budget - batch.spent, 0.0) / left
    return nearest_price(price_for(curve, allowed / correction(batch, curve)), known)


def correction(batch: Batch, curve: Curve) -> float:
    """Tokens spent for each that was predicted."""
    requests = _FEW if np.isnan(curve.exact_match[0]) else _TRUST
    trusted = requests * float(curve.tokens.mean())
    return (batch.spent + trusted) / (batch.predicted + trusted)


def after_spending(batch: Batch, curve: Curve, price: float, tokens: float) -> Batch:
    """After a request that was served at ``price`` spent so many tokens."""
    return replace(
        batch,
        spent=batch.spent + tokens,
        done=batch.done + 1,
        predicted=batch.predicted + tokens_at(curve, price),
    )


def optimum(curves: Sequence[tuple[Floats, Floats]], budget: float) -> tuple[float, float]:
    """Exact match and tokens of the best allocation of a budget, on the hulls of all curves.

    ``curves`` are (tokens, value) of each request. Steps are taken by what they gain a token; the
    last one may be taken in part, so that no allocation is better.
    """
    spent = gained = 0.0
    steps: list[tuple[float, float, float]] = []
    for tokens, value in curves:
        kept = hull(tokens, value)
        spent += float(tokens[kept[0]])
        gained += float(value[kept[0]])
        for a, b in pairwise(kept):
            more, gain = float(tokens[b] - tokens[a]), float(value[b] - value[a])
            steps.append((gain / more, more, gain))
    for _, more, gain in sorted(steps, reverse=True):
        share = min((budget - spent) / more, 1.0)
        if share <= 0:
            break
        spent, gained = spent + share * more, gained + share * gain
    return gained, spent


def outcome_curves(table: TraceTable) -> list[tuple[Floats, Floats]]:
    """(tokens, exact match) of every way to stop each trace, its natural end the last."""
    found = []
    tokens = (table.thinking_tokens + table.exit_answer_tokens).astype(np.float64)
    full = table.full_tokens.astype(np.float64)
    for trace, (start, end) in enumerate(zip(table.offsets[:-1], table.offsets[1:], strict=True)):
        found.append((
            np.append(tokens[start:end], full[trace]),
            np.append(table.exit_exact_match[start:end], table.final_exact_match[trace]),
        ))  # fmt: skip
    return found
