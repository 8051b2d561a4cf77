"""What a policy in training is worth on the validation questions, at every relative price."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rlbudget.agents.dual import Measured
from rlbudget.arrays import Float32s, Floats
from rlbudget.envs.replay_core import ReplayColumns, replay_columns
from rlbudget.envs.replay_normaliser import Normaliser
from rlbudget.files import json_ready
from rlbudget.policy import outcomes
from rlbudget.policy.operating import sweep
from rlbudget.policy.replay import Replay
from rlbudget.traces.table import TraceTable

Chances = Callable[[Float32s], Floats]
"""network inputs (k, F + 1) -> chance to stop, (k,)"""

SMALLEST_GAP = 0.01
"""Least gap between the oracle and the best constant budget in ``selection``, so that a set without
a gap still has a score."""


@dataclass(frozen=True, slots=True)
class PriceResult:
    """Means over the validation traces at one price; a decode stops where p(stop) > 0.5."""

    relative_price: float
    token_price: float
    exact_match: float
    tokens: float
    utility: float
    oracle_gap_closed: float
    """NaN where there is no gap"""


@dataclass(frozen=True, slots=True)
class Score:
    """The validation of one policy."""

    prices: tuple[PriceResult, ...]
    mean_utility: float
    mean_oracle_gap_closed: float
    """over the prices that have a gap, NaN if none has"""
    selection: float
    """mean of (U - U_fixed) / gap, gaps held at ``SMALLEST_GAP``: what the best is chosen by"""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; NaN becomes None."""
        result: dict[str, Any] = json_ready(asdict(self))
        return result


class Validation:
    """The validation traces, with all that does not depend on the policy computed once."""

    def __init__(
        self,
        train: TraceTable,
        validation: TraceTable,
        features: tuple[str, ...],
        normaliser: Normaliser,
    ) -> None:
        self.columns: ReplayColumns = replay_columns(
            validation, features=features, normaliser=normaliser
        )
        before = np.concatenate([[0], self.columns.probe_tokens[:-1]])
        before[self.columns.table.offsets[:-1][self.columns.table.lengths > 0]] = 0
        self._probing: outcomes.Probing = (self.columns.probe_tokens - before).astype(np.float64)
        self.token_prices = [outcomes.token_price_of(r, train) for r in outcomes.RELATIVE_PRICES]
        # Both sets together say more exactly what the full decodes give.
        both = [(part.final_exact_match, part.full_tokens) for part in (train, validation)]
        exact_match, tokens = (np.concatenate(column) for column in zip(*both, strict=True))
        self.full = Measured(float(exact_match.mean()), float(tokens.mean()))
        self._bounds = [bounds(train, validation, price) for price in self.token_prices]

    def _replay(self, chances: Chances, price: float) -> Replay:
        table, inputs, normaliser = self.columns.table, self.columns.inputs, self.columns.scaling
        inputs[:, -1] = normaliser.price(price)
        stop = chances(inputs)
        return Replay(table, outcomes.first_stop(table, stop > 0.5), self._probing, stop)

    def at(self, chances: Chances, price: float) -> Measured:
        """What a policy gives at a price on such questions: its mean on the validation questions,
        with the full decodes of all questions as a control variate."""  # fmt: skip
        result = self._replay(chances, price).outcome
        table = self.columns.table
        return Measured(
            _controlled(result.exact_match, table.final_exact_match, self.full.exact_match),
            _controlled(result.tokens, table.full_tokens, self.full.tokens),
        )

    def sweep(self, chances: Chances) -> dict[str, Any]:
        """What ``freeze`` chooses operating points from, JSON-ready: ``questions`` and, at each
        of ``outcomes.operating_prices``, the fields of ``operating.Swept``."""
        table = self.columns.table
        prices = outcomes.operating_prices(self.columns.scaling.token_price)
        swept = sweep(table, prices, lambda price: self._replay(chances, price).outcome)
        questions = len(np.unique(table.question_ids))
        return {"questions": questions, "prices": [asdict(one) for one in swept]}

    def measure(self, chances: Chances) -> Score:
        """Replay a policy at every price."""
        found = [self._replay(chances, price).outcome for price in self.token_prices]
        return score_of(self.token_prices, found, self._bounds)


