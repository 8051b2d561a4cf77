"""A day of requests, replayed: what each recorded decode gives at every price, and its signals.

Every request of a day is a recorded decode, drawn with replacement by the weights of the hour. A
stop at any price is in the record, so that a price can be steered as it would be live.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlbudget.arrays import Bools, Floats, Ints, Strs
from rlbudget.policy.folder import Policy
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import NATURAL_END, first_stop, outcome
from rlbudget.policy.prices import price_grid
from rlbudget.serve.price.control import State, after_request, after_verdict, alarmed, started
from rlbudget.serve.price.drift import (
    REFERENCE,
    Reference,
    after,
    nothing_seen,
    ranks_of,
    reference_of,
    strength,
)
from rlbudget.strategies.impact import ImpactModel
from rlbudget.strategies.online import PriceSettings
from rlbudget.traces.table import TraceTable

AUDITS = 0.05
FEEDBACK = 0.2
"""share of the requests whose user says whether the answer was right, whoever they are"""
DAY = 24_000
"""requests"""
PRICES = 49


@dataclass(frozen=True, slots=True)
class Served:
    """What ``n`` recorded decodes give: columns of a price each, the last one never stops."""

    prices: Floats
    """(``PRICES``,)"""
    right: Floats
    """(n, ``PRICES`` + 1)"""
    tokens: Floats
    predicted: Floats
    """chance that the answer is right, as a model of the stop's observation has it"""
    openings: list[dict[str, float]]
    """signals at each first checkpoint"""
    families: Strs
    """(n,)"""


def served(table: TraceTable, families: Strs, policy: Policy, model: ImpactModel) -> Served:
    """Replay a policy at every price."""
    observations = observe(table, policy.features)
    chances = 1 - model.risk(observe(table, model.features))
    prices = np.array(price_grid(policy.price_range, PRICES))
    right, tokens, predicted = [], [], []
    for price in [*prices, None]:
        if price is None:
            stops: Ints = np.full(len(table), NATURAL_END, dtype=np.int64)
        else:
            chance = policy.stop_probabilities(observations, float(price))
            stops = first_stop(table, chance > policy.threshold)
        found = outcome(table, stops)
        stopped = stops != NATURAL_END
        rows = table.offsets[:-1] + np.where(stopped, stops, np.maximum(table.lengths - 1, 0))
        right.append(found.exact_match)
        tokens.append(found.tokens)
        predicted.append(chances[np.minimum(rows, len(chances) - 1)])
    return Served(
        prices, np.array(right).T, np.array(tokens).T, np.array(predicted).T, _openings(table),
        families,
    )  # fmt: skip


def _openings(table: TraceTable) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    for row, length in zip(table.offsets[:-1].tolist(), table.lengths.tolist(), strict=True):
        signals = table.signals.items() if length else ()
        found.append({n: float(v[row]) for n, v in signals if np.isfinite(v[row])})
    return found


def drawn(world: Served, weights: Sequence[dict[str, float]], generator: np.random.Generator,
          requests: int = DAY) -> Ints:  # fmt: skip
    """(requests,) decodes of a day; each of ``weights`` holds for an equal part of it."""
    parts = []
    counts = {name: int((world.families == name).sum()) for name in np.unique(world.families)}
    for part in weights:
        share = np.array([part[name] / counts[name] for name in world.families])
        parts.append(generator.choice(len(share), requests // len(weights), p=share / share.sum()))
    return np.concatenate(parts).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Lived:
    """What became of a day."""

    right: Floats
    """(requests,)"""
    tokens: Floats
    prices: Floats
    full: Bools
    """(requests,) whether they were decoded in full after an alarm"""
    alarms: tuple[tuple[int, str], ...]


def lived(
    worlds: Sequence[Served], which: Ints, requests: Ints, settings: PriceSettings, start: float,
    generator: np.random.Generator, *, reference: Reference | None = None,
    audited: float = AUDITS, feedback: float = FEEDBACK,
) -> Lived:  # fmt: skip
    """A day under the steered price; ``which`` says in which world each request lies.

    The controller is the gateway's: it is told of every request, and of the verdicts of audited
    ones. Without a ``reference`` the first requests are it.
    """
    known = (float(worlds[0].prices[0]), float(worlds[0].prices[-1]))
    logs = np.log(worlds[0].prices)
    state: State = started(start, known, fitted=True)
    n = len(requests)
    right, tokens, prices = np.zeros(n), np.zeros(n), np.zeros(n)
    full: Bools = np.zeros(n, dtype=bool)
    audits = generator.random(n) < audited
    told = audits | (generator.random(n) < feedback)
    ranks: dict[int, list[Floats]] = {}
    seen: list[dict[str, float]] = []
    evidence = None if reference is None else nothing_seen(reference)
    alarms: list[tuple[int, str]] = []
    for k in range(n):
        world, one = worlds[which[k]], requests[k]
        place = int(np.abs(logs - state.log_price).argmin())
        prices[k], full[k] = state.price, state.full
        cut = PRICES if state.full or audits[k] else place
        right[k], tokens[k] = world.right[one, cut], world.tokens[one, cut]
        chance = float(world.predicted[one, place])
        state = after_request(settings, known, state, tokens=float(world.tokens[one, place]),
                              predicted_right=chance)  # fmt: skip
        before = len(state.alarms)
        if audits[k] or (told[k] and not full[k]):  # a user knows of the answer that was given
            state = after_verdict(settings, state, float(world.right[one, place]), chance)
        opening = world.openings[one]
        if reference is None:
            seen.append(opening)
            if len(seen) >= REFERENCE:
                reference, seen = reference_of(seen), []
                evidence, ranks = nothing_seen(reference), {}
        elif evidence is not None and opening:
            if which[k] not in ranks:
                ranks[which[k]] = [
                    ranks_of(reference, other) for other in worlds[which[k]].openings
                ]
            evidence = after(reference, evidence, ranks[which[k]][one])
            if strength(evidence) >= settings.alarm_every:
                state = alarmed(settings, state, "drift")
                reference = evidence = None
        if len(state.alarms) != before:
            alarms.append((k, state.alarms[-1][1]))
    return Lived(right, tokens, prices, full, tuple(alarms))


def windows(right: Floats, window: int) -> Floats:
    """Exact match of each whole window."""
    found: Floats = right[: len(right) // window * window].reshape(-1, window).mean(axis=1)
    return found
