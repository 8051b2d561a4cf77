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
from pages import PAGES, ROOT, blocks, commands, page, script_of
from trace_makers import make_trace

from rlbudget.cli.main import parse
from rlbudget.cli.recording import Record
from rlbudget.models.profiles import PROFILES
from rlbudget.policy.folder import make_policy, save_policy
from rlbudget.policy.operating import Swept, choose_points
from rlbudget.tasks.files import LAYOUTS
from rlbudget.tasks.rows import KINDS
from rlbudget.tasks.scorers import NAMES
from rlbudget.traces.interchange import import_jsonl, trace_from_dict
from rlbudget.traces.store import TraceWriter, load_traces

TRACES = page("traces.md")


def test_the_line_shown_is_a_trace() -> None:
    line = json.loads(blocks("json", TRACES)[0])
    trace = trace_from_dict(line)
    assert trace.checkpoints[0].probe is not None


def test_the_errors_shown_are_those_of_the_import(tmp_path: Path) -> None:
    good = json.loads(blocks("json", TRACES)[0])
    good["checkpoints"] = [{**good["checkpoints"][0], "thinking_tokens": 8 * i} for i in range(4)]
    lines = [{**good, "trace_id": f"t{i}"} for i in range(12)]
    bad = [json.loads(json.dumps(line)) for line in lines]
    bad[6]["checkpoints"][0]["exit"]["answer"] = None
    del bad[8]["final"]["thinking_tokens"]
    bad[11]["checkpoints"][3]["signals"]["perplexity"] = 1e39
    file = tmp_path / "traces.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in bad))
    stats = import_jsonl(file, tmp_path / "traces", skip_bad=True)
    assert [one.removeprefix(f"{tmp_path}/") for one in stats.problems] == blocks("text", TRACES)[
        0
    ].splitlines()