def bounds(train: TraceTable, table: TraceTable, price: float) -> tuple[float, float]:
    """Mean utilities on ``table`` of the best constant budget of ``train``, and of the oracle."""
    budget = outcomes.fixed_stops(table, outcomes.best_budget(train, price))
    fixed, oracle = (
        float(outcomes.utility(outcomes.outcome(table, stops), price).mean())
        for stops in (budget, outcomes.oracle_stops(table, price))
    )
    return fixed, oracle


def score_of(
    token_prices: Sequence[float],
    found: Sequence[outcomes.Outcome],
    limits: Sequence[tuple[float, float]],
) -> Score:
    """Of what a policy gave at each of ``outcomes.RELATIVE_PRICES``, which are ``token_prices``.

    ``limits`` are the mean utilities of the best constant way and of the oracle there.
    """
    results, chosen = [], []
    for relative, price, one, (fixed, oracle) in zip(
        outcomes.RELATIVE_PRICES, token_prices, found, limits, strict=True
    ):
        utility = float(outcomes.utility(one, price).mean())
        gap = outcomes.oracle_gap_closed(utility, fixed, oracle)
        exact_match, tokens = float(one.exact_match.mean()), float(one.tokens.mean())
        results.append(PriceResult(relative, price, exact_match, tokens, utility, gap))
        chosen.append((utility - fixed) / max(oracle - fixed, SMALLEST_GAP))
    gaps = [r.oracle_gap_closed for r in results if not np.isnan(r.oracle_gap_closed)]
    return Score(
        prices=tuple(results),
        mean_utility=float(np.mean([r.utility for r in results])),
        mean_oracle_gap_closed=float(np.mean(gaps)) if gaps else float("nan"),
        selection=float(np.mean(chosen)),
    )


def _controlled(values: Floats, control: npt.ArrayLike, expected: float) -> float:
    """The mean of ``values`` (n,) corrected by a control variate (n,) of this expectation."""
    own = np.asarray(control, dtype=np.float64)
    spread = own - own.mean()
    variance = float(spread @ spread)
    slope = float(spread @ values) / variance if variance > 0 else 0.0
    return float(values.mean()) + slope * (expected - float(own.mean()))


def gap_weight(train: TraceTable, token_price: tuple[float, float]) -> Callable[[Floats], Floats]:
    """Weights of prices in the objective: 1 / (U_oracle - U_fixed) on the training questions.

    A low price leaves little to gain; weighing every price by what there is to gain makes the
    objective the mean oracle gap closed. Interpolated over log price.
    """
    grid = np.geomspace(*token_price, 9)
    return weight_of(grid, [bounds(train, train, price) for price in grid])


def weight_of(grid: Floats, limits: Sequence[tuple[float, float]]) -> Callable[[Floats], Floats]:
    """``gap_weight`` of a grid of prices and the limits of ``score_of`` at each."""
    weights = [1 / max(oracle - fixed, SMALLEST_GAP) for fixed, oracle in limits]

    def weight(price: Floats) -> Floats:
        return np.interp(np.log(price), np.log(grid), weights)

    return weight


def estimated(found: Mapping[str, Any]) -> Score:
    """The estimate as the score of a validation."""
    names = ("relative_price", "token_price", "exact_match", "tokens", "utility")
    prices = tuple(
        PriceResult(
            oracle_gap_closed=_or_nan(row["oracle_gap_closed"]), **{n: row[n] for n in names}
        )
        for row in found["prices"]
    )
    gap = _or_nan(found["oracle_gap_closed"])
    return Score(prices, float(np.mean([row.utility for row in prices])), gap, gap)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
