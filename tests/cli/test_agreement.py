"""Without targets exact match is agreement with the full decode, and all that names it says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import make_table
from trace_makers import traces_of

from rlbudget.agents.training import recorded_of
from rlbudget.cli.main import main
from rlbudget.policy.card import model_card
from rlbudget.policy.folder import load_policy
from rlbudget.traces.agreement import FIELD, FULL_DECODE, SAID
from rlbudget.traces.compared import compared_with
from rlbudget.traces.store import TraceWriter, load_traces


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same traces, with targets and without."""
    base = tmp_path_factory.mktemp("traces")
    with TraceWriter(base / "plain") as writer:
        for trace in traces_of(make_table(120, seed=3)):
            writer.add(trace)
    with TraceWriter(base / "agreeing") as writer:
        for trace in load_traces(base / "plain"):
            writer.add(replace(trace, meta={**trace.meta, FIELD: FULL_DECODE}))
    return base / "plain", base / "agreeing"


def test_a_folder_knows_what_its_answers_were_compared_with(folders: tuple[Path, Path]) -> None:
    plain, agreeing = folders
    assert compared_with(plain) is None
    assert compared_with(agreeing) == compared_with([plain, agreeing]) == FULL_DECODE


def test_tables_reports_cards_and_certificates_say_so(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for traces, says in zip(folders, (False, True), strict=True):
        out = tmp_path / traces.name
        main(["train", str(traces), "--out", str(out / "run"), "--total-timesteps", "512"])
        main(["freeze", str(out / "run"), "--out", str(out / "policy")])
        assert (SAID in capsys.readouterr().err) == says
        main(["evaluate", str(traces), "--policy", str(out / "policy"), "--out", str(out / "e")])
        evaluation = json.loads((out / "e" / "evaluation.json").read_text())
        assert evaluation.get(FIELD) == (FULL_DECODE if says else None)
        flat = " ".join((out / "e" / "table.txt").read_text().split())
        assert (SAID in flat) == says
        assert (SAID in (out / "e" / "report.html").read_text()) == says
        policy = load_policy(out / "policy")
        assert (SAID in (out / "policy" / "README.md").read_text()) == says
        certificate = {"mode": "loss", "token_price": 1e-3, "max_em_loss": 0.01,
                       "confidence": 0.9, "questions": 9,
                       **({FIELD: FULL_DECODE} if says else {})}  # fmt: skip
        card = model_card(
            {**policy.config, "calibration": certificate}, evaluation, method="policy"
        )
        assert card.count(SAID) == (2 if says else 0)


def test_what_a_policy_was_trained_on_says_so(folders: tuple[Path, Path]) -> None:
    plain, agreeing = (recorded_of(load_traces(folder)[0]) for folder in folders)
    assert FIELD not in plain
    assert agreeing[FIELD] == FULL_DECODE
