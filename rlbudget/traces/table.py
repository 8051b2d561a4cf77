"""Traces as columns: what the environments, the agents and the evaluation compute on.

A table holds ``n`` traces with ``m`` checkpoints in all. The checkpoints of trace ``i``
are the rows ``offsets[i] : offsets[i + 1]`` of every per-checkpoint column.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Bools, Floats, Ints, Strs
from rlbudget.errors import UserError


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

    def lockstep(self) -> Iterator[tuple[Ints, Ints]]:
        """The traces with a first checkpoint and its rows, then those with a second, and so on."""
        lengths = self.lengths
        for step in range(int(lengths.max(initial=0))):
            traces = np.flatnonzero(lengths > step)
            yield traces, self.offsets[traces] + step

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
            offsets=offsets,
            signals={name: column[flat] for name, column in self.signals.items()},
            **{name: getattr(self, name)[index] for name in _PER_TRACE},
            **{name: getattr(self, name)[flat] for name in _PER_CHECKPOINT},
        )


_PER_TRACE = ("trace_ids", "question_ids", "final_exact_match", "final_thinking_tokens",
              "final_answer_tokens")  # fmt: skip
_PER_CHECKPOINT = ("thinking_tokens", "exit_exact_match", "exit_answer_tokens", "probe_tokens",
                   "probe_confidence", "probe_answer", "probe_hedged")  # fmt: skip


def joined(tables: Sequence[TraceTable]) -> TraceTable:
    """The traces of one or more tables in order; a signal that a table lacks is NaN there."""
    names = sorted({name for table in tables for name in table.signals})
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(table, name) for table in tables])
        for name in (*_PER_TRACE, *_PER_CHECKPOINT)
    }
    lengths = np.concatenate([table.lengths for table in tables])
    return TraceTable(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        signals={
            name: np.concatenate(
                [table.signals.get(name, np.full(len(table.thinking_tokens), np.nan))
                 for table in tables]
            )
            for name in names
        },
        **columns,
    )  # fmt: skip


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
    """The fold of a question, by a hash: it does not depend on the other questions."""
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
