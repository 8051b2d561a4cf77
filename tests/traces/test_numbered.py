from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trace_makers import make_trace

from rlbudget.errors import UserError
from rlbudget.traces.merge import merge, validate
from rlbudget.traces.numbered import COUNT
from rlbudget.traces.settings import settings_of
from rlbudget.traces.store import (
    TraceWriter,
    digest,
    existing_ids,
    iter_parts,
    load_table,
    load_traces,
)

READERS: tuple[Callable[[Path], Any], ...] = (
    load_traces,
    load_table,
    digest,
    lambda folder: list(iter_parts(folder)),
    lambda folder: validate([folder]),
)
MADE = settings_of({"kind": "record", "stride": 8, "seed": 0})


def store(folder: Path, numbers: range, *, append: bool = False, part_size: int = 2) -> Path:
    """Small parts; what is there already is passed over."""
    with TraceWriter(folder, append=append, settings=MADE, part_size=part_size) as writer:
        for number in numbers:
            if f"t{number}" not in writer.ids:
                writer.add(make_trace(number))
    return folder


def part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.parquet"


def refused(folder: Path, number: int) -> None:
    for read in READERS:
        with pytest.raises(UserError, match=rf"part-00000{number}\.parquet is missing.*--resume"):
            read(folder)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_part_that_was_deleted_is_named(tmp_path: Path, number: int) -> None:
    folder = store(tmp_path / "a", range(8))
    part(folder, number).unlink()
    refused(folder, number)
    with pytest.raises(UserError, match="is missing"):
        merge([folder, store(tmp_path / "b", range(8, 10))], tmp_path / "all")


def test_all_parts_that_were_deleted_are_missed(tmp_path: Path) -> None:
    folder = store(tmp_path, range(4))
    for number in (0, 1):
        part(folder, number).unlink()
    refused(folder, 0)


@pytest.mark.parametrize("number", [0, 1])
def test_in_a_recording_that_was_killed_any_but_the_last_is_missed(
    tmp_path: Path, number: int
) -> None:
    folder = store(tmp_path, range(6))
    (folder / COUNT).unlink()  # written when the folder is closed
    assert len(load_traces(folder)) == 6
    part(folder, number).unlink()
    refused(folder, number)


def test_a_folder_that_is_being_written_is_read_and_a_part_of_it_missed(tmp_path: Path) -> None:
    folder = store(tmp_path, range(4))
    with TraceWriter(folder, append=True, settings=MADE, part_size=2) as writer:
        for number in range(4, 8):
            writer.add(make_trace(number))
        assert len(load_traces(folder)) == 8
        content = part(folder, 2).read_bytes()
        part(folder, 2).unlink()
        refused(folder, 2)
        part(folder, 2).write_bytes(content)
    part(folder, 3).unlink()
    refused(folder, 3)


@pytest.mark.parametrize("gone", [(0,), (3,), (0, 2), (1, 2, 3)])
def test_who_goes_on_makes_the_missing_traces_again(tmp_path: Path, gone: tuple[int, ...]) -> None:
    folder, whole = store(tmp_path / "a", range(7)), store(tmp_path / "whole", range(7))
    for number in gone:
        part(folder, number).unlink()
    store(folder, range(7), append=True)
    assert digest(folder) == digest(whole)
    assert existing_ids(folder) == {f"t{i}" for i in range(7)}
    last = len(list(folder.glob("part-*"))) - 1
    part(folder, last).unlink()
    refused(folder, last)


def test_a_merged_folder_that_lost_a_part_is_merged_again(tmp_path: Path) -> None:
    shards = [store(tmp_path / name, numbers, part_size=100) for name, numbers in
              (("a", range(300)), ("b", range(300, 600)))]  # fmt: skip
    merge(shards, tmp_path / "all")
    before = digest(tmp_path / "all")
    part(tmp_path / "all", 1).unlink()
    refused(tmp_path / "all", 1)
    merge(shards, tmp_path / "all")
    assert digest(tmp_path / "all") == before


@pytest.mark.parametrize("content", [b"", b"3", b"-1\n", b"three\n", b"3\n" * 100])
def test_a_damaged_count_is_named(tmp_path: Path, content: bytes) -> None:
    store(tmp_path, range(4))
    (tmp_path / COUNT).write_bytes(content)
    with pytest.raises(UserError, match=r"_parts is damaged.*delete it"):
        load_traces(tmp_path)
    (tmp_path / COUNT).unlink()
    assert len(load_traces(tmp_path)) == 4
