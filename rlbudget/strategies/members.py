"""Two models as members: what it gives and costs to use the answer of one or of the other.

Each member decodes under its own policy. *When* the choice is made says what is paid:

===========  ==========================================================================
before       nothing is decoded yet: only the member that is chosen is paid
after_small  the small member has answered: its tokens are paid, those of the large one
             only where it is chosen
after_both   both have answered: both are paid, whichever is chosen
===========  ==========================================================================

All tokens are counted as those of the large member (``rlbudget.traces.pairs``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlbudget.arrays import Bools, Float32s, Floats
from rlbudget.policy.handover import in_large_tokens, served
from rlbudget.policy.observation import feature_names, observe
from rlbudget.policy.outcomes import Outcome, utility
from rlbudget.policy.replay import Replay
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.traces.pairs import Pair
from rlbudget.traces.table import TraceTable

When = Literal["before", "after_small", "after_both"]
WHEN: tuple[When, ...] = ("before", "after_small", "after_both")


@dataclass(frozen=True, slots=True)
class DecodedPair:
    """``n`` questions, each decoded by both members at a token price of the large one."""

    pair: Pair
    token_price: float
    small: Replay
    large: Replay
    seen: tuple[Float32s, Float32s]
    """(m, F) each: the free observation at every checkpoint of the small and the large member"""

    def options(self, when: When) -> tuple[Outcome, Outcome]:
        """What choosing the small and the large member gives and costs."""
        small, large = in_large_tokens(self.small.outcome, self.pair.ratio), self.large.outcome
        if when == "before":
            return small, large
        return (small if when == "after_small" else paid_too(small, large)), paid_too(large, small)

    def gain(self, when: When) -> Floats:
        """(n,) utility of choosing the large member, less that of choosing the small one."""
        small, large = (utility(option, self.token_price) for option in self.options(when))
        return large - small


def decode_both(
    pair: Pair,
    token_prices: Sequence[float],
    *,
    small: StopPolicy | None = None,
    large: StopPolicy | None = None,
) -> list[DecodedPair]:
    """Replay both members under their policies, full decodes without, at each of these prices.

    ``token_prices`` are per token of the large member; the small one is served at ``ratio`` of it.
    """
    seen = (_free(pair.small), _free(pair.large))
    return [
        DecodedPair(
            pair,
            price,
            served(small, pair.small, price * pair.ratio),
            served(large, pair.large, price),
            seen,
        )
        for price in token_prices
    ]


def _free(table: TraceTable) -> Float32s:
    return observe(table, feature_names(table.signals, "free"))


def paid_too(chosen: Outcome, other: Outcome) -> Outcome:
    """The exact match of one, the tokens of both."""
    return Outcome(
        chosen.exact_match,
        chosen.thinking + other.thinking,
        chosen.probe + other.probe,
        chosen.answer + other.answer,
    )


def either(where: Bools, one: Outcome, other: Outcome) -> Outcome:
    """One outcome for the traces where (n,) says so, the other for the rest."""
    return Outcome(
        *(
            np.where(where, getattr(one, part), getattr(other, part))
            for part in ("exact_match", "thinking", "probe", "answer")
        )
    )


def chosen(decoded: DecodedPair, takes_large: Bools, when: When = "before") -> Outcome:
    """What it gives to take the large member's answer where (n,) says so, the small one's else."""
    small, large = decoded.options(when)
    return either(takes_large, large, small)


def oracle_takes_large(decoded: DecodedPair) -> Bools:
    """(n,) the better member of each question in hindsight; chosen before, nothing beats it."""
    return decoded.gain("before") > 0


@dataclass(frozen=True, slots=True)
class ByTask:
    """The better member of each task."""

    large: frozenset[str]
    """tasks where it is the large one"""
    known: frozenset[str]
    otherwise: bool
    """whether it is the large one on a task that is not known"""

    def takes_large(self, pair: Pair) -> Bools:
        """(n,)"""
        tasks = pair.tasks.tolist()
        return np.array(
            [task in self.large if task in self.known else self.otherwise for task in tasks], bool
        )


def better_by_task(decoded: Sequence[DecodedPair]) -> ByTask:
    """Choose on these questions, all at one price, the member of higher mean utility."""
    gain = np.concatenate([part.gain("before") for part in decoded])
    tasks = np.concatenate([part.pair.tasks for part in decoded])
    names = np.unique(tasks).tolist()
    large = frozenset(name for name in names if gain[tasks == name].mean() > 0)
    return ByTask(large, frozenset(names), bool(gain.mean() > 0))
