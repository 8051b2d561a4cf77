"""One method on the training and the held-out traces: its operating points and its choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rlbudget.agents.rules import Kind, Rule
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import (
    Choice,
    Outcome,
    Probing,
    full_stops,
    operating_prices,
    oracle_stops,
    outcome,
    token_price_of,
    utility,
)
from rlbudget.policy.prices import nearest_price
from rlbudget.policy.replay import Replay, replay
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.traces.table import TraceTable

ORACLE_RELATIVE_PRICES = (0.005, 50.0)
NEVER: Mapping[str, float] = {"never_stop": True}


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of a method, replayed on both sets of traces."""

    parameters: Mapping[str, Any]
    train: Outcome
    """on the traces that operating points are chosen on: the training traces; for what was fitted
    to most of them, the validation traces alone, because on its own it looks too good"""
    held_out: Outcome


@dataclass(frozen=True, slots=True)
class Measured:
    """A method, all of it chosen on the training traces."""

    name: str
    kind: Kind
    chosen: tuple[Point, ...]
    """what it does at each token price asked for"""
    points: tuple[Point, ...]
    """its operating points, never stopping first"""

    def saving_most(self, max_em_loss: float) -> Point:
        """The operating point that saves most on the training traces while it loses at most
        ``max_em_loss`` of exact match there, against the full decode."""  # fmt: skip
        full = self.points[0].train.exact_match.mean()
        allowed = [
            point
            for point in self.points
            if point.train.exact_match.mean() >= full - max_em_loss - 1e-12
        ]
        return min(allowed, key=lambda point: float(point.train.tokens.mean()))

    def frontier(self) -> list[Point]:
        """The operating points that no other one beats on the training traces, cheapest first."""
        kept: list[Point] = []
        best = -1.0
        by_cost = sorted(
            self.points, key=lambda p: (p.train.tokens.mean(), -p.train.exact_match.mean())
        )
        for point in by_cost:
            exact_match = float(point.train.exact_match.mean())
            if exact_match > best:
                kept.append(point)
                best = exact_match
        return kept


class MeasuredMethod(Protocol):
    """What the evaluation needs of a method, measured in one piece or in folds."""

    @property
    def name(self) -> str:
        """The method."""

    @property
    def kind(self) -> Kind:
        """rule, learned or bound."""

    @property
    def chosen(self) -> tuple[Point, ...]:
        """What it does at each relative price."""

    def saving_most(self, max_em_loss: float) -> Point:
        """Its cheapest point by training that loses at most this much there."""

    def frontier(self) -> list[Point]:
        """The points worth drawing."""


def never(train: TraceTable, held_out: TraceTable) -> Point:
    """The full decode, as an operating point that every method has."""
    return Point(NEVER, outcome(train, full_stops(train)), outcome(held_out, full_stops(held_out)))


def measure_rule(
    rule: Rule, train: TraceTable, held_out: TraceTable, token_prices: Sequence[float]
) -> Measured:
    """At each price the parameters of highest mean utility on the training traces."""
    points = (
        never(train, held_out),
        *(
            Point(parameters, rule.outcome(train, parameters), rule.outcome(held_out, parameters))
            for parameters in rule.grid(train)
        ),
    )
    chosen = []
    for price in token_prices:
        means = [utility(point.train, price).mean() for point in points]
        chosen.append(points[int(np.argmax(means))])
    return Measured(rule.name, rule.kind, tuple(chosen), points)


def measure_policy(
    name: str,
    policy: StopPolicy,
    train: TraceTable,
    held_out: TraceTable,
    token_prices: Sequence[float],
) -> Measured:
    """A policy is told the price; a price outside its range it is told as the nearest it knows.

    ``train`` are traces that it was not fitted to, if possible. Its operating points are
    the ``operating_prices`` of its range.
    """
    seen = {id(table): observe(table, policy.features) for table in (train, held_out)}

    def played(table: TraceTable, price: float) -> Replay:
        return replay(policy, table, price, seen[id(table)])

    return measure_replays(name, played, policy.price_range, train, held_out, token_prices)


def measure_replays(
    name: str,
    played: Callable[[TraceTable, float], Replay],
    price_range: tuple[float, float],
    train: TraceTable,
    held_out: TraceTable,
    token_prices: Sequence[float],
) -> Measured:
    """As ``measure_policy``, for whatever replays traces at a token price in its range."""

    def under(price: float) -> Point:
        told = nearest_price(price, price_range)
        outcomes = [played(table, told).outcome for table in (train, held_out)]
        return Point({"token_price": told}, *outcomes)

    return Measured(
        name,
        "learned",
        tuple(under(price) for price in token_prices),
        (never(train, held_out), *(under(price) for price in operating_prices(price_range))),
    )


class Learned(Protocol):
    """A learner that is no policy folder: it stops as it has learned for each price."""

    @property
    def charged(self) -> Probing:
        """Whose trial answers it pays."""

    @property
    def operating_prices(self) -> tuple[float, ...]:
        """The token prices of its operating points."""

    def stops(self, table: TraceTable, token_price: float) -> Choice:
        """The choice under a token price."""


def measure_learned(
    name: str,
    learned: Learned,
    train: TraceTable,
    held_out: TraceTable,
    token_prices: Sequence[float],
) -> Measured:
    """A learner at each token price, and at those of its operating points."""

    def under(price: float) -> Point:
        def replay(table: TraceTable) -> Outcome:
            return outcome(table, learned.stops(table, price), probes_charged=learned.charged)

        return Point({"token_price": price}, replay(train), replay(held_out))

    chosen = tuple(under(price) for price in token_prices)
    others = (under(price) for price in learned.operating_prices if price not in token_prices)
    return Measured(name, "learned", chosen, (never(train, held_out), *chosen, *others))


def measure_oracle(
    train: TraceTable, held_out: TraceTable, token_prices: Sequence[float]
) -> Measured:
    """The bound: the best stop of every trace in hindsight."""

    def under(price: float) -> Point:
        replayed = [outcome(table, oracle_stops(table, price)) for table in (train, held_out)]
        return Point({"token_price": price}, *replayed)

    low, high = (token_price_of(relative, train) for relative in ORACLE_RELATIVE_PRICES)
    return Measured(
        "oracle",
        "bound",
        tuple(under(price) for price in token_prices),
        (
            never(train, held_out),
            *(under(price) for price in operating_prices((low, high))),
        ),
    )
