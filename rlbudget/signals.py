"""Signals: numbers that are free while decoding, and how a checkpoint sums them up.

A backend computes four numbers for each thinking token from the logits it already has,
and two flags from the token's text. Between two checkpoints they are folded into a small
*window*; what the window holds at a checkpoint is what the trace records as ``signals``.
All of it works on ``n`` decodes in lockstep, so that the recorder (hundreds of rows) and
a live request (one row) run the same lines.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

TOKEN_SIGNALS = ("logprob", "entropy", "margin", "p_end")
"""Per token, from the raw logits (temperature 1): log-probability of the sampled token
(nats), entropy of the distribution (nats), log-probability of the first minus the second
choice (nats), probability of the first end-of-thinking token."""

SIGNALS = (
    "logprob_mean",
    "logprob_min",
    "entropy_mean",
    "entropy_max",
    "entropy_last",
    "margin_mean",
    "margin_min",
    "p_end_mean",
    "p_end_max",
    "p_end_last",
    "hedges",
    "conclusions",
)
"""Per checkpoint, over the tokens since the checkpoint before it."""

HEDGES = frozenset({"wait", "but", "hmm", "alternatively", "however", "maybe", "no", "hold"})
CONCLUSIONS = frozenset({"so", "therefore", "thus", "answer", "hence", "same", "ok", "yes"})


def marker(text: str) -> tuple[bool, bool]:
    """Whether a token's text is a hedge word, and whether it is a concluding word."""
    word = text.strip().strip(".,:;!?\u0120\u2581").lower()
    return word in HEDGES, word in CONCLUSIONS


def marker_masks(
    tokens: Iterable[str],
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """``marker`` for a whole vocabulary: two masks of shape (vocabulary,)."""
    pairs = np.array([marker(token) for token in tokens], dtype=bool).reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy()


class Window:
    """The running sums of ``n`` decodes since their last checkpoint."""

    __slots__ = ("_count", "_last", "_markers", "_max", "_min", "_sum")

    def __init__(self, n: int) -> None:
        self._count = np.zeros(n)
        self._sum = np.zeros((n, 4))
        self._min = np.full((n, 4), np.inf)
        self._max = np.full((n, 4), -np.inf)
        self._last = np.zeros((n, 4))
        self._markers = np.zeros((n, 2))

    def push(self, token_signals: Floats, hedge: npt.ArrayLike, conclusion: npt.ArrayLike) -> None:
        """Add one token to every decode.

        ``token_signals`` has shape (n, 4), columns as in ``TOKEN_SIGNALS``; ``hedge`` and
        ``conclusion`` have shape (n,).
        """
        self._count += 1
        self._sum += token_signals
        np.minimum(self._min, token_signals, out=self._min)
        np.maximum(self._max, token_signals, out=self._max)
        self._last[:] = token_signals
        self._markers[:, 0] += np.asarray(hedge, dtype=np.float64)
        self._markers[:, 1] += np.asarray(conclusion, dtype=np.float64)

    def read(self) -> dict[str, Floats]:
        """The signals of the window, each of shape (n,), and a fresh window after it."""
        mean = self._sum / np.maximum(self._count, 1)[:, None]
        signals = {
            "logprob_mean": mean[:, 0],
            "logprob_min": self._min[:, 0].copy(),
            "entropy_mean": mean[:, 1],
            "entropy_max": self._max[:, 1].copy(),
            "entropy_last": self._last[:, 1].copy(),
            "margin_mean": mean[:, 2],
            "margin_min": self._min[:, 2].copy(),
            "p_end_mean": mean[:, 3],
            "p_end_max": self._max[:, 3].copy(),
            "p_end_last": self._last[:, 3].copy(),
            "hedges": self._markers[:, 0].copy(),
            "conclusions": self._markers[:, 1].copy(),
        }
        self._count[:] = 0
        self._sum[:] = 0
        self._min[:] = np.inf
        self._max[:] = -np.inf
        self._markers[:] = 0
        return signals

    def keep(self, rows: npt.NDArray[np.int64]) -> None:
        """Keep only these decodes, in this order."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name)[rows])
