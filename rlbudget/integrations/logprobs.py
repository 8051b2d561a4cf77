"""Signals from the log-probabilities that a server streams beside its tokens.

A list of the ``TOP_K`` likeliest tokens holds three of the six token signals exactly: the
log-probability of the sampled token, the margin, and the mean of the list. The other three look
at all of the vocabulary and can only be estimated.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from rlbudget.errors import UserError
from rlbudget.policy.observation import PROBE_SIGNALS
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.signals.looks import LOOK_SIGNALS
from rlbudget.signals.questions import CONTEXT_SIGNALS, TASK_SIGNALS
from rlbudget.signals.tokens import NO_SENTENCE_END, SIGNALS, TOP_K, TOP_SIGNALS

FLOOR = -104.0
"""Nats; servers write -9999 or the smallest float where the probability rounds to 0."""


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
    are 0. With it, entropy is the least that the list allows; an end token that is not in the
    list counts as impossible in ``p_end`` and as likely as the last of the list in ``end_gap``.
    Raises ``ValueError`` for a list of fewer than two tokens.
    """
    best = sorted((max(value, FLOOR) for _, value in top), reverse=True)[:TOP_K]
    if len(best) < 2:
        raise ValueError("a margin needs the log-probabilities of at least two tokens")
    mean = sum(best) / len(best)
    entropy = p_end = end_gap = 0.0
    if approximate:
        entropy = least_entropy(best)
        p_end = sum(math.exp(value) for token, value in top if token in end_ids)
        likely = math.log(p_end) if p_end > 0 else best[-1]
        end_gap = min(best[0] - likely, NO_SENTENCE_END)
    return max(logprob, FLOOR), entropy, best[0] - best[1], p_end, mean, end_gap


def least_entropy(best: Sequence[float]) -> float:
    """Nats: the least entropy of a distribution with these largest log-probabilities.

    ``best`` falls. No token beyond it can be likelier than its last one, so their mass counts at
    least that token's surprise, and at least its own.
    """
    listed = sum(-value * math.exp(value) for value in best)
    rest = 1.0 - sum(math.exp(value) for value in best)
    return listed if rest <= 1e-9 else listed - rest * min(best[-1], math.log(rest))


def check_features(policy: StopPolicy, *, top: int, approximate: bool) -> None:
    """``UserError`` naming what a policy needs and ``top`` log-probabilities cannot give."""
    # What is no signal of a token is for the plan to refuse.
    given = {
        "thinking_tokens", *PROBE_SIGNALS, *LOOK_SIGNALS, *CONTEXT_SIGNALS, *TASK_SIGNALS,
    }  # fmt: skip
    given.update(SIGNALS if approximate else TOP_SIGNALS)
    if top < TOP_K:
        given -= {"topk_mean"}
    if top < 2:
        given -= {"margin_mean", "margin_min"}
    needed = dict.fromkeys(feature.partition(".")[0] for feature in policy.features)
    missing = [signal for signal in needed if signal not in given]
    if missing:
        raise UserError(
            f"the policy needs {', '.join(missing)}, which the server's {top} top log-probabilities"
            " do not give: train one with --signals top, ask the server for 20, or accept"
            " estimates with approximate=True"
        )
