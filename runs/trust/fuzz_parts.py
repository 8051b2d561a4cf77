"""Changed stores of traces: refused, or read as they were; never otherwise, never a traceback.

    python -m runs.trust.fuzz_parts [--n N] [--structured N]

Bytes: ``--n`` mutations of each kind of file (a recorded part, its settings, a part of samples, a
part of a second model), read by every reader, a pair by ``load_pair``. Structures: ``--structured``
parts of wrong columns, types, lengths and values whose digest is made right again; one that is
taken must keep the laws of a trace. Fewer than the default are a rehearsal: nothing is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rlbudget.errors import UserError
from rlbudget.traces.columns import part_of, table_of
from rlbudget.traces.pairs import load_pair
from rlbudget.traces.parts import sealed
from rlbudget.traces.samples import Sample, Sampled, traces_of_samples
from rlbudget.traces.settings import SETTINGS, settings_of
from rlbudget.traces.store import TraceWriter, digest, existing_ids, load_table, load_traces
from rlbudget.traces.table import TraceTable
from rlbudget.traces.trace import Checkpoint, Exit, Final, Probe, Trace, problem_of
from runs.common import row, write_part

N, STRUCTURED = 500, 900
PART = "part-000000.parquet"
MADE = settings_of({"kind": "record", "model": "m", "seed": 0, "stride": 8, "temperature": 0.5})


def trace_of(number: int, rng: random.Random, model: str = "m") -> Trace:
    """A trace of up to nine checkpoints on a grid of 8 tokens."""
    n = rng.randrange(10)
    points = tuple(
        Checkpoint(
            8 * place + 8,
            {"entropy_mean": rng.random(), "margin_mean": rng.gauss(0, 3)},
            Exit(str(rng.randrange(4)), rng.randrange(2), rng.randrange(1, 9)),
            Probe(str(rng.randrange(4)), rng.random(), 3) if number % 3 else None,
        )
        for place in range(n)
    )
    return Trace(
        trace_id=f"q{number}-s0", question_id=f"q{number}", task="made", question=f"What {number}?",
        target="1", model=model, seed=0, final=Final("1", rng.randrange(2), 8 * n + 9, 4),
        checkpoints=points, meta={"stride": 8, "family": "even" if number % 2 else "odd"},
    )  # fmt: skip


def stores(folder: Path) -> dict[str, tuple[Path, str]]:
    """Kind -> the folder and the file in it that is changed."""
    rng = random.Random(0)
    with TraceWriter(folder / "recorded", settings=MADE) as writer:
        for number in range(40):
            writer.add(trace_of(number, rng))
    with TraceWriter(folder / "large") as writer:
        for number in range(40):
            writer.add(trace_of(number, rng, "large"))
    with TraceWriter(folder / "samples") as writer:
        for number in range(3):
            drawn = tuple(Sample(str(rng.randrange(3)), rng.randrange(2), 7) for _ in range(6))
            for trace in traces_of_samples(Sampled(f"q{number}", "t", "?", "1", "m", drawn)):
                writer.add(trace)
    return {
        "part": (folder / "recorded", PART),
        "settings file": (folder / "recorded", SETTINGS),
        "samples": (folder / "samples", PART),
        "pair": (folder / "large", PART),
    }


def flat(value: Any) -> Any:
    """Something that is equal where two readings are."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: flat(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.tolist() if value.dtype.kind != "f" else value.tobytes())
    if isinstance(value, dict):
        return {name: flat(one) for name, one in value.items()}
    return [flat(one) for one in value] if isinstance(value, list | tuple) else value


