"""Doubt in favour of the decode that goes on: how much surer a policy must be at which price.

At a low price a stop gains few tokens and may lose an answer, so noise in few questions talks a
policy into stops that lose. The questions that the members were not trained on say where: at each
relative price so much is taken from the logit of STOP as earns most there, where it earns a
standard error more than taking nothing; with the largest doubt nothing is stopped. The doubt never
grows with the price.

It becomes a part of the network: hidden units that see the price alone, each a step of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from rlbudget.agents.actor import HIDDEN
from rlbudget.agents.together import Actor
from rlbudget.arrays import Floats
from rlbudget.policy.bootstrap import FEWEST_QUESTIONS
from rlbudget.policy.operating import by_question
from rlbudget.policy.outcomes import RELATIVE_PRICES, Outcome, full_stops, outcome, utility
from rlbudget.traces.table import TraceTable

NEVER = 40.0
DOUBTS = (0.0, 0.5, 1.0, 2.0, 4.0, NEVER)
"""that are tried, in units of the logit; the last is more than any policy is sure"""
ERRORS = 1.0
"""standard errors by which a doubt must earn more than none"""
_STEEP = 30.0
"""of a step, in units of the price's input"""
_SATURATED = 20.0

Doubts = tuple[float, ...]
"""at each of ``RELATIVE_PRICES``"""


def gains(
    table: TraceTable, prices: Sequence[float], play: Callable[[float, float], Outcome]
) -> Floats:
    """(prices, doubts, questions) utility over that of no doubt.

    ``play`` gives the outcome at a token price with a doubt.
    """
    full = outcome(table, full_stops(table))
    found = []
    for price in prices:
        each = [utility(play(price, doubt), price) for doubt in DOUBTS[:-1]]
        each.append(utility(full, price))
        found.append([by_question(table, one - each[0]) for one in each])
    return np.array(found)


def choose_doubts(gained: Floats, weights: Floats, errors: float = ERRORS) -> Doubts:
    """The doubts of highest total, each price weighted; ``gained`` are ``gains``."""
    questions = gained.shape[2]
    if questions < FEWEST_QUESTIONS:
        return (0.0,) * len(gained)
    error = gained.std(axis=2, ddof=1) / math.sqrt(questions)
    worth = weights[:, None] * (gained.mean(axis=2) - errors * error)
    # Best total from each price on, for a doubt of at most so much there: from the highest price.
    best, kept = np.zeros(len(DOUBTS)), list[list[int]]()
    for at in worth[::-1]:
        total = at + best
        # With doubt d at this price, at every higher price it is at most d.
        arg = [int(np.argmax(total[: d + 1])) for d in range(len(DOUBTS))]
        kept.append(arg)
        best = total[arg]
    chosen, most = list[float](), len(DOUBTS) - 1
    for arg in kept[::-1]:
        most = arg[most]
        chosen.append(DOUBTS[most])
    return tuple(chosen)


def doubtful(actor: Actor, doubts: Doubts, price_inputs: Sequence[float]) -> Actor:
    """The same network less ``doubts`` in its logit of STOP, (prices,), at these inputs of the
    price; halfway between two of them it steps from one to the next."""
    if not any(doubts):
        return actor
    falls = [
        (one - two, (low + high) / 2)
        for one, two, low, high in zip(
            doubts, doubts[1:], price_inputs, price_inputs[1:], strict=False
        )
        if one > two
    ]
    out = {name: value.clone() for name, value in actor.items()}
    k = len(falls)
    for layer in layers_of(actor):
        name = f"{HIDDEN}{layer}"
        weight, bias = out[f"{name}.weight"], out[f"{name}.bias"]
        if layer == 0:
            steps = torch.zeros(k, weight.shape[1])
            steps[:, -1] = -_STEEP
            out[f"{name}.weight"] = torch.cat([weight, steps])
            own = torch.tensor([_STEEP * place for _, place in falls])
        else:
            steps = torch.eye(k) * _SATURATED
            out[f"{name}.weight"] = torch.block_diag(weight, steps)  # type: ignore[no-untyped-call]
            own = torch.zeros(k)
        out[f"{name}.bias"] = torch.cat([bias, own])
    last = torch.zeros(2, k)
    last[1] = torch.tensor([-height / 2 for height, _ in falls])
    out["action_net.weight"] = torch.cat([out["action_net.weight"], last], dim=1)
    out["action_net.bias"][1] -= doubts[-1] + sum(height / 2 for height, _ in falls)
    return out


def layers_of(actor: Actor) -> list[int]:
    """The numbers of an actor's hidden layers under SB3's names, in order."""
    names = (name for name in actor if name.startswith(HIDDEN) and name.endswith(".weight"))
    return sorted(int(name.removeprefix(HIDDEN).split(".")[0]) for name in names)


def relative_weights(limits: Sequence[tuple[float, float]], least: float) -> Floats:
    """1 / (oracle - constant budget) at each of ``RELATIVE_PRICES``, gaps held at ``least``."""
    assert len(limits) == len(RELATIVE_PRICES)
    weights: Floats = np.array([1 / max(oracle - fixed, least) for fixed, oracle in limits])
    return weights
