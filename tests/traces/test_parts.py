from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trace_makers import make_trace

from rlbudget.errors import UserError
from rlbudget.traces.columns import part_of
from rlbudget.traces.parts import sealed
from rlbudget.traces.store import existing_ids, iter_parts, load_table, load_traces

READERS: tuple[Callable[[Path], Any], ...] = (
    load_traces,
    load_table,
    existing_ids,
    lambda folder: list(iter_parts(folder)),
)


def put(folder: Path, content: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    part = folder / "part-000000.parquet"
    part.write_bytes(content)
    return part


def test_no_changed_bit_of_a_part_is_read(tmp_path: Path) -> None:
    whole = sealed(part_of([make_trace(i) for i in range(2)]))
    for place in range(0, len(whole), max(1, len(whole) // 300)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        put(tmp_path, bytes(changed))
        for read in READERS:
            with pytest.raises(UserError, match="is not a whole part of a trace store"):
                read(tmp_path)


def test_a_part_is_a_parquet_file_that_others_read(tmp_path: Path) -> None:
    part = put(tmp_path, sealed(part_of([make_trace(i) for i in range(3)])))
    assert pq.read_table(part).column("trace_id").to_pylist() == ["t0", "t1", "t2"]


PART = part_of([make_trace(i) for i in range(3)])


def with_column(name: str, values: list[Any], kind: pa.DataType | None = None) -> pa.Table:
    place = PART.schema.get_field_index(name)
    array = pa.array(values, kind or PART.schema.field(name).type)
    return PART.set_column(place, pa.field(name, array.type), array)


def lists(name: str, change: Callable[[list[Any]], list[Any]]) -> pa.Table:
    return with_column(name, [change(values) for values in PART.column(name).to_pylist()])


def renamed(old: str, new: str) -> pa.Table:
    names = [new if name == old else name for name in PART.column_names]
    return PART.rename_columns(names).replace_schema_metadata(PART.schema.metadata)


NAN, INF = float("nan"), float("inf")
BROKEN: dict[str, tuple[pa.Table, str]] = {
    "no trace": (PART.slice(0, 0), "it holds no trace"),
    "a signal renamed": (renamed("signal.entropy_mean", "signal.entropy_meen"), "its signals are"),
    "a signal of a reserved name": (
        part_of([make_trace(0)]).append_column(
            "signal.probe_streak", PART.slice(0, 1).column("signal.entropy_mean")
        ),
        "its signals are not",
    ),
    "a column more": (PART.append_column("extra", pa.array([1, 2, 3])), "it has a column 'extra'"),
    "a column less": (PART.drop_columns(["exit_answer_tokens"]), "exit_answer_tokens is missing"),
    "texts for numbers": (with_column("seed", ["a", "b", "c"], pa.string()), "seed is string"),
    "exact match 7": (with_column("final_exact_match", [1, 7, 0]), "'t1': final_exact_match must"),
    "exit match -1": (lists("exit_exact_match", lambda v: [0, -1, 1]), "'t0': exit_exact_match"),
    "less than no token": (with_column("final_answer_tokens", [1, 2, -9]), "'t2': final_answer_to"),
    "too many tokens": (lists("exit_answer_tokens", lambda v: [2**62] * 3), "exit_answer_tokens"),
    "not in order": (lists("thinking_tokens", lambda v: v[::-1]), "thinking_tokens must increase"),
    "past the end": (lists("thinking_tokens", lambda v: [8, 16, 99]), "'t0': .* past the natural"),
    "a list too short": (lists("exit_answer_tokens", lambda v: v[1:]), "have other lengths"),
    "NaN": (lists("signal.entropy_mean", lambda v: [0, NAN, 0]), "entropy_mean is not finite"),
    "infinite": (lists("signal.entropy_mean", lambda v: [0, 0, INF]), "entropy_mean is not finite"),
    "huge": (lists("signal.entropy_mean", lambda v: [0, -1e39, 0]), "entropy_mean is -1e.39"),
    "confidence 2": (lists("probe_confidence", lambda v: [0, 2, 0]), "probe_confidence must lie"),
    "confidence NaN": (lists("probe_confidence", lambda v: [NAN] * 3), "probe_confidence must lie"),
    "half a probe": (
        lists("probe_tokens", lambda v: [3, None, 3]),
        "trial answer lacks",
    ),
    "no exit": (lists("exit_exact_match", lambda v: [1, None, 0]), "exit_exact_match is missing"),
    "no target": (with_column("target", ["1", None, "2"]), "target is missing"),
    "blank target": (with_column("target", ["1", " ", "2"]), "'t1': target is empty"),
    "blank id": (with_column("question_id", ["1", "", "2"]), "question_id is empty"),
    "long id": (
        with_column("trace_id", ["1", "x" * 10**6, "2"]),
        "1,000,000 characters long",
    ),
    "meta no object": (with_column("meta", ["[]"] * 3), "a meta is no object"),
    "meta NaN": (with_column("meta", ['{"a": NaN}'] * 3), "a meta holds NaN"),
    "meta too deep": (with_column("meta", ["[" * 10**5] * 3), "recursion"),
    "another scorer": (with_column("scorer", ["math"] * 3), "a trace names two scorers"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_part_that_breaks_a_law_is_refused_by_whoever_reads_what_breaks_it(
    tmp_path: Path, name: str
) -> None:
    part, said = BROKEN[name]
    put(tmp_path, sealed(part))
    with pytest.raises(UserError, match=said) as caught:
        load_traces(tmp_path)
    assert "part-000000.parquet" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    unread = name.startswith(("meta", "another scorer")) or "target" in name
    if not unread:
        with pytest.raises(UserError, match=said):
            load_table(tmp_path)


def test_answers_have_one_code_where_their_scorer_says_they_are_equal() -> None:
    from rlbudget.traces.columns import table_of
    from rlbudget.traces.trace import Probe

    trace = make_trace(0, checkpoints=5)
    given = ["7", "x", "7.0", "9", "x"]
    points = tuple(
        dataclasses.replace(point, probe=Probe(answer, 0.5, 3) if answer != "9" else None)
        for point, answer in zip(trace.checkpoints, given, strict=True)
    )
    table = table_of([dataclasses.replace(trace, checkpoints=points), make_trace(1)])
    assert table.probe_answer[:5].tolist() == [0, 1, 0, -1, 1]
    assert table.probe_answer[5:].tolist() == [0, 1, 0]
