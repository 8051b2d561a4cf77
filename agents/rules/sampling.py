"""Rules of when to stop drawing samples, for traces made of samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np

from rlbudget.agents.rules.rule import Parameters, Rule, threshold_rule, thresholds
from rlbudget.arrays import Floats
from rlbudget.policy.outcomes import first_stop
from rlbudget.traces.samples import beta_lead
from rlbudget.traces.table import TraceTable

FIXED_N = Rule(
    name="fixed-n",
    needs=("samples",),
    grid=lambda table: [{"n": float(n)} for n in np.unique(table.signals["samples"])],
    stops=lambda table, parameters: first_stop(table, table.signals["samples"] >= parameters["n"]),
)


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
    return _lead(table, 2, lambda votes: beta_lead(*votes))


def _dirichlet(table: TraceTable) -> Floats:
    return _lead(table, 5, dirichlet_lead)


def _lead(table: TraceTable, answers: int, of: Callable[[tuple[int, ...]], float]) -> Floats:
    """(m,) of the votes of the first ``answers``; equal votes are computed once."""
    columns = [table.signals[f"votes_{k}"] for k in range(1, answers + 1)]
    votes = np.stack(columns, axis=1).astype(np.int64)
    base = int(votes.max(initial=0)) + 1
    _, first, of_row = np.unique(
        votes @ base ** np.arange(answers), return_index=True, return_inverse=True
    )
    chances: Floats = np.array([of(tuple(row)) for row in votes[first].tolist()])[of_row]
    return chances


def _lead_rule(name: str, answers: int, score: Callable[[TraceTable], Floats]) -> Rule:
    """Thresholds are also tried at every value that the first ``EARLY`` samples can give: there
    are few of them, far apart, and most questions are decided there."""  # fmt: skip

    def grid(table: TraceTable) -> list[Parameters]:
        scores = score(table)
        early = np.unique(scores[table.signals["samples"] <= EARLY])
        both = {*early.tolist(), *thresholds(table, scores)}
        return [{"threshold": value} for value in sorted(both)]

    needs = tuple(f"votes_{k}" for k in range(1, answers + 1))
    return replace(threshold_rule(name, needs, score), grid=grid)


EARLY = 7
AC_BETA = _lead_rule("ac-beta", 2, _beta)
"""Adaptive-Consistency (Aggarwal et al., 2023, arXiv 2305.11860), published at 0.95."""
AC_DIRICHLET = _lead_rule("ac-dirichlet", 5, _dirichlet)

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

RULES = (FIXED_N, AC_BETA, AC_DIRICHLET, ESC)