QUESTIONS = page("questions.md")


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
    line = " ".join(blocks("json", TRACES)[1].split("\n"))
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
    (code,) = blocks("python", page("correction.md"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, check=True, timeout=240, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    said = done.stdout.splitlines()
    assert said[0].endswith("is handed to the second model.")
    assert "8 wrong answers repaired, 0 right answers broken" in said[1]


def test_the_operating_point_shown_is_one_of_a_folder() -> None:
    (shown,) = blocks("json", page("production.md"))
    made = choose_points([Swept(1e-3, 0.0, 0.0, 0.5)], 300)["medium"]
    assert json.loads(shown)["medium"].keys() == made.keys()


LOOP = page("feedback_loop.md")


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

    line = json.loads(blocks("json", TRACES)[0])
    del line[field]
    with pytest.raises(UserError, match=f"missing field \\$.{field}"):
        trace_from_dict(line)


# The front door


def test_the_tables_of_the_pages_are_those_of_the_kept_results() -> None:
    subprocess.run([sys.executable, "-m", "runs.readme", "--check"], cwd=ROOT, check=True)


def test_every_row_that_is_kept_is_shown() -> None:
    pages = [page(name).splitlines() for name in ("results.md", "strategies.md")]
    shown = {tuple(line.split(" | ")[:2]) for lines in pages for line in lines}
    for file in (ROOT / "runs" / "results").glob("*.json"):
        for row in json.loads(file.read_text())["rows"]:
            wanted = row["wanted"]
            cell = f"{wanted:,}" if isinstance(wanted, int | float) else str(wanted)
            assert (f"| {row['row']}", cell) in shown, (file.name, row["row"])


def test_the_readme_is_short_and_begins_with_the_two_commands() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 8000
    assert commands(page("README.md"))[:2] == [
        ["bash", "runs/quickstart.sh"],
        ["bash", "runs/test.sh"],
    ]


def test_the_readme_measures_six_rows_with_one_not_met_among_them() -> None:
    table = page("README.md").partition("<!-- results:")[2].partition("<!-- end -->")[0]
    verdicts = re.findall(r"\| (met|not met) \|$", table, flags=re.MULTILINE)
    assert len(verdicts) == 6
    assert set(verdicts) == {"met", "not met"}


def test_the_tree_of_the_readme_names_every_room() -> None:
    tree = page("README.md").partition("## The tree")[2]
    named = set(re.findall(r"^ *(\w+)/ ", tree, flags=re.MULTILINE))
    rooms = {path.parent.name for path in (ROOT / "rlbudget").glob("*/__init__.py")}
    assert named == rooms | {"rlbudget", "tests", "runs", "docs"}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(name: str) -> None:
    for link in re.findall(r"\]\(([^)#\s]*(?:#[^)\s]*)?)\)", page(name)):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        to = (PAGES[name].parent / path).resolve() if path else PAGES[name]
        assert to.is_file(), link
        if heading:
            assert heading in _headings(to.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("name", PAGES)
def test_every_script_that_a_page_names_is_there(name: str) -> None:
    for script in re.findall(r"`(?:bash |python )?(runs/[\w/]+\.(?:py|sh|json|log))", page(name)):
        assert (ROOT / script).is_file(), script
    for module in re.findall(r"python -m (runs(?:\.\w+)+)", page(name)):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def _headings(text: str) -> set[str]:
    """The names by which the headings of a page are linked to."""
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_index_leads_to_every_page_and_explains_twenty_words() -> None:
    index = page("index.md")
    assert set(re.findall(r"\]\((\w+\.md)[)#]", index)) == set(PAGES) - {"README.md", "index.md"}
    glossary = index.partition("## Glossary")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\| ", glossary, flags=re.MULTILINE)) == 1 + 20


def test_the_exit_profiles_shown_are_those_that_are_built_in() -> None:
    rows = [line.split(" | ") for line in page("profiles.md").splitlines() if line[:3] == "| `"]
    shown = [[cell.strip("| ") for cell in row] for row in rows]
    texts, numbers = shown[: len(PROFILES)], shown[len(PROFILES) :]
    for profile, text, number in zip(PROFILES.values(), texts, numbers, strict=True):
        ends = [_shown(stop) for stop in profile.answer_stop] or ["end of sequence"]
        said = (profile.name, profile.end_of_thinking, profile.exit_text, profile.probe_cue)
        assert [text[0], *text[2:]] == [*map(_shown, said), ", ".join(ends)]
        assert number == [
            _shown(profile.name),
            str(profile.temperature),
            str(profile.stride),
            str(profile.max_tokens),
            str(profile.max_answer_tokens),
        ]


def _shown(text: str) -> str:
    return "`" + text.replace("\n", "\\n") + "`"


def test_every_kept_result_says_how_it_was_made() -> None:
    for file in (ROOT / "runs" / "results").glob("*.json"):
        result = json.loads(file.read_text())
        assert result["name"] == file.stem
        python, started, module = result["command"].split()[:3]
        assert (python, started) == ("python", "-m")
        if "only_at" in result:  # the commit that can repeat it: what it judged is deleted
            assert not script_of(module).exists(), result["command"]
            assert f"`{result['only_at']}`" in page("results.md")
        else:
            assert script_of(module).is_file(), result["command"]
            start = result.get("reproduce", result["command"]).split()
            script = Path(start[1]) if start[0] == "bash" else script_of(start[2])
            assert (ROOT / script).is_file(), result["reproduce"]
        assert {"versions", "machine"} <= set(result)
        for row in result["rows"]:
            assert set(row) >= {"row", "wanted", "reached", "met"}
            assert isinstance(row["met"], bool)


def test_the_scorers_shown_say_what_is_printed() -> None:
    text = page("scorers.md")
    for code, printed in zip(blocks("python", text), blocks("text", text), strict=True):
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, timeout=240, capture_output=True, text=True
        )
        assert done.stdout == printed
