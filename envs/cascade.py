"""``rlbudget/Cascade-v0``: a small model thinks; stop it, let it think, or ask a large one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Bools, Floats, Ints
from rlbudget.envs.replay import ReplayEnv
from rlbudget.envs.replay_core import ReplayColumns, ReplayCore, replay_columns
from rlbudget.envs.replay_normaliser import Normaliser
from rlbudget.envs.replay_vector import ReplayVectorEnv
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
        core=CascadeCore,
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
    """``n`` episodes in lockstep with three actions; see ``CascadeEnv``."""

    action_names: ClassVar[tuple[str, ...]] = ("continue", "stop", "escalate")

    def step(self, actions: npt.ArrayLike) -> tuple[Floats, Bools]:
        """Apply one action to every episode: rewards (n,) float64, ended (n,) bool."""
        chosen = self._checked(actions)
        done = (chosen != CONTINUE) | (self.row == self.columns.last_row[self.trace])
        escalated = np.flatnonzero(chosen == ESCALATE)
        rows, traces = self.row[escalated], self.trace[escalated]
        handed = handed_over(self.columns, rows, traces, self.price[escalated])
        rewards = self._pay(chosen == STOP, done)
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


class CascadeEnv(ReplayEnv):
    """Decide at every checkpoint of a small model's recorded decode, and at its natural end.

    ``rlbudget/Replay-v0`` of the small model with a third action. What is not said here is said
    there.

    ## Action space
    ``Discrete(3)``

    | action | meaning |
    |---|---|
    | 0 | CONTINUE: the small model thinks on; at its natural end its answer is accepted |
    | 1 | STOP: the small model writes its answer here |
    | 2 | ESCALATE: its thinking is thrown away and the large model decodes the question |

    ## Observation space
    ``Box(float32, (n_features + 1,))``: the features of the ``free`` preset of the small model,
    those of the question where its table holds them, then

    | number | meaning | min | max | unit |
    |---|---|---|---|---|
    | -2 | is this the natural end | 0 | 1 | |
    | -1 | log10(token price) of this episode | -inf | inf | reward per token of the large model |

    At the natural end every signal keeps its last value, 0 where the decode had no checkpoint.

    ## Rewards
    0 until the episode ends, then the utility, float64, a token of the small model counting
    ``ratio`` tokens of the large one:

    * STOP and natural end: ``exact_match - token_price * ratio * (thinking + answer tokens)``;
    * ESCALATE: ``exact_match - token_price * (ratio * thinking tokens + large tokens)``, exact
      match and tokens those of the large model served at the price of ``handover`` that is
      nearest. At the natural end the small model's answer is not written and not paid then.

    ## Starting state
    The first checkpoint of a trace drawn uniformly from all of them, its natural end where it has
    no checkpoint, under a token price drawn log-uniformly from ``token_price``.

    ## Episode end
    Always ``terminated``: on STOP, on ESCALATE, and on any action at the natural end. The last
    ``info`` holds ``exact_match``, ``thinking_tokens`` and ``answer_tokens`` of the small model,
    ``large_tokens``, ``token_price``, ``trace_id``, ``stopped`` (before the natural end) and
    ``escalated``.

    ## Arguments
    ``pair``: a ``Pair`` (``rlbudget.traces.pairs.load_pair``) or columns prepared with
    ``cascade_columns``; ``token_price``: (lowest, highest), reward per token of the large model;
    ``handover``: what the large model gives at which price (``rlbudget.policy.handover``), its
    full decodes if left out; ``features``: names instead of all, ``natural_end`` last.

    ## Version history
    * v0: first version
    """

    def __init__(
        self,
        pair: Pair | ReplayColumns,
        *,
        token_price: tuple[float, float],
        handover: Handover | None = None,
        features: Sequence[str] | None = None,
    ) -> None:
        columns = cascade_columns(pair, handover=handover, features=features)
        super().__init__(columns, token_price=token_price)


def cascade_vector(
    num_envs: int, pair: Pair | ReplayColumns, *, token_price: tuple[float, float], **prepared: Any
) -> ReplayVectorEnv:
    """``num_envs`` of ``CascadeEnv`` in lockstep; ``prepared`` goes to ``cascade_columns``."""
    return ReplayVectorEnv(num_envs, cascade_columns(pair, **prepared), token_price=token_price)
