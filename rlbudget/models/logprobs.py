"""Signals from the log-probabilities that a server streams beside its tokens.

A list of the ``TOP_K`` likeliest tokens holds three of the six token signals exactly: the
log-probability of the sampled token, the margin, and the mean of the list. The other three look
at all of the vocabulary and can only be estimated, unless the list holds all of it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from rlbudget.arrays import Floats, Ints
from rlbudget.errors import UserError
from rlbudget.models.numpy_signals import token_signals
from rlbudget.signals.tokens import NO_SENTENCE_END, SIGNALS, TOP_K, TOP_SIGNALS

FLOOR = -104.0
"""Nats; servers write -9999 or the smallest float where the probability rounds to 0."""


def listed_signals(
    token: int,
    logprob: float | None,
    top: Sequence[tuple[int | None, float]],
    end_ids: Ints,
    *,
    size: int,
    least: int = 2,
    approximate: bool = False,
) -> Floats | None:
    """The signals of a token from what is listed beside it, shape (6,); None where too little is.

    ``least`` is how many tokens the server lists at other times: one that lists fewer (for a
    token that a draft model wrote, say) says nothing of how likely they are. ``size`` is the size
    of the vocabulary: a list of so many is the whole distribution. The rest is as in
    ``top_signals``.
    """
    if logprob is None or len(top) < max(least, 1):
        return None
    if len(top) >= size and None not in (ids := [one for one, _ in top]):
        listed = np.array(ids, dtype=np.int64)
        width = max(size, 1 + int(listed.max()), 1 + int(end_ids.max(initial=0)))
        logprobs = np.full(width, FLOOR, dtype=np.float32)
        logprobs[listed] = np.maximum([value for _, value in top], FLOOR)
        return token_signals(logprobs, token, end_ids)
    ends = frozenset(end_ids.tolist()) if approximate else frozenset()
    return np.array(top_signals(logprob, top, ends, approximate=approximate))


def top_signals(
    logprob: float,
    top: Sequence[tuple[int | None, float]],
    end_ids: Collection[int],
    *,
    approximate: bool,
) -> tuple[float, ...]:
    """The six signals of ``rlbudget.signals.tokens.TOKEN_SIGNALS`` of one token.

    ``logprob`` of the sampled token and ``top``, (token id, log-probability) of the likeliest
    ones in any order, are in nats at temperature 1; ``end_ids`` are the tokens with which the end
    of the thinking can begin. Without ``approximate`` the three signals that a list cannot give
    are 0, and so is the margin of a single token. With it, entropy is the least that the list
    allows; an end token that is not in the list counts as impossible in ``p_end`` and as likely as
    the last of the list in ``end_gap``. Raises ``ValueError`` for an empty list.
    """
    exact = exact_signals(logprob, [value for _, value in top])
    if not approximate:
        return exact
    best = _best([value for _, value in top])
    p_end = sum(math.exp(value) for token, value in top if token in end_ids)
    likely = math.log(p_end) if p_end > 0 else best[-1]
    end_gap = min(best[0] - likely, NO_SENTENCE_END)
    return exact[0], least_entropy(best), exact[2], p_end, exact[4], end_gap


def exact_signals(logprob: float, nats: Sequence[float]) -> tuple[float, ...]:
    """``top_signals`` without ``approximate``: what does not ask which tokens are the likeliest."""
    best = _best(nats)
    margin = best[0] - best[1] if len(best) > 1 else 0.0
    return max(logprob, FLOOR), 0.0, margin, 0.0, sum(best) / len(best), 0.0


def _best(nats: Sequence[float]) -> list[float]:
    best = sorted(nats, reverse=True)[:TOP_K]
    if not best:
        raise ValueError("no log-probabilities are listed")
    if best[-1] < FLOOR:
        best = [max(value, FLOOR) for value in best]
    return best


def least_entropy(best: Sequence[float]) -> float:
    """Nats: the least entropy of a distribution with these largest log-probabilities.

    ``best`` falls. No token beyond it can be likelier than its last one, so their mass counts at
    least that token's surprise, and at least its own.
    """
    listed = sum(-value * math.exp(value) for value in best)
    rest = 1.0 - sum(math.exp(value) for value in best)
    return listed if rest <= 1e-9 else listed - rest * min(best[-1], math.log(rest))


def lacking(
    features: Sequence[str], top: int, *, size: int | None = None, approximate: bool = False
) -> list[str]:
    """The token signals that features need and ``top`` log-probabilities do not give.

    ``size`` is the size of the vocabulary, where it is known: a list of so many gives all.
    What is no signal of a token is for the plan to refuse.
    """
    if size is not None and top >= size:
        return []
    given = {*(SIGNALS if approximate else TOP_SIGNALS)}
    if top < TOP_K:
        given -= {"topk_mean"}
    if top < 2:
        given -= {"margin_mean", "margin_min"}
    needed = dict.fromkeys(feature.partition(".")[0] for feature in features)
    return [signal for signal in needed if signal in SIGNALS and signal not in given]


def check_features(
    features: Sequence[str], *, top: int, size: int | None = None, approximate: bool
) -> None:
    """``UserError`` naming what a plan needs and ``top`` log-probabilities cannot give."""
    if missing := lacking(features, top, size=size, approximate=approximate):
        raise UserError(
            f"the policy needs {', '.join(missing)}, which the server's {top} top log-probabilities"
            " do not give: train one with --signals top, ask the server for 20, or accept"
            " estimates with approximate=True"
        )
