"""Exact advantages: what the record knows and a sampled rollout would have to guess.

In a replay the return of stopping is recorded at every checkpoint, and the return of continuing
follows backwards from the natural end under the current policy:

    V(t) = s(t) U(t) + (1 - s(t)) V(t + 1)

with s the stop probability, U the utility, and V after the last checkpoint that of the full
decode. The policy gradient of the mean utility is then

    sum over t of   reach(t) * (U(t) - V(t + 1)) * ds(t),      reach(t) = prod of 1 - s before t

so PPO is given every checkpoint of a batch of traces. A checkpoint takes one row, that of its
*less likely* action a, with the advantage ``reach * probability(a) * (Q(a) - Q(other))``: the
gradient of rows for both actions at half the cost, clipped on the ratio that moves most.

Where the policy is nearly certain this gradient vanishes, and a mistake would stay for good. So
``reach`` and ``probability`` are those of an explorer that takes either action with at least the
probability ``exploration``; the values stay those of the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Float32s, Floats, Ints
from rlbudget.envs.replay_core import ReplayColumns

Evaluate = Callable[[Float32s], Floats]
"""inputs (k, F + 1) -> logits of the actions (k, 2 or 3)"""


@dataclass(frozen=True, slots=True)
class Values:
    """Of every checkpoint, under a policy: float64, shape (k,)."""

    reach: Floats
    """probability of getting here"""
    go_on: Floats
    """expected return of continuing"""
    value: Floats
    """expected return here"""


def values_of(
    stop: Floats, exits: Floats, natural: Floats, offsets: Ints, exploration: float = 0.0
) -> Values:
    """Solve traces backwards.

    ``stop`` and ``exits`` (k,): stop probability and utility of a stop at each checkpoint;
    ``natural`` (n,): utility of each full decode; ``offsets`` (n + 1,) as in ``TraceTable``.
    ``reach`` is that of an explorer, see the module.
    """
    explored = np.clip(stop, exploration, 1 - exploration)
    lengths = np.diff(offsets)
    order = np.argsort(-lengths, kind="stable")
    starts, longest = offsets[:-1][order], int(lengths.max(initial=0))
    live = [int(np.searchsorted(-lengths[order], -t)) for t in range(longest + 1)]
    reach, go_on, value = (np.empty(len(stop)) for _ in range(3))
    chance = np.ones(len(lengths))
    for t in range(longest):
        rows = starts[: live[t]] + t
        reach[rows] = chance[: live[t]]
        chance[: live[t]] *= 1 - explored[rows]
    ahead = natural[order].copy()
    for t in range(longest - 1, -1, -1):
        rows = starts[: live[t]] + t
        go_on[rows] = ahead[: live[t]]
        ahead[: live[t]] = stop[rows] * exits[rows] + (1 - stop[rows]) * ahead[: live[t]]
        value[rows] = ahead[: live[t]]
    return Values(reach, go_on, value)


@dataclass(frozen=True, slots=True)
class Batch:
    """Whole traces, each under its own price."""

    inputs: Float32s
    """(k, F + 1) of the network"""
    exits: Floats
    """(k,) utility of a stop"""
    natural: Floats
    """(n,) utility of the full decode"""
    offsets: Ints
    """(n + 1,)"""
    weight: Floats
    """(k,) of the trace's price"""
    traces: Ints
    """(n,) which they are"""
    price: Floats
    """(n,)"""


