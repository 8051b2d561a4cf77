"""Several models as members: what it gives and costs to use the answer of one of them.

Each member decodes under its own policy. *When* the choice is made says what is paid:

===========  ==========================================================================
before       nothing is decoded yet: only the member that is chosen is paid
after_first  the first member has answered: its tokens are paid, those of another one
             only where it is chosen
after_all    all have answered: all are paid, whichever is chosen
===========  ==========================================================================

All tokens are counted as those of the dearest member (``together.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlbudget.arrays import Ints
from rlbudget.policy.handover import in_large_tokens, served
from rlbudget.policy.outcomes import Outcome, utility
from rlbudget.policy.replay import Replay
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.strategies.chooser.together import Together

When = Literal["before", "after_first", "after_all"]
WHEN: tuple[When, ...] = ("before", "after_first", "after_all")
_PARTS = ("exact_match", "thinking", "probe", "answer")


@dataclass(frozen=True, slots=True)
class Played:
    """``n`` questions, each decoded by all members at a token price of the dearest one."""

    together: Together
    token_price: float
    replays: tuple[Replay, ...]

    @property
    def alone(self) -> tuple[Outcome, ...]:
        """What each member alone gives and costs."""
        members = zip(self.replays, self.together.members, strict=True)
        return tuple(in_large_tokens(done.outcome, member.ratio) for done, member in members)

    @property
    def answers(self) -> Ints:
        """(k, n) what each member answers, as numbers that are equal for equal answers."""
        members = zip(self.replays, self.together.members, strict=True)
        return np.array([one.answers.at(one.table, done.stops) for done, one in members])


def play(
    together: Together,
    token_prices: Sequence[float],
    policies: Sequence[StopPolicy | None],
) -> list[Played]:
    """Replay the members under their policies, full decodes without, at each of these prices.

    ``token_prices`` are per token of the dearest member; each is served at its ``ratio`` of it.
    """
    members = list(zip(policies, together.members, strict=True))
    return [
        Played(
            together,
            price,
            tuple(served(policy, one.table, price * one.ratio) for policy, one in members),
        )
        for price in token_prices
    ]


def options(alone: Sequence[Outcome], when: When) -> list[Outcome]:
    """What choosing each member gives and costs."""
    if when == "before":
        return list(alone)
    first, *others = alone
    if when == "after_first":
        return [first, *(_paid_too(one, [first]) for one in others)]
    return [
        _paid_too(one, [*alone[:place], *alone[place + 1 :]]) for place, one in enumerate(alone)
    ]


def chosen(played: Played, choice: Ints, when: When) -> Outcome:
    """What it gives to take the answers of the members ``choice`` (n,)."""
    each, rows = options(played.alone, when), np.arange(len(choice))
    return Outcome(
        *(np.array([getattr(one, part) for one in each])[choice, rows] for part in _PARTS)
    )


def oracle_choice(played: Played) -> Ints:
    """(n,) the best member of each question in hindsight; no choice of a member beats it."""
    best: Ints = np.argmax([utility(one, played.token_price) for one in played.alone], axis=0)
    return best


def best_by_task(known: Sequence[Played], tasks: Sequence[str]) -> Ints:
    """(n,) for questions of these tasks the member that was best on the task, all at one price;
    for a task that is not known the best over all."""  # fmt: skip
    earned = np.concatenate(
        [[utility(one, part.token_price) for one in part.alone] for part in known], axis=1
    )
    named = np.concatenate([part.together.tasks for part in known])
    best = {name: int(earned[:, named == name].mean(axis=1).argmax()) for name in set(named)}
    otherwise = int(earned.mean(axis=1).argmax())
    return np.array([best.get(task, otherwise) for task in tasks], dtype=np.int64)


def _paid_too(one: Outcome, others: Sequence[Outcome]) -> Outcome:
    """The exact match of one, the tokens of all."""
    return Outcome(
        one.exact_match,
        *(getattr(one, part) + sum(getattr(other, part) for other in others)
          for part in _PARTS[1:]),
    )  # fmt: skip
