"""Short versions of ``runs/trust``: mutated files that decide, killed writers, writers at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from runs.trust import crash, fuzz_folders, loads
from runs.trust.killed import outlived

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", [1, 2])
def test_a_mutated_file_is_refused_or_decides_as_before(seed: int) -> None:
    rows, came = fuzz_folders.rows_of(30, 60, seed)
    assert {name: found["faults"] for name, found in came.items()} == {name: {} for name in came}
    assert all(row["met"] for row in rows)


def test_kills_and_writers_at_once_leave_whole_states() -> None:
    rows, came = crash.rows_of(2, 6, 1, trainings=1)
    assert {name: found["faults"] for name, found in came.items()} == {name: {} for name in came}
    assert all(row["met"] for row in rows)


def test_a_policy_is_loaded_whole_while_it_is_overwritten() -> None:
    assert loads.row_of(300)[0]["met"]


def test_a_writer_that_is_not_atomic_would_be_found(tmp_path: Path) -> None:
    place = tmp_path / "kept"

    def torn() -> None:
        for half in ("1", "2"):
            with place.open("a") as file:
                file.write(half)

    assert not outlived(torn, 1)
    assert place.read_text() == "1"
