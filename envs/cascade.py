"""``rlbudget/Cascade-v0``: a small model thinks; stop it, let it think, or ask a large one."""

from __future__ import annotations

from collections.abc import Sequence

from rlbudget.envs.cascade_core import cascade_columns
from rlbudget.envs.replay import ReplayEnv
from rlbudget.envs.replay_core import ReplayColumns
from rlbudget.envs.replay_vector import ReplayVectorEnv
from rlbudget.policy.handover import Handover
from rlbudget.traces.pairs import Pair


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


class CascadeVectorEnv(ReplayVectorEnv):
    """``num_envs`` of ``CascadeEnv`` in lockstep, as ``ReplayVectorEnv`` steps them."""

    def __init__(
        self,
        num_envs: int,
        pair: Pair | ReplayColumns,
        *,
        token_price: tuple[float, float],
        handover: Handover | None = None,
        features: Sequence[str] | None = None,
    ) -> None:
        columns = cascade_columns(pair, handover=handover, features=features)
        super().__init__(num_envs, columns, token_price=token_price)
