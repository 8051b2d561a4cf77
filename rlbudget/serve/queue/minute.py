"""What a minute may spend: the one price factor at which it is met.

Tokens that were spent fade with a time constant of a minute, so that their sum is what a minute
spends now. Above the budget the factor rises, below it falls, down to 1: every request that pays
it is steered by the same price, so that the last token of each is worth the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MINUTE = 60.0
MOST = 100.0
"""times the price"""
_SPEED = 4.0
"""log factor a minute for each unit of the log of what is spent over the budget"""


@dataclass(frozen=True, slots=True)
class Minute:
    """What is known; small and plain, to be saved as it is."""

    spent: float = 0.0
    """tokens of a minute, as of ``at``"""
    at: float | None = None
    log_factor: float = 0.0
    begun: float | None = None

    @property
    def factor(self) -> float:
        """Times the token price."""
        return math.exp(self.log_factor)


def after_spending(minute: Minute, budget: float, tokens: float, now: float) -> Minute:
    """After a request that counts spent so many tokens; ``now`` in seconds, never falling."""
    begun = now if minute.begun is None else minute.begun
    passed = 0.0 if minute.at is None else max(now - minute.at, 0.0)
    spent = minute.spent * math.exp(-passed / MINUTE) + tokens
    known = 1 - math.exp(-max(now - begun, 1.0) / MINUTE)  # the first minute is not over
    over = math.log(max(spent / known, 1e-9) / budget)
    step = _SPEED * min(max(over, -1.0), 1.0) * min(passed, MINUTE) / MINUTE
    log_factor = min(max(minute.log_factor + step, 0.0), math.log(MOST))
    return Minute(spent, now, log_factor, begun)
