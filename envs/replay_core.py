"""The replay itself: many recorded decodes stepped in one numpy operation.

Every observation is made once, for the whole table (``replay_columns``). An episode is then a
trace, a row of the table and a token price; a step adds one to the row, and the end pays what
the record says. All environments of this package step this one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Bools, Float32s, Floats, Ints
from rlbudget.envs.replay_normaliser import Normaliser
from rlbudget.errors import UserError
from rlbudget.policy.handover import Handover
from rlbudget.policy.observation import Preset, features_of, observe, preset_of
from rlbudget.policy.outcomes import charged_by, charges
from rlbudget.policy.prices import check_price_range
from rlbudget.traces.store import load_table
from rlbudget.traces.table import TraceTable

_ALL = slice(None)
_KEPT = ("trace", "row", "price", "_price_input")
"""what an open episode is"""


@dataclass(frozen=True, slots=True)
class ReplayColumns:
    """A table laid out for stepping: ``m`` checkpoints of ``n`` traces, ``F`` features."""

    table: TraceTable
    features: tuple[str, ...]
    normaliser: Normaliser | None
    inputs: Float32s
    """(m, F + 1) observations, the last column left for the token price"""
    episodes: Ints
    """(k,) the traces that have a checkpoint"""
    last_row: Ints
    """(n,) the last checkpoint at which there is a choice"""
    capped: Bools
    """(n,) whether the budget, not the natural end, follows on the last row"""
    probe_tokens: Ints
    """(m,) probe tokens charged in the trace up to this checkpoint, it included"""
    exit_tokens: Ints | Floats
    """(m,) all tokens of a stop here"""
    full_tokens: Ints | Floats
    """(n,) all tokens of the full decode under observation: thinking, probes charged, answer"""
    ratio: float = 1.0
    """what a token of these traces costs, in tokens that the price is for; ``exit_tokens`` and
    ``full_tokens`` are counted in those"""
    handover: Handover | None = None
    """what another model gives on each question, where an episode may ask it"""
    core: type[ReplayCore] | None = None
    """what steps these episodes; by default ``ReplayCore``"""

    @property
    def scaling(self) -> Normaliser:
        """The normaliser of ``inputs``; ``ValueError`` where they are raw features."""
        if self.normaliser is None:
            raise ValueError("training needs the network's inputs: give a normaliser")
        return self.normaliser


def replay_columns(
    traces: TraceTable | ReplayColumns | str | Path,
    *,
    preset: Preset = "free",
    features: Sequence[str] | None = None,
    max_tokens: int | None = None,
    normaliser: Normaliser | None = None,
) -> ReplayColumns:
    """Prepare a table, or the Parquet folder of one, for replay (columns pass unchanged).

    ``features`` defaults to all features of ``preset``. With ``max_tokens`` a stop is forced at
    the last checkpoint with at most that many thinking tokens. With a ``normaliser`` the
    observations are the network's inputs instead of raw features. Raises ``UserError`` when no
    trace has a checkpoint, when ``max_tokens`` comes before a first checkpoint, or when the
    features need what the traces do not hold.
    """
    if isinstance(traces, ReplayColumns):
        return traces
    table = traces if isinstance(traces, TraceTable) else load_table(Path(traces), context=True)
    names = features_of(table, preset) if features is None else tuple(features)
    lengths = table.lengths
    episodes = np.flatnonzero(lengths)
    if not len(episodes):
        raise UserError("no trace has a checkpoint to replay: record with a smaller stride")
    last_row = table.offsets[1:] - 1
    capped = np.zeros(len(table), dtype=bool)
    if max_tokens is not None:
        first = int(table.thinking_tokens[table.offsets[episodes]].max())
        if max_tokens < first:
            raise UserError(
                f"max_tokens {max_tokens} comes before a first checkpoint: give at least {first}"
            )
        within = table.thinking_tokens <= max_tokens
        last_row = table.offsets[:-1] - 1
        last_row[episodes] += np.add.reduceat(within, table.offsets[episodes], dtype=np.int64)
        capped = table.final_thinking_tokens > max_tokens
    charged = _charged(table, names)
    whole = np.zeros(len(table), dtype=np.int64)
    whole[episodes] = charged[table.offsets[1:][episodes] - 1]
    observations = observe(table, names)
    if normaliser is not None:
        observations = normaliser.features(observations)
    return ReplayColumns(
        table=table,
        features=names,
        normaliser=normaliser,
        inputs=np.concatenate(
            [observations, np.zeros((len(observations), 1), dtype=np.float32)], axis=1
        ),
        episodes=episodes,
        last_row=last_row,
        capped=capped,
        probe_tokens=charged,
        exit_tokens=table.thinking_tokens + charged + table.exit_answer_tokens,
        full_tokens=table.full_tokens + whole,
    )


def _charged(table: TraceTable, features: Sequence[str]) -> Ints:
    """(m,) tokens of trial answers in the trace so far."""
    each = charges(table, charged_by(preset_of(features), table, features)).astype(np.int64)
    total = np.cumsum(each)
    before = np.concatenate([[0], total])[table.offsets[:-1]]
    charged: Ints = total - np.repeat(before, table.lengths)
    return charged


class ReplayCore:
    """``n`` episodes in lockstep. The caller owns the random generator and decides on resets.

    The price is drawn log-uniformly from ``token_price`` = (lowest, highest), reward per token;
    equal bounds fix it.
    """

    action_names: ClassVar[tuple[str, ...]] = ("continue", "stop")

    def __init__(self, columns: ReplayColumns, n: int, token_price: tuple[float, float]) -> None:
        self.columns = columns
        self.n = n
        self.token_price = check_price_range(token_price, may_be_one=True)
        self.trace = np.zeros(n, dtype=np.int64)
        self.row = np.zeros(n, dtype=np.int64)
        self.price = np.full(n, self.token_price[0])
        self._price_input = np.zeros(n, dtype=np.float32)

    @property
    def n_actions(self) -> int:
        """Actions there are, numbered from 0."""
        return len(self.action_names)

    def begin(
        self,
        envs: Ints,
        rng: np.random.Generator,
        trace: npt.ArrayLike | None = None,
        token_price: npt.ArrayLike | None = None,
    ) -> None:
        """Start new episodes in ``envs``, drawing what is not given."""
        columns, k = self.columns, len(envs)
        low, high = np.log(self.token_price)
        drawn = columns.episodes[rng.integers(0, len(columns.episodes), k)]
        price = np.clip(np.exp(rng.uniform(low, high, k)), *self.token_price)
        if trace is not None:
            drawn = np.broadcast_to(np.asarray(trace, dtype=np.int64), k)
            if ((drawn < 0) | (drawn >= len(columns.table))).any():
                raise ValueError(f"trace must be in 0 to {len(columns.table) - 1}")
            if (columns.table.lengths[drawn] == 0).any():
                raise ValueError("this trace has no checkpoint, so it is not an episode")
        if token_price is not None:
            price = np.broadcast_to(np.asarray(token_price, dtype=np.float64), k)
            if not ((price > 0) & (price < np.inf)).all():
                raise ValueError("token_price must be above 0 and finite")
        self.trace[envs] = drawn
        self.row[envs] = columns.table.offsets[drawn]
        self.price[envs] = price
        normaliser = columns.normaliser
        self._price_input[envs] = np.log10(price) if normaliser is None else normaliser.price(price)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of what ``resume`` needs to continue the open episodes."""
        return {name: getattr(self, name).copy() for name in _KEPT}

    def resume(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Continue the episodes of ``state``."""
        for name in _KEPT:
            getattr(self, name)[:] = state[name]

    def observations(self, envs: Ints | slice = _ALL) -> Float32s:
        """Those of all or some episodes: (k, F + 1) float32, a new array."""
        out = self.columns.inputs.take(self.row[envs], axis=0)
        out[:, -1] = self._price_input[envs]
        return out

    def step(self, actions: npt.ArrayLike) -> tuple[Floats, Bools]:
        """Apply one action to every episode: rewards (n,) float64, ended (n,) bool.

        Episodes that ended stay where they are until ``begin``.
        """
        stopped = self._checked(actions) == 1
        done = stopped | (self.row == self.columns.last_row[self.trace])
        return self._pay(stopped, done), done

    def _checked(self, actions: npt.ArrayLike) -> npt.NDArray[Any]:
        chosen = np.asarray(actions)
        if chosen.shape != (self.n,):
            raise ValueError(f"actions have shape {chosen.shape}, there are {self.n} episodes")
        valid = chosen == 0
        for action in range(1, self.n_actions):
            valid |= chosen == action
        if not valid.all():
            *others, last = (f"{number} ({name})" for number, name in enumerate(self.action_names))
            raise ValueError(f"an action is {', '.join(others)} or {last}")
        return chosen

    def _pay(self, stopped: Bools, done: Bools) -> Floats:
        """(n,) rewards; episodes that are not ``done`` go to their next checkpoint."""
        rewards = np.zeros(self.n)
        ends = np.flatnonzero(done)
        rewards[ends] = self._utility(ends, stopped[ends])
        self.row += ~done
        return rewards

    def steps(self, envs: Ints) -> Ints:
        """(k,) the steps of these episodes if they end now."""
        return self.row[envs] - self.columns.table.offsets[self.trace[envs]] + 1

    def _utility(self, envs: Ints, stopped: Bools) -> Floats:
        columns, trace, row = self.columns, self.trace[envs], self.row[envs]
        exits = stopped | columns.capped[trace]
        exact_match = np.where(
            exits, columns.table.exit_exact_match[row], columns.table.final_exact_match[trace]
        )
        tokens = np.where(exits, columns.exit_tokens[row], columns.full_tokens[trace])
        utility: Floats = exact_match - self.price[envs] * tokens
        return utility

    def endings(self, envs: Ints, actions: npt.ArrayLike) -> dict[str, npt.NDArray[Any]]:
        """The ledger of episodes that ended with these actions, before ``begin``: name -> (k,).

        ``stopped`` is true where a stop, chosen or forced by the budget, was the end.
        """
        table, trace, row = self.columns.table, self.trace[envs], self.row[envs]
        exits = (np.asarray(actions)[envs] == 1) | self.columns.capped[trace]
        return {
            "exact_match": np.where(
                exits, table.exit_exact_match[row], table.final_exact_match[trace]
            ).astype(np.int64),
            "thinking_tokens": np.where(
                exits, table.thinking_tokens[row], table.final_thinking_tokens[trace]
            ),
            "probe_tokens": self.columns.probe_tokens[row],
            "answer_tokens": np.where(
                exits, table.exit_answer_tokens[row], table.final_answer_tokens[trace]
            ),
            "token_price": self.price[envs],
            "trace_id": table.trace_ids[trace],
            "stopped": exits,
        }


def core_of(columns: ReplayColumns, n: int, token_price: tuple[float, float]) -> ReplayCore:
    """``n`` episodes of the kind that these columns ask for."""
    return (columns.core or ReplayCore)(columns, n, token_price)


def begin_from_options(
    core: ReplayCore,
    envs: Ints,
    rng: np.random.Generator,
    options: Mapping[str, Any] | None,
) -> None:
    """Start episodes as ``reset(options={"trace": i, "token_price": p})`` asks for them."""
    options = dict(options or {})
    unknown = sorted(set(options) - {"trace", "token_price"})
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r}; there are trace and token_price")
    core.begin(envs, rng, options.get("trace"), options.get("token_price"))
