"""Traces as arrow columns and back: the layout of a Parquet part.

One row a trace. Columns of checkpoints are lists, all of one length in a row; a missing
probe or signal is a null inside its list. Signals are the columns ``signal.NAME``; a part
has those that occur in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rlbudget.arrays import Bools, Floats, Ints
from rlbudget.signals.questions import context_columns, task_columns
from rlbudget.signals.tokens import hedged
from rlbudget.tasks.scorers import vote_key
from rlbudget.traces.table import TraceTable
from rlbudget.traces.trace import Checkpoint, Exit, Final, Probe, Trace, plain_json, scorer_of

FORMAT_KEY = b"rlbudget.traces"
FORMAT_VERSION = b"1"

_SIGNAL = "signal."
_TRACE_TYPES = {
    "trace_id": pa.string(),
    "question_id": pa.string(),
    "task": pa.string(),
    "question": pa.string(),
    "target": pa.string(),
    "model": pa.string(),
    "seed": pa.int64(),
    "meta": pa.string(),
    "final_answer": pa.string(),
    "final_exact_match": pa.int8(),
    "final_thinking_tokens": pa.int64(),
    "final_answer_tokens": pa.int64(),
    "scorer": pa.string(),
}
_CHECKPOINT_TYPES = {
    "thinking_tokens": pa.int64(),
    "exit_answer": pa.string(),
    "exit_exact_match": pa.int8(),
    "exit_answer_tokens": pa.int64(),
    "probe_answer": pa.string(),
    "probe_confidence": pa.float64(),
    "probe_tokens": pa.int64(),
}


def part_of(traces: Sequence[Trace]) -> pa.Table:
    """The rows of a part."""
    points = [point for trace in traces for point in trace.checkpoints]
    layouts = {tuple(point.signals) for point in points}
    signals = sorted({name for layout in layouts for name in layout})
    probes = [point.probe for point in points]
    per_trace: dict[str, list[Any]] = {
        "trace_id": [t.trace_id for t in traces],
        "question_id": [t.question_id for t in traces],
        "task": [t.task for t in traces],
        "question": [t.question for t in traces],
        "target": [t.target for t in traces],
        "model": [t.model for t in traces],
        "seed": [t.seed for t in traces],
        "meta": [plain_json(t.meta) for t in traces],
        "final_answer": [t.final.answer for t in traces],
        "final_exact_match": [t.final.exact_match for t in traces],
        "final_thinking_tokens": [t.final.thinking_tokens for t in traces],
        "final_answer_tokens": [t.final.answer_tokens for t in traces],
        "scorer": list(map(scorer_of, traces)),
    }
    per_checkpoint: dict[str, Any] = {
        "thinking_tokens": [p.thinking_tokens for p in points],
        "exit_answer": [p.exit.answer for p in points],
        "exit_exact_match": [p.exit.exact_match for p in points],
        "exit_answer_tokens": [p.exit.answer_tokens for p in points],
        "probe_answer": [p and p.answer for p in probes],
        "probe_confidence": [p and p.confidence for p in probes],
        "probe_tokens": [p and p.tokens for p in probes],
    }
    if len(layouts) == 1:  # the same ones everywhere: one array
        values = chain.from_iterable([p.signals.values() for p in points])
        grid = np.fromiter(values, np.float64).reshape(len(points), len(signals))
        for column, name in enumerate(points[0].signals):
            per_checkpoint[_SIGNAL + name] = np.ascontiguousarray(grid[:, column])
    else:
        for name in signals:
            per_checkpoint[_SIGNAL + name] = [p.signals.get(name) for p in points]
    offsets = pa.array(np.cumsum([0, *(len(t.checkpoints) for t in traces)]), pa.int32())
    types = _CHECKPOINT_TYPES | {_SIGNAL + name: pa.float64() for name in signals}
    fields = [pa.field(name, kind, nullable=False) for name, kind in _TRACE_TYPES.items()]
    fields += [pa.field(name, pa.list_(kind), nullable=False) for name, kind in types.items()]
    arrays = [pa.array(per_trace[name], kind) for name, kind in _TRACE_TYPES.items()]
    arrays += [
        pa.ListArray.from_arrays(offsets, pa.array(per_checkpoint[name], kind))
        for name, kind in types.items()
    ]
    schema = pa.schema(fields, metadata={FORMAT_KEY: FORMAT_VERSION})
    return pa.Table.from_arrays(arrays, schema=schema)


def traces_of(part: pa.Table) -> list[Trace]:
    """The traces of a part. Raises ``KeyError`` or ``ValueError`` for another layout."""
    signals = _signals_of(part)
    columns = {name: part.column(name).to_pylist() for name in part.column_names}
    return [
        Trace(
            trace_id=columns["trace_id"][i],
            question_id=columns["question_id"][i],
            task=columns["task"][i],
            question=columns["question"][i],
            target=columns["target"][i],
            model=columns["model"][i],
            seed=columns["seed"][i],
            final=Final(
                answer=columns["final_answer"][i],
                exact_match=columns["final_exact_match"][i],
                thinking_tokens=columns["final_thinking_tokens"][i],
                answer_tokens=columns["final_answer_tokens"][i],
            ),
            checkpoints=_checkpoints({n: c[i] for n, c in columns.items()}, signals),
            meta=json.loads(columns["meta"][i]),
        )
        for i in range(part.num_rows)
    ]


def _checkpoints(row: dict[str, Any], signals: Sequence[str]) -> tuple[Checkpoint, ...]:
    values = zip(*(row[_SIGNAL + name] for name in signals), strict=True)
    bases = zip(*(row[name] for name in _CHECKPOINT_TYPES), strict=True)
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


@dataclass(frozen=True, slots=True)
class PartColumns:
    """A part's numbers: per trace of shape (n,), per checkpoint of shape (m,)."""

    trace_ids: list[str]
    question_ids: list[str]
    lengths: Ints
    per_trace: dict[str, npt.NDArray[Any]]
    per_checkpoint: dict[str, npt.NDArray[Any]]
    signals: dict[str, Floats]


