"""How many thinking tokens a stop saved, as far as that can be known of one request.

Requests that were audited or in shadow think to their natural end: what those that thought as far
as the stop went on for, on average, is what it saved. Until there are enough of them the mean of
the recorded decodes stands in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from rlbudget.strategies.plan import Plan

_KEPT = 512
"""natural lengths that are remembered"""
_ENOUGH = 30


@dataclass(slots=True)
class Savings:
    """The natural lengths of one plan's requests."""

    recorded: float | None = None
    """mean tokens of a full decode, answer included, where the policy's recordings say it"""
    lengths: deque[int] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def full(self, thinking_tokens: int) -> None:
        """A request thought to its natural end, whatever it was worth."""
        self.lengths.append(thinking_tokens)

    def saved(self, thinking_tokens: int, answer_tokens: int) -> float | None:
        """Thinking tokens that a stop there saved, estimated; None where nothing is known."""
        if len(self.lengths) >= _ENOUGH:
            longer = [n for n in self.lengths if n >= thinking_tokens]
            return sum(longer) / len(longer) - thinking_tokens if longer else 0.0
        if self.recorded is None:
            return None
        return max(self.recorded - thinking_tokens - answer_tokens, 0.0)


def savings_of(plan: Plan) -> Savings:
    """Those of a plan whose gateway has just begun."""
    config = getattr(plan.policy, "config", None) or {}
    traces = config.get("trained", {}).get("traces", {}) if plan.cascade is None else {}
    mean = traces.get("mean_full_tokens") if isinstance(traces, dict) else None
    return Savings(None if mean is None else float(mean))
