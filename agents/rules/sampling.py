"""Rules of when to stop drawing samples, for traces made of samples."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from rlbudget.agents.rules.rule import Rule, threshold_rule
from rlbudget.evaluate.outcomes import Floats, first_stop
from rlbudget.table import TraceTable

FIXED_N = Rule(
    name="fixed-n",
    needs=("samples",),
    grid=lambda table: [{"n": float(n)} for n in np.unique(table.signals["samples"])],
    stops=lambda table, parameters: first_stop(table, table.signals["samples"] >= parameters["n"]),
)


@lru_cache(maxsize=4096)
def beta_lead(first: int, second: int) -> float:
    """P(X > 1/2) for X ~ Beta(first + 1, second + 1), by the binomial sum."""
    n = first + second + 1
    ways: int = sum(math.comb(n, k) for k in range(first + 1))
    return ways / (1 << n)


@lru_cache(maxsize=65536)
def dirichlet_lead(votes: tuple[int, ...]) -> float:
    """P(the first share is the largest) for shares ~ Dirichlet(votes + 1), by quadrature.

    Shares are Gamma variables over their sum, so it is the chance that the first of independent
    Gamma(votes + 1) variables is the largest.
    """
    x = np.linspace(0, votes[0] + 12 + 6 * math.sqrt(votes[0] + 1), 600)
    density = np.exp(votes[0] * np.log(np.maximum(x, 1e-300)) - x - math.lgamma(votes[0] + 1))
    for count in votes[1:]:
        density *= _gamma_below(count, x)
    return float(np.trapezoid(density, x))


def _gamma_below(count: int, x: Floats) -> Floats:
    """P(Gamma(count + 1) < x)."""
    term, total = np.ones_like(x), np.ones_like(x)
    for k in range(1, count + 1):
        term = term * x / k
        total = total + term
    below: Floats = 1 - np.exp(-x) * total
    return below


def _beta(table: TraceTable) -> Floats:
    first, second = (table.signals[name].astype(np.int64) for name in ("votes_1", "votes_2"))
    return np.array([beta_lead(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)])


def _dirichlet(table: TraceTable) -> Floats:
    votes = np.stack([table.signals[f"votes_{k}"] for k in range(1, 6)], axis=1).astype(np.int64)
    kinds, of_row = np.unique(votes, axis=0, return_inverse=True)
    lead = np.array([dirichlet_lead(tuple(row)) for row in kinds.tolist()])
    chances: Floats = lead[of_row.reshape(-1)]
    return chances


AC_BETA = threshold_rule("ac-beta", ("votes_1", "votes_2"), _beta)
"""Adaptive-Consistency (Aggarwal et al., 2023, arXiv 2305.11860), published at 0.95."""
AC_DIRICHLET = threshold_rule("ac-dirichlet", tuple(f"votes_{k}" for k in range(1, 6)), _dirichlet)

ESC = Rule(
    name="esc",
    needs=("samples", "vote_streak"),
    grid=lambda table: [{"window": float(w)} for w in range(2, 11)],
    stops=lambda table, parameters: first_stop(
        table,
        (table.signals["samples"] % parameters["window"] == 0)
        & (table.signals["vote_streak"] >= parameters["window"]),
    ),
)
"""All samples of a window agree; windows follow each other (arXiv 2401.10480, published at 5)."""
