"""``rlbudget/Replay-v0`` and ``Sampling-v0``: one record after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsInt, cast

import gymnasium
import numpy as np
from gymnasium import spaces

from rlbudget.arrays import Float32s
from rlbudget.envs.replay_core import (
    ReplayColumns,
    begin_from_options,
    core_of,
    replay_columns,
)
from rlbudget.errors import UserError
from rlbudget.policy.observation import Preset
from rlbudget.traces.table import TraceTable

_ONE = np.zeros(1, dtype=np.int64)


class ReplayEnv(gymnasium.Env[Float32s, SupportsInt]):
    """Decide at every checkpoint of a recorded decode whether to stop thinking.

    Stopping never changes the tokens before the stop, and the record holds the answer a stop at
    each checkpoint would have given, so the replay is exact: no outcome is estimated.

    ## Action space
    ``Discrete(2)``

    | action | meaning |
    |---|---|
    | 0 | CONTINUE: think on to the next checkpoint, or to the natural end after the last |
    | 1 | STOP: force the end of thinking here and write the answer |

    ## Observation space
    ``Box(float32, (n_features + 1,))``. The features are those of ``policy.observation`` for
    the recorded signals and the preset (``env.unwrapped.features`` names them), raw. With the
    signals of ``rlbudget record`` and the ``free`` preset:

    | number | meaning | min | max | unit |
    |---|---|---|---|---|
    | 0 | log(1 + thinking tokens so far) | 0 | inf | |
    | 1 | thinking tokens so far | 1 | inf | tokens |
    | 2 … | each signal of the window since the last checkpoint, and its transforms | | | |
    | | ``conclusions``, ``hedges``: concluding and doubting words, total, age | 0 | inf | words |
    | | ``entropy_*``: of the token distribution | 0 | inf | nats |
    | | ``logprob_*``: of the sampled tokens | -inf | 0 | nats |
    | | ``margin_*``: log-probability of the first less the second choice | 0 | inf | nats |
    | | ``p_end_*``: probability of the end-of-thinking token | 0 | 1 | |
    | last | log10(token price) of this episode | -inf | inf | reward per token |

    With the ``probe`` preset four features of the trial answers come before the last: their
    confidence [0, 1], streak, number of different ones, share [0, 1].
    Nothing tells how long the trace will be.

    ## Rewards
    0 until the episode ends, then the utility, float64 and exact:
    ``exact_match - token_price * (thinking + probe + answer tokens)``. Every observed trial
    answer is charged in the ``probe`` preset, none in the ``free`` preset.

    ## Starting state
    The first checkpoint of a trace drawn uniformly from those that have one, under a token price
    drawn log-uniformly from ``token_price``. ``reset(options={"trace": i, "token_price": p})``
    fixes either.

    ## Episode end
    Always ``terminated``, never ``truncated``: on STOP; on CONTINUE at the last checkpoint,
    which pays the natural end; with ``max_tokens`` on any action at the last checkpoint within
    the budget, which pays the exit there if the decode would have gone beyond the budget.
    The last ``info`` holds ``exact_match``, ``thinking_tokens``, ``probe_tokens``,
    ``answer_tokens``, ``token_price``, ``trace_id`` and ``stopped``.

    ## Arguments
    ``traces``: a ``TraceTable``, prepared ``ReplayColumns``, or the folder of a Parquet store;
    ``token_price``: (lowest, highest), reward per token; ``preset``: ``free``, ``probe``
    or ``turns``; ``features``: names instead of all of the preset; ``max_tokens``: budget of
    thinking tokens.

    ## Version history
    * v0: first version
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own form

    def __init__(
        self,
        traces: TraceTable | ReplayColumns | str | Path,
        *,
        token_price: tuple[float, float],
        preset: Preset = "free",
        features: Sequence[str] | None = None,
        max_tokens: int | None = None,
    ) -> None:
        columns = replay_columns(traces, preset=preset, features=features, max_tokens=max_tokens)
        self.features = columns.features
        self.observation_space = observation_space(columns)
        self._core = core_of(columns, 1, token_price)
        self.action_space = spaces.Discrete(self._core.n_actions)
        self._over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float32s, dict[str, Any]]:
        """Start an episode; see the class for ``options``."""
        super().reset(seed=seed)
        begin_from_options(self._core, _ONE, self.np_random, options)
        self._over = False
        return self._core.observations()[0], {}

    def step(self, action: SupportsInt) -> tuple[Float32s, float, bool, bool, dict[str, Any]]:
        """Take one decision; the observation after the end is that of the last checkpoint."""
        if self._over:
            raise ValueError("the episode is over: call reset")
        actions = np.array([int(action)])
        rewards, done = self._core.step(actions)
        self._over = bool(done[0])
        info: dict[str, Any] = {}
        if self._over:
            ledger = self._core.endings(_ONE, actions)
            info = {name: column[0].item() for name, column in ledger.items()}
        return self._core.observations()[0], float(rewards[0]), self._over, False, info


class SamplingEnv(ReplayEnv):
    """Replay of traces made of samples (``rlbudget.traces.samples``).

    ## Action space
    ``Discrete(2)``: 0 draws one more sample, 1 stops and answers with the majority.

    ## Observation space
    That of ``rlbudget/Replay-v0`` with the vote signals: samples so far, votes of the five first
    answers, their share, margin and entropy, different answers, agreement of the last samples,
    the chance that the first answer is the majority; counts as log(1 + n), for the first few
    samples decide; then log10 of the episode's token price.

    ## Reward, episode end, arguments
    Those of ``rlbudget/Replay-v0``: at the end the exact match of the majority minus the token
    price times the tokens of all samples drawn. Raises ``UserError`` for traces that are not
    made of samples.
    """

    def __init__(
        self,
        traces: TraceTable | ReplayColumns | str | Path,
        *,
        token_price: tuple[float, float],
        features: Sequence[str] | None = None,
    ) -> None:
        columns = replay_columns(traces, features=features)
        if "vote_share" not in columns.table.signals:
            raise UserError(
                "these traces are not made of samples: record them with rlbudget record --samples"
            )
        super().__init__(columns, token_price=token_price)


def observation_space(columns: ReplayColumns) -> spaces.Space[Float32s]:
    """The box of one environment: finite bounds, as ``check_env`` asks for."""
    bound = float(np.finfo(np.float32).max)
    if columns.normaliser is not None:
        bound = columns.normaliser.clip
    box = spaces.Box(-bound, bound, (columns.inputs.shape[1],), np.float32)
    return cast("spaces.Space[Float32s]", box)
