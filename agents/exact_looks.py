"""Advantages for a policy that may ask for trial answers: what one is worth, one step ahead.

The policy starts from one that never asks. At a checkpoint it decides first whether to ask, q, 1
where p(PROBE) is above a half, then whether to stop, s, 1 where p(STOP) / (1 - p(PROBE)) is. These
are the decisions that it is served with; with the chances in their place a trial answer would be
paid for a surer decision alone.

What a decode remembers depends on where it asked, so not every history can be tried. A batch holds
decodes that ask by chance and never stop; but the record holds the trial answer of *every*
checkpoint, so both nodes of each are known, before the answer and after it. With U the utility of
a stop, c the price of the trial answer's tokens and G the value of the next checkpoint, earlier
trial answers left out:

    V_after  = s_after U + (1 - s_after) G - c
    V_blind  = s_before U + (1 - s_before) G
    V        = q V_after + (1 - q) V_blind

A trial answer is worth V_after - V_blind, what it changes *here*; that it is remembered and may
spare a later one is too noisy to learn from, and counts in G alone. The rows of the buffer: PROBE
before the answer, with its worth; STOP and CONTINUE after it, with opposite advantages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from stable_baselines3 import PPO

from rlbudget.agents.exact import (
    Evaluate,
    Rows,
    TraceSource,
    explored_chance,
    mean_length,
    running,
    values_of,
)
from rlbudget.arrays import Bools, Float32s, Floats, Ints
from rlbudget.signals.looks import LOOK_SIGNALS, LookMemory

_REMEMBERED = slice(-len(LOOK_SIGNALS), None)
_INPUTS = slice(-1 - len(LOOK_SIGNALS), -1)
_FIRST_LOOKS = 0.2
"""chance to look where the old actor is sure to go on"""


@dataclass(frozen=True, slots=True)
class Nodes:
    """One of the two nodes at each of ``k`` checkpoints."""

    inputs: Float32s
    """(k, F + 1) of the network"""
    log_chances: Floats
    """(k, 3)"""

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
    source: TraceSource, evaluate: Evaluate, traces: Ints, price: Floats
) -> tuple[Nodes, Nodes, Bools, Ints]:
    """Decode these traces, each under its price, (n,); ask for trial answers by chance.

    Returns the nodes before and after a look at each of their k checkpoints, whether they looked
    (k,), and the checkpoint's row in the table (k,).
    """
    columns, table, normaliser = source.columns, source.columns.table, source.columns.scaling
    memory, told = LookMemory(len(traces)), normaliser.price(price)
    lengths, (flat, offsets) = table.lengths[traces], table.rows_of(traces)
    shape = len(flat), columns.inputs.shape[1]
    before, after = (
        Nodes(np.empty(shape, dtype=np.float32), np.empty((len(flat), 3))) for _ in range(2)
    )
    looked = np.zeros(len(flat), dtype=bool)

    def visit(at: Ints, known: Float32s, into: Nodes) -> None:
        seen = columns.inputs.take(flat[at], axis=0)
        seen[:, _INPUTS] = normaliser.features(known, _REMEMBERED)
        seen[:, -1] = told[paths]
        logits = evaluate(seen)
        into.inputs[at] = seen
        into.log_chances[at] = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

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
        least = source.exploration
        look = np.clip(np.exp(before.log_chances[at, 2]), least, 1 - least)
        looks = source.rng.random(len(paths)) < look
        looked[at] = looks
        memory.look(paths[looks], answer[looks], confidence[looks], tokens[looks])
    return before, after, looked, flat


def look_rows(source: TraceSource, evaluate: Evaluate, size: int) -> Rows:
    """Rows for a policy with the actions CONTINUE, STOP and PROBE; see the module."""
    columns, table, exploration = source.columns, source.columns.table, source.exploration
    traces, price = source.draw_traces(-(-size // 3))
    before, after, looked, rows = walk(source, evaluate, traces, price)
    lengths = table.lengths[traces]
    prices, offsets = np.repeat(price, lengths), np.concatenate([[0], np.cumsum(lengths)])
    exits = table.exit_exact_match[rows] - prices * columns.exit_tokens[rows]
    natural = table.final_exact_match[traces] - price * columns.full_tokens[traces]
    cost = prices * table.probe_tokens[rows]
    seeing = after.stop
    q, blind, seen = (chance > 0.5 for chance in (before.look, before.stop, seeing))
    stop = np.where(q, seen, blind).astype(np.float64)
    # What looks cost is taken off at the ends, and given back where it was paid before.
    spent = q * cost
    paid = running(spent, offsets)
    solved = values_of(stop, exits - paid, natural - paid[offsets[1:] - 1], offsets)
    ahead, value = solved.go_on + paid, solved.value + paid - spent
    met = np.where(looked, seen, blind).astype(np.float64)
    reach = values_of(met, exits, natural, offsets, exploration).reach
    gain = exits - ahead
    weight = source.weight(prices) * reach
    # A quarter is q (1 - q) at its largest: a look that pays and one that does not weigh alike.
    part = weight * 0.25 * ((seen * 1.0 - blind) * gain - cost)
    stops = explored_chance(seeing, gain, exploration)
    goes = explored_chance(1 - seeing, -gain, exploration)
    turn = weight * stops * goes * gain
    n = len(rows)
    action = np.repeat([2, 1, 0], n)
    log_chances = np.concatenate([before.log_chances, after.log_chances, after.log_chances])
    mixed = source.rng.permutation(3 * n)
    return Rows(
        inputs=np.concatenate([before.inputs, after.inputs, after.inputs])[mixed],
        actions=action[mixed],
        log_chances=log_chances[np.arange(3 * n), action][mixed],
        advantages=np.concatenate([part, turn, -turn])[mixed],
        returns=np.tile(value, 3)[mixed],
        mean_return=float(value[offsets[:-1]].mean()),
        mean_length=mean_length(stop, 1 + q.astype(np.float64), offsets),
    )


def adopt(model: PPO, actor: dict[str, torch.Tensor]) -> None:
    """Start from an actor of the free preset and learn only what trial answers add to it.

    Trained are the weights of the features of ``signals.looks``, which are 0 before the first trial
    answer, and the logit of PROBE: without trial answers it stops as the old actor does.
    """
    first = "mlp_extractor.policy_net.0.weight"
    own, n = model.policy.state_dict(), actor[first].shape[1] - 1
    odds = float(np.log(_FIRST_LOOKS / (1 - _FIRST_LOOKS)))
    probe = {"weight": actor["action_net.weight"][:1], "bias": actor["action_net.bias"][:1] + odds}
    learned = {name: torch.zeros_like(own[name]) for name in actor if name in own}
    own.update({name: actor[name] for name in learned})
    own[first] = torch.cat(
        [
            actor[first][:, :n],
            torch.zeros(len(actor[first]), len(LOOK_SIGNALS)),
            actor[first][:, n:],
        ],
        dim=1,
    )
    learned[first][:, n:-1] = 1
    for name, row in probe.items():
        own[f"action_net.{name}"] = torch.cat([actor[f"action_net.{name}"], row])
        learned[f"action_net.{name}"][2] = 1
    model.policy.load_state_dict(own)
    model.policy.optimizer.param_groups[0]["weight_decay"] = 0.0  # it would move what stays
    for name, parameter in model.policy.named_parameters():
        if name in learned:
            parameter.register_hook(learned[name].mul)  # type: ignore[no-untyped-call]
