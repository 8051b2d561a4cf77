"""A cascade on recorded traces, as it would act live; all tokens counted as the large model's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlbudget.arrays import Bools, Ints
from rlbudget.policy.cascade import CONTINUE, ESCALATE, Cascade
from rlbudget.policy.observation import observe
from rlbudget.policy.outcomes import Outcome, first_stop
from rlbudget.traces.pairs import Pair, with_natural_end
from rlbudget.traces.table import TraceTable


@dataclass(frozen=True, slots=True)
class CascadeReplay:
    """What a cascade did on ``n`` questions."""

    ends: Ints
    """(n,) where the small model was left: its checkpoints counted from 0, then the natural end"""
    escalated: Bools
    """(n,) whether the large model was asked"""
    outcome: Outcome
    """what it gave and cost, in tokens of the large model"""


def replay_cascade(
    cascade: Cascade, pair: Pair, token_price: float, large: Outcome
) -> CascadeReplay:
    """Replay a cascade; ``large`` is what the large model gives on these questions at this price
    (``rlbudget.policy.handover.served``)."""  # fmt: skip
    nodes = with_natural_end(pair.small)
    actions = cascade.actions(observe(nodes, cascade.features), token_price)
    return act(nodes, pair.ratio, actions, large)


def act(nodes: TraceTable, ratio: float, actions: Ints, large: Outcome) -> CascadeReplay:
    """Follow ``actions`` (m + n,), one at each checkpoint and natural end.

    ``nodes`` are the small model's traces with their natural ends (``with_natural_end``). Going
    on past the natural end is to accept the answer.
    """
    ends = first_stop(nodes, actions != CONTINUE)
    ends = np.where(ends < 0, nodes.lengths - 1, ends)
    rows = nodes.offsets[:-1] + ends
    escalated: Bools = actions[rows] == ESCALATE
    outcome = Outcome(
        np.where(escalated, large.exact_match, nodes.exit_exact_match[rows]),
        ratio * nodes.thinking_tokens[rows] + escalated * large.thinking,
        escalated * large.probe,
        np.where(escalated, large.answer, ratio * nodes.exit_answer_tokens[rows]),
    )
    return CascadeReplay(ends, escalated, outcome)
