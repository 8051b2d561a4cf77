"""``runs/strategies/second_model.py`` and the document beside it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from frozen_nets import random_policy
from pair_makers import make_together
from trace_makers import make_trace

from rlbudget.agents import config
from rlbudget.policy.folder import save_policy
from rlbudget.policy.outcomes import Outcome
from rlbudget.strategies.correction.correct import OFF, Corrected, Correction, Refiner
from rlbudget.strategies.correction.fit import Fitted
from rlbudget.strategies.impact import ImpactModel
from rlbudget.traces.pairs import load_pair, split_pair
from rlbudget.traces.store import TraceWriter, load_table
from rlbudget.traces.table import split_questions
from runs.strategies import second_model

ROOT = Path(__file__).parents[2]


def write(folder: Path, numbers: range) -> Path:
    with TraceWriter(folder) as writer:
        for i in numbers:
            writer.add(make_trace(i))
    return folder


def test_each_member_is_split_as_the_pair_is(tmp_path: Path) -> None:
    small, large = write(tmp_path / "a", range(30)), write(tmp_path / "b", range(10, 50))
    folders = second_model.of_common_questions(small, large, tmp_path)
    split = split_pair(load_pair(*folders, ratio=0.5))
    for folder in folders:
        own = split_questions(load_table(folder)).held_out.question_ids
        assert set(own.tolist()) == set(split.held_out.question_ids.tolist())
    assert second_model.of_common_questions(small, small, tmp_path) == (small, small)


@pytest.mark.parametrize(
    ("ratio", "others", "said"),
    [("0.5", range(5, 9), "no question in common"), ("1.5", range(3, 9), "at most 1")],
)
def test_a_mistake_is_one_clear_line(
    tmp_path: Path,
    ratio: str,
    others: range,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small, large = write(tmp_path / "a", range(5)), write(tmp_path / "b", others)
    asked = ["second_model", "--small", str(small), "--large", str(large), "--ratio", ratio]
    monkeypatch.setattr(sys, "argv", asked)
    with pytest.raises(SystemExit) as ended:
        second_model.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def outcomes(n: int, right: float, tokens: float) -> Outcome:
    none = np.zeros(n)
    return Outcome(np.full(n, right), np.full(n, tokens), none, none)


def fitted(n: int, right: float, threshold: float) -> Fitted:
    """A correction of exits that are right in 4 of 10, to this exact match, for 100 tokens more."""
    one = np.ones(1)
    doubt = ImpactModel(("thinking_tokens",), one, one, (np.ones((1, 1)),), (one,))
    handed = np.full(n, int(threshold != OFF))
    extra = 100.0 * handed.max()
    done = Corrected(outcomes(n, 0.4, 10), outcomes(n, right, 10 + extra), handed,
                     outcomes(n, 0.5, 50))  # fmt: skip
    plan = Correction(doubt, threshold, None, second=Refiner(0.5))
    return Fitted(plan, done, np.array([f"q{i}" for i in range(n)]), 1e-6)


def test_the_rows_compare_with_the_best_member_and_count_prices() -> None:
    n, prices = 400, [0.01] * 6
    measured = second_model.Measured()
    right = {"small": 0.4, "large": 0.6, "small, full": 0.3, "large, full": 0.65,
             "best by family": 0.68, "chooser": 0.7, "cascade": 0.7,
             "oracle chooser": 0.8}  # fmt: skip
    for place in range(6):
        measured.escalated[place], measured.ways[place] = [0.5], {"before": 1}  # type: ignore[assignment]
        for method, share in right.items():
            given = 0.6 if method == "cascade" and place < 2 else share
            measured.keep(method, place, outcomes(n, given, 0))
    for place in (1, 3):
        measured.corrections["small", place] = [fitted(n, 0.6, 0.5)]
        measured.corrections["large", place] = [fitted(n, 0.4, OFF)]
    (chooser, cascade, *corrected), details = second_model.compared(
        measured, make_together(n), prices, 0.5
    )
    assert chooser["met"]
    assert chooser["reached"].startswith("+0.1000")
    assert "over oracle chooser -0.1000" in chooser["reached"]
    assert cascade["met"]
    assert cascade["reached"].startswith("4 of 6")
    assert "over large, full" in cascade["reached"]
    assert details["prices"][0]["methods"]["large"]["utility"] == pytest.approx(0.6)
    assert [one["met"] for one in corrected] == [False, False, True, True]
    assert "tokens 5.00 -> 55.00: +0.40 EM per 100 extra tokens" in corrected[0]["reached"]
    assert corrected[2]["reached"].endswith("OFF in 1 of 1 seeds")


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
    shown(1)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("CascadeDecision(action=")]) == 2
    for seed in range(3):
        save_policy(Path("policies") / str(seed), random_policy(seed=seed))
    shown(2)