def table_columns(part: pa.Table) -> PartColumns:
    """The numbers of a part, those of the questions where they have been read as well.

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
    signals = {name: _numbers(flat[_SIGNAL + name]) for name in _signals_of(part)}
    if "question" in part.column_names:
        named = zip(part.column("meta").to_pylist(), part.column("task").to_pylist(), strict=True)
        families = [str(json.loads(meta).get("family", task)) for meta, task in named]
        context = context_columns(part.column("question").to_pylist()) | task_columns(families)
        signals |= {name: np.repeat(column, lengths) for name, column in context.items()}
    return PartColumns(
        trace_ids=part.column("trace_id").to_pylist(),
        question_ids=part.column("question_id").to_pylist(),
        lengths=lengths,
        per_trace={
            name: part.column(name).to_numpy()
            for name in ("final_exact_match", "final_thinking_tokens", "final_answer_tokens")
        },
        per_checkpoint={
            **{name: _numbers(flat[name]) for name in _COUNTS},
            "probe_tokens": _numbers(flat["probe_tokens"].fill_null(0)),
            "probe_confidence": _numbers(flat["probe_confidence"]),
            "probe_answer": _answer_codes(flat["probe_answer"], lengths, _scorers(part)),
            "probe_hedged": _hedged(flat["probe_answer"]),
        },
        signals=signals,
    )


_COUNTS = ("thinking_tokens", "exit_exact_match", "exit_answer_tokens")


def table_of_parts(parts: Sequence[PartColumns]) -> TraceTable:
    """Parts, one after the other, as a table."""
    names = sorted({name for part in parts for name in part.signals})
    lengths = np.concatenate([part.lengths for part in parts])

    def traces(name: str, dtype: type) -> npt.NDArray[Any]:
        return np.concatenate([part.per_trace[name] for part in parts]).astype(dtype)

    def checkpoints(name: str, dtype: type) -> npt.NDArray[Any]:
        return np.concatenate([part.per_checkpoint[name] for part in parts]).astype(dtype)

    return TraceTable(
        trace_ids=np.array([i for part in parts for i in part.trace_ids], dtype=np.str_),
        question_ids=np.array([i for part in parts for i in part.question_ids], dtype=np.str_),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        thinking_tokens=checkpoints("thinking_tokens", np.int64),
        exit_exact_match=checkpoints("exit_exact_match", np.float64),
        exit_answer_tokens=checkpoints("exit_answer_tokens", np.int64),
        probe_tokens=checkpoints("probe_tokens", np.int64),
        probe_confidence=checkpoints("probe_confidence", np.float64),
        probe_answer=checkpoints("probe_answer", np.int64),
        probe_hedged=checkpoints("probe_hedged", np.bool_),
        signals={
            name: np.concatenate(
                [part.signals.get(name, np.full(int(part.lengths.sum()), np.nan)) for part in parts]
            ).astype(np.float64)
            for name in names
        },
        final_exact_match=traces("final_exact_match", np.float64),
        final_thinking_tokens=traces("final_thinking_tokens", np.int64),
        final_answer_tokens=traces("final_answer_tokens", np.int64),
    )


def _signals_of(part: pa.Table) -> list[str]:
    return sorted(n.removeprefix(_SIGNAL) for n in part.column_names if n.startswith(_SIGNAL))


def _is_list(part: pa.Table, name: str) -> bool:
    return bool(pa.types.is_list(part.schema.field(name).type))


def _numbers(column: pa.Array) -> npt.NDArray[Any]:
    """Nulls become NaN."""
    numbers: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return numbers


def _hedged(answers: pa.Array) -> Bools:
    """Whether each answer holds a word of doubt; every different answer is looked at once."""
    coded = answers.dictionary_encode()
    found = np.array([hedged(text) for text in coded.dictionary.to_pylist()] + [False])
    indices = coded.indices.fill_null(len(found) - 1).to_numpy(zero_copy_only=False)
    marked: Bools = found[indices.astype(np.int64)]
    return marked


def _scorers(part: pa.Table) -> list[str]:
    """(n,) the scorers whose votes are counted."""
    if "scorer" not in part.column_names:
        return ["auto"] * part.num_rows
    return list(part.column("scorer").to_pylist())


def _answer_codes(answers: pa.Array, lengths: Ints, scorers: Sequence[str]) -> Ints:
    """Answers as codes counted per trace from 0 in order of first use, -1 for none.

    Answers that are one to the trace's scorer have one code.
    """
    codes = np.full(len(answers), -1, dtype=np.int64)
    given = np.flatnonzero(answers.is_valid().to_numpy(zero_copy_only=False))
    if not len(given):
        return codes
    coded = answers.dictionary_encode()
    spelled = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)[given]
    trace = np.repeat(np.arange(len(lengths)), lengths)[given]
    names, scorer = np.unique(np.array(scorers, dtype=object), return_inverse=True)
    texts = coded.dictionary.to_pylist()
    pairs, of_answer = np.unique(scorer[trace] * len(texts) + spelled, return_inverse=True)
    known: dict[object, int] = {}
    kind = np.array(
        [
            known.setdefault((int(pair) // len(texts), vote_key(texts[int(pair) % len(texts)],
                             names[int(pair) // len(texts)])), len(known))
            for pair in pairs
        ]
    )  # fmt: skip
    kinds = kind[of_answer]
    pairs, first, of_pair = np.unique(
        trace * len(known) + kinds, return_index=True, return_inverse=True
    )
    rank = np.empty(len(pairs), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(pairs))
    before = np.searchsorted(np.sort(trace[first]), trace, side="left")
    codes[given] = rank[of_pair] - before
    return codes
