"""One method on the training and the held-out traces: its operating points and its choices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Protocol

import numpy as np

from rlbudget.agents.rules import Kind, Rule
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import (
    Choice,
    Outcome,
    charged_by,
    concatenated,
    full_stops,
    operating_prices,
    oracle_stops,
    outcome,
    token_price_of,
    utility,
)
from rlbudget.policy.prices import nearest_price
from rlbudget.policy.replay import Replay, replay
from rlbudget.policy.seen import seen_by
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.traces.table import TraceTable

ORACLE_RELATIVE_PRICES = (0.005, 50.0)
NEVER: Mapping[str, float] = {"never_stop": True}

Play = Callable[[TraceTable, float], Outcome]
"""(traces, token price) -> what a method gives and costs there"""


@dataclass(frozen=True, slots=True)
class Sets:
    """The two sets of traces that methods are measured on, and the token prices asked for."""

    train: TraceTable
    """what operating points are chosen on: the training traces; for what was fitted to most of
    them, the validation traces alone, because on its own it looks too good"""
    held_out: TraceTable
    token_prices: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of a method, replayed on both sets of traces."""

    parameters: Mapping[str, Any]
    train: Outcome
    held_out: Outcome


@dataclass(frozen=True, slots=True)
class Method:
    """A method and what was measured of it, all of it chosen on the training traces."""

    name: str
    kind: Kind
    chosen: tuple[Point, ...]
    """what it does at each token price asked for"""
    points: tuple[Point, ...]
    """its operating points, never stopping first; over folds, those of ``chosen``"""
    parts: tuple[Method, ...] = ()
    """the method in each fold, where there are several"""

    def saving_most(self, max_em_loss: float) -> Point:
        """The operating point that saves most on the training traces (of each fold) while it loses
        at most ``max_em_loss`` of exact match there, against the full decode."""  # fmt: skip
        if self.parts:
            return _joined([part.saving_most(max_em_loss) for part in self.parts])
        full = self.points[0].train.exact_match.mean()
        allowed = [
            point
            for point in self.points
            if point.train.exact_match.mean() >= full - max_em_loss - 1e-12
        ]
        return min(allowed, key=lambda point: float(point.train.tokens.mean()))

    def frontier(self) -> list[Point]:
        """The operating points that no other one beats on the training traces, cheapest first;
        over folds, all of them."""
        if self.parts:
            return sorted(self.points, key=lambda point: float(point.held_out.tokens.mean()))
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


def pooled(parts: Sequence[Method]) -> Method:
    """One method over several folds, each fold's choices made on its own training questions."""
    chosen = tuple(_joined(points) for points in zip(*(part.chosen for part in parts), strict=True))
    return Method(parts[0].name, parts[0].kind, chosen, chosen, tuple(parts))


def _joined(points: Sequence[Point]) -> Point:
    """Points of the folds as one; their parameters are listed where they differ."""
    parameters = [dict(point.parameters) for point in points]
    same = all(other == parameters[0] for other in parameters)
    return Point(
        parameters[0] if same else {"folds": parameters},
        concatenated([point.train for point in points]),
        concatenated([point.held_out for point in points]),
    )


def _point(parameters: Mapping[str, Any], on: Sets, play: Callable[[TraceTable], Outcome]) -> Point:
    return Point(parameters, play(on.train), play(on.held_out))


def never(on: Sets) -> Point:
    """The full decode, as an operating point that every method has."""
    return _point(NEVER, on, lambda table: outcome(table, full_stops(table)))


def measure_rule(rule: Rule, on: Sets) -> Method:
    """At each price the parameters of highest mean utility on the training traces."""
    points = [never(on)]
    for parameters in rule.grid(on.train):
        points.append(_point(parameters, on, partial(rule.outcome, parameters=parameters)))
    chosen = []
    for price in on.token_prices:
        means = [utility(point.train, price).mean() for point in points]
        chosen.append(points[int(np.argmax(means))])
    return Method(rule.name, rule.kind, tuple(chosen), tuple(points))


