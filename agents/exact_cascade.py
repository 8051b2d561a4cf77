"""Exact advantages for a cascade: three actions, each with a return that the record knows.

With U the utility of a stop, H that of handing over to the large model and p the chances of the
three actions at a checkpoint,

    V(t) = p_stop(t) U(t) + p_escalate(t) H(t) + p_continue(t) V(t + 1)

backwards from the natural end. STOP and ESCALATE together are one action with their summed chance
and mean return, so ``rlbudget.agents.exact.values_of`` solves it. The two *less likely* actions of
a checkpoint take a row each, with the advantage ``reach * probability(a) * (Q(a) -
Q(likeliest))``: the chances sum to one, so these rows have the gradient of all three.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rlbudget.agents.exact import (
    Evaluate,
    Rows,
    TraceSource,
    explored_chance,
    mean_length,
    values_of,
)
from rlbudget.agents.validation import weight_of
from rlbudget.arrays import Floats
from rlbudget.envs.cascade import handed_over
from rlbudget.envs.replay_core import ReplayColumns
from rlbudget.policy import outcomes
from rlbudget.policy.cascade import ESCALATE, STOP

ROWS = 2
"""rows of the buffer that a checkpoint takes"""
_RARE = 1e-12
_OTHERS = np.array([1, 2])


def cascade_rows(source: TraceSource, evaluate: Evaluate, size: int) -> Rows:
    """Rows for a policy with the actions CONTINUE, STOP and ESCALATE."""
    batch, columns = source.draw(-(-size // ROWS)), source.columns
    logits = evaluate(batch.inputs)
    log_chances = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    chances = np.exp(log_chances)
    rows, _ = columns.table.rows_of(batch.traces)
    lengths = columns.table.lengths[batch.traces]
    traces, prices = np.repeat(batch.traces, lengths), np.repeat(batch.price, lengths)
    handed = handed_over(columns, rows, traces, prices)
    leaves = chances[:, STOP] + chances[:, ESCALATE]
    left = chances[:, STOP] * batch.exits + chances[:, ESCALATE] * handed
    values = values_of(
        leaves,
        left / np.maximum(leaves, _RARE),
        batch.natural,
        batch.offsets,
        source.exploration,
    )
    worth = np.stack([values.go_on, batch.exits, handed], axis=1)
    likeliest = chances.argmax(axis=1)[:, None]
    others = (likeliest + _OTHERS) % 3
    gain = np.take_along_axis(worth, others, 1) - np.take_along_axis(worth, likeliest, 1)
    chance = explored_chance(np.take_along_axis(chances, others, 1), gain, source.exploration)
    return Rows(
        inputs=np.repeat(batch.inputs, ROWS, axis=0),
        actions=others.ravel(),
        log_chances=np.take_along_axis(log_chances, others, 1).ravel(),
        advantages=((batch.weight * values.reach)[:, None] * chance * gain).ravel(),
        returns=np.repeat(values.value, ROWS),
        mean_return=float(values.value[batch.offsets[:-1]].mean()),
        mean_length=mean_length(leaves, batch.offsets),
    )


def constant_and_oracle(
    columns: ReplayColumns, token_price: float, budget: float
) -> tuple[float, float]:
    """Mean utilities of the better constant way and of the best in hindsight.

    A constant way is to stop every decode at ``budget`` thinking tokens, or to ask the large model
    at once.
    """
    table, n = columns.table, len(columns.table)
    first = handed_over(columns, table.offsets[:-1], np.arange(n), np.full(n, token_price))
    own = outcomes.outcome(table, outcomes.fixed_stops(table, budget))
    small = outcomes.utility(own, token_price * columns.ratio)
    exits = table.exit_exact_match - token_price * columns.exit_tokens
    oracle = np.maximum(np.maximum.reduceat(exits, table.offsets[:-1]), first)
    return float(max(small.mean(), first.mean())), float(oracle.mean())


def cascade_weight(
    columns: ReplayColumns, token_price: tuple[float, float]
) -> Callable[[Floats], Floats]:
    """Weights of prices in the objective, as ``rlbudget.agents.validation.gap_weight`` makes them:
    one over what there is to gain over the better constant way."""  # fmt: skip
    grid = np.geomspace(*token_price, 9)
    budgets = [outcomes.best_budget(columns.table, price * columns.ratio) for price in grid]
    limits = [constant_and_oracle(columns, *each) for each in zip(grid, budgets, strict=True)]
    return weight_of(grid, limits)
