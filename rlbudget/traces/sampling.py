"""A store of any size in bounded memory: read in parts, kept as far as it fits, by question.

Learning and measuring need thousands of questions, not millions: a training takes half a million
checkpoints, and the interval of a mean over ten thousand questions is about a point. So of a store
with more than ``MOST_CHECKPOINTS`` (an evaluation: ``MOST_MEASURED``) the questions with the
smallest hashes of their ids are kept, as many as fit, with all their traces. Which those are
depends on the store's contents alone, not on the order of its parts, so of two samples the smaller
is a part of the larger. A smaller store is kept whole, and is the table of ``load_table``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rlbudget.arrays import Ints
from rlbudget.console import note
from rlbudget.traces.store import Folders, iter_tables
from rlbudget.traces.table import TraceTable, joined

MOST_CHECKPOINTS = 4_000_000
"""About 3 GiB at the peak of a training on every signal of a recording."""
MOST_MEASURED = 2_000_000
"""of an evaluation, which keeps what every setting of every method gave: about as much"""
_SLACK = 1.25
"""checkpoints held on the way, in those that are kept at the end"""

Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Sample:
    """What is kept of a store, and what the store holds."""

    table: TraceTable
    questions: int
    traces: int
    checkpoints: int

    @property
    def said(self) -> str | None:
        """That it is a part only; None where it is the whole store."""
        if len(self.table) == self.traces:
            return None
        kept = len(np.unique(self.table.question_ids))
        return (
            f"the traces hold {self.checkpoints:,} checkpoints of {self.questions:,} questions:"
            f" {kept:,} questions with {len(self.table.thinking_tokens):,} checkpoints are used,"
            " chosen by a hash of their ids"
        )


def load_sample(folder: Folders, *, context: bool = False, most: int = MOST_CHECKPOINTS) -> Sample:
    """As much of a folder of traces as ``most`` checkpoints allow; errors as ``load_table``.

    At least one question is kept. Says on stderr that it is a part, where it is one.
    """
    keeping = _Keeping(most)
    for table in iter_tables(folder, context=context, of=keeping.wanted):
        keeping.take(table)
    sample = Sample(
        table=keeping.kept(), questions=len(np.unique(np.concatenate(keeping.keys))),
        traces=keeping.traces, checkpoints=keeping.checkpoints,
    )  # fmt: skip
    if sample.said:
        note(sample.said)
    return sample


class _Keeping:
    """The questions with the smallest keys whose checkpoints are at most ``most`` so far.

    More questions only lower the largest key that is kept, so what was dropped is never missed.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.keys: list[Keys] = []
        """of the questions of each part"""
        self.traces = self.checkpoints = 0
        self._largest = np.uint64(2**64 - 1)
        self._tables: list[TraceTable] = []
        self._held = 0

    def wanted(self, part: pa.Table) -> pa.Table:
        """The rows of a part that may be kept."""
        keys = keys_of(part.column("question_id").to_pylist())
        self.keys.append(np.unique(keys))
        self.traces += part.num_rows
        lists = part.column("thinking_tokens").combine_chunks()
        self.checkpoints += len(lists.flatten())
        chosen = keys <= self._largest
        return part if chosen.all() else part.filter(pa.array(chosen))

    def take(self, table: TraceTable) -> None:
        """Hold a part; where that is too much, let go of the largest keys."""
        self._tables.append(table)
        self._held += len(table.thinking_tokens)
        if self._held > _SLACK * self.most:
            self._narrow()

    def kept(self) -> TraceTable:
        """What is kept in the end."""
        if self._held > self.most:
            self._narrow()
        return joined(self._tables)

    def _narrow(self) -> None:
        keys = [keys_of(table.question_ids.tolist()) for table in self._tables]
        lengths = [table.lengths for table in self._tables]
        self._largest = _cut(np.concatenate(keys), np.concatenate(lengths), self.most)
        self._tables = list(_narrowed(self._tables, keys, self._largest))
        self._held = sum(len(table.thinking_tokens) for table in self._tables)


def _narrowed(
    tables: list[TraceTable], keys: list[Keys], largest: np.uint64
) -> Iterator[TraceTable]:
    for table, of_table in zip(tables, keys, strict=True):
        chosen = np.flatnonzero(of_table <= largest)
        if len(chosen):
            yield table.take(chosen)


def _cut(keys: Keys, lengths: Ints, most: int) -> np.uint64:
    """The largest key up to which there are at most ``most`` checkpoints."""
    questions, question = np.unique(keys, return_inverse=True)
    total = np.cumsum(np.bincount(question, lengths, len(questions)))
    place = max(0, int(np.searchsorted(total, most, side="right")) - 1)
    largest: np.uint64 = questions[place]
    return largest


def keys_of(question_ids: list[str]) -> Keys:
    """(n,) a hash of each id, evenly spread."""
    known = {one: _key(one) for one in set(question_ids)}
    return np.array([known[one] for one in question_ids], dtype=np.uint64)


def _key(question_id: str) -> int:
    # Not the hash of ``split_questions``: a part of the questions is split like all of them.
    found = hashlib.blake2b(question_id.encode(errors="surrogatepass"), digest_size=8)
    return int.from_bytes(found.digest(), "big")
