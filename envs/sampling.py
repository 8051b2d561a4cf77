"""``rlbudget/Sampling-v0``: draw one more sample, or answer with the majority of those drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlbudget.envs.replay import ReplayEnv
from rlbudget.envs.replay_core import ReplayColumns, replay_columns
from rlbudget.errors import UserError
from rlbudget.traces.table import TraceTable


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
