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
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rlbudget.arrays import Bools, Ints
from rlbudget.signals.questions import context_columns, task_columns
from rlbudget.signals.tokens import hedged
from rlbudget.tasks.scorers import vote_key
from rlbudget.traces.laws import SIGNAL
from rlbudget.traces.table import TraceTable
from rlbudget.traces.trace import (
    Checkpoint,
    Exit,
    Final,
    Probe,
    Trace,
    family_problem,
    plain_json,
    scorer_of,
)

FORMAT_KEY = b"rlbudget.traces"
FORMAT_VERSION = b"2"
SETTINGS_KEY = b"rlbudget.settings"
"""what a part says of the settings of its folder: their digest, empty where it has none"""
_SIGNALS_KEY = b"rlbudget.signals"
"""what a part says of its signals: a JSON list of their names"""
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


_TYPES = {name: kind for name, (kind, _) in _TRACE_COLUMNS.items()} | {
    name: pa.list_(kind) for name, (kind, _) in _CHECKPOINT_COLUMNS.items()
}
_MEASURED = pa.list_(pa.float64())


def part_of(traces: Sequence[Trace], *, settings: str = "") -> pa.Table:
    """The rows of a part; ``settings`` is the digest of those of its folder."""
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
    flat |= {SIGNAL + name: pa.array(signals[name], pa.float64()) for name in sorted(signals)}
    arrays = {name: pa.array(list(map(value, traces)), kind)
              for name, (kind, value) in _TRACE_COLUMNS.items()}  # fmt: skip
    arrays |= {name: pa.ListArray.from_arrays(offsets, column) for name, column in flat.items()}
    fields = [pa.field(name, array.type, nullable=False) for name, array in arrays.items()]
    metadata = {
        FORMAT_KEY: FORMAT_VERSION,
        SETTINGS_KEY: settings.encode(),
        _SIGNALS_KEY: json.dumps(sorted(signals)).encode(),
    }
    schema = pa.schema(fields, metadata=metadata)
    return pa.Table.from_arrays(list(arrays.values()), schema=schema)


def layout_problem(schema: pa.Schema) -> str | None:
    """What a part's columns lack, have too much or of another type, or None."""
    names, signals = schema.names, []
    if len(set(names)) < len(names):
        return "it has two columns of one name"
    for name in names:
        if name.startswith(SIGNAL):
            signals.append(name.removeprefix(SIGNAL))
        elif name not in _TYPES:
            return f"it has a column {name!r:.80}"
    for name, kind in [*_TYPES.items(), *((SIGNAL + name, _MEASURED) for name in signals)]:
        if name not in names:
            return f"its column {name} is missing"
        if (found := schema.field(name).type) != kind:
            return f"its column {name} is {found}, not {kind}"
    said = json.loads(schema.metadata.get(_SIGNALS_KEY, b"null"))
    if said != sorted(signals):
        return "its signals are not those that it says it has"
    return None


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
            meta=_meta_of(row),
        )
        for row in part.to_pylist()
    ]


def meta_of(text: str) -> dict[str, Any]:
    """The ``meta`` of a trace from its column; ``ValueError`` for what is no JSON object."""
    meta = json.loads(text, parse_constant=_no_number)
    if not isinstance(meta, dict):
        raise ValueError("a meta is no object")
    if problem := family_problem(meta):
        raise ValueError(problem)
    return meta


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"a meta holds {name}")


def _meta_of(row: dict[str, Any]) -> dict[str, Any]:
    meta = meta_of(row["meta"])
    if str(meta.get("scorer", "auto")) != row["scorer"]:
        raise ValueError("a trace names two scorers")
    return meta


_TEXTS_AND_SEED = ("trace_id", "question_id", "task", "question", "target", "model", "seed")


def _checkpoints(row: dict[str, Any], signals: Sequence[str]) -> tuple[Checkpoint, ...]:
    bases = zip(*(row[name] for name in _CHECKPOINT_COLUMNS), strict=True)
    values = zip(*(row[SIGNAL + name] for name in signals), strict=True)
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
    signals = {name: _numbers(flat[SIGNAL + name], np.float64) for name in _signals_of(part)}
    if "question" in part.column_names:
        named = zip(part.column("meta").to_pylist(), part.column("task").to_pylist(), strict=True)
        families = [str(meta_of(meta).get("family", task)) for meta, task in named]
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
    return sorted(n.removeprefix(SIGNAL) for n in part.column_names if n.startswith(SIGNAL))


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
    answers = part.column("probe_answer").combine_chunks()
    lengths = np.diff(answers.offsets.to_numpy())
    texts = answers.flatten().dictionary_encode()
    spelled = texts.indices.fill_null(len(texts.dictionary)).to_numpy().astype(np.int64)
    named = "scorer" in part.column_names
    scorers = part.column("scorer").to_pylist() if named else ["auto"] * part.num_rows
    numbers: dict[str, int] = {}
    scorer = np.repeat([numbers.setdefault(name, len(numbers)) for name in scorers], lengths)
    keys = _keys(texts.dictionary.to_pylist(), scorer, spelled, list(numbers))
    trace = np.repeat(np.arange(part.num_rows), lengths)
    given = np.flatnonzero(keys >= 0)
    # Each (trace, key) once, by its first row; those of a trace are then counted in this order.
    wide = int(keys.max(initial=0)) + 1
    _, first, which = np.unique(
        trace[given] * wide + keys[given], return_index=True, return_inverse=True
    )
    order = np.argsort(first)
    of_trace = trace[given][first[order]]
    begins = np.searchsorted(of_trace, of_trace)
    count = np.empty(len(order), dtype=np.int64)
    count[order] = np.arange(len(order)) - begins
    codes = np.full(len(keys), -1, dtype=np.int64)
    codes[given] = count[which]
    return codes


def _keys(texts: list[str], scorer: Ints, spelled: Ints, scorers: list[str]) -> Ints:
    """(m,) a number that answers share which are equal under their scorer, -1 for none."""
    known: dict[tuple[str, Hashable], int] = {}
    keys = np.full(len(spelled), -1, dtype=np.int64)
    for number, name in enumerate(scorers):
        rows = scorer == number
        used = np.unique(spelled[rows])
        of_text = np.full(len(texts) + 1, -1, dtype=np.int64)
        for text in used[used < len(texts)].tolist():
            of_text[text] = known.setdefault((name, vote_key(texts[text], name)), len(known))
        keys[rows] = of_text[spelled[rows]]
    return keys
