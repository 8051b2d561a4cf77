"""A cascade: a small model thinks, and a policy says when to stop it or to ask a large one.

At each checkpoint of the small model's thinking there are three things to do: CONTINUE, STOP
(write the small model's answer) and ESCALATE (throw the thinking away and let the large model
decode the question under its own policy). At the natural end, before the answer is written, the
answer is accepted (STOP) or the question handed over (ESCALATE).

The token price is reward per token of the *large* model; a token of the small one costs ``ratio``
of it. A cascade is one file, served with numpy alone. Nothing is unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Bools, Float32s, Floats, Ints
from rlbudget.errors import UserError
from rlbudget.policy.folder import network_config
from rlbudget.policy.network import FrozenPolicy
from rlbudget.policy.observation import OBSERVATION_VERSION, feature_names
from rlbudget.policy.parsing import conform
from rlbudget.policy.prices import check_price
from rlbudget.policy.row_observer import RowObserver
from rlbudget.policy.schema import CascadeConfig
from rlbudget.policy.sealed import read_sealed, seal_tensors, unseal_tensors, write_sealed
from rlbudget.signals.questions import CONTEXT_SIGNALS, context_signals
from rlbudget.traces.pairs import NATURAL_END_SIGNAL
from rlbudget.traces.table import TraceTable

CONTINUE, STOP, ESCALATE = 0, 1, 2
FORMAT, VERSION = "rlbudget-cascade", 1


class CascadeDecision(NamedTuple):
    """What to do at a checkpoint of the small model."""

    action: int
    """``CONTINUE``, ``STOP`` or ``ESCALATE``; at the natural end never ``CONTINUE``"""
    chances: tuple[float, float, float]
    """of the three actions; at the natural end going on is the same as to stop"""

    @property
    def stop(self) -> bool:
        """Write the small model's answer."""
        return self.action == STOP

    @property
    def escalate(self) -> bool:
        """Hand the question to the large model."""
        return self.action == ESCALATE


class Cascade:
    """A frozen network with three actions for every token price in its range."""

    __slots__ = ("_frozen", "features", "price_range", "ratio")

    def __init__(self, frozen_policy: FrozenPolicy, ratio: float) -> None:
        self._frozen = frozen_policy
        self.features: tuple[str, ...] = frozen_policy.features
        """the names of the observation's numbers, in order; the last is ``natural_end``"""
        self.price_range: tuple[float, float] = frozen_policy.price_range
        """lowest and highest token price it was trained on, per token of the large model"""
        self.ratio = ratio
        """what a token of the small model costs, in tokens of the large one"""

    def __call__(self, observation: npt.ArrayLike, *, token_price: float) -> CascadeDecision:
        """Decide at one checkpoint or natural end of the small model.

        ``observation`` has shape (n_features,), float32, raw; ``token_price`` is reward lost per
        token of the large model. Raises ``ValueError`` for what the cascade was not trained on.
        """
        rows = np.asarray(observation)[None]
        chances = self.chances(rows, token_price)
        action = int(choose(chances, rows[:, -1] > 0)[0])
        go_on, stop, escalate = chances[0].tolist()
        return CascadeDecision(action, (go_on, stop, escalate))

    def chances(self, observations: npt.ArrayLike, token_price: npt.ArrayLike) -> Floats:
        """(n, n_features) -> the chances of CONTINUE, STOP and ESCALATE, (n, 3) float64.

        The numbers are those of single calls, bit for bit. Raises ``ValueError`` as those do.
        """
        odds = self._frozen.odds(observations, token_price).tolist()
        return np.array([_of_three(*pair) for pair in odds]).reshape(-1, 3)

    def actions(self, observations: Float32s, token_price: npt.ArrayLike) -> Ints:
        """(n, n_features) -> the actions of single calls, (n,)."""
        return choose(self.chances(observations, token_price), observations[:, -1] > 0)

    @property
    def config(self) -> dict[str, Any]:
        """What the file says beside the weights."""
        return dict(self._frozen.config)

    @property
    def tensors(self) -> Mapping[str, Float32s]:
        """The normaliser and the weights."""
        return self._frozen.tensors

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cascade):
            return NotImplemented
        same = self._frozen.weights == other._frozen.weights
        return same and self.config == other.config

    def __hash__(self) -> int:
        return hash(self._frozen.weights)


