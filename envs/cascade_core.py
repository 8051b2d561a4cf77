"""Episodes of a small model that may be handed over to a large one: the core with ESCALATE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from rlbudget.envs.replay_core import (
    Bools,
    Floats,
    Ints,
    ReplayColumns,
    ReplayCore,
    replay_columns,
)
from rlbudget.envs.replay_normaliser import Normaliser
from rlbudget.policy.cascade import CONTINUE, ESCALATE, STOP, cascade_features
from rlbudget.policy.handover import Handover
from rlbudget.policy.handover import handover as make_handover
from rlbudget.traces.pairs import Pair, with_natural_end

_ANY_PRICE = (1.0, 1.0)


def cascade_columns(
    pair: Pair | ReplayColumns,
    *,
    handover: Handover | None = None,
    features: Sequence[str] | None = None,
    normaliser: Normaliser | None = None,
) -> ReplayColumns:
    """Prepare a pair for replay: the small model's checkpoints and natural ends (columns pass
    unchanged).

    ``handover`` is what the large model gives, its full decodes if left out; ``features`` are by
    default ``cascade_features``. With a ``normaliser`` the observations are the network's inputs.
    """
    if isinstance(pair, ReplayColumns):
        return pair
    nodes = with_natural_end(pair.small)
    names = cascade_features(pair.small) if features is None else features
    columns = replay_columns(nodes, features=names, normaliser=normaliser)
    return replace(
        columns,
        exit_tokens=pair.ratio * columns.exit_tokens.astype(np.float64),
        full_tokens=pair.ratio * columns.full_tokens.astype(np.float64),
        ratio=pair.ratio,
        handover=handover or make_handover(None, pair.large, _ANY_PRICE),
    )


def handed_over(columns: ReplayColumns, rows: Ints, traces: Ints, price: Floats) -> Floats:
    """(k,) utility of asking the large model at these checkpoints, each of its trace at a price."""
    handover = columns.handover
    assert handover is not None
    place = handover.place(price)
    tokens = columns.ratio * columns.table.thinking_tokens[rows] + handover.tokens[place, traces]
    utility: Floats = handover.exact_match[place, traces] - price * tokens
    return utility


class CascadeCore(ReplayCore):
    """``n`` episodes in lockstep with three actions; see ``rlbudget.envs.cascade``."""

    action_names: ClassVar[tuple[str, ...]] = ("continue", "stop", "escalate")

    def step(self, actions: npt.ArrayLike) -> tuple[Floats, Bools]:
        """Apply one action to every episode: rewards (n,) float64, ended (n,) bool."""
        chosen = self._checked(actions)
        done = (chosen != CONTINUE) | (self.row == self.columns.last_row[self.trace])
        escalated = np.flatnonzero(chosen == ESCALATE)
        rows, traces = self.row[escalated], self.trace[escalated]
        handed = handed_over(self.columns, rows, traces, self.price[escalated])
        rewards = self._pay(chosen == STOP, done, ~done)
        rewards[escalated] = handed
        return rewards, done

    def endings(self, envs: Ints, actions: npt.ArrayLike) -> dict[str, npt.NDArray[Any]]:
        """The ledger of episodes that ended with these actions, before ``begin``: name -> (k,)."""
        columns, trace, row = self.columns, self.trace[envs], self.row[envs]
        handover, table = columns.handover, columns.table
        assert handover is not None
        escalated = np.asarray(actions)[envs] == ESCALATE
        place = handover.place(self.price[envs])
        large = handover.exact_match[place, trace]
        return {
            "exact_match": np.where(escalated, large, table.exit_exact_match[row]).astype(np.int64),
            "thinking_tokens": table.thinking_tokens[row],
            "answer_tokens": np.where(escalated, 0, table.exit_answer_tokens[row]),
            "large_tokens": np.where(escalated, handover.tokens[place, trace], 0.0),
            "token_price": self.price[envs],
            "trace_id": table.trace_ids[trace],
            "stopped": ~escalated & (row < table.offsets[trace + 1] - 1),
            "escalated": escalated,
        }
