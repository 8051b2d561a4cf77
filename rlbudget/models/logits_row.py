"""The signals of one row of logits, in as few passes as they need.

``rlbudget.models.sampling.token_signals`` takes whole batches and the sampled tokens with them.
An engine shows a row before it samples, one request at a time, and every microsecond there is a
microsecond of the decode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from rlbudget.arrays import Float32s, Ints
from rlbudget.signals.tokens import NO_SENTENCE_END, TOP_K

_BLOCK = 64
_SAFE = 40.0  # the exponential of so large a logit, times a vocabulary, is a float32


@dataclass(frozen=True, slots=True)
class LogitsRow:
    """What is known of the next token before it is sampled."""

    likeliest: int
    """the first choice"""
    logits: Float32s
    """(vocabulary,), the request's own: engines change theirs"""
    normaliser: float
    """the logarithm of the sum of the exponentials"""
    entropy: float
    margin: float
    p_end: float
    topk: float
    end_gap: float

    def signals(self, token: int) -> list[float]:
        """The six numbers of ``signals.tokens.TOKEN_SIGNALS`` of the token that was sampled."""
        logprob = float(self.logits[token]) - self.normaliser
        return [logprob, self.entropy, self.margin, self.p_end, self.topk, self.end_gap]


class RowReader:
    """Reads rows of one engine, one after the other; not to be shared between threads.

    ``size`` is the number of logits, ``end_ids`` are the tokens with which the end of the
    thinking can begin.
    """

    __slots__ = ("_end_ids", "_mass", "_mass_array", "_size")

    def __init__(self, size: int, end_ids: Ints) -> None:
        self._size = size
        self._end_ids = end_ids
        self._mass = torch.empty(size)
        self._mass_array = self._mass.numpy()

    def memory(self) -> Float32s:
        """Where a request keeps its row: fresh memory for every one costs more than the copy."""
        return np.empty(self._size, dtype=np.float32)

    def read(self, logits: torch.Tensor, kept: Float32s) -> LogitsRow:
        """Read raw logits, shape (size,), wherever they are, and copy them into ``kept``.

        Tokens ruled out are −infinity.
        """
        # numpy where it can be: its calls take a microsecond where torch's take ten, and its
        # exponential of float32 half as long.
        torch.from_numpy(kept).copy_(logits)
        top = _largest(kept)
        first, second = float(top[0]), float(top[1])
        shift = 0.0 if abs(first) < _SAFE else first
        mass = self._mass_array
        if shift:
            np.subtract(kept, np.float32(shift), out=mass)
        np.exp(mass if shift else kept, out=mass)
        total = float(self._mass.sum())
        with np.errstate(invalid="ignore"):
            energy = float(mass.dot(kept))
        if not math.isfinite(energy):  # 0 times −infinity: a token that was ruled out
            energy = float(mass.dot(np.maximum(kept, np.finfo(np.float32).min)))
        normaliser = shift + math.log(total)
        p_end = sum(float(mass[token]) for token in self._end_ids) / total
        gap = first - normaliser - math.log(p_end) if p_end > 0 else math.inf
        return LogitsRow(
            likeliest=int(kept.argmax()),
            logits=kept,
            normaliser=normaliser,
            entropy=normaliser - energy / total,
            margin=first - second,
            p_end=p_end,
            topk=float(top.sum()) / len(top) - normaliser,
            end_gap=min(gap, NO_SENTENCE_END),
        )


def _largest(values: Float32s) -> Float32s:
    """The ``TOP_K`` largest, from the largest on; all of them where there are fewer."""
    width = len(values) // _BLOCK
    whole = width * _BLOCK
    if width > TOP_K:
        # The k largest numbers lie in the k columns with the largest maxima.
        columns = values[:whole].reshape(_BLOCK, width)
        chosen = columns.max(axis=0).argpartition(width - TOP_K)[width - TOP_K :]
        values = np.concatenate((columns[:, chosen].ravel(), values[whole:]))
    else:
        values = values.copy()
    few = min(TOP_K, len(values))
    values.partition(len(values) - few)
    top = values[len(values) - few :]
    top.sort()
    return top[::-1]
