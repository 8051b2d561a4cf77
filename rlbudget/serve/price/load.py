"""Load: the price rises before requests queue, where a latency is asked for.

How long a request takes is the tokens it writes times the seconds that a token takes, and the
latter rises with the requests that share the upstream, at once and long before a queue is seen.
The 95th percentile of the last requests is therefore scaled by how much slower a token is now than
it was for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FAST, SLOW = 20.0, 200.0
"""requests"""
EARLY = 0.8
"""share of the latency from which on the price rises"""
MOST = 16.0
"""times the price"""
_STEP = 0.05


@dataclass(frozen=True, slots=True)
class Load:
    """What is known of it."""

    fast: float = 0.0
    """seconds a token, of the last requests"""
    slow: float = 0.0
    log_tail: float = -math.inf
    """log of the seconds that 5% of the requests exceed"""
    log_factor: float = 0.0
    requests: int = 0

    @property
    def factor(self) -> float:
        """Times the token price."""
        return math.exp(self.log_factor)

    @property
    def expected(self) -> float:
        """Seconds within which 95% of the requests would end now."""
        return math.exp(self.log_tail) * (self.fast / self.slow if self.slow else 1.0)


def after_end(load: Load, latency: float | None, seconds: float, tokens: int) -> Load:
    """After a request that took so long; ``latency`` is what is asked for, None for nothing."""
    if latency is None or tokens < 1 or seconds <= 0:
        return load
    n = load.requests + 1
    each = seconds / tokens
    fast = load.fast + (each - load.fast) / min(n, FAST)
    slow = load.slow + (each - load.slow) / min(n, SLOW)
    tail = math.log(seconds)
    if n > 1:  # a quantile by stochastic approximation
        above = seconds > math.exp(load.log_tail)
        tail = load.log_tail + max(1 / n, 0.02) * (0.95 if above else -0.05) * 4
    found = Load(fast, slow, tail, load.log_factor, n)
    step = min(max(math.log(found.expected / (EARLY * latency)), -1.0), 1.0) * _STEP
    factor = min(max(load.log_factor + step, 0.0), math.log(MOST))
    return Load(fast, slow, tail, factor, n)
