"""A chooser: says whose answer to use among several models, at any token price.

For each member it knows a chance that the member's answer is right, seen in the question, in the
members' record so far and, once somebody has answered, in how that went (``rows.py``). It takes the
member of highest expected utility: that chance, less the price of the tokens still to be paid, for
which the record on the question's task stands. When it chooses, before anybody has answered, after
the first member or after all, was chosen for each price on validation questions; where nothing is
better there than always using one member, that is what it does. Served with numpy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlbudget.arrays import Floats, Ints, Strs
from rlbudget.policy.folder import Policy
from rlbudget.policy.outcomes import Outcome
from rlbudget.strategies.chooser.members import Played, When, chosen
from rlbudget.strategies.chooser.record import TrackRecord
from rlbudget.strategies.chooser.rows import Columns, columns_of, matrix
from rlbudget.strategies.impact import ImpactModel


@dataclass(frozen=True, slots=True)
class Way:
    """When to choose."""

    when: When
    always: int | None = None
    """the member that is used whatever is known; None where the chooser looks"""

    def __str__(self) -> str:
        return self.when if self.always is None else f"always {self.always}"


@dataclass(frozen=True, slots=True)
class MemberOf:
    """One of the models."""

    name: str
    """of the model, as it was recorded"""
    ratio: float
    """what one of its tokens costs, in tokens of the dearest member"""
    policy: Policy | None
    """that it is served by; None: it decodes in full"""
    recorded: Mapping[str, Any]
    """how its traces were recorded: ``stride``, ``max_tokens``, ``temperature``, …"""


@dataclass(frozen=True, slots=True)
class Chooser:
    """Chooses one of ``k`` members at ``g`` token prices and between."""

    members: tuple[MemberOf, ...]
    """the first one answers first"""
    token_prices: Floats
    """(g,) rising, per token of the dearest member; between two the nearer one counts, by ratio"""
    ways: tuple[Way, ...]
    """one a price"""
    wrong: Mapping[When, tuple[ImpactModel, ...]]
    """for each time that a way needs the members' chances to be wrong"""
    record: TrackRecord
    trained: Mapping[str, Any] = field(default_factory=dict)
    """what it was fitted to, JSON-ready"""

    def place(self, token_price: float) -> int:
        """Of the price that counts. Raises ``ValueError`` for a price that is not above 0."""
        if not 0 < token_price < np.inf:
            raise ValueError(f"token price {token_price:g}: it must be above 0")
        between = np.sqrt(self.token_prices[1:] * self.token_prices[:-1])
        return int(np.searchsorted(between, token_price))

    def worth(
        self, columns: Columns, tasks: Strs, token_price: float, when: When, answered: Floats
    ) -> Floats:
        """(k, n) expected utility of each member's answer, what is paid already left out.

        ``columns`` as ``columns_of`` makes them, ``answered`` (k,) is 1 for members whose tokens
        are paid. Raises ``ValueError`` where an expectation is not a number.
        """
        right = []
        for model in self.wrong[when]:
            right.append(1 - model.risk(matrix(columns, model.features, model.mean)))
        means = np.array([self.record.of(task)[1, self.place(token_price)] for task in tasks])
        tokens = np.nan_to_num(means.T) * (1 - answered)[:, None]
        worth: Floats = np.array(right) - token_price * tokens
        if not np.isfinite(worth).all():
            raise ValueError("the worth of an answer is not a number")
        return worth

    def choices(self, played: Played, way: Way | None = None) -> Ints:
        """(n,) the members whose answers are used, by the chooser's own way or by another."""
        way = way or self.ways[self.place(played.token_price)]
        n, tasks = len(played.together), played.together.tasks
        if way.always is not None:
            return np.full(n, way.always, dtype=np.int64)
        place = self.place(played.token_price)
        record = np.array([self.record.of(task)[0, place] for task in tasks.tolist()])
        columns = columns_of(played, record.reshape(n, -1), way.when)
        paid = paid_already(way.when, len(self.members))
        best: Ints = self.worth(columns, tasks, played.token_price, way.when, paid).argmax(axis=0)
        return best

    def replay(self, played: Played, way: Way | None = None) -> Outcome:
        """What its choices give and cost; all tokens that were spent are charged."""
        way = way or self.ways[self.place(played.token_price)]
        return chosen(played, self.choices(played, way), way.when)


def paid_already(when: When, members: int) -> Floats:
    """(k,) 1 for each member whose tokens are paid whoever is chosen."""
    paid = np.full(members, float(when == "after_all"))
    paid[0] = float(when != "before")
    return paid
