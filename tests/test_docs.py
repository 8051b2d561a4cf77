"""What the documents show is run: blocks of code, tables, lines of the interchange."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from frozen_nets import FREE, PRICES, random_tensors
from pages import ROOT, script_of
from trace_makers import make_trace

from rlbudget.cli.main import parse
from rlbudget.cli.recording import Record
from rlbudget.policy.folder import make_policy, save_policy
from rlbudget.tasks.files import LAYOUTS
from rlbudget.tasks.rows import KINDS
from rlbudget.tasks.scorers import NAMES
from rlbudget.traces.interchange import import_jsonl, trace_from_dict
from rlbudget.traces.store import TraceWriter, load_traces
from runs.common import RESULTS

DOCS = ROOT / "docs"
GONE = {"recording_speed"}
"""results whose script was replaced by another that measures something else"""
TRACES = (DOCS / "traces.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = TRACES) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_line_shown_is_a_trace() -> None:
    line = json.loads(blocks("json")[0])
    trace = trace_from_dict(line)
    assert trace.checkpoints[0].probe is not None


def test_the_errors_shown_are_those_of_the_import(tmp_path: Path) -> None:
    good = json.loads(blocks("json")[0])
    good["checkpoints"] = [{**good["checkpoints"][0], "thinking_tokens": 8 * i} for i in range(4)]
    lines = [{**good, "trace_id": f"t{i}"} for i in range(12)]
    bad = [json.loads(json.dumps(line)) for line in lines]
    bad[6]["checkpoints"][0]["exit"]["answer"] = None
    del bad[8]["final"]["thinking_tokens"]
    bad[11]["checkpoints"][3]["signals"]["perplexity"] = 1e39
    file = tmp_path / "traces.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in bad))
    stats = import_jsonl(file, tmp_path / "traces", skip_bad=True)
    assert [one.removeprefix(f"{tmp_path}/") for one in stats.problems] == blocks("text")[
        0
    ].splitlines()


QUESTIONS = (DOCS / "questions.md").read_text(encoding="utf-8")


def test_the_question_files_shown_are_recorded_by_the_commands_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, mmlu_pro = blocks("jsonl", QUESTIONS)
    (tmp_path / "questions.jsonl").write_text(own)
    (tmp_path / "mmlu_pro.jsonl").write_text(mmlu_pro)
    monkeypatch.chdir(tmp_path)
    tasks = []
    for block in blocks("bash", QUESTIONS):
        command = parse(shlex.split(block)[1:])
        assert isinstance(command, Record)
        tasks.append(command.questions(lambda problem: pytest.fail(problem)))
    first, second = tasks
    assert {q.target: q.options for q in first.questions} == {"18": (), "no": ("yes", "no")}
    (river,) = second.questions
    assert (river.question_id, river.target) == ("70", "Rhine")
    assert river.question == blocks("text", QUESTIONS)[0].strip()
    assert [second.score(river, a) for a in ("B", "Rhine", "(B) Rhine", "C")] == [1, 1, 1, 0]


def test_the_tables_of_questions_list_every_kind_layout_and_scorer() -> None:
    for name in KINDS:
        assert f"`{name}`" in QUESTIONS
    for name in LAYOUTS:
        assert f"`{name}:FILE`" in QUESTIONS
    table = QUESTIONS.partition("## Scorers")[2]
    assert re.findall(r"^\| `([^`]+)`", table, flags=re.MULTILINE) == list(NAMES)


def test_the_samples_shown_are_samples(tmp_path: Path) -> None:
    line = " ".join(blocks("json")[1].split("\n"))
    (tmp_path / "samples.jsonl").write_text(line + "\n")
    assert import_jsonl(tmp_path / "samples.jsonl", tmp_path / "traces").n == 20


def test_the_refinement_shown_hands_exits_over(tmp_path: Path) -> None:
    for name in ("small", "large"):
        with TraceWriter(tmp_path / "traces" / name) as writer:
            for i in range(60):
                made = make_trace(i % 3, checkpoints=4)  # right at one of three checkpoints
                writer.add(replace(made, trace_id=f"t{i}", question_id=f"q{i}"))
    tensors = random_tensors(len(FREE))
    tensors["action_net.bias"][1] += 50  # stops at once
    hasty = make_policy(tensors, features=FREE, preset="free", price_range=PRICES)
    save_policy(tmp_path / "policies" / "small", hasty)
    (code,) = blocks("python", (DOCS / "correction.md").read_text(encoding="utf-8"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, check=True, timeout=60, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    recovered, of, lost, gained, threshold = done.stdout.split()
    assert (recovered, of, lost) == ("8", "of", "8")
    assert float(gained) == pytest.approx(2.27, abs=0.01)
    assert 0 < float(threshold) < 1


LOOP = (DOCS / "feedback_loop.md").read_text(encoding="utf-8")


def test_the_commands_of_the_feedback_loop_are_commands() -> None:
    lines = [line for block in blocks("bash", LOOP) for line in block.splitlines()]
    names = [type(parse(shlex.split(line)[1:])).__name__ for line in lines]
    for name in ("Decode", "Feedback", "Stream", "Harvest", "Evaluate", "Retrain"):
        assert name in names
    (code,) = blocks("python", LOOP)
    compile(code, "feedback_loop.md", "exec")


@pytest.mark.slow
def test_the_feedback_loop_is_run_from_serving_to_rolling_back(tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    said = ""
    for language, body in re.findall(r"```(bash|python)\n(.*?)```", LOOP, flags=re.DOTALL):
        lines = body.strip().splitlines()
        for command in (
            [["-c", body]]
            if language == "python"
            else [["-m", "rlbudget.cli.main", *shlex.split(line)[1:]] for line in lines]
        ):
            done = subprocess.run(
                [sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True
            )
            promoted = "promoted: registry" in said and "not promoted" not in said
            if command[-2:] == ["rollback", "registry"] and not promoted:
                assert "nothing was served before" in done.stderr
                continue
            assert done.returncode == 0, (command, done.stderr)
            said += done.stdout
    assert "\nAnswer: 12\n" in said
    assert len(load_traces(tmp_path / "traces" / "second")) > 50
    rows = [json.loads(line) for line in said.splitlines() if line.startswith('{"policy"')]
    assert [row["policy"] for row in rows] == ["version 1"]
    assert rows[0]["requests"] == 161
    assert rows[0]["stopped"] > 16
    assert rows[0]["report"]["saving"] > 0.05
    assert said.rstrip().endswith("served: 1")


@pytest.mark.parametrize("field", ["trace_id", "final", "checkpoints"])
def test_what_may_not_be_left_out_may_not(field: str) -> None:
    from rlbudget.errors import UserError

    line = json.loads(blocks("json")[0])
    del line[field]
    with pytest.raises(UserError, match=f"missing field \\$.{field}"):
        trace_from_dict(line)


def test_the_readme_shows_the_kept_results() -> None:
    command = [sys.executable, "-m", "runs.readme", "--check"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)


def test_every_kept_result_says_how_it_was_made() -> None:
    for file in RESULTS.glob("*.json"):
        result = json.loads(file.read_text())
        assert result["name"] == file.stem
        if file.stem not in GONE:
            python, started, module = result["command"].split()[:3]
            assert (python, started) == ("python", "-m")
            assert script_of(module).is_file(), result["command"]
        assert {"versions", "machine"} <= set(result)
        for row in result["rows"]:
            assert set(row) >= {"row", "wanted", "reached", "met"}
            assert isinstance(row["met"], bool)


def test_the_scorers_shown_say_what_is_printed() -> None:
    page = (DOCS / "scorers.md").read_text(encoding="utf-8")
    for code, printed in zip(blocks("python", page), blocks("text", page), strict=True):
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True
        )
        assert done.stdout == printed
