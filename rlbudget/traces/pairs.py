"""Two models on the same questions: their traces side by side, and what a token of each costs.

Token prices of a pair are those of the large model; a token of the small one costs ``ratio`` of
it. All tokens of a pair are counted like that, as tokens of the large model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Ints, Strs
from rlbudget.errors import UserError
from rlbudget.tasks.scorers import vote_key
from rlbudget.traces.table import TraceTable, split_questions
from rlbudget.traces.trace import Trace, family_of, scorer_of

_T = TypeVar("_T", bound=np.generic)

NATURAL_END_SIGNAL = "natural_end"


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model answered at its exits and at its natural ends, as numbers.

    Equal answers, also those of the two models of a pair, are equal numbers from 0.
    """

    exits: Ints
    """(m,)"""
    final: Ints
    """(n,)"""

    def at(self, table: TraceTable, stops: Ints) -> Ints:
        """(n,) the answers of stops, -1 for the natural end, in the traces of ``table``."""
        given = self.final.copy()
        stopped = np.flatnonzero(stops >= 0)
        given[stopped] = self.exits[table.offsets[stopped] + stops[stopped]]
        return given

    def take(self, table: TraceTable, traces: Ints) -> Answers:
        """Those of some traces of ``table``."""
        return Answers(self.exits[table.rows_of(traces)[0]], self.final[traces])


@dataclass(frozen=True, slots=True)
class Pair:
    """``n`` traces of each of two models; those in the same place are of the same question."""

    small: TraceTable
    large: TraceTable
    ratio: float
    """what a token of the small model costs, in tokens of the large one: above 0, at most 1"""
    tasks: Strs
    """(n,) family or task of each question"""
    answers: tuple[Answers, Answers] | None = None
    """of the small and of the large model, where their texts were read"""

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def question_ids(self) -> Strs:
        """(n,)"""
        return self.small.question_ids

    def take(self, rows: npt.ArrayLike) -> Pair:
        """The traces with these indices, in this order."""
        index = np.asarray(rows, dtype=np.int64)
        own = self.answers
        return Pair(
            self.small.take(index),
            self.large.take(index),
            self.ratio,
            self.tasks[index],
            own and (own[0].take(self.small, index), own[1].take(self.large, index)),
        )


@dataclass(frozen=True, slots=True)
class PairSplit:
    """Three pairs with no question in common."""

    train: Pair
    validation: Pair
    held_out: Pair


def pair_tables(
    small: TraceTable,
    large: TraceTable,
    *,
    ratio: float,
    tasks: Sequence[str] | None = None,
    answers: tuple[Answers, Answers] | None = None,
) -> Pair:
    """Put the traces of the questions that both tables hold side by side, in the small one's order.

    Of a question with several traces the first goes with the first, and so on. ``tasks`` are those
    of the small table's traces, one for all if left out; ``answers`` are those of the tables.
    Raises ``UserError`` for a ratio out of (0, 1] and for tables without a question in common.
    """
    if not 0 < ratio <= 1:
        raise UserError(
            f"ratio is {ratio:g}: a token of the small model costs more than 0 and at most 1 of"
            " one of the large model"
        )
    left, right = side_by_side([small, large])
    named = np.array(tasks if tasks is not None else ["all"] * len(small), dtype=np.str_)
    return Pair(
        small.take(left),
        large.take(right),
        ratio,
        named[left],
        answers and (answers[0].take(small, left), answers[1].take(large, right)),
    )


def side_by_side(tables: Sequence[TraceTable]) -> list[Ints]:
    """The traces (n,) of each table of the questions that all of them hold, in the first's order.

    Of a question with several traces the first goes with the first, and so on. Raises ``UserError``
    for tables without a question in common.
    """
    places = [_places(table) for table in tables]
    common = [key for key in places[0] if all(key in place for place in places[1:])]
    if not common:
        raise UserError(
            f"the {'two' if len(tables) == 2 else len(tables)} recordings have no question in"
            " common: record all models on the same task with the same --n and --seed"
        )
    return [np.array([place[key] for key in common], dtype=np.int64) for place in places]


def load_pair(small: Path | str, large: Path | str, *, ratio: float) -> Pair:
    """The pair of two folders of traces, the questions' own numbers and the answers included.

    The task of a question is the ``family`` of its ``meta``, where there is one, or its ``task``.
    Raises ``UserError`` as ``pair_tables`` and loading do.
    """
    from rlbudget.traces.store import iter_traces, load_table

    codes: dict[object, int] = {}
    tables, answers, tasks = [], [], list[str]()
    for folder in (small, large):
        tables.append(load_table(folder, context=True))
        traces = list(iter_traces(folder))
        answers.append(answers_of(traces, codes))
        tasks = tasks or [family_of(trace) for trace in traces]
    return pair_tables(
        tables[0], tables[1], ratio=ratio, tasks=tasks, answers=(answers[0], answers[1])
    )


def answers_of(traces: Iterable[Trace], codes: dict[object, int]) -> Answers:
    """What traces answer. ``codes`` numbers the answers, those of several models alike."""
    exits, final = [], []
    for trace in traces:
        exits += [_code(c.exit.answer, trace, codes) for c in trace.checkpoints]
        final.append(_code(trace.final.answer, trace, codes))
    return Answers(np.array(exits, np.int64), np.array(final, np.int64))


def split_pair(pair: Pair, *, seed: int = 0) -> PairSplit:
    """Split by question, as ``split_questions`` splits either table on its own."""
    split = split_questions(pair.small, seed=seed)
    train, validation, held_out = (
        pair.take(np.flatnonzero(np.isin(pair.question_ids, part.question_ids)))
        for part in (split.train, split.validation, split.held_out)
    )
    return PairSplit(train, validation, held_out)


def with_natural_end(table: TraceTable) -> TraceTable:
    """Each trace with its natural end as one checkpoint more, the last.

    A stop there gives the model's own answer. The signal ``natural_end`` is 1 there and 0 before;
    every other signal is missing there, and so is the trial answer.
    """
    n, m = len(table), len(table.thinking_tokens)
    offsets = table.offsets + np.arange(n + 1)
    ends, before = offsets[1:] - 1, np.arange(m) + table.trace_of_row

    def column(values: npt.NDArray[_T], at_end: npt.ArrayLike) -> npt.NDArray[_T]:
        out = np.empty(m + n, dtype=values.dtype)
        out[before], out[ends] = values, at_end
        return out

    signals = {name: column(values, np.nan) for name, values in table.signals.items()}
    signals[NATURAL_END_SIGNAL] = column(np.zeros(m), 1.0)
    return dataclasses.replace(
        table,
        offsets=offsets,
        thinking_tokens=column(table.thinking_tokens, table.final_thinking_tokens),
        exit_exact_match=column(table.exit_exact_match, table.final_exact_match),
        exit_answer_tokens=column(table.exit_answer_tokens, table.final_answer_tokens),
        probe_tokens=column(table.probe_tokens, 0),
        probe_confidence=column(table.probe_confidence, np.nan),
        probe_answer=column(table.probe_answer, -1),
        probe_hedged=column(table.probe_hedged, False),
        signals=signals,
    )


def _places(table: TraceTable) -> dict[tuple[str, int], int]:
    """(question, number of its earlier traces) -> index of the trace."""
    seen: dict[str, int] = {}
    places = {}
    for place, question in enumerate(table.question_ids.tolist()):
        count = seen[question] = seen.get(question, -1) + 1
        places[question, count] = place
    return places


def _code(answer: str, trace: Trace, codes: dict[object, int]) -> int:
    return codes.setdefault(vote_key(answer, scorer_of(trace)), len(codes))
