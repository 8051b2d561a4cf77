"""The signals of a token from the logits it was chosen from, in numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Floats, Ints
from rlbudget.signals.tokens import NO_SENTENCE_END, TOP_K

_LOWEST = np.float32(-200.0)


def token_signals(logits: npt.ArrayLike, token: int, end_ids: Ints) -> Floats:
    """The signals of ``rlbudget.signals.tokens.TOKEN_SIGNALS``, shape (6,), float64.

    ``logits`` of shape (vocabulary,) are raw (temperature 1); log-probabilities do as well.
    ``end_ids`` are the tokens with which the end of the thinking can begin. The numbers are
    those of ``rlbudget.models.sampling.token_signals`` but for the last bits of float32.
    """
    raw = np.asarray(logits, dtype=np.float32)
    below = raw - raw.max()
    mass = np.exp(below)
    total = float(mass.sum(dtype=np.float64))
    normaliser = np.log(total)
    # The mass is 0 long before the bound, and 0 times the bound is 0, which 0 times -inf is not.
    surprise = float((mass * np.maximum(below, _LOWEST)).sum(dtype=np.float64))
    k = min(TOP_K, len(raw))
    top = np.sort(np.partition(below, len(raw) - k)[-k:]).astype(np.float64)
    end = float(mass[end_ids].sum(dtype=np.float64))
    with np.errstate(divide="ignore"):
        gap = -np.log(end)
    return np.array(
        [
            float(below[token]) - normaliser,
            normaliser - surprise / total,
            top[-1] - top[-2],
            end / total,
            top.mean() - normaliser,
            min(gap, NO_SENTENCE_END),
        ]
    )
