"""What a choice of stops earns on recorded traces: replay, utility, the oracle, the gap closed.

A *choice* is one of two arrays. ``int64 (n,)``: the checkpoint, counted from 0 within its trace,
at which each trace stops, ``NATURAL_END`` for the full decode. ``float64 (m,)``: the probability
of stopping at each checkpoint, for rules that toss a coin; what is counted is the expectation.
Everything works on all traces at once, and a trace without a checkpoint always ends naturally.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from rlbudget.arrays import Bools, Floats, Ints
from rlbudget.errors import UserError
from rlbudget.policy.prices import price_grid
from rlbudget.policy.trials import trials_of
from rlbudget.signals.tokens import CHOICE
from rlbudget.traces.table import TraceTable

Choice = Ints | Floats
Probing = Literal["none", "until_stop"] | Bools | Floats
"""Whose trial answers are charged: nobody's, all up to the stop (it included), those of the
checkpoints in a mask (m,) up to the stop; or tokens (m,) that a look at each checkpoint costs."""

NATURAL_END = -1
RELATIVE_PRICES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
OPERATING_POINTS = 49
"""of everything that is told a price"""


def charged_by(preset: str, table: TraceTable, features: Sequence[str]) -> Probing:
    """What a policy of a preset pays at each checkpoint:
    trial answers, and whatever else its ``features`` see that costs tokens."""
    paid = paid_tokens(table, features)
    if preset not in ("probe", "turns"):
        return paid if paid.any() else "none"
    trials = trials_of(features)
    if preset == "probe" and trials.every in ((), (1,)):
        return table.probe_tokens + paid if paid.any() else "until_stop"
    made = trials.of_table(table)
    if preset == "turns":
        return np.where(made, table.probe_tokens + paid, 0.0)
    return np.where(made, table.probe_tokens, 0) + paid


def paid_tokens(table: TraceTable, features: Sequence[str]) -> Floats:
    """(m,) tokens of the ``signals.tokens.PAID_SIGNALS`` among features, where they were recorded;
    they are what the rules pay that look at them."""  # fmt: skip
    paid = np.zeros(len(table.thinking_tokens))
    for signal in {feature.partition(".")[0] for feature in features} & set(table.signals):
        known = ~np.isnan(table.signals[signal])
        if signal == "exit_entropy":
            paid += known
        elif signal == CHOICE:
            paid += np.where(known, option_tokens(table), 0)
    return paid


def option_tokens(table: TraceTable) -> Floats:
    """(m,) tokens of a look at the answer options; 1 where the traces do not say."""
    tokens = table.signals.get("option_tokens", np.ones(len(table.thinking_tokens)))
    return np.where(np.isnan(tokens), 1.0, tokens)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What each of ``n`` traces gave and cost: float64 arrays of shape (n,)."""

    exact_match: Floats
    """0 or 1, a probability where the rule tosses a coin"""
    thinking: Floats
    """thinking tokens up to the stop"""
    probe: Floats
    """tokens of the trial answers that the rule looked at"""
    answer: Floats
    """tokens after the thinking"""

    def __len__(self) -> int:
        return len(self.exact_match)

    @property
    def tokens(self) -> Floats:
        """(n,) all tokens: thinking, probe and answer."""
        return self.thinking + self.probe + self.answer


def concatenated(outcomes: Sequence[Outcome]) -> Outcome:
    """The traces of several, one after the other."""
    columns = (field.name for field in fields(Outcome))
    return Outcome(*(np.concatenate([getattr(o, c) for o in outcomes]) for c in columns))


def first_stop(table: TraceTable, says_stop: Bools) -> Ints:
    """(m,) mask of "stop here" -> (n,) the first of them in each trace, -1 where there is none."""
    rows = np.flatnonzero(says_stop)[::-1]
    traces = table.trace_of_row[rows]
    stops = np.full(len(table), NATURAL_END, dtype=np.int64)
    stops[traces] = rows - table.offsets[traces]  # the last write, so the earliest row, stays
    return stops


def outcome(table: TraceTable, stops: Choice, *, probes_charged: Probing = "none") -> Outcome:
    """Replay a choice of stops. ``ValueError`` for a choice that the traces do not have."""
    paid = charges(table, probes_charged)
    if np.issubdtype(stops.dtype, np.floating):
        return _expected(table, np.asarray(stops, dtype=np.float64), paid)
    stops = np.asarray(stops, dtype=np.int64)
    lengths = table.lengths
    if stops.shape != lengths.shape:
        raise ValueError(f"stops have shape {stops.shape}, the table has {len(table)} traces")
    if ((stops < NATURAL_END) | (stops >= lengths)).any():
        raise ValueError("a stop names a checkpoint that its trace does not have")
    stopped = np.flatnonzero(stops != NATURAL_END)
    rows = table.offsets[stopped] + stops[stopped]
    exact_match = table.final_exact_match.astype(np.float64)
    thinking = table.final_thinking_tokens.astype(np.float64)
    answer = table.final_answer_tokens.astype(np.float64)
    exact_match[stopped] = table.exit_exact_match[rows]
    thinking[stopped] = table.thinking_tokens[rows]
    answer[stopped] = table.exit_answer_tokens[rows]
    charged = np.concatenate([[0.0], np.cumsum(paid)])
    ends = table.offsets[1:].copy()
    ends[stopped] = rows + 1
    return Outcome(exact_match, thinking, charged[ends] - charged[table.offsets[:-1]], answer)