class CascadeRequest:
    """One question on its way through a cascade; not to be shared between threads.

    ``question`` is needed by a cascade with features of it. Raises ``UserError`` where it is
    missing and for a price out of the cascade's range.
    """

    def __init__(
        self, cascade: Cascade, *, token_price: float, question: str | None = None
    ) -> None:
        check_price(token_price, cascade.price_range, server="this cascade")
        known = {feature.partition(".")[0] for feature in cascade.features}
        self._context: dict[str, float] = {}
        if known & set(CONTEXT_SIGNALS):
            if question is None:
                raise UserError("the cascade looks at the question: give it to the request")
            self._context = context_signals(question)
        self._cascade = cascade
        self._price = token_price
        self._observer = RowObserver(cascade.features)
        self._last = 0
        self._over = False

    def checkpoint(self, signals: Mapping[str, float], thinking_tokens: int) -> CascadeDecision:
        """Decide at a checkpoint. A signal that is left out keeps its last value.

        Raises ``ValueError`` for a checkpoint that does not come after the last one.
        """
        if self._over or thinking_tokens <= self._last:
            raise ValueError(
                f"a checkpoint after {thinking_tokens} thinking tokens, and the last was after"
                f" {self._last}: this is for one question: make a new request for each"
            )
        self._last = thinking_tokens
        return self._decide({**self._context, **signals, NATURAL_END_SIGNAL: 0.0}, thinking_tokens)

    def natural_end(self, thinking_tokens: int) -> CascadeDecision:
        """The small model ended its thinking by itself: accept its answer or hand over."""
        self._over = True
        return self._decide({NATURAL_END_SIGNAL: 1.0}, thinking_tokens)

    def _decide(self, signals: Mapping[str, float], thinking_tokens: int) -> CascadeDecision:
        seen = self._observer.update(thinking_tokens, signals)
        return self._cascade(seen, token_price=self._price)


def _of_three(stop: float, escalate: float) -> tuple[float, float, float]:
    """Logits of STOP and ESCALATE less that of CONTINUE -> the chances of the three actions."""
    rest = max(stop, 0.0) + math.log1p(math.exp(-abs(stop)))
    hands_over = 0.5 + 0.5 * math.tanh(0.5 * (escalate - rest))
    stays, stops = 1 - hands_over, 0.5 + 0.5 * math.tanh(0.5 * stop)
    return stays * (1 - stops), stays * stops, hands_over


def choose(chances: Floats, at_end: Bools) -> Ints:
    """(n, 3) chances -> actions, (n,): the likeliest.

    ``at_end`` (n,) marks natural ends, where going on and stopping are one.
    """
    ended = np.where(chances[:, ESCALATE] > 0.5, ESCALATE, STOP)
    return np.where(at_end, ended, chances.argmax(axis=1)).astype(np.int64)


def cascade_features(small: TraceTable) -> tuple[str, ...]:
    """What a cascade sees of the small model: the free preset, the question's own numbers where
    the table holds them, and whether this is the natural end."""  # fmt: skip
    context = set(CONTEXT_SIGNALS) <= set(small.signals)
    recorded = set(small.signals) - {NATURAL_END_SIGNAL}
    return (*feature_names(recorded, "free", context=context), NATURAL_END_SIGNAL)


def make_cascade(
    tensors: Mapping[str, Float32s],
    *,
    features: Sequence[str],
    price_range: tuple[float, float],
    ratio: float,
    clip: float,
    trained: Mapping[str, Any] | None = None,
) -> Cascade:
    """A cascade from a trained actor with three logits, its tensors named as those of a policy.

    ``trained`` is what it came from, JSON-ready. Raises ``UserError`` if the parts do not fit.
    """
    config = {
        **network_config(tensors, features, price_range, clip),
        "ratio": float(ratio),
        "trained": dict(trained or {}),
    }
    try:
        return _cascade_of(config, tensors)
    except (ValueError, KeyError) as error:
        raise UserError(f"these parts are no cascade: {error}") from None


def save_cascade(path: Path | str, cascade: Cascade) -> None:
    """Write a cascade to a file (.safetensors), atomically."""
    content = {"format": FORMAT, "version": VERSION, **cascade.config}
    write_sealed(path, seal_tensors(content, cascade.tensors))


def load_cascade(path: Path | str) -> Cascade:
    """Read what ``save_cascade`` wrote; ``UserError`` for anything else."""
    return read_sealed(path, "a cascade", _cascade_in)


def _cascade_in(data: bytes) -> Cascade:
    content, tensors = unseal_tensors(data, FORMAT, VERSION, "its header")
    conform(content, CascadeConfig, "its header")
    said = {name: value for name, value in content.items() if name not in ("format", "version")}
    return _cascade_of(said, tensors)


def _cascade_of(config: Mapping[str, Any], tensors: Mapping[str, Float32s]) -> Cascade:
    if config["observation_version"] != OBSERVATION_VERSION:
        raise ValueError(f"it was trained on observations of version"
                         f" {config['observation_version']}; train again")  # fmt: skip
    if config["layers"][-1] != 3 or config["features"][-1:] != [NATURAL_END_SIGNAL]:
        raise ValueError(f"it needs three logits and {NATURAL_END_SIGNAL} as the last feature")
    ratio = float(config["ratio"])
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio {ratio:g} is not in (0, 1]")
    return Cascade(FrozenPolicy(config, tensors), ratio)
