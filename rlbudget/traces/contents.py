"""What a trace holds as a hash, from the columns of its part.

Equal for equal traces, in whichever part and order they stand: a signal that a trace has nowhere
is left out, whether its part has a column for it or not, and ``meta`` counts as the object it is.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlbudget.arrays import Bools, Floats, Ints
from rlbudget.traces.columns import meta_of
from rlbudget.traces.laws import SIGNAL

_TRACE = ("trace_id", "question_id", "task", "question", "target", "model", "seed", "final_answer",
          "final_exact_match", "final_thinking_tokens", "final_answer_tokens")  # fmt: skip
_COUNTS = ("thinking_tokens", "exit_exact_match", "exit_answer_tokens", "probe_tokens",
           "probe_confidence")  # fmt: skip
_TEXTS = ("exit_answer", "probe_answer")
_NONE = -1
"""stands for what a checkpoint without a trial answer lacks"""


def digests_of(part: pa.Table) -> list[bytes]:
    """sha256 of each trace of a whole part; ``ValueError`` for a ``meta`` that is no JSON."""
    signals = sorted(name for name in part.column_names if name.startswith(SIGNAL))
    lists = {n: part.column(n).combine_chunks() for n in (*_COUNTS, *_TEXTS, *signals)}
    offsets = lists[_COUNTS[0]].offsets.to_numpy().astype(np.int64)
    at = (offsets - offsets[0]).tolist()
    flat = {name: column.flatten() for name, column in lists.items()}
    texts = [_bytes_of(flat[name]) for name in _TEXTS]
    columns = [_floats(flat[name].fill_null(_NONE)) for name in _COUNTS]
    columns += [_floats(pc.binary_length(flat[name]).fill_null(_NONE)) for name in _TEXTS]
    columns += [_floats(flat[name]) for name in signals]
    grid = np.ascontiguousarray(np.stack(columns, axis=1))
    held = _held(grid[:, len(columns) - len(signals) :], offsets - offsets[0])
    every = np.ones(len(columns) - len(signals), dtype=bool)
    heads = zip(*(part.column(name).to_pylist() for name in _TRACE), strict=True)
    found = []
    for row, (head, meta) in enumerate(zip(heads, part.column("meta").to_pylist(), strict=True)):
        first, last = at[row], at[row + 1]
        names = [name for name, there in zip(signals, held[row].tolist(), strict=True) if there]
        said = json.dumps([*head, _plain(meta), last - first, names])
        whole = hashlib.sha256(said.encode(errors="surrogatepass"))
        numbers = grid[first:last]
        if len(names) < len(signals):
            numbers = np.ascontiguousarray(numbers[:, np.concatenate([every, held[row]])])
        whole.update(numbers.data)
        for places, content in texts:
            whole.update(content[places[first] : places[last]])
        found.append(whole.digest())
    return found


@lru_cache(maxsize=4096)
def _plain(meta: str) -> str:
    return json.dumps(meta_of(meta), sort_keys=True)


def _floats(column: pa.Array) -> Floats:
    """Nulls become NaN. Counts are below 2^53."""
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def _held(signals: Floats, at: Ints) -> Bools:
    """(n, signals) whether a trace has a value of each signal."""
    known = np.cumsum(~np.isnan(signals), axis=0, dtype=np.int64)
    before = np.concatenate([np.zeros((1, signals.shape[1]), dtype=np.int64), known])
    held: Bools = before[at[1:]] > before[at[:-1]]
    return held


def _bytes_of(texts: pa.Array) -> tuple[list[int], Any]:
    """Where each text begins, the end of the last one too, and the bytes of all."""
    _, places, content = texts.buffers()
    first = np.frombuffer(places, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return first.tolist() or [0], memoryview(content or b"")
