"""Signals: numbers that are free while decoding, and how a checkpoint sums them up.

A backend computes six numbers for each thinking token from the logits it already has,
and three flags from the token's text. Between two checkpoints they are folded into a small
*window*; what the window holds at a checkpoint is what the trace records as ``signals``.
All of it works on ``n`` decodes at once, so that the recorder (hundreds of rows) and
a live request (one row) run the same lines.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Bools, Floats, Ints

TOKEN_SIGNALS = ("logprob", "entropy", "margin", "p_end", "topk", "end_gap")
"""Per token, from the raw logits (temperature 1): log-probability of the sampled token
(nats), entropy of the distribution (nats), log-probability of the first minus the second
choice (nats), probability of the first end-of-thinking token, mean log-probability of the
``TOP_K`` likeliest tokens (nats), log-probability of the likeliest token minus that of the first
end-of-thinking token (nats)."""

TOP_K = 20

MARKERS = ("hedge", "conclusion", "sentence_end")
"""Per token, from its text: a word of doubt, a concluding word, the end of a sentence."""

NO_SENTENCE_END = 100.0
"""``end_gap_min`` where no sentence ended; no gap is counted as larger."""

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
    "topk_mean",
    "end_gap_min",
)
"""Per checkpoint, over the tokens since the checkpoint before it. ``end_gap_min`` counts only the
places right after the end of a sentence, where ending the thinking is an option."""

MARKER_SIGNALS = ("hedges", "conclusions")
"""Those of ``SIGNALS`` that follow from the tokens' texts alone."""

TOP_SIGNALS = tuple(name for name in SIGNALS if not re.match("entropy|p_end|end_gap", name))
"""Those of ``SIGNALS`` that follow exactly from the text and the ``TOP_K`` likeliest tokens: all a
server gives that streams log-probabilities and no logits."""

CHOICE = "answer_entropy"
"""the entropy of the choice among a question's answer options"""
EXIT_SIGNALS = ("exit_entropy", "probe_tail", CHOICE, "option_tokens")
"""Recorded beside them, but not free: each needs forward passes beyond the thinking. Entropy
(nats) of the first token of the answer; mean probability of the trial answer's tokens after the
first, 0 where it is one token (missing without a trial answer); entropy (nats) of the distribution
over the question's answer options, and the tokens that a look at it costs (both missing where the
question has no options)."""

PAID_SIGNALS = ("probe_tail", "exit_entropy", "answer_entropy")
"""Those of ``EXIT_SIGNALS`` that a policy may see which pays for them: the first comes with a trial
answer; the second costs a token, the third ``option_tokens``, 1 where the traces do not say."""

HEDGES = frozenset({"wait", "but", "hmm", "alternatively", "however", "maybe", "no", "hold"})
ANSWER_HEDGES = re.compile(r"\b(wait|hold|but|okay|no|hmm)\b", re.IGNORECASE)
CONCLUSIONS = frozenset({"so", "therefore", "thus", "answer", "hence", "same", "ok", "yes"})


def hedged(answer: str) -> bool:
    """Whether a trial answer holds a word of doubt, as Dynasor asks."""
    return ANSWER_HEDGES.search(answer) is not None


def markers(text: str) -> tuple[bool, bool, bool]:
    """The ``MARKERS`` of a token's text, which may be spelled as byte-level or SentencePiece."""
    plain = text.replace("\u0120", " ").replace("\u2581", " ").replace("\u010a", "\n")
    word = plain.strip().strip(".,:;!?").lower()
    ends = "\n" in plain or plain.rstrip().endswith((".", "!", "?"))
    return word in HEDGES, word in CONCLUSIONS, ends


def marker_table(tokens: Iterable[str]) -> Bools:
    """``markers`` of a whole vocabulary: (vocabulary, 3)."""
    return np.array([markers(token) for token in tokens], dtype=bool).reshape(-1, len(MARKERS))


