"""Traces as arrow columns and back: the layout of a Parquet part.

One row a trace. Columns of checkpoints are lists, all of one length in a row; a missing
probe or signal is a null inside its list. Signals are the columns ``signal.NAME``; a part
has those that occur in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rlbudget.arrays import Bools, Ints
from rlbudget.signals.questions import context_columns, task_columns
from rlbudget.signals.tokens import hedged
from rlbudget.tasks.scorers import vote_key
from rlbudget.traces.table import TraceTable
from rlbudget.traces.trace import Checkpoint, Exit, Final, Probe, Trace, plain_json, scorer_of

FORMAT_KEY = b"rlbudget.traces"
FORMAT_VERSION = b"1"

_SIGNAL = "signal."
_TRACE_COLUMNS: dict[str, tuple[pa.DataType, Callable[[Trace], Any]]] = {
    **{
        name: (pa.string(), attrgetter(name))
        for name in ("trace_id", "question_id", "task", "question", "target", "model")
    },
    "seed": (pa.int64(), attrgetter("seed")),
    "meta": (pa.string(), lambda trace: plain_json(trace.meta)),
    "final_answer": (pa.string(), attrgetter("final.answer")),
    "final_exact_match": (pa.int8(), attrgetter("final.exact_match")),
    "final_thinking_tokens": (pa.int64(), attrgetter("final.thinking_tokens")),
    "final_answer_tokens": (pa.int64(), attrgetter("final.answer_tokens")),
    "scorer": (pa.string(), scorer_of),
}
_CHECKPOINT_COLUMNS: dict[str, tuple[pa.DataType, Callable[[Checkpoint], Any]]] = {
    "thinking_tokens": (pa.int64(), attrgetter("thinking_tokens")),
    "exit_answer": (pa.string(), attrgetter("exit.answer")),
    "exit_exact_match": (pa.int8(), attrgetter("exit.exact_match")),
    "exit_answer_tokens": (pa.int64(), attrgetter("exit.answer_tokens")),
    "probe_answer": (pa.string(), lambda point: point.probe and point.probe.answer),
    "probe_confidence": (pa.float64(), lambda point: point.probe and point.probe.confidence),
    "probe_tokens": (pa.int64(), lambda point: point.probe and point.probe.tokens),
}


def part_of(traces: Sequence[Trace]) -> pa.Table:
    """The rows of a part."""
    points = [point for trace in traces for point in trace.checkpoints]
    layouts = {tuple(point.signals) for point in points}
    signals: dict[str, Any]
    if len(layouts) == 1:  # the same ones everywhere: one array
        values = chain.from_iterable([point.signals.values() for point in points])
        grid = np.fromiter(values, np.float64).reshape(len(points), -1)
        columns = map(np.ascontiguousarray, grid.T)
        signals = dict(zip(points[0].signals, columns, strict=True))
    else:
        names = {name for layout in layouts for name in layout}
        signals = {name: [point.signals.get(name) for point in points] for name in names}
    offsets = pa.array(np.cumsum([0, *(len(t.checkpoints) for t in traces)]), pa.int32())
    flat = {name: pa.array(list(map(value, points)), kind)
            for name, (kind, value) in _CHECKPOINT_COLUMNS.items()}  # fmt: skip
    flat |= {_SIGNAL + name: pa.array(signals[name], pa.float64()) for name in sorted(signals)}
    arrays = {name: pa.array(list(map(value, traces)), kind)
              for name, (kind, value) in _TRACE_COLUMNS.items()}  # fmt: skip
    arrays |= {name: pa.ListArray.from_arrays(offsets, column) for name, column in flat.items()}
    fields = [pa.field(name, array.type, nullable=False) for name, array in arrays.items()]
    schema = pa.schema(fields, metadata={FORMAT_KEY: FORMAT_VERSION})
    return pa.Table.from_arrays(list(arrays.values()), schema=schema)


def traces_of(part: pa.Table) -> list[Trace]:
    """The traces of a part. Raises ``KeyError`` or ``ValueError`` for another layout."""
    signals = _signals_of(part)
    return [
        Trace(
            **{name: row[name] for name in _TEXTS_AND_SEED},
            final=Final(
                answer=row["final_answer"],
                exact_match=row["final_exact_match"],
                thinking_tokens=row["final_thinking_tokens"],
                answer_tokens=row["final_answer_tokens"],
            ),
            checkpoints=_checkpoints(row, signals),
            meta=json.loads(row["meta"]),
        )
        for row in part.to_pylist()
    ]


_TEXTS_AND_SEED = ("trace_id", "question_id", "task", "question", "target", "model", "seed")


def _checkpoints(row: dict[str, Any], signals: Sequence[str]) -> tuple[Checkpoint, ...]:
    bases = zip(*(row[name] for name in _CHECKPOINT_COLUMNS), strict=True)
    values = zip(*(row[_SIGNAL + name] for name in signals), strict=True)
    measured = values if signals else (() for _ in row["thinking_tokens"])
    return tuple(
        Checkpoint(
            thinking_tokens=tokens,
            signals={n: v for n, v in zip(signals, point, strict=True) if v is not None},
            exit=Exit(answer=answer, exact_match=match, answer_tokens=answer_tokens),
            probe=None if trial is None else Probe(trial, confidence, trial_tokens),
        )
        for (tokens, answer, match, answer_tokens, trial, confidence, trial_tokens), point in zip(
            bases, measured, strict=True
        )
    )


def table_of(traces: Sequence[Trace], *, context: bool = False) -> TraceTable:
    """Traces as columns, in their order; ``context`` adds the signals of the question and of its
    task."""  # fmt: skip
    part = part_of(traces)
    return table_of_part(part if context else part.drop_columns(["question"]))


def table_of_part(part: pa.Table) -> TraceTable:
    """The numbers of a part, with the signals of the questions where it has their texts.

    Raises ``KeyError`` or ``ValueError`` for another layout.
    """
    lists = {n: part.column(n).combine_chunks() for n in part.column_names if _is_list(part, n)}
    offsets = lists["thinking_tokens"].offsets.to_numpy()
    lengths = np.diff(offsets).astype(np.int64)
    flat = {}
    for name, column in lists.items():
        if not np.array_equal(np.diff(column.offsets.to_numpy()), lengths):
            raise ValueError(f"column {name} does not fit its neighbours")
        flat[name] = column.flatten()
    signals = {name: _numbers(flat[_SIGNAL + name], np.float64) for name in _signals_of(part)}
    if "question" in part.column_names:
        named = zip(part.column("meta").to_pylist(), part.column("task").to_pylist(), strict=True)
        families = [str(json.loads(meta).get("family", task)) for meta, task in named]
        context = context_columns(part.column("question").to_pylist()) | task_columns(families)
        signals |= {name: np.repeat(column, lengths) for name, column in context.items()}
    return TraceTable(
        trace_ids=np.array(part.column("trace_id").to_pylist(), dtype=np.str_),
        question_ids=np.array(part.column("question_id").to_pylist(), dtype=np.str_),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        thinking_tokens=_numbers(flat["thinking_tokens"], np.int64),
        exit_exact_match=_numbers(flat["exit_exact_match"], np.float64),
        exit_answer_tokens=_numbers(flat["exit_answer_tokens"], np.int64),
        probe_tokens=_numbers(flat["probe_tokens"].fill_null(0), np.int64),
        probe_confidence=_numbers(flat["probe_confidence"], np.float64),
        probe_answer=_answer_codes(part),
        probe_hedged=_hedged(flat["probe_answer"]),
        signals=signals,
        final_exact_match=_numbers(part.column("final_exact_match"), np.float64),
        final_thinking_tokens=_numbers(part.column("final_thinking_tokens"), np.int64),
        final_answer_tokens=_numbers(part.column("final_answer_tokens"), np.int64),
    )


def _signals_of(part: pa.Table) -> list[str]:
    return sorted(n.removeprefix(_SIGNAL) for n in part.column_names if n.startswith(_SIGNAL))


def _is_list(part: pa.Table, name: str) -> bool:
    return bool(pa.types.is_list(part.schema.field(name).type))


def _numbers(column: Any, dtype: type) -> npt.NDArray[Any]:
    """Nulls become NaN."""
    values = column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(False)
    return np.asarray(values, dtype=dtype)


def _hedged(answers: pa.Array) -> Bools:
    """(m,) whether each answer holds a word of doubt; each distinct answer is checked once."""
    coded = answers.dictionary_encode()
    found = np.array([hedged(text) for text in coded.dictionary.to_pylist()] + [False])
    indices = coded.indices.fill_null(len(found) - 1).to_numpy(zero_copy_only=False)
    marked: Bools = found[indices.astype(np.int64)]
    return marked


def _answer_codes(part: pa.Table) -> Ints:
    """Trial answers as codes counted per trace from 0 in order of first use, -1 for none.

    Answers that are equal under the trace's scorer have one code.
    """
    named = "scorer" in part.column_names
    scorers = part.column("scorer").to_pylist() if named else ["auto"] * part.num_rows
    keys: dict[tuple[str, str], Hashable] = {}
    codes: list[int] = []
    for scorer, answers in zip(scorers, part.column("probe_answer").to_pylist(), strict=True):
        known: dict[Hashable, int] = {}
        for answer in answers:
            if answer is None:
                codes.append(-1)
                continue
            if (answer, scorer) not in keys:
                keys[answer, scorer] = vote_key(answer, scorer)
            codes.append(known.setdefault(keys[answer, scorer], len(known)))
    return np.array(codes, dtype=np.int64)
