"""``runs/strategies/ensembles.py`` and the document beside it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from frozen_nets import random_policy
from pair_makers import make_pair
from trace_makers import make_trace

from rlbudget.agents import config
from rlbudget.policy.folder import save_policy
from rlbudget.traces.pairs import load_pair, split_pair
from rlbudget.traces.store import TraceWriter, load_table
from rlbudget.traces.table import split_questions
from runs.strategies import ensembles

ROOT = Path(__file__).parents[2]


def write(folder: Path, numbers: range) -> Path:
    with TraceWriter(folder) as writer:
        for i in numbers:
            writer.add(make_trace(i))
    return folder


def test_each_member_is_split_as_the_pair_is(tmp_path: Path) -> None:
    small, large = write(tmp_path / "a", range(30)), write(tmp_path / "b", range(10, 50))
    folders = ensembles.of_common_questions(small, large, 0.5, tmp_path)
    split = split_pair(load_pair(*folders, ratio=0.5))
    for folder in folders:
        own = split_questions(load_table(folder)).held_out.question_ids
        assert set(own.tolist()) == set(split.held_out.question_ids.tolist())
    assert ensembles.of_common_questions(small, small, 0.5, tmp_path) == (small, small)


@pytest.mark.parametrize(
    ("ratio", "said"), [("0.5", "no question in common"), ("1.5", "at most 1")]
)
def test_a_mistake_is_one_clear_line(
    tmp_path: Path,
    ratio: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small, large = write(tmp_path / "a", range(5)), write(tmp_path / "b", range(5, 9))
    asked = ["ensembles", "--small", str(small), "--large", str(large), "--ratio", ratio]
    monkeypatch.setattr(sys, "argv", asked)
    with pytest.raises(SystemExit) as ended:
        ensembles.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_the_rows_count_prices_and_compare_with_the_best_member() -> None:
    n, prices = 400, [0.01] * 6
    measured = ensembles.Measured()
    right = {"small": 0.4, "large": 0.6, "small, full": 0.3, "large, full": 0.65,
             "meta-model": 0.7, "cascade": 0.7}  # fmt: skip
    for place in range(6):
        measured.escalated[place], measured.times[place] = [0.5], {"before": 1}
        for method, share in right.items():
            given = np.full(n, 0.6 if method == "cascade" and place < 2 else share)
            none = np.zeros(n)
            measured.keep(method, place, ensembles.Outcome(given, none, none, none))
    (meta, cascade), details = ensembles.compared(measured, make_pair(n), prices)
    assert meta["met"]
    assert "+0.1000" in meta["reached"]
    assert cascade["met"]
    assert cascade["reached"].startswith("4 of 6")
    assert "over large, full" in cascade["reached"]
    assert details["prices"][0]["methods"]["large"]["utility"] == pytest.approx(0.6)


def shown(place: int) -> None:
    """Run a block of the document."""
    text = (ROOT / "docs" / "ensembles.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[place]
    exec(compile(code, "ensembles.md", "exec"), {})


def test_what_the_document_shows_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "MOST_STEPS", 4096)  # it is shown, not to be good
    for name in ("small", "large"):
        write(Path("traces") / name, range(12))
    shown(0)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("CascadeDecision(action=")]) == 2
    for seed in range(3):
        save_policy(Path("policies") / str(seed), random_policy(seed=seed))
    shown(1)
