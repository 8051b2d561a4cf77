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
MOST_SAMPLES = 1000
"""of a question"""
MOST_CHARACTERS = 2_000_000
"""of a question's samples, all as long as the longest answer: each order holds them again"""
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
    ways = term = 1
    for k in range(first):
        term = term * (n - k) // (k + 1)
        ways += term
    return ways / (1 << n)


def traces_of_samples(sampled: Sampled, *, orders: int = ORDERS, seed: int = 0) -> list[Trace]:
    """One trace for each order; the same seed and question, the same orders.

    Raises ``UserError`` for fewer than two samples, more than ``MOST_SAMPLES``, answers that are
    together too long and a sample without a token.
    """
    samples = sampled.samples
    if problem := size_problem([sample.answer for sample in samples]):
        raise UserError(f"question {sampled.question_id!r}: {problem}")
    if len(samples) < 2:
        raise UserError(f"question {sampled.question_id!r} has fewer than 2 samples")
    longest = max(len(sample.answer) for sample in samples)
    if longest * len(samples) > MOST_CHARACTERS:
        raise UserError(
            f"question {sampled.question_id!r} has {len(samples):,} samples with an answer of"
            f" {longest:,} characters; so many samples may have answers of"
            f" {MOST_CHARACTERS // len(samples):,} (keep the answers alone, without the thinking)"
        )
    if any(sample.tokens < 1 for sample in samples):
        raise UserError(f"question {sampled.question_id!r} has a sample without a token")
    key = hashlib.sha256(f"{seed}:{sampled.question_id}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(key[:8], "big"))
    return [
        _trace(sampled, [samples[i] for i in rng.permutation(len(samples))], order, seed)
        for order in range(orders)
    ]


def size_problem(answers: Sequence[str]) -> str | None:
    """What is wrong with the number or the length of a question's answers, or None."""
    n = len(answers)
    if n > MOST_SAMPLES:
        return f"samples are {n:,}; {MOST_SAMPLES:,} are the most"
    longest = max(map(len, answers), default=0)
    if longest * n > MOST_CHARACTERS:
        return (
            f"an answer of {longest:,} characters; {MOST_CHARACTERS // n:,} are the most for each"
            f" of {n:,} samples (import the answers alone, without the thinking)"
        )
    return None


def _trace(sampled: Sampled, samples: Sequence[Sample], order: int, seed: int) -> Trace:
    votes, checkpoints, tokens = _Votes(), [], 0
    ballots = [vote_key(sample.answer, sampled.scorer) for sample in samples]
    for number, (sample, ballot) in enumerate(zip(samples, ballots, strict=True), start=1):
        votes.cast(ballot)
        tokens += sample.tokens
        leader = samples[votes.leader]
        answer, right = leader.answer, leader.exact_match
        if number < len(samples):
            checkpoints.append(Checkpoint(tokens, votes.signals(), Exit(answer, right, 0)))
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


@dataclass(slots=True)
class _Votes:
    """The votes so far; a vote more costs the same, however many there were."""

    n: int = 0
    counts: list[int] = field(default_factory=list)
    """votes of each answer, the most first"""
    of: dict[Hashable, int] = field(default_factory=dict)
    """answer -> its votes"""
    first: dict[Hashable, int] = field(default_factory=dict)
    """answer -> the sample that gave it first"""
    at_least: list[int] = field(default_factory=lambda: [0])
    """answers with so many votes or more; the first place is not used"""
    spread: float = 0.0
    """sum of c log c over the votes c of each answer"""
    streak: int = 0
    before: Hashable = None
    best: Hashable = None

    @property
    def leader(self) -> int:
        """The sample that first gave the answer of most votes; of equal ones the earlier."""
        return self.first[self.best]

    def cast(self, ballot: Hashable) -> None:
        """Count a sample's answer."""
        before = self.of.get(ballot, 0)
        now = self.of[ballot] = before + 1
        self.first.setdefault(ballot, self.n)
        self.n += 1
        if now == len(self.at_least):
            self.at_least.append(0)
        place = self.at_least[now]  # the first of the answers that had as many votes
        self.at_least[now] += 1
        if before:
            self.counts[place] = now
            self.spread -= before * math.log(before)
        else:
            self.counts.append(now)
        self.spread += now * math.log(now)
        self.streak = self.streak + 1 if ballot == self.before else 1
        self.before = ballot
        most = self.of.get(self.best, 0)
        if now > most or (now == most and self.first[ballot] < self.leader):
            self.best = ballot

    def signals(self) -> dict[str, float]:
        """``VOTE_SIGNALS`` after the samples so far."""
        n, top = self.n, (self.counts[:TOP] + [0] * TOP)[:TOP]
        values: list[Any] = [
            n, *top, top[0] / n, (top[0] - top[1]) / n, max(0.0, math.log(n) - self.spread / n),
            len(self.counts), self.streak, beta_lead(top[0], top[1]),
        ]  # fmt: skip
        return {name: float(value) for name, value in zip(VOTE_SIGNALS, values, strict=True)}
