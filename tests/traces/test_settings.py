from __future__ import annotations

import json
from pathlib import Path

import pytest
from trace_makers import make_trace

from rlbudget.errors import UserError
from rlbudget.traces.settings import SETTINGS, settings_of
from rlbudget.traces.store import TraceWriter, load_table, load_traces

MADE = settings_of({"kind": "record", "stride": 8, "seed": 0})
OTHER = settings_of({"kind": "record", "stride": 4, "seed": 0})


def write(folder: Path, **options: object) -> None:
    there = len(load_traces(folder)) if list(folder.glob("part-*")) else 0
    with TraceWriter(folder, append=True, **options) as writer:  # type: ignore[arg-type]
        writer.add(make_trace(there))


def test_other_settings_are_refused_with_the_old_and_the_new_value(tmp_path: Path) -> None:
    with TraceWriter(tmp_path, settings=MADE):
        pass
    with pytest.raises(UserError, match="was recorded with stride 8, not 4: record into another"):
        write(tmp_path, settings=OTHER)
    write(tmp_path, settings=MADE)
    assert len(load_traces(tmp_path)) == 1


def test_recorded_and_imported_traces_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path / "recorded", settings=MADE)
    with pytest.raises(UserError, match="holds recorded traces"):
        write(tmp_path / "recorded")
    write(tmp_path / "imported")
    with pytest.raises(UserError, match="do not say what they were recorded with"):
        write(tmp_path / "imported", settings=MADE)


def test_a_part_of_another_recording_is_refused(tmp_path: Path) -> None:
    for name, settings in (("a", MADE), ("b", settings_of({**MADE.values, "seed": 1}))):
        write(tmp_path / name, settings=settings)
    (tmp_path / "a/part-000001.parquet").write_bytes(
        (tmp_path / "b/part-000000.parquet").read_bytes()
    )
    with pytest.raises(UserError, match=r"000001\.parquet was recorded under other settings"):
        load_table(tmp_path / "a")


@pytest.mark.parametrize("damage", ["gone", "changed", "flipped", "empty", "foreign"])
def test_a_damaged_settings_file_is_refused(tmp_path: Path, damage: str) -> None:
    write(tmp_path, settings=MADE)
    file = tmp_path / SETTINGS
    if damage == "gone":
        file.unlink()
    elif damage == "changed":
        file.write_text(file.read_text().replace('"stride": 8', '"stride": 4'))
    elif damage == "flipped":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.write_text("" if damage == "empty" else json.dumps([1]))
    with pytest.raises(UserError, match="settings"):
        load_table(tmp_path)


def test_checkpoints_off_the_grid_of_the_folder_are_refused(tmp_path: Path) -> None:
    with TraceWriter(tmp_path, settings=settings_of({**MADE.values, "stride": 3})) as writer:
        writer.add(make_trace())
    with pytest.raises(UserError, match="trace 't0': thinking_tokens is 8, not on the grid"):
        load_table(tmp_path)
