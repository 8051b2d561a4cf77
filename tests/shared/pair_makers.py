"""Pairs of models for tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from synthetic import make_table

from rlbudget.policy.observation import feature_names, observe
from rlbudget.signals.questions import CONTEXT_SIGNALS
from rlbudget.strategies.chooser.together import Member, Together
from rlbudget.traces.pairs import Answers, Pair, pair_tables
from rlbudget.traces.table import TraceTable


def make_pair(n: int = 60, seed: int = 0, *, ratio: float = 0.25) -> Pair:
    """A small model that is wrong on what a number of the question tells, and a large one.

    Answers are coded 0 where right.
    """
    small = make_table(n, seed)
    large = make_table(n, seed + 1, mean_tokens=160)
    rng = np.random.default_rng(seed)
    hard = rng.random(n) < 0.4
    small = replace(
        small,
        exit_exact_match=np.where(hard[small.trace_of_row], 0.0, small.exit_exact_match),
        final_exact_match=np.where(hard, 0.0, small.final_exact_match),
    )
    small, large = (with_context(table, hard) for table in (small, large))
    tasks = [("hard" if h else "easy") if rng.random() < 0.5 else "mixed" for h in hard.tolist()]
    answers = (_answers(small, 100), _answers(large, 200))
    return pair_tables(small, large, ratio=ratio, tasks=tasks, answers=answers)


def make_together(n: int = 60, seed: int = 0, *, ratio: float = 0.25, copies: int = 1) -> Together:
    """The two models of ``make_pair``, the small one ``copies`` times."""
    pair = make_pair(n, seed, ratio=ratio)
    assert pair.answers is not None
    small = member_of(pair.small, ratio, pair.answers[0])
    large = member_of(pair.large, 1.0, pair.answers[1])
    context = np.zeros((n, len(CONTEXT_SIGNALS)))
    hard = CONTEXT_SIGNALS.index("question_numbers")
    context[:, hard] = pair.small.signals["question_numbers"][pair.small.offsets[:-1]]
    return Together((*[small] * copies, large), pair.tasks, context)


def member_of(table: TraceTable, ratio: float, answers: Answers) -> Member:
    """A member whose traces hold no text."""
    names = feature_names(set(table.signals) - set(CONTEXT_SIGNALS), "free")
    seen = dict(zip(names, observe(table, names).astype(np.float64).T, strict=True))
    return Member(table, ratio, answers, {}, seen)


def with_context(table: TraceTable, hard: np.ndarray) -> TraceTable:
    """The question's own numbers, of which one says whether it is hard."""
    context = {name: np.zeros(len(table.thinking_tokens)) for name in CONTEXT_SIGNALS}
    context["question_numbers"] = hard[table.trace_of_row].astype(np.float64)
    return replace(table, signals=table.signals | context)


def _answers(table: TraceTable, wrong: int) -> Answers:
    return Answers(
        np.where(table.exit_exact_match > 0, 0, wrong).astype(np.int64),
        np.where(table.final_exact_match > 0, 0, wrong).astype(np.int64),
    )