class Window:
    """The running sums of ``n`` decodes since their last checkpoint."""

    __slots__ = ("_after_sentence", "_count", "_end_gap", "_last", "_markers", "_max", "_min",
                 "_sum")  # fmt: skip

    def __init__(self, n: int) -> None:
        self._count = np.zeros(n)
        width = len(TOKEN_SIGNALS)
        self._sum = np.zeros((n, width))
        self._min = np.full((n, width), np.inf)
        self._max = np.full((n, width), -np.inf)
        self._last = np.zeros((n, width))
        self._markers = np.zeros((n, 2))
        self._after_sentence = np.zeros(n, dtype=bool)
        self._end_gap = np.full(n, NO_SENTENCE_END)

    def push(self, token_signals: Floats, token_markers: npt.ArrayLike) -> None:
        """Add one token to every decode.

        ``token_signals`` has shape (n, 6), columns as in ``TOKEN_SIGNALS``; ``token_markers``
        has shape (n, 3), columns as in ``MARKERS``.
        """
        flags = np.asarray(token_markers, dtype=bool)
        self._count += 1
        self._sum += token_signals
        np.minimum(self._min, token_signals, out=self._min)
        np.maximum(self._max, token_signals, out=self._max)
        self._last[:] = token_signals
        self._markers += flags[:, :2]
        gap = np.where(self._after_sentence, token_signals[:, 5], NO_SENTENCE_END)
        np.minimum(self._end_gap, gap, out=self._end_gap)
        self._after_sentence[:] = flags[:, 2]

    def read(self, rows: Bools | None = None) -> dict[str, Floats]:
        """The signals of the window, each of shape (n,), and a fresh window after it.

        With ``rows`` of shape (n,) only those begin a fresh one.
        """
        mean = self._sum / np.maximum(self._count, 1)[:, None]
        sums = {"mean": mean, "min": self._min, "max": self._max, "last": self._last}
        others = {
            "hedges": self._markers[:, 0],
            "conclusions": self._markers[:, 1],
            "end_gap_min": self._end_gap,
        }
        signals = {}
        for name in SIGNALS:
            signal, _, how = name.rpartition("_")
            column = others.get(name)
            signals[name] = (
                sums[how][:, TOKEN_SIGNALS.index(signal)] if column is None else column
            ).copy()
        read = slice(None) if rows is None else rows
        self._count[read] = 0
        self._sum[read] = 0
        self._min[read] = np.inf
        self._max[read] = -np.inf
        self._markers[read] = 0
        self._end_gap[read] = NO_SENTENCE_END
        return signals

    def keep(self, rows: Ints) -> None:
        """Keep only these decodes, in this order."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name)[rows])

    def join(self, others: Window) -> None:
        """Add other decodes after the last."""
        for name in self.__slots__:
            both = np.concatenate([getattr(self, name), getattr(others, name)])
            setattr(self, name, both)


class TokenWindow:
    """The ``Window`` of one decode, on plain numbers: the same sums, at a tenth of the time."""

    __slots__ = ("_after_sentence", "_conclusions", "_count", "_end_gap", "_hedges", "_last",
                 "_max", "_min", "_sum")  # fmt: skip

    def __init__(self) -> None:
        self._last: Sequence[float] = (0.0,) * len(TOKEN_SIGNALS)
        self._after_sentence = False
        self._clear()

    def _clear(self) -> None:
        self._count = self._hedges = self._conclusions = 0
        self._sum: Sequence[float] = (0.0,) * len(TOKEN_SIGNALS)
        self._min: Sequence[float] = (math.inf,) * len(TOKEN_SIGNALS)
        self._max: Sequence[float] = (-math.inf,) * len(TOKEN_SIGNALS)
        self._end_gap = NO_SENTENCE_END

    def push(self, signals: Sequence[float], flags: Sequence[bool]) -> None:
        """Add a token: its ``TOKEN_SIGNALS``, finite, and its ``MARKERS``."""
        a, b, c, d, e, f = signals
        p, q, r, s, t, u = self._sum
        self._sum = (p + a, q + b, r + c, s + d, t + e, u + f)
        p, q, r, s, t, u = self._min
        self._min = (a if a < p else p, b if b < q else q, c if c < r else r,
                     d if d < s else s, e if e < t else t, f if f < u else u)  # fmt: skip
        p, q, r, s, t, u = self._max
        self._max = (a if a > p else p, b if b > q else q, c if c > r else r,
                     d if d > s else s, e if e > t else t, f if f > u else u)  # fmt: skip
        self._last = signals
        self._count += 1
        hedge, conclusion, sentence_end = flags
        self._hedges += hedge
        self._conclusions += conclusion
        if self._after_sentence and f < self._end_gap:
            self._end_gap = f
        self._after_sentence = sentence_end

    def read(self) -> dict[str, float]:
        """The signals of the window, and a fresh window after it."""
        count = max(self._count, 1)
        sums = {"mean": [x / count for x in self._sum], "min": self._min, "max": self._max,
                "last": self._last}  # fmt: skip
        signals = {name: sums[how][column] for name, column, how in _SUMMED}
        signals |= {
            "hedges": float(self._hedges),
            "conclusions": float(self._conclusions),
            "end_gap_min": self._end_gap,
        }
        self._clear()
        return signals


_SUMMED = [
    (name, TOKEN_SIGNALS.index(name.rpartition("_")[0]), name.rpartition("_")[2])
    for name in SIGNALS if name not in ("hedges", "conclusions", "end_gap_min")
]  # fmt: skip
"""signal, column of its token signal, and how a window sums that up"""
