"""Advantages for a policy that may look: what a trial answer is worth, one look ahead.

The policy starts from one that never looks and learns what looks add. It decides in two steps:
first whether to look, q, 1 where p(PROBE) is above a half, then whether to stop, s, 1 where
p(STOP) / (1 - p(PROBE)) is. These are the decisions it is served with: with the chances in their
place a look would earn what is only a surer decision, and looks were taken for nothing.

What a decode remembers depends on where it looked, so not every history can be tried. A batch
holds decodes that look by chance and never stop. But the record knows the trial answer at *every*
checkpoint, so at each one both nodes are known, before a look and after it. With U the utility of
a stop, c the price of the look's tokens and G the value of the next checkpoint, tokens spent on
looks before left out:

    V_after  = s_after U + (1 - s_after) G - c
    V_blind  = s_before U + (1 - s_before) G
    V        = q V_after + (1 - q) V_blind

A look is worth V_after - V_blind: what it does *here*, to stop now or not. That it is remembered
and may save a look further on is left out of this difference (not of G, which follows the decode
as it went): estimated by comparing decodes of one trace it was too noisy to learn from.

The rows of the buffer: PROBE before the look, with its worth; STOP and CONTINUE after it, with
opposite advantages, as in ``rlbudget.agents.exact``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlbudget.agents.exact import Evaluate, ExactRolloutBuffer, Floats, Ints
from rlbudget.envs.replay_core import Float32s, ReplayColumns
from rlbudget.signals.looks import LOOK_SIGNALS, LookMemory

_REMEMBERED = slice(-len(LOOK_SIGNALS), None)
_INPUTS = slice(-1 - len(LOOK_SIGNALS), -1)


@dataclass(frozen=True, slots=True)
class Nodes:
    """One of the two nodes at each of ``k`` checkpoints."""

    inputs: Float32s
    """(k, F + 1) of the network"""
    log_chances: Floats
    """(k, 3)"""
    critic: Floats
    """(k,)"""

    @property
    def stop(self) -> Floats:
        """(k,) the chance to stop without a look."""
        odds = np.clip(self.log_chances[:, 1] - self.log_chances[:, 0], -50, 50)
        return 1 / (1 + np.exp(-odds))

    @property
    def look(self) -> Floats:
        """(k,) the chance to look."""
        return np.exp(self.log_chances[:, 2])


def walk(
    columns: ReplayColumns,
    traces: Ints,
    price: Floats,
    evaluate: Evaluate,
    rng: np.random.Generator,
    exploration: float,
) -> tuple[Nodes, Nodes, npt.NDArray[np.bool_], Ints]:
    """Decodes of these traces, (n,) each under its price.

    Returns the nodes before and after a look at each of their k checkpoints, whether they looked
    (k,), and the checkpoint's row in the table (k,).
    """
    table, normaliser = columns.table, columns.normaliser
    assert normaliser is not None
    memory, told = LookMemory(len(traces)), normaliser.price(price)
    lengths, (flat, offsets) = table.lengths[traces], table.rows_of(traces)
    nodes = [_empty(len(flat), columns.inputs.shape[1]) for _ in range(2)]
    looked = np.zeros(len(flat), dtype=bool)

    def visit(at: Ints, known: Float32s, into: Nodes) -> None:
        seen = columns.inputs.take(flat[at], axis=0)
        seen[:, _INPUTS] = normaliser.features(known, _REMEMBERED)
        seen[:, -1] = told[paths]
        logits, critic = evaluate(seen)
        into.inputs[at], into.critic[at] = seen, critic
        logits = logits.astype(np.float64)
        into.log_chances[at] = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    before, after = nodes
    for step in range(int(lengths.max(initial=0))):
        paths = np.flatnonzero(lengths > step)
        at = offsets[paths] + step
        rows, everyone = flat[at], np.arange(len(paths))
        tokens = table.thinking_tokens[rows]
        answer, confidence = table.probe_answer[rows], table.probe_confidence[rows]
        memory.here[paths] = False
        visit(at, memory.features(paths, tokens), before)
        seen = memory.take(paths)
        seen.look(everyone, answer, confidence, tokens)
        visit(at, seen.features(everyone, tokens), after)
        look = np.clip(np.exp(before.log_chances[at, 2]), exploration, 1 - exploration)
        looks = rng.random(len(paths)) < look
        looked[at] = looks
        memory.look(paths[looks], answer[looks], confidence[looks], tokens[looks])
    return before, after, looked, flat


def _empty(k: int, width: int) -> Nodes:
    return Nodes(np.empty((k, width), dtype=np.float32), np.empty((k, 3)), np.empty(k))


class LookRolloutBuffer(ExactRolloutBuffer):
    """The rollout buffer of ``rlbudget.agents.exact`` for policies that may look."""

    def _fill(self, size: int) -> None:
        source, columns, table = self.source, self.source.columns, self.source.columns.table
        traces, price = source.draw_traces(-(-size // 3))
        before, after, looked, rows = walk(
            columns, traces, price, self.evaluate, source.rng, self.exploration
        )
        lengths = table.lengths[traces]
        prices, offsets = np.repeat(price, lengths), np.concatenate([[0], np.cumsum(lengths)])
        exits = table.exit_exact_match[rows] - prices * columns.exit_tokens[rows]
        natural = table.final_exact_match[traces] - price * columns.full_tokens[traces]
        cost = prices * table.probe_tokens[rows]
        seeing = after.stop
        q, blind, seen = (chance > 0.5 for chance in (before.look, before.stop, seeing))
        ahead, value = np.empty(len(rows)), np.empty(len(rows))
        reach, chance, coming = np.empty(len(rows)), np.ones(len(traces)), natural.copy()
        met = np.clip(np.where(looked, seen, blind), self.exploration, 1 - self.exploration)
        steps = [np.flatnonzero(lengths > step) for step in range(int(lengths.max()))]
        for step, paths in enumerate(steps):
            at = offsets[paths] + step
            reach[at] = chance[paths]
            chance[paths] *= 1 - met[at]
        for step, paths in reversed(list(enumerate(steps))):
            at = offsets[paths] + step
            ahead[at] = coming[paths]
            stop = np.where(q[at], seen[at], blind[at])
            value[at] = np.where(stop, exits[at], ahead[at]) - q[at] * cost[at]
            coming[paths] = value[at]
        gain = exits - ahead
        weight = source.weight(prices) * reach
        # A quarter is q (1 - q) at its largest: a look that pays and one that does not weigh alike.
        part = weight * 0.25 * ((seen * 1.0 - blind) * gain - cost)
        stops = np.where(gain > 0, np.maximum(seeing, self.exploration), seeing)
        goes = np.where(gain < 0, np.maximum(1 - seeing, self.exploration), 1 - seeing)
        turn = weight * stops * goes * gain
        n = len(rows)
        action = np.repeat([2, 1, 0], n)
        log_chances = np.concatenate([before.log_chances, after.log_chances, after.log_chances])
        mixed = source.rng.permutation(3 * n)
        self._keep(
            size,
            np.concatenate([before.inputs, after.inputs, after.inputs])[mixed],
            action[mixed],
            np.concatenate([before.critic, after.critic, after.critic])[mixed],
            np.tile(value, 3)[mixed],
            log_chances[np.arange(3 * n), action][mixed],
            np.concatenate([part, turn, -turn])[mixed],
        )
