"""Repeated sampling as a decode: each step draws one more sample, the answer is the majority.

A question with N samples becomes traces like any other: a checkpoint after each sample but the
last, whose thinking tokens are those of the samples so far, whose exit is the majority answer,
and whose signals are counts of votes. The natural end is all N samples. So recording, training,
freezing, evaluation and folds work on samples as on thoughts.

The order of independent samples is arbitrary, so each question gives several traces, one for each
of ``ORDERS`` seeded orders; they share the question's id and are split and drawn together.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from rlbudget.errors import UserError
from rlbudget.tasks.scorers import vote_key
from rlbudget.traces.trace import Checkpoint, Exit, Final, Trace

ORDERS = 20
TOP = 5

VOTE_SIGNALS = (
    "samples",
    *(f"votes_{place}" for place in range(1, TOP + 1)),
    "vote_share",
    "vote_margin",
    "vote_entropy",
    "vote_kinds",
    "vote_streak",
    "vote_lead",
)
"""After each sample: how many there are; votes of the ``TOP`` answers, the most first; share of
the first; first minus second, as a share; entropy of the votes (nats); different answers; how
many of the last samples in a row agree; ``beta_lead`` of the two first, the chance that the first
answer is the majority of all that could be drawn."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer and all its tokens."""

    answer: str
    exact_match: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """A question and its samples."""

    question_id: str
    task: str
    question: str
    target: str
    model: str
    samples: tuple[Sample, ...]
    scorer: str = "auto"
    """answers that are equal under it share a vote"""
    meta: dict[str, Any] = field(default_factory=dict)
    """plain JSON; the traces hold it"""


@lru_cache(maxsize=4096)
def beta_lead(first: int, second: int) -> float:
    """P(X > 1/2) for X ~ Beta(first + 1, second + 1), by the binomial sum.

    The stopping statistic of Adaptive-Consistency (Aggarwal et al., 2023, arXiv 2305.11860).
    """
    n = first + second + 1
    ways: int = sum(math.comb(n, k) for k in range(first + 1))
    return ways / (1 << n)


def traces_of_samples(sampled: Sampled, *, orders: int = ORDERS, seed: int = 0) -> list[Trace]:
    """One trace for each order; the same seed and question, the same orders.

    Raises ``UserError`` for fewer than two samples and a sample without a token.
    """
    samples = sampled.samples
    if len(samples) < 2:
        raise UserError(f"question {sampled.question_id!r} has fewer than 2 samples")
    if any(sample.tokens < 1 for sample in samples):
        raise UserError(f"question {sampled.question_id!r} has a sample without a token")
    key = hashlib.sha256(f"{seed}:{sampled.question_id}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(key[:8], "big"))
    return [
        _trace(sampled, [samples[i] for i in rng.permutation(len(samples))], order, seed)
        for order in range(orders)
    ]


def _trace(sampled: Sampled, samples: Sequence[Sample], order: int, seed: int) -> Trace:
    votes: dict[Hashable, int] = {}
    tokens = streak = 0
    checkpoints = []
    before: Hashable = None
    ballots = [vote_key(sample.answer, sampled.scorer) for sample in samples]
    for number, (sample, vote) in enumerate(zip(samples, ballots, strict=True), start=1):
        votes[vote] = votes.get(vote, 0) + 1
        tokens += sample.tokens
        streak = streak + 1 if vote == before else 1
        before = vote
        most = max(votes, key=votes.__getitem__)  # of equal ones the first that was given
        leader = samples[ballots.index(most)]
        answer, right = leader.answer, leader.exact_match
        if number < len(samples):
            checkpoints.append(
                Checkpoint(tokens, _signals(votes, number, streak), Exit(answer, right, 0))
            )
    return Trace(
        trace_id=f"{sampled.question_id}-o{order}",
        question_id=sampled.question_id,
        task=sampled.task,
        question=sampled.question,
        target=sampled.target,
        model=sampled.model,
        seed=seed,
        final=Final(answer, right, tokens, 0),
        checkpoints=tuple(checkpoints),
        meta={
            **sampled.meta,
            "kind": "samples",
            "order": order,
            "samples": len(samples),
            "scorer": sampled.scorer,
        },
    )


def _signals(votes: dict[Hashable, int], n: int, streak: int) -> dict[str, float]:
    counts = sorted(votes.values(), reverse=True)
    top = (counts + [0] * TOP)[:TOP]
    shares = np.array(counts) / n
    values: list[Any] = [
        n, *top, top[0] / n, (top[0] - top[1]) / n, -(shares * np.log(shares)).sum(), len(counts),
        streak, beta_lead(top[0], top[1]),
    ]  # fmt: skip
    return {name: float(value) for name, value in zip(VOTE_SIGNALS, values, strict=True)}
