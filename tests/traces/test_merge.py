"""Shards put together: each trace once, nothing of two recordings mixed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from trace_makers import make_trace

from rlbudget.errors import UserError
from rlbudget.traces.merge import merge, shards_of, validate
from rlbudget.traces.settings import Settings, settings_of
from rlbudget.traces.store import TraceWriter, digest, load_traces
from rlbudget.traces.trace import Trace

MADE = settings_of({"kind": "record", "stride": 8})


def trace(i: int) -> Trace:
    return replace(make_trace(i), trace_id=f"t{i}", question_id=f"q{i}")


def store(
    folder: Path, numbers: range, *, settings: Settings = MADE, part_size: int = 4
) -> Path:  # fmt: skip
    with TraceWriter(folder, settings=settings, part_size=part_size) as writer:
        for i in numbers:
            writer.add(trace(i))
    return folder


def test_what_is_merged_is_what_was_recorded_each_trace_once(tmp_path: Path) -> None:
    shards = [store(tmp_path / "a", range(10)), store(tmp_path / "b", range(8, 20))]
    done = merge(shards, tmp_path / "all")
    assert (done.n, done.there, done.twice) == (20, 0, 2)
    assert digest(tmp_path / "all") == digest(store(tmp_path / "whole", range(20)))
    assert len(list((tmp_path / "all").glob("part-*"))) == 1  # small parts are put together


def test_merging_again_adds_what_is_new(tmp_path: Path) -> None:
    first = store(tmp_path / "a", range(10))
    merge([first], tmp_path / "all")
    done = merge([first, store(tmp_path / "b", range(10, 14))], tmp_path / "all")
    assert (done.n, done.there) == (4, 10)
    assert validate([tmp_path / "all"]) == 14


def test_shards_of_different_settings_are_refused_by_name(tmp_path: Path) -> None:
    one = store(tmp_path / "a", range(4))
    other = store(
        tmp_path / "b", range(4, 8), settings=settings_of({"kind": "record", "stride": 4})
    )
    with pytest.raises(UserError, match=r"a was recorded with stride 8, .*b with 4: a policy"):
        merge([one, other], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_imported_traces_that_say_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    for name, stride in (("a", 16), ("b", 8)):
        with TraceWriter(tmp_path / name) as writer:
            made = trace(stride)
            writer.add(replace(made, meta={**made.meta, "stride": stride}))
    with pytest.raises(UserError, match="made with stride 8, those before with 16"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")


def test_two_traces_of_one_id_are_refused(tmp_path: Path) -> None:
    one = store(tmp_path / "a", range(4))
    with TraceWriter(tmp_path / "b", settings=MADE) as writer:
        writer.add(replace(trace(3), target="another"))
    with pytest.raises(UserError, match=r"trace 't3' of .*b is another than that of .*a"):
        merge([one, tmp_path / "b"], tmp_path / "all")


def test_the_shards_of_a_folder_are_found_and_a_missing_one_named(tmp_path: Path) -> None:
    for place in (1, 3):
        store(tmp_path / f"shard-{place:04d}-of-0003", range(place, place + 1))
    with pytest.raises(UserError, match="shard 2/3 is not there"):
        shards_of(tmp_path)
    store(tmp_path / "shard-0002-of-0003", range(2, 3))
    merge(shards_of(tmp_path), tmp_path / "all")
    assert {one.trace_id for one in load_traces(tmp_path / "all")} == {"t1", "t2", "t3"}


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    folder = store(tmp_path / "a", range(8))
    part = folder / "part-000001.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(UserError, match="part-000001"):
        validate([folder])