def charges(table: TraceTable, probes_charged: Probing) -> Floats:
    """(m,) tokens charged for looking at each checkpoint."""
    if isinstance(probes_charged, str):
        return (probes_charged == "until_stop") * table.probe_tokens.astype(np.float64)
    if probes_charged.dtype == bool:
        return np.where(probes_charged, table.probe_tokens, 0).astype(np.float64)
    return probes_charged.astype(np.float64)


def _expected(table: TraceTable, stop_probability: Floats, charges: Floats) -> Outcome:
    if stop_probability.shape != table.thinking_tokens.shape:
        raise ValueError(f"stop probabilities have shape {stop_probability.shape}, the table has"
                         f" {len(table.thinking_tokens)} checkpoints")  # fmt: skip
    traces = table.trace_of_row
    place = (traces, np.arange(len(traces)) - table.offsets[:-1][traces])
    go_on = np.ones((len(table), int(table.lengths.max(initial=0)) + 1))
    go_on[place[0], place[1] + 1] = 1 - stop_probability
    reach = np.cumprod(go_on, axis=1)
    reached = reach[place]
    ends = reach[:, -1]  # columns past a trace's last checkpoint hold 1

    def summed(values: Floats) -> Floats:
        sums = np.bincount(traces, weights=values, minlength=len(table))
        return sums.astype(np.float64)

    weight = reached * stop_probability
    return Outcome(
        summed(weight * table.exit_exact_match) + ends * table.final_exact_match,
        summed(weight * table.thinking_tokens) + ends * table.final_thinking_tokens,
        summed(reached * charges),
        summed(weight * table.exit_answer_tokens) + ends * table.final_answer_tokens,
    )


def full_stops(table: TraceTable) -> Ints:
    """Never stop: (n,)."""
    return np.full(len(table), NATURAL_END, dtype=np.int64)


def utility(result: Outcome, token_price: float | Floats) -> Floats:
    """(n,) exact match minus ``token_price`` (one, or one a trace) times all tokens: the return
    of the episode."""  # fmt: skip
    return result.exact_match - token_price * result.tokens


def oracle_stops(table: TraceTable, token_price: float) -> Ints:
    """The stop of highest utility in hindsight, (n,); of equal ones that of fewest tokens.

    It looks at no probe. No other choice has a higher utility on any trace.
    """
    tokens = (table.thinking_tokens + table.exit_answer_tokens).astype(np.float64)
    exits = table.exit_exact_match - token_price * tokens
    natural = table.final_exact_match - token_price * table.full_tokens.astype(np.float64)
    filled = np.flatnonzero(table.lengths)
    starts = table.offsets[filled]
    best = natural.copy()
    best[filled] = np.maximum(natural[filled], np.maximum.reduceat(exits, starts))
    traces = table.trace_of_row
    tied = np.where(exits == best[traces], tokens, np.inf)
    fewest = np.where(natural == best, table.full_tokens.astype(np.float64), np.inf)
    fewest[filled] = np.minimum(fewest[filled], np.minimum.reduceat(tied, starts))
    return first_stop(table, tied == fewest[traces])


def fixed_stops(table: TraceTable, budget: float) -> Ints:
    """Stop at the first checkpoint with at least ``budget`` thinking tokens, (n,)."""
    return first_stop(table, table.thinking_tokens >= budget)


def budget_grid(table: TraceTable, *, at_most: int = 48) -> tuple[float, ...]:
    """The budgets worth trying: thinking tokens at which the traces have a checkpoint (spread
    evenly where there are more than ``at_most``), and infinity, which never stops."""  # fmt: skip
    budgets = np.unique(table.thinking_tokens)
    if len(budgets) > at_most:
        budgets = budgets[np.linspace(0, len(budgets) - 1, at_most).round().astype(np.int64)]
    return (*(float(budget) for budget in budgets), float("inf"))


def best_budget(train: TraceTable, token_price: float) -> float:
    """The constant budget of highest mean utility on the training questions."""
    grid = budget_grid(train)
    means = [utility(outcome(train, fixed_stops(train, b)), token_price).mean() for b in grid]
    return grid[int(np.argmax(means))]


def token_price_of(relative_price: float, train: TraceTable) -> float:
    """The token price that makes a mean full decode of the training questions cost this much."""
    if not len(train):
        raise UserError("no training traces: a relative price needs their mean number of tokens")
    return relative_price / float(train.full_tokens.mean())


def operating_prices(token_price: tuple[float, float]) -> list[float]:
    """``OPERATING_POINTS`` token prices over a range, log-spaced, its ends exactly."""
    return price_grid(token_price, OPERATING_POINTS)


def doublings(highest: float) -> list[float]:
    """The relative prices 1, 2, 4, ... up to ``highest`` that lie beyond ``RELATIVE_PRICES``."""
    return [2.0**k for k in range(1 + int(np.log2(highest)))] if highest > 1 else []


def oracle_gap_closed(utility: float, fixed: float, oracle: float) -> float:
    """(U - U_fixed) / (U_oracle - U_fixed): 0 is the best constant budget, 1 the bound.

    NaN where there is no gap to close (the best constant budget is the oracle).
    """
    gap = oracle - fixed
    return (utility - fixed) / gap if gap > 1e-12 else float("nan")
