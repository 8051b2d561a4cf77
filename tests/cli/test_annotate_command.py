"""``rlbudget annotate``: from a log to traces that the other commands take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlbudget.cli.main import main
from rlbudget.traces.store import load_traces

ROWS = [
    {"id": "a", "question": "What is 3 + 4?", "thinking": "3+4=7 so 7. Same 7. Done.",
     "answer": "7"},
    {"id": "b", "question": "What is 3 + 5?", "answer": "8"},
    {"id": "c", "question": "What is 3 + 6?", "thinking": "", "answer": "9"},
]  # fmt: skip


def test_a_log_becomes_traces_and_the_rows_left_out_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    main(["annotate", str(log), "--model", "embedded", "--out", str(tmp_path / "traces")])
    said = capsys.readouterr().err
    assert [trace.trace_id for trace in load_traces(tmp_path / "traces")] == ["a"]
    assert f"1 traces annotated to {tmp_path / 'traces'}, 2 rows left out" in said
    assert "1 with an empty thinking, 1 without a thinking" in said
    assert f"{log}:2: there is no thinking" in said
    assert "Exact match is agreement with the full decode" in said


def test_a_column_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(SystemExit) as stop:
        main(["annotate", str(log), "--model", "embedded", "--out", str(tmp_path / "traces"),
              "--thinking-column", "thoughts"])  # fmt: skip
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "there is no column 'thoughts' (--thinking-column); there are: id, question" in line
