"""``rlbudget score``: a table of answers, and traces scored anew."""

from __future__ import annotations

import json
import sys
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
    assert "a.csv:2: missing field answer (there is: said, gold)" in capsys.readouterr().err


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


def scored(path: Path, lines: list[dict[str, object]], capsys: pytest.CaptureFixture[str]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    main(["score", str(path), "--no-peer"])
    return capsys.readouterr().out


def refused(line: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as raised:
        main(["score", *line])
    assert raised.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("B", ["Rome", "Paris"]),
        (1, ["Rome", "Paris"]),
        ("Paris", ["Rome", "Paris"]),
        ("B", {"A": "Rome", "B": "Paris"}),
        ("y", {"text": ["Rome", "Paris"], "label": ["x", "y"]}),
        ("B", '["Rome", "Paris"]'),
    ],
)
def test_options_and_their_target_are_read_as_in_a_table_of_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: object, options: object
) -> None:
    answers = ("The answer is Paris", "The answer is B", "Rome")
    lines = [{"answer": a, "target": target, "options": options} for a in answers]
    assert "3 answers, scorer auto: 2 right" in scored(tmp_path / "a.jsonl", lines, capsys)


def test_an_empty_answer_is_a_wrong_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = ("18", "", None, "  ")
    lines: list[dict[str, object]] = [{"answer": a, "target": "18"} for a in answers]
    assert "4 answers, scorer auto: 1 right" in scored(tmp_path / "a.jsonl", lines, capsys)
    (tmp_path / "a.csv").write_text("answer,target\n18,18\n,18\n  ,18\n")
    main(["score", str(tmp_path / "a.csv"), "--no-peer"])
    assert "3 answers, scorer auto: 1 right" in capsys.readouterr().out


def test_an_answer_that_is_not_there_at_all_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"answer": "18", "target": "18"}\n{"target": "18"}\n')
    said = " ".join(refused([str(tmp_path / "a.jsonl"), "--no-peer"], capsys).split())
    assert "a.jsonl:2: missing field answer (there is: target)" in said


def test_one_of_several_targets_is_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[dict[str, object]] = [
        {"answer": a, "target": ["Anna", "Bob"]} for a in ("Bob", "Anna", "Eve")
    ]
    assert "3 answers, scorer auto: 2 right" in scored(tmp_path / "a.jsonl", lines, capsys)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"answer": "x", "target": {"a": 1}}, "field target must be text"),
        ({"answer": "x", "target": None}, "missing field target"),
        ({"answer": ["x"], "target": "x"}, "field answer must be text"),
        ({"answer": "x", "target": "Z", "options": ["a", "b"]}, "is none of the options"),
        ({"answer": "x", "target": "A", "options": "a|b"}, "a list of two texts or more"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, object], problem: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    said = " ".join(refused([str(path), "--no-peer"], capsys).split())
    assert problem in said
    assert "a.jsonl:1: " in said


def test_a_name_with_dots_reaches_into_objects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"said": {"text": "12"}, "target": "12"}) + "\n")
    main(["score", str(path), "--answer-column", "said.text", "--no-peer"])
    assert "1 right" in capsys.readouterr().out


def test_what_traces_have_no_use_for_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("traces", "others"):
        with TraceWriter(tmp_path / name) as writer:
            writer.add(make_trace())
    traces, others = str(tmp_path / "traces"), str(tmp_path / "others")
    assert "--answer-column is for a table" in refused([traces, "--answer-column", "x"], capsys)
    said = refused([traces, "--out", others], capsys)
    assert "already holds traces: choose another --out" in " ".join(said.split())
    assert "no scorer ''" in refused([traces, "--scorer", ""], capsys)


def test_a_function_may_lie_where_the_command_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_scorer_here.py").write_text("def same(a, t):\n    return a == t[::-1]\n")
    path = table(tmp_path / "a.jsonl", ("21", "12"), ("12", "12"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [one for one in sys.path if one not in ("", str(tmp_path))])
    before = list(sys.path)
    main(["score", str(path), "--scorer", "python:my_scorer_here.same", "--no-peer"])
    assert "2 answers, scorer python:my_scorer_here.same: 1 right" in capsys.readouterr().out
    assert sys.path == before
