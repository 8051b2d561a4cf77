"""A constraint in place of a price: a floor under exact match, or a budget of tokens.

The price is the constraint's dual variable (Lagrange multiplier). After every validation it moves
up while there is exact match to spare (or too many tokens are spent), else down. Training draws
prices around it, from a wide range at first to a narrow one, so that the network becomes best
where it will be served.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from rlbudget.errors import UserError
from rlbudget.policy.prices import nearest_price

RATE = 0.5
"""largest move of the price's logarithm at one look"""
EM_SCALE, TOKEN_SCALE = 0.02, 0.1
"""slack at which the move is largest: exact match, share of the budget"""
WIDEST, NARROWEST = 10.0, 2.0
"""at the start and at the end prices are drawn within this factor of the dual price: far higher
ones, where all that counts is to stop at once, would drown the others"""
HALVINGS = 16


@dataclass(frozen=True, slots=True)
class Measured:
    """Means over the validation questions at one price."""

    exact_match: float
    tokens: float


At = Callable[[float], Measured]
"""token price -> what the policy gives there"""


@dataclass(frozen=True, slots=True)
class Constraint:
    """A floor or a budget, exactly one of the two."""

    em_floor: float | None = None
    """least exact match, in [0, 1]"""
    token_budget: float | None = None
    """most tokens a question, all of them counted"""

    def __post_init__(self) -> None:
        """Refuse what cannot be met by any policy."""
        if (self.em_floor is None) == (self.token_budget is None):
            raise UserError("give an EM floor or a token budget, one of the two")
        if self.em_floor is not None and not 0 < self.em_floor < 1:
            raise UserError(f"em_floor is {self.em_floor:g}: it must be between 0 and 1")
        if self.token_budget is not None and not self.token_budget > 0:
            raise UserError(f"token_budget is {self.token_budget:g}: it must be above 0")

    def slack(self, found: Measured) -> float:
        """At least 0 where the constraint holds; 1 or -1 is worth a whole step of the price."""
        if self.em_floor is not None:
            return (found.exact_match - self.em_floor) / EM_SCALE
        assert self.token_budget is not None
        return (1 - found.tokens / self.token_budget) / TOKEN_SCALE

    def moved(self, price: float, found: Measured, bounds: tuple[float, float]) -> float:
        """The dual price after a look: one step of ascent, within ``bounds``."""
        step = RATE * min(max(self.slack(found), -1.0), 1.0)
        # Slack in exact match allows a higher price; slack in tokens allows a lower one.
        log_price = math.log(price) + (step if self.em_floor is not None else -step)
        return nearest_price(math.exp(log_price), bounds)

    def solved(self, at: At, bounds: tuple[float, float]) -> tuple[float, Measured]:
        """The price that just meets the constraint, and what is found there.

        Bisects the logarithm: exact match and tokens fall with the price, but for noise. Where no
        price meets it, the nearer end of ``bounds``.
        """
        low, high = (math.log(bound) for bound in bounds)
        floor = self.em_floor is not None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            holds = self.slack(at(math.exp(middle))) >= 0
            if holds == floor:
                low = middle
            else:
                high = middle
        price = nearest_price(math.exp(low if floor else high), bounds)
        return price, at(price)

    def better(self, one: Measured, other: Measured) -> bool:
        """Whether ``one`` is the better of two solutions: it holds, and at less of the rest."""
        holds = self.slack(one) >= -1e-9, self.slack(other) >= -1e-9
        if holds[0] != holds[1]:
            return holds[0]
        if not holds[0]:
            return self.slack(one) > self.slack(other)
        if self.em_floor is not None:
            return one.tokens < other.tokens
        return one.exact_match > other.exact_match


def focus(price: float, bounds: tuple[float, float], progress: float) -> tuple[float, float]:
    """The prices to train on, around ``price`` and within ``bounds``: within a factor of ``WIDEST``
    at the start, of ``NARROWEST`` at the end (``progress`` from 0 to 1)."""  # fmt: skip
    widest = min(math.log(WIDEST), math.log(bounds[1] / bounds[0]))
    spread = math.exp((1 - progress) * widest + progress * math.log(NARROWEST))
    return max(bounds[0], price / spread), min(bounds[1], price * spread)