class TraceSource:
    """Draws batches of training traces; every trace comes once before any comes twice.

    Prices are log-uniform over ``token_price``, stratified within a batch. ``weight`` maps prices
    to their weights in the objective. ``exploration`` is that of the module. ``noise`` is the
    standard deviation of what is added to the features of every draw, in units of theirs.
    """

    def __init__(
        self,
        columns: ReplayColumns,
        token_price: tuple[float, float],
        weight: Callable[[Floats], Floats],
        rng: np.random.Generator,
        *,
        exploration: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        self.columns = columns
        self.token_price = token_price
        self.weight = weight
        self.rng = rng
        self.exploration = exploration
        self.noise = noise
        self.scale = 0.0
        """running mean of the size of the advantages, 0 before the first"""
        self._queue: Ints = np.zeros(0, dtype=np.int64)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of what ``resume`` needs, beside ``rng``, to continue these draws."""
        return {"queue": self._queue.copy(), "scale": np.array([self.scale])}

    def resume(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on where ``state`` was taken."""
        self._queue, self.scale = state["queue"].copy(), float(state["scale"][0])

    def scaled(self, advantages: Floats) -> Floats:
        """Advantages (k,) over the running mean of their size: the step size of an update then
        does not depend on the prices."""  # fmt: skip
        size = float(np.sqrt(np.mean(advantages**2)))
        self.scale = size if self.scale == 0 else 0.9 * self.scale + 0.1 * size
        return advantages / (self.scale + 1e-12)

    def draw(self, rows: int) -> Batch:
        """As many whole traces as are needed for at least ``rows`` checkpoints."""
        traces = self._next(rows)
        k = len(traces)
        low, high = np.log(self.token_price)
        place = (self.rng.permutation(k) + self.rng.random(k)) / k
        batch = self.batch(traces, np.exp(low + place * (high - low)))
        if self.noise:
            features = batch.inputs[:, :-1]
            features += self.noise * self.rng.standard_normal(features.shape, dtype=np.float32)
        return batch

    def _next(self, rows: int) -> Ints:
        lengths, taken = self.columns.table.lengths, np.zeros(0, dtype=np.int64)
        while True:
            total = np.cumsum(lengths[self._queue])
            if len(total) and total[-1] >= rows:
                count = int(np.searchsorted(total, rows)) + 1
                taken, self._queue = self._queue[:count], self._queue[count:]
                return taken
            self._queue = np.concatenate([self._queue, self.rng.permutation(self.columns.episodes)])

    def batch(self, traces: Ints, price: Floats) -> Batch:
        """These traces, each under its price."""
        columns, table = self.columns, self.columns.table
        flat, offsets = table.rows_of(traces)
        prices = np.repeat(price, table.lengths[traces])
        inputs = columns.inputs.take(flat, axis=0)
        inputs[:, -1] = columns.scaling.price(prices)
        return Batch(
            inputs=inputs,
            exits=table.exit_exact_match[flat] - prices * columns.exit_tokens[flat],
            natural=table.final_exact_match[traces] - price * columns.full_tokens[traces],
            offsets=offsets,
            weight=self.weight(prices),
            traces=traces,
            price=price,
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """What an update of PPO learns from: k rows, at least as many as it asked for."""

    inputs: Float32s
    """(k, F + 1) of the network"""
    actions: Ints
    """(k,)"""
    log_chances: Floats
    """(k,) of the actions under the policy that they were drawn up for"""
    advantages: Floats
    """(k,)"""
    returns: Floats
    """(k,) expected from the row's checkpoint on"""
    mean_return: float
    """of an episode under this policy, over the traces drawn"""
    mean_length: float
    """of an episode, in decisions"""


def stop_rows(source: TraceSource, evaluate: Evaluate, size: int) -> Rows:
    """Rows for a policy with the actions CONTINUE and STOP; see the module."""
    batch = source.draw(size)
    logits = evaluate(batch.inputs)
    log_odds = logits[:, 1] - logits[:, 0]
    stop = 1 / (1 + np.exp(-np.clip(log_odds, -500, 500)))
    values = values_of(stop, batch.exits, batch.natural, batch.offsets, source.exploration)
    stops = log_odds < 0
    log_chance = -np.logaddexp(0, np.abs(log_odds))
    gain = np.where(stops, 1.0, -1.0) * (batch.exits - values.go_on)
    chance = explored_chance(np.exp(log_chance), gain, source.exploration)
    return Rows(
        inputs=batch.inputs,
        actions=stops.astype(np.int64),
        log_chances=log_chance,
        advantages=batch.weight * values.reach * chance * gain,
        returns=values.value,
        mean_return=float(values.value[batch.offsets[:-1]].mean()),
        mean_length=mean_length(stop, batch.offsets),
    )


def explored_chance(chance: Floats, gain: Floats, exploration: float) -> Floats:
    """``chance`` of actions, raised to ``exploration`` where an action gains; any one shape."""
    return np.where(gain > 0, np.maximum(chance, exploration), chance)


def mean_length(ends: Floats, offsets: Ints) -> float:
    """Mean decisions of an episode that ends at each checkpoint with chance ``ends`` (k,)."""
    lengths = np.diff(offsets)
    so_far = np.arange(1.0, len(ends) + 1) - np.repeat(offsets[:-1], lengths)
    decisions = values_of(ends, so_far, lengths.astype(np.float64), offsets).value
    return float(decisions[offsets[:-1]].mean())
