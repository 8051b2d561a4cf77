"""``rlbudget score``: a table of answers, and traces scored anew."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from trace_makers import make_trace

from rlbudget.cli.main import main
from rlbudget.traces.store import TraceWriter, load_traces


def table(path: Path, *rows: tuple[str, str]) -> Path:
    path.write_text("".join(json.dumps({"answer": a, "target": t}) + "\n" for a, t in rows))
    return path


def test_a_table_is_scored_and_compared_with_math_verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path / "a.jsonl", ("It is **18**.", "18"), ("52_9", "52_8"), ("17", "18"))
    main(["score", str(path), "--scorer", "math"])
    said = capsys.readouterr().out
    assert "3 answers, scorer math: 1 right, exact match 33.3%" in said
    assert "math-verify: " in said
    assert "a.jsonl:2: '52_9' for '52_8': wrong, math-verify right" in said


def test_columns_have_the_names_that_they_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("said,gold\nThe answer is B.,B\n")
    line = ["score", str(path), "--answer-column", "said", "--target-column", "gold", "--no-peer"]
    main(line)
    assert "1 answers, scorer auto: 1 right" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["score", str(path)])
    assert "a.csv:2: there is no 'answer'" in capsys.readouterr().err


def test_traces_are_scored_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = make_trace(1)
    said = replace(
        trace, target="18", final=replace(trace.final, answer="It is **18**.", exact_match=0)
    )
    with TraceWriter(tmp_path / "old") as writer:
        writer.add(said)
    main(["score", str(tmp_path / "old"), "--scorer", "math"])
    assert "1 would become right" in capsys.readouterr().out
    main(["score", str(tmp_path / "old"), "--scorer", "math", "--out", str(tmp_path / "new")])
    assert load_traces(tmp_path / "new")[0].final.exact_match == 1
    assert load_traces(tmp_path / "old")[0].final.exact_match == 0