READERS: dict[str, Callable[[Path], Any]] = {
    "load_traces": load_traces,
    "load_table": lambda folder: load_table(folder, context=True),
    "existing_ids": existing_ids,
    "digest": digest,
}


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A file with some bytes changed, lost or more."""
    changed, kind = bytearray(content), rng.randrange(7)
    footer = int.from_bytes(content[-8:-4], "little") + 8 if content[-4:] == b"PAR1" else 64
    at = rng.randrange(len(changed))
    near = len(changed) - rng.randrange(1, min(footer, len(changed)))
    if kind == 0:
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del changed[at:]
    elif kind == 2:
        changed[near] ^= 1 << rng.randrange(8)
    elif kind == 3:
        changed[near] = rng.randrange(256)
    elif kind == 4:
        changed[at : at + rng.randrange(1, 2000)] = bytes(rng.randrange(10))
    elif kind == 5:
        more = rng.randrange(1, 300)
        changed[at : at + more] = rng.randbytes(more)
    else:
        more = rng.randrange(1, 9)
        changed[near : near + more] = rng.randbytes(more)
    return bytes(changed)


def outcome(read: Callable[[], Any], before: Any) -> str:
    """What became of a reading."""
    try:
        found = flat(read())
    except UserError as error:
        return "refused" if "\n" not in str(error) else "several lines"
    except Exception as error:
        print(f"{type(error).__name__}: {error}"[:300], file=sys.stderr)
        return "traceback"
    return "same" if found == before else "different"


def bytes_of(folder: Path, n: int) -> dict[str, Counter[str]]:
    """Kind of file -> what became of its readings."""
    rng, counts = random.Random(1), {}
    small = folder / "recorded"
    for kind, (store, name) in stores(folder).items():
        readers = dict(READERS)
        if kind == "pair":
            readers["load_pair"] = lambda store: load_pair(small, store, ratio=0.5)
        before = {reader: flat(read(store)) for reader, read in readers.items()}
        whole = (store / name).read_bytes()
        counts[kind] = Counter[str]()
        for _ in range(n):
            content = mutated(whole, rng)
            (store / name).write_bytes(content)
            for reader, read in readers.items():
                counts[kind][outcome(partial(read, store), before[reader])] += 1
        (store / name).write_bytes(whole)
    return counts


VALUES: dict[str, list[Any]] = {
    "float": [float("nan"), float("inf"), -float("inf"), 1e39, -1e308, -5.0, 2.0, 0.5, 1e-320],
    "int": [-1, 0, 1, 2, 7, -(2**31), 2**31, 2**62, 10**12, 10**13],
    "text": ["", " ", "\0", "x" * 300, "x" * 10**6, "\u2028", "[]", "{}", "null", "{",
             '{"a": NaN}', "[" * 5000, '{"family": {"a": 1}}', '{"scorer": 5}',
             '{"family": "' + "y" * 5000 + '"}'],
}  # fmt: skip
NAMES = ["signal.", "signal.a.b", "signal.probe_streak", "signal.thinking_tokens", "extra",
         "signal.entropy_meen", "signal." + "x" * 500, "trace_id", "thinking_token"]  # fmt: skip
KINDS = [pa.string(), pa.large_string(), pa.int8(), pa.int32(), pa.uint64(), pa.float32(),
         pa.float64(), pa.bool_(), pa.binary()]  # fmt: skip


def restructured(part: pa.Table, rng: random.Random) -> pa.Table:
    """A part with one wrong column, value, type, length or name."""
    place = rng.randrange(part.num_columns)
    name, column = part.column_names[place], part.column(place)
    kind = column.type
    listed = pa.types.is_list(kind)
    inner = kind.value_type if listed else kind
    values = column.to_pylist()
    what = rng.randrange(10)

    def put(array: Any) -> pa.Table:
        changed = part.set_column(place, pa.field(name, array.type), array)
        return changed.replace_schema_metadata(part.schema.metadata)

    if what < 4:
        pool = VALUES["text" if pa.types.is_string(inner) else
                      "float" if pa.types.is_floating(inner) else "int"]  # fmt: skip
        value = rng.choice([*pool, None])
        if not listed:
            rows = range(len(values)) if rng.random() < 0.3 else [rng.randrange(len(values))]
            for one in rows:
                values[one] = value
        elif filled := [one for one in values if one]:
            one = rng.choice(filled)
            one[rng.randrange(len(one))] = value
        try:
            return put(pa.array(values, kind))
        except (pa.ArrowException, OverflowError, ValueError):
            return restructured(part, rng)
    if what == 4 and listed:
        way = rng.randrange(4)
        return put(pa.array([[v[:-1], v[::-1], v + v[:1], []][way] for v in values], kind))
    if what == 5:
        other = rng.choice(KINDS)
        made = pa.array([None] * len(values), pa.list_(other) if rng.random() < 0.5 else other)
        return put(made)
    if what == 6:
        return part.drop_columns([name])
    if what == 7:
        names = list(part.column_names)
        names[place] = rng.choice(NAMES)
        return part.rename_columns(names).replace_schema_metadata(part.schema.metadata)
    if what == 8:
        more = part.append_column(rng.choice(NAMES), column)
        return more.replace_schema_metadata(part.schema.metadata)
    if what == 9:
        metadata: dict[bytes, bytes] = {**part.schema.metadata}
        metadata[rng.choice(list(metadata))] = rng.choice(
            [b"", b"1", b"[]", b"\xff", b"{", b"null"]
        )
        return part.replace_schema_metadata(metadata)
    return part.slice(0, rng.randrange(2))


def measured(table: TraceTable) -> Any:
    """A table without the signals that are nowhere measured."""
    known = {name: one for name, one in table.signals.items() if not np.isnan(one).all()}
    return flat(dataclasses.replace(table, signals=known))


def structured(folder: Path, n: int) -> Counter[str]:
    """What became of parts whose structure is wrong and whose digest is right."""
    rng, counts = random.Random(2), Counter[str]()
    store = folder / "structured"
    with TraceWriter(store, settings=MADE):
        pass
    part = part_of([trace_of(k, rng) for k in range(12)], settings=MADE.digest)
    for _ in range(n):
        shutil.rmtree(store / PART, ignore_errors=True)
        (store / PART).write_bytes(sealed(restructured(part, rng)))
        for reader in (load_traces, lambda one: load_table(one, context=True), existing_ids):
            try:
                found: Any = reader(store)
            except UserError as error:
                counts["refused" if "\n" not in str(error) else "several lines"] += 1
                continue
            except Exception as error:
                print(f"{type(error).__name__}: {error}"[:300], file=sys.stderr)
                counts["traceback"] += 1
                continue
            lawful = True
            if reader is load_traces:
                lawful = not any(map(problem_of, found))
                if lawful:
                    stride = all(c.thinking_tokens % 8 == 0 for t in found for c in t.checkpoints)
                    lawful = stride and measured(load_table(store)) == measured(table_of(found))
            counts["taken, all laws kept" if lawful else "taken against a law"] += 1
    return counts


def main() -> None:
    """Attack."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=N)
    parser.add_argument("--structured", type=int, default=STRUCTURED)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        by_kind = bytes_of(Path(scratch), given.n)
        parts = structured(Path(scratch), given.structured)
    rows = []
    for kind, counts in by_kind.items():
        wrong = {name: counts[name] for name in ("different", "traceback", "several lines")}
        rows.append(
            row(
                f"store of traces, bytes ({kind}): {given.n} mutations",
                "0 silent differences, 0 tracebacks",
                f"{wrong['different']} differences, {wrong['traceback']} tracebacks"
                f" ({counts['refused']} readings refused)",
                not any(wrong.values()),
            )
        )
    wrong = {name: parts[name] for name in ("taken against a law", "traceback", "several lines")}
    rows.append(
        row(
            f"store of traces, structures with the digest made right: {given.structured} mutations",
            "0 taken against a law, 0 tracebacks",
            f"{wrong['taken against a law']} taken, {wrong['traceback']} tracebacks"
            f" ({parts['refused']} readings refused, {parts['taken, all laws kept']} lawful)",
            not any(wrong.values()),
        )
    )
    counted = {
        **{kind: dict(counts) for kind, counts in by_kind.items()},
        "structures": dict(parts),
    }
    if given.n >= N and given.structured >= STRUCTURED:
        write_part("fuzz", "parts", rows, counted=counted, seeds=[0, 1, 2])
    else:
        print(rows, counted)
    sys.exit(0 if all(one["met"] for one in rows) else 1)


if __name__ == "__main__":
    main()
