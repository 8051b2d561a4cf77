"""Traces as columns: what the environments, the agents and the evaluation compute on.

A table holds ``n`` traces with ``m`` checkpoints in all. The checkpoints of trace ``i``
are the rows ``offsets[i] : offsets[i + 1]`` of every per-checkpoint column.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Bools, Floats, Ints, Strs
from rlbudget.errors import UserError
from rlbudget.signals.questions import context_columns, task_columns
from rlbudget.signals.tokens import hedged
from rlbudget.tasks.scorers import vote_key
from rlbudget.traces.trace import Trace, family_of, scorer_of


@dataclass(frozen=True, slots=True)
class TraceTable:
    """``n`` traces, ``m`` checkpoints."""

    trace_ids: Strs
    """(n,)"""
    question_ids: Strs
    """(n,) traces of one question share it"""
    offsets: Ints
    """(n + 1,) first row of each trace"""
    thinking_tokens: Ints
    """(m,) tokens of thinking at the checkpoint"""
    exit_exact_match: Floats
    """(m,) 0 or 1, had the decode stopped here"""
    exit_answer_tokens: Ints
    """(m,) tokens after the thinking, had it stopped here"""
    probe_tokens: Ints
    """(m,) tokens of the trial answer, 0 where there was no probe"""
    probe_confidence: Floats
    """(m,) in [0, 1], NaN where there was no probe"""
    probe_answer: Ints
    """(m,) the trial answer as a code that is equal for equal answers of one trace, -1 where
    there was no probe"""
    probe_hedged: Bools
    """(m,) whether the trial answer holds a word of doubt"""
    signals: dict[str, Floats]
    """name -> (m,), NaN where missing"""
    final_exact_match: Floats
    """(n,) 0 or 1 at the natural end"""
    final_thinking_tokens: Ints
    """(n,)"""
    final_answer_tokens: Ints
    """(n,)"""

    def __len__(self) -> int:
        return len(self.trace_ids)

    @property
    def lengths(self) -> Ints:
        """(n,) number of checkpoints of each trace."""
        return np.diff(self.offsets)

    @property
    def trace_of_row(self) -> Ints:
        """(m,) the trace a checkpoint belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def has_probes(self) -> bool:
        """Whether every checkpoint carries a trial answer."""
        return bool(len(self.probe_answer)) and bool((self.probe_answer >= 0).all())

    @property
    def full_tokens(self) -> Ints:
        """(n,) thinking and answer tokens of the full decode."""
        return self.final_thinking_tokens + self.final_answer_tokens

    def rows_of(self, traces: Ints) -> tuple[Ints, Ints]:
        """Where the checkpoints of these n traces are, one trace after the other, (k,), and the
        offsets (n + 1,) of the traces among them."""  # fmt: skip
        lengths = self.lengths[traces]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        flat = np.repeat(self.offsets[traces] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return flat, offsets

    def take(self, rows: npt.ArrayLike) -> TraceTable:
        """The traces with these indices, in this order."""
        index = np.asarray(rows, dtype=np.int64)
        flat, offsets = self.rows_of(index)
        return TraceTable(
            trace_ids=self.trace_ids[index],
            question_ids=self.question_ids[index],
            offsets=offsets,
            thinking_tokens=self.thinking_tokens[flat],
            exit_exact_match=self.exit_exact_match[flat],
            exit_answer_tokens=self.exit_answer_tokens[flat],
            probe_tokens=self.probe_tokens[flat],
            probe_confidence=self.probe_confidence[flat],
            probe_answer=self.probe_answer[flat],
            probe_hedged=self.probe_hedged[flat],
            signals={name: column[flat] for name, column in self.signals.items()},
            final_exact_match=self.final_exact_match[index],
            final_thinking_tokens=self.final_thinking_tokens[index],
            final_answer_tokens=self.final_answer_tokens[index],
        )


def table_of(traces: Sequence[Trace], *, context: bool = False) -> TraceTable:
    """Lay traces out as columns, in their order.

    ``context`` adds the signals of the question and of its task.
    """
    names = sorted({name for t in traces for c in t.checkpoints for name in c.signals})
    points = [c for t in traces for c in t.checkpoints]
    lengths = [len(t.checkpoints) for t in traces]
    known = context_columns(t.question for t in traces) if context else {}
    known |= task_columns(map(family_of, traces)) if context else {}
    answers: list[int] = []
    for trace in traces:
        codes: dict[object, int] = {}
        scorer = scorer_of(trace)
        answers += [
            -1
            if c.probe is None
            else codes.setdefault(vote_key(c.probe.answer, scorer), len(codes))
            for c in trace.checkpoints
        ]
    return TraceTable(
        trace_ids=np.array([t.trace_id for t in traces], dtype=np.str_),
        question_ids=np.array([t.question_id for t in traces], dtype=np.str_),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        thinking_tokens=np.array([c.thinking_tokens for c in points], dtype=np.int64),
        exit_exact_match=np.array([c.exit.exact_match for c in points], dtype=np.float64),
        exit_answer_tokens=np.array([c.exit.answer_tokens for c in points], dtype=np.int64),
        probe_tokens=np.array([c.probe.tokens if c.probe else 0 for c in points], dtype=np.int64),
        probe_confidence=np.array(
            [c.probe.confidence if c.probe else np.nan for c in points],
            dtype=np.float64,
        ),
        probe_answer=np.array(answers, dtype=np.int64),
        probe_hedged=np.array([bool(c.probe and hedged(c.probe.answer)) for c in points], bool),
        signals={
            name: np.array([c.signals.get(name, np.nan) for c in points], dtype=np.float64)
            for name in names
        }
        | {name: np.repeat(column, lengths) for name, column in known.items()},
        final_exact_match=np.array([t.final.exact_match for t in traces], dtype=np.float64),
        final_thinking_tokens=np.array([t.final.thinking_tokens for t in traces], dtype=np.int64),
        final_answer_tokens=np.array([t.final.answer_tokens for t in traces], dtype=np.int64),
    )


@dataclass(frozen=True, slots=True)
class Split:
    """Three tables with no question in common."""

    train: TraceTable
    validation: TraceTable
    held_out: TraceTable


def split_questions(
    table: TraceTable, *, validation: float = 0.15, held_out: float = 0.3, seed: int = 0
) -> Split:
    """Split by question, never by trace.

    Questions are put in the order of a hash of ``seed`` and question id, so the split of a
    question does not depend on the order of the traces. ``validation`` and ``held_out`` are
    fractions of the questions. Raises ``UserError`` when a part would be empty.
    """
    rank, n = _ranks(table, seed)
    return _cut(table, rank, n, round(held_out * n), round(validation * n))


def without(table: TraceTable, others: TraceTable) -> TraceTable:
    """The traces of the questions that are not among those of ``others``, in their order."""
    return table.take(np.flatnonzero(~np.isin(table.question_ids, others.question_ids)))


def split_fold(
    table: TraceTable, fold: int, folds: int, *, validation: float = 0.15, seed: int = 0
) -> Split:
    """The same for cross-validation: the questions of fold ``fold`` of ``folds`` are held out.

    Every question is held out in exactly one fold (``fold_of``). ``validation`` is a fraction of
    the others.
    """
    if folds < 2:
        raise UserError(f"folds is {folds}: cross-validation needs at least 2")
    inside = {
        question: fold_of(question, folds, seed=seed) == fold
        for question in np.unique(table.question_ids).tolist()
    }
    held_out = sum(inside.values())
    rank, n = _ranks(table, seed, {question for question, is_in in inside.items() if is_in})
    return _cut(table, rank, n, held_out, round(validation * (n - held_out)))


def fold_of(question_id: str, folds: int, *, seed: int = 0) -> int:
    """The fold of a question: a hash, so it stays where it is whatever other questions come."""
    return int.from_bytes(_hash(question_id, seed)[-8:], "big") % folds


def _hash(question_id: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{question_id}".encode()).digest()


def _ranks(table: TraceTable, seed: int, first: Collection[str] = frozenset()) -> tuple[Ints, int]:
    """(n,) the place of each trace's question in an order by hash, and how many there are;
    the questions of ``first`` come before the others."""  # fmt: skip
    questions, of_trace = np.unique(table.question_ids, return_inverse=True)
    keys = [(question not in first, _hash(question, seed)) for question in questions.tolist()]
    place = np.empty(len(questions), dtype=np.int64)
    place[sorted(range(len(questions)), key=keys.__getitem__)] = np.arange(len(questions))
    return place[of_trace], len(questions)


def _cut(table: TraceTable, rank: Ints, n: int, n_held_out: int, n_validation: int) -> Split:
    if min(n_held_out, n_validation, n - n_held_out - n_validation) < 1:
        raise UserError(
            f"{n} questions are too few to split into training, validation and held-out"
            " questions; record or import more"
        )
    return Split(
        train=table.take(np.flatnonzero(rank >= n_held_out + n_validation)),
        validation=table.take(
            np.flatnonzero((rank >= n_held_out) & (rank < n_held_out + n_validation))
        ),
        held_out=table.take(np.flatnonzero(rank < n_held_out)),
    )