def measure_told(
    name: str,
    play: Play,
    on: Sets,
    operating: Iterable[float],
    *,
    price_range: tuple[float, float] = (0.0, math.inf),
    kind: Kind = "learned",
) -> Method:
    """A method that is told the token price; its operating points are at prices ``operating``.

    A price outside ``price_range`` is told as the nearest inside.
    """

    @cache
    def at(price: float) -> Point:
        return _point({"token_price": price}, on, lambda table: play(table, price))

    chosen = tuple(at(nearest_price(price, price_range)) for price in on.token_prices)
    return Method(name, kind, chosen, (never(on), *map(at, operating)))


def measure_policy(name: str, policy: StopPolicy, on: Sets) -> Method:
    """A policy by itself, at the ``operating_prices`` of its range; a table is observed once.

    Operating points of one that was trained on traces of ``on.train`` are chosen by what it says
    itself of its training questions, out of fold.
    """
    seen = {id(table): observe(table, policy.features) for table in (on.train, on.held_out)}

    def play(table: TraceTable, price: float) -> Outcome:
        return replay(policy, table, price, seen[id(table)]).outcome

    known = policy.price_range
    method = measure_told(name, play, on, operating_prices(known), price_range=known)
    if not isinstance(policy, Policy) or policy.out_of_fold is None or policy.made_with is None:
        return method
    if not seen_by(policy.made_with, on.train.question_ids).any():
        return method
    return replace(method, points=_estimated(method.points, policy.out_of_fold))


def _estimated(points: Sequence[Point], found: Mapping[str, Any]) -> tuple[Point, ...]:
    """Operating points of a policy that was trained on the questions that would choose among them:
    in their place stands what it says itself, the means of each point out of fold."""
    exact_match, tokens = found["full"]["exact_match"], found["full"]["tokens"]
    kept = [replace(points[0], train=_means(exact_match, tokens))]
    for point, (_, em_loss, savings) in zip(points[1:], found["swept"], strict=True):
        kept.append(replace(point, train=_means(exact_match - em_loss, tokens * (1 - savings))))
    return tuple(kept)


def _means(exact_match: float, tokens: float) -> Outcome:
    """One trace that stands for many."""
    return Outcome(np.array([exact_match]), np.array([tokens]), np.zeros(1), np.zeros(1))


class Composition(Protocol):
    """Policies under strategies: a method that is measured beside the bare policies."""

    @property
    def name(self) -> str:
        """Of the method."""

    @property
    def price_range(self) -> tuple[float, float]:
        """Lowest and highest token price it serves."""

    def replay(self, table: TraceTable, token_price: float) -> Replay:
        """What it does on recorded traces."""


def measure_composition(given: Composition, on: Sets) -> Method:
    """Policies under strategies, as ``measure_policy`` does."""

    def play(table: TraceTable, price: float) -> Outcome:
        return given.replay(table, price).outcome

    known = given.price_range
    return measure_told(given.name, play, on, operating_prices(known), price_range=known)


class Learned(Protocol):
    """A learner that is no policy folder: it stops as it has learned for each price."""

    @property
    def preset(self) -> str:
        """Of its observation, which says whose trial answers it pays."""

    @property
    def features(self) -> tuple[str, ...]:
        """What it observes."""

    @property
    def operating_prices(self) -> tuple[float, ...]:
        """The token prices of its operating points."""

    def stops(self, table: TraceTable, token_price: float) -> Choice:
        """The choice under a token price."""


def measure_learned(name: str, learned: Learned, on: Sets) -> Method:
    """A learner at each token price, and at those of its operating points."""

    def play(table: TraceTable, price: float) -> Outcome:
        charged = charged_by(learned.preset, table, learned.features)
        return outcome(table, learned.stops(table, price), probes_charged=charged)

    return measure_told(
        name, play, on, dict.fromkeys((*on.token_prices, *learned.operating_prices))
    )


def measure_oracle(on: Sets) -> Method:
    """The bound: the best stop of every trace in hindsight."""

    def play(table: TraceTable, price: float) -> Outcome:
        return outcome(table, oracle_stops(table, price))

    low, high = (token_price_of(relative, on.train) for relative in ORACLE_RELATIVE_PRICES)
    return measure_told("oracle", play, on, operating_prices((low, high)), kind="bound")
