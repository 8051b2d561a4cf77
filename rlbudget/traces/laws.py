"""The laws of ``traces.trace.problem_of`` on the columns of a part, all rows at once.

Whoever reads a part checks those of the columns it reads, so nothing that breaks a law is computed
on. A recorded folder knows its stride: there the checkpoints must lie on its grid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from rlbudget.arrays import Bools, Ints
from rlbudget.traces.trace import (
    LARGEST_COUNT,
    LARGEST_SIGNAL,
    id_problem,
    name_problem,
    names_problem,
    signal_problem,
)

SIGNAL = "signal."
"""what the name of a signal's column begins with"""
_IDS = ("trace_id", "question_id")
_NAMES = ("task", "model")
_FILLED = ("question", "target")
_MATCH = ("final_exact_match", "exit_exact_match")
_COUNTS = ("final_thinking_tokens", "final_answer_tokens", "thinking_tokens",
           "exit_answer_tokens", "probe_tokens")  # fmt: skip
_PROBE = ("probe_answer", "probe_confidence", "probe_tokens")


def problem_of_part(part: pa.Table, *, stride: int | None = None) -> str | None:
    """What is wrong with the first trace that breaks a law, which it names; None for none.

    ``stride`` is that of the grid on which the checkpoints lie.
    """
    if not part.num_rows:
        return "it holds no trace"
    flat: dict[str, Any] = {}
    offsets: Ints | None = None
    for name in part.column_names:
        column = part.column(name)
        if column.null_count:
            return f"{name} is missing where a trace must have it"
        if not pa.types.is_list(column.type):
            flat[name] = column.combine_chunks()
            continue
        lists = column.combine_chunks()
        own = lists.offsets.to_numpy().astype(np.int64)
        if offsets is None:
            offsets = own
        elif not np.array_equal(own - own[0], offsets - offsets[0]):
            return f"the lists of {name} have other lengths than those before them"
        flat[name] = lists.flatten()
    at = None if offsets is None else offsets - offsets[0]
    return (
        _problem_of_texts(part)
        or _problem_of_numbers(part, flat, at)
        or _problem_of_places(part, flat, at, stride)
        or _problem_of_probes(part, flat, at)
    )


def _problem_of_texts(part: pa.Table) -> str | None:
    for name in _IDS:
        if name in part.column_names:
            for text in part.column(name).to_pylist():
                if problem := id_problem(name, text):
                    return problem
    for name in _NAMES:
        if name in part.column_names:
            longest = max(part.column(name).to_pylist(), key=len)
            if problem := name_problem(name, longest):
                return problem
    for name in _FILLED:
        if name in part.column_names:
            texts = part.column(name).to_pylist()
            if not all(map(str.strip, texts)):
                row = next(i for i, text in enumerate(texts) if not text.strip())
                return f"{_trace(part, row)}: {name} is empty"
    return None


def _problem_of_numbers(part: pa.Table, flat: dict[str, Any], at: Ints | None) -> str | None:
    signals = (name.removeprefix(SIGNAL) for name in flat if name.startswith(SIGNAL))
    if problem := names_problem(tuple(signals)):
        return problem
    for name, column in flat.items():
        allowed = _range_of(name)
        if allowed is None or (bad := _outside(column, *allowed)) is None:
            continue
        row = int(np.flatnonzero(bad)[0])
        of_points = pa.types.is_list(part.schema.field(name).type)
        where = _trace(part, row, at if of_points else None)
        return f"{where}: {_said(name, column[row].as_py())}"
    return None


def _range_of(name: str) -> tuple[float, float] | None:
    """The least and the most that a column of numbers may hold."""
    if name.startswith(SIGNAL):
        return -LARGEST_SIGNAL, LARGEST_SIGNAL
    if name in _COUNTS:
        return 0, LARGEST_COUNT
    return (0, 1) if name in _MATCH or name == "probe_confidence" else None


def _said(name: str, value: float) -> str:
    if name.startswith(SIGNAL):
        signal = name.removeprefix(SIGNAL)
        return signal_problem(signal, value) or f"signals.{signal} is {value}"
    if name in _COUNTS:
        return f"{name} must be a number of tokens from 0, got {value}"
    wanted = "be 0 or 1" if name in _MATCH else "lie in [0, 1]"
    return f"{name} must {wanted}, got {value}"


def _outside(column: Any, least: float, most: float) -> Bools | None:
    """(k,) which values are not in the range, NaN among them and nulls not; None for none."""
    values = column.drop_null() if column.null_count else column
    numbers = values.to_numpy()
    if not len(numbers) or (numbers.min() >= least and numbers.max() <= most):
        return None
    known = column.is_valid().to_numpy(zero_copy_only=False)
    outside = np.zeros(len(known), dtype=bool)
    outside[known] = ~((numbers >= least) & (numbers <= most))
    return outside


def _problem_of_places(
    part: pa.Table, flat: dict[str, Any], at: Ints | None, stride: int | None
) -> str | None:
    if at is None or "thinking_tokens" not in flat:
        return None
    column = flat["thinking_tokens"]
    if column.null_count:
        return "thinking_tokens is missing at a checkpoint"
    tokens, first = column.to_numpy(), np.zeros(len(column), dtype=bool)
    first[at[:-1][np.diff(at) > 0]] = True
    bad = np.zeros(len(tokens), dtype=bool)
    bad[1:] = tokens[1:] <= tokens[:-1]
    bad &= ~first
    what = "thinking_tokens must increase: {} does not come after the checkpoint before"
    if not bad.any() and "final_thinking_tokens" in flat:
        filled = np.flatnonzero(np.diff(at))
        last = at[1:][filled] - 1
        past = tokens[last] > flat["final_thinking_tokens"].to_numpy()[filled]
        bad[last[past]] = True
        what = "thinking_tokens is {}, past the natural end"
    if stride is not None and not bad.any():
        bad = tokens % stride != 0
        what = f"thinking_tokens is {{}}, not on the grid of every {stride} tokens"
    if not bad.any():
        return None
    row = int(np.flatnonzero(bad)[0])
    return f"{_trace(part, row, at)}: {what.format(tokens[row])}"


def _problem_of_probes(part: pa.Table, flat: dict[str, Any], at: Ints | None) -> str | None:
    """A trial answer is there whole or not at all; everything else is there."""
    missing: Bools | None = None
    for name, column in flat.items():
        if not column.null_count:
            nulls = None
        elif name in _PROBE:
            nulls = column.is_null().to_numpy(zero_copy_only=False)
        elif name.startswith(SIGNAL):
            continue
        else:
            return f"{name} is missing at a checkpoint"
        if name not in _PROBE:
            continue
        nulls = np.zeros(len(column), dtype=bool) if nulls is None else nulls
        if missing is not None and not np.array_equal(missing, nulls):
            row = int(np.flatnonzero(missing != nulls)[0])
            return f"{_trace(part, row, at)}: a trial answer lacks its {name}"
        missing = nulls
    return None


def _trace(part: pa.Table, row: int, at: Ints | None = None) -> str:
    """The trace of a row, or of a row of checkpoints, by its id."""
    index = row if at is None else int(np.searchsorted(at, row, side="right")) - 1
    return f"trace {part.column('trace_id')[index].as_py()!r}"
