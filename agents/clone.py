"""Start a policy from the best rule of each price: imitation, before PPO improves on it.

The rules are tuned on the policy's own training questions, and count as the policy will pay: one
of the free preset sees no trial answers, one of the probe preset pays for all of them. Constant
budgets and never stopping are among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from rlbudget.agents.rules import Parameters, Rule, rules_for
from rlbudget.agents.together import Actors
from rlbudget.arrays import Float32s, Floats, Ints
from rlbudget.envs.replay_core import ReplayColumns
from rlbudget.policy.outcomes import NATURAL_END, Outcome, charged_by, outcome, utility
from rlbudget.traces.table import TraceTable

STEPS = 400
"""of Adam"""
PRICES = 10
"""at which the rules are imitated, log-spaced over the range"""
SURE = 0.9
"""the chance to stop where the rule stops; 1 minus it before"""
_ROWS, _RATE = 2048, 5e-3
_WITHOUT = ("random",)


@dataclass(frozen=True, slots=True)
class TriedRule:
    """A rule under some parameters on some traces."""

    rule: Rule
    parameters: Parameters
    stops: Ints
    """(n,)"""
    outcome: Outcome
    """the rule paying what it does"""


def try_rules(table: TraceTable) -> list[TriedRule]:
    """Every rule of the table's kind under every one of its parameters; never stopping first."""
    found = []
    for rule in rules_for(table):
        if rule.name in _WITHOUT or rule.lacking(table):
            continue
        for parameters in [{}] if rule.name == "full" else rule.grid(table):
            stops = np.asarray(rule.stops(table, parameters), dtype=np.int64)
            found.append(TriedRule(rule, parameters, stops, rule.outcome(table, parameters)))
    return found


def best_of(tried: Sequence[TriedRule], token_price: float) -> TriedRule:
    """The one of highest mean utility at a price, of equals the first."""
    means = [float(utility(one.outcome, token_price).mean()) for one in tried]
    return tried[int(np.argmax(means))]


def named(tried: Sequence[TriedRule], name: str | None) -> list[TriedRule]:
    """Those of a rule, and never stopping; all where there is no name."""
    return [one for one in tried if name is None or one.rule.name in ("full", name)]


def as_paid(
    table: TraceTable, tried: Sequence[TriedRule], preset: str, features: Sequence[str] = ()
) -> list[TriedRule]:
    """What a policy of a preset and ``features`` can imitate, paying what it would.

    For the ``free`` preset rules that look at trial answers are left out, for ``turns`` those that
    look at others than it does.
    """
    charged = charged_by(preset, table, features)
    return [
        replace(one, outcome=outcome(table, one.stops, probes_charged=charged))
        for one in tried
        if preset == "probe"
        or one.rule.probes_charged == "none"
        or (preset == "turns" and one.rule.name == "deer")
    ]


def imitate(
    actors: Actors,
    columns: Sequence[ReplayColumns],
    tried: Sequence[Sequence[TriedRule]],
    preset: str,
    *,
    seed: int = 0,
) -> None:
    """Train fresh actors to stop where the best rule of each price does.

    ``columns`` and ``tried`` are those of each actor, rules on the table of its columns. Only
    checkpoints up to a rule's stop count: it says nothing of what comes after.
    """
    lessons = [_lessons(c, t, preset) for c, t in zip(columns, tried, strict=True)]
    rngs = [np.random.default_rng([seed, 2, place]) for place in range(len(lessons))]
    optimiser = torch.optim.Adam(actors.parameters, lr=_RATE)
    for _ in range(STEPS):
        shown, wanted = [], []
        for own, (rows, prices, says), rng in zip(columns, lessons, rngs, strict=True):
            drawn = rng.integers(0, len(rows), _ROWS)
            inputs = own.inputs.take(rows[drawn], axis=0)
            inputs[:, -1] = own.scaling.price(prices[drawn])
            shown.append(inputs)
            wanted.append(says[drawn])
        logits = actors.logits(torch.from_numpy(np.stack(shown)))
        target = torch.from_numpy(np.stack(wanted))
        odds = logits[:, :, 1] - logits[:, :, 0]
        loss = binary_cross_entropy_with_logits(odds, target, reduction="sum") / _ROWS
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def _lessons(
    columns: ReplayColumns, tried: Sequence[TriedRule], preset: str
) -> tuple[Ints, Floats, Float32s]:
    """Rows (k,) of checkpoints that the best rules reach, their prices and chances to stop."""
    table = columns.table
    low, high = columns.scaling.token_price
    steps = np.arange(len(table.thinking_tokens)) - table.offsets[:-1][table.trace_of_row]
    own = as_paid(table, tried, preset, columns.features)
    each = []
    for price in np.geomspace(low, high, PRICES):
        stops = best_of(own, float(price)).stops
        last = np.where(stops == NATURAL_END, np.iinfo(np.int64).max, stops)[table.trace_of_row]
        rows = np.flatnonzero(steps <= last)
        says = np.where(steps[rows] == last[rows], SURE, 1 - SURE).astype(np.float32)
        each.append((rows, np.full(len(rows), price), says))
    rows, prices, says = (np.concatenate(parts) for parts in zip(*each, strict=True))
    return rows, prices, says
