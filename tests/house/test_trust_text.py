"""Short versions of ``runs/trust``: mutated lines of text files, hostile answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from runs.trust.fuzz_text import rows_of
from runs.trust.hostile_answers import by_scorers, by_verifiers, hostile, watched

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", [1, 2])
def test_mutated_lines_are_refused_by_line_or_counted(seed: int, tmp_path: Path) -> None:
    _, came = rows_of({"logs": 200, "rules": 200, "plans": 200}, seed, tmp_path)
    assert {name: found["faults"] for name, found in came.items()} == {name: {} for name in came}


def test_hostile_answers_take_bounded_time() -> None:
    answers = dict(list(hostile(20_000).items())[::9])
    took, _ = watched(by_scorers(answers))
    assert max(took)[0] < 20  # on a machine that does other work
    took, _ = watched(by_verifiers(answers, ["chain_sum", "complex_arithmetic", "sudoku"]))
    assert max(took)[0] < 20
