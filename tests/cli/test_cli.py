"""The command line: the whole way, help, and one line with exit status 2 for every mistake."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from frozen_nets import random_policy, write_run
from plan_files import plan_file
from rich.console import Console
from scripted_model import save_scripted
from tiny_model import save_tiny_model
from trace_makers import make_trace

import rlbudget
from rlbudget import console
from rlbudget.agents.freeze import freeze
from rlbudget.cli.catalogue import ENTRIES, GROUPS
from rlbudget.cli.main import main, parse
from rlbudget.policy.folder import save_policy
from rlbudget.traces.interchange import write_jsonl
from rlbudget.traces.store import TraceWriter, load_traces

COMMANDS = ("quickstart", "record", "annotate", "import", "traces merge",
            "traces stat", "traces validate", "score", "train", "freeze", "evaluate", "calibrate",
            "impact", "predict", "blend", "cascade", "choose", "correct", "decode", "serve",
            "plan check",
            "rules check", "rules explain", "feedback", "stream", "harvest", "retrain",
            "rolling", "registry promote", "registry add", "registry list", "registry rollback",
            "store export",
            "store prune", "experiment start", "experiment status", "experiment stop",
            "experiment promote")  # fmt: skip


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("task") / "questions.jsonl"
    rows = [{"question": f"What is {i} + 3?", "target": str(i + 3)} for i in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    write_run(folder / "run")
    freeze(folder / "run", folder / "policy")
    return folder / "policy"


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "traces"
    with TraceWriter(folder) as writer:
        for i in range(60):
            writer.add(make_trace(i))
    return folder


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail as a user's mistake; its one line."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    said = [line for line in lines if not re.match(r"\w+: \d+ of \d+$", line)]
    assert len(said) == 1, said
    assert said[0].startswith("rlbudget: ")
    return said[0]


def test_bad_rows_and_questions_too_long_are_named_and_counted_on_the_way(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "q.csv"
    long = "one two three, " * 400
    table.write_text(f'ask,gold,name\nWhat is 2 + 3?,5,a\nNo answer?,,b\n"{long}",1,c\n')
    columns = ["--question-column", "ask", "--target-column", "gold", "--id-column", "name"]
    record = ["record", "--model", str(model), "--profile", "embedded", "--task", str(table),
              "--out", str(tmp_path / "traces"), "--max-tokens", "8", *columns]  # fmt: skip
    with pytest.raises(SystemExit):
        main(record)
    assert f"{table}:3: missing field gold" in capsys.readouterr().err
    main([*record, "--skip-bad", "--scorer", "number"])
    said = " ".join(capsys.readouterr().err.split())
    assert f"rlbudget: {table}:3: missing field gold" in said
    assert "rlbudget: question 'c' is left out: " in said
    assert "1 traces recorded" in said
    assert ", 1 bad row left out, 1 question left out" in said
    (trace,) = load_traces(tmp_path / "traces")
    assert (trace.question_id, trace.meta["scorer"]) == ("a", "number")


def test_the_whole_way(
    model: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = ["record", "--model", model, "--profile", "embedded", "--task", task, "--n", 60,
              "--max-tokens", 24, "--stride", 4, "--probe-tokens", 2]  # fmt: skip
    steps: list[list[object]] = [
        [*record, "--out", tmp_path / "traces"],
        [*record, "--out", tmp_path / "traces", "--resume"],
        ["train", tmp_path / "traces", "--out", tmp_path / "run", "--total-timesteps", 2000],
        ["freeze", tmp_path / "run", "--out", tmp_path / "policy"],
        ["evaluate", tmp_path / "traces", "--policy", tmp_path / "policy",
         "--out", tmp_path / "evaluation", "--draws", 50],
        ["decode", "--model", model, "--profile", "embedded", "--policy", tmp_path / "policy",
         "--max-tokens", 24, "What is 2 + 3?"],
        ["plan", "check", tmp_path / "plan.toml"],
        ["decode", "--model", model, "--profile", "embedded", "--plan", tmp_path / "plan.toml",
         "--max-tokens", 24, "--metadata", "tier=2", "What is 2 + 3?"],
    ]  # fmt: skip
    rule = '[[rule]]\nname = "gold"\nmetadata = { tier = 2 }\nthen = "full"\n'
    (tmp_path / "rules.toml").write_text(rule)
    plan_file(tmp_path / "plan.toml", policy="policy", rules={"file": "rules.toml"})
    for step in steps:
        main([str(argument) for argument in step])
    said = capsys.readouterr()
    assert len(load_traces(tmp_path / "traces")) == 60
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert "policy" in {row["method"] for row in evaluation["summary"]}
    assert "held-out questions" in said.out
    assert re.search(r"Tokens: \d+ = \d+ thinking \+ \d+ probe \+ \d+ answer", said.out)
    assert "line 1: gold: full" in said.err
    assert re.search(r"(Ended by itself after \d+|Cut at the cap of 24) tokens.*\.$", said.out)
    assert "Traceback" not in said.err
    assert f"Model {model}, profile embedded (as named)" in said.err
    assert said.err.count("the first 5 answers, scored by auto:") == 1  # nothing ends on --resume
    assert "nothing was left to record" in said.err
    assert re.search(
        r"^60 questions, 60 full decodes: exact match \d+\.\d%", said.err, re.MULTILINE
    )
    assert re.search(
        r"^spent [\d,]+ tokens on full decodes and [\d,]+ on exit", said.err, re.MULTILINE
    )
    assert "warning: 60 questions are few: 18 would be held out" in said.err
    assert re.search(r"^What \d+ training questions say, .* intervals", said.out, re.MULTILINE)
    assert re.search(r"^Next: rlbudget freeze .*run.* --out ", said.out, re.MULTILINE)
    assert re.search(r"^a policy, trained on \d+ questions of ", said.err, re.MULTILINE)
    assert said.out.index("ecode in full") < said.out.index("held-out questions, every token")
    assert "warning: every full decode is scored wrong by the scorer auto" in said.err
    assert "warning: the full decodes are all wrong" in said.err
    assert "now serves" not in said.err


def test_import_says_what_it_found_and_what_is_odd(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "traces.jsonl"
    write_jsonl(file, [make_trace(i) for i in range(30)])
    main(["import", str(file), "--out", str(tmp_path / "traces")])
    said = capsys.readouterr().err.splitlines()
    assert any(
        line.startswith("30 questions, 30 full decodes: exact match 100.0%") for line in said
    )
    assert any(line.startswith("warning: every full decode is scored right") for line in said)


def live(model: Path, policy: Path, *more: object) -> list[object]:
    return ["decode", "--model", model, "--policy", policy, *more, "How much?"]


WRITTEN = (
    "[3, 4]",
    "[x, y]",
    "(a, b]",
    "[red]",
    "[/red]",
    r"\[x^2\]",
    "2:100:3",
    "1 " * 60 + "= 60",
)


@pytest.mark.parametrize("answer", WRITTEN)
def test_what_a_model_wrote_is_printed_as_it_is(
    answer: str, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted = save_scripted(tmp_path / "model", "so it is clear", answer)
    capsys.readouterr()
    main([str(a) for a in live(scripted, policy, "--profile", "embedded", "--temperature", 0)])
    written, blank, answered, tokens = capsys.readouterr().out.splitlines()
    assert written == f"so it is clear</think>{answer}<eos>"
    assert not blank
    assert answered.startswith("Answer: ")
    assert answered.removeprefix("Answer: ") in answer
    assert tokens == (
        "Tokens: 4 = 1 thinking + 0 probe + 3 answer. Ended by itself after 1 tokens of thinking."
    )


def test_a_cap_is_called_a_cap(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted = save_scripted(tmp_path / "model", "on ", "7", endless=True)
    loop = live(scripted, policy, "--profile", "embedded", "--temperature", 0, "--max-tokens", 5)
    main([str(argument) for argument in loop])
    written, *_, tokens = capsys.readouterr().out.splitlines()
    assert written == "on " * 5 + "</think>7<eos>"
    assert tokens.endswith("Cut at the cap of 5 tokens.")


def test_no_effort_answers_at_once(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted = save_scripted(tmp_path / "model", "on ", "7", endless=True)
    main([str(a) for a in live(scripted, policy, "--profile", "embedded", "--effort", "none")])
    written, *_, tokens = capsys.readouterr().out.splitlines()
    assert written == "</think>7<eos>"
    assert "0 thinking" in tokens


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["--effort", "hard"], "it is one of none, minimal, low, medium, high, max"),
        (["--max-em-loss", "0.02"], "make one with rlbudget calibrate"),
        (["--answer-worth", "2"], "go together"),
        (["--effort", "low", "--token-price", "1e-3"], "say one of"),
    ],
)
def test_a_dial_that_cannot_be_served_is_one_line(
    said: list[str], expected: str, model: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in mistake(capsys, *live(model, policy, "--profile", "embedded", *said))


def test_an_effort_that_a_policy_has_no_price_for_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_policy(tmp_path / "policy", random_policy())
    command = live(model, tmp_path / "policy", "--profile", "embedded", "--effort", "low")
    assert "freeze its run again" in mistake(capsys, *command)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8", "utf-16", "cp437"])
def test_an_answer_that_stdout_cannot_spell_is_escaped_not_lost(
    encoding: str, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = save_scripted(tmp_path / "model", "so it is clear", "π ≈ 3.14 \x1b[31m")
    command = live(scripted, policy, "--profile", "embedded", "--temperature", 0)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    main(list(map(str, command)))
    sys.stdout.flush()
    said = written.getvalue().decode(encoding)
    assert "3.14" in said
    assert "Tokens: 4 = " in said
    assert "\x1b" not in said
    spelled = "π ≈ 3.14".encode(encoding, errors="backslashreplace").decode(encoding)
    assert f"Answer: {spelled}" in said


def test_a_profile_that_was_guessed_is_said_to_be(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted = save_scripted(tmp_path / "model", "so it is clear", "7")
    main([str(argument) for argument in live(scripted, policy, "--max-tokens", 8)])
    said = capsys.readouterr().err
    assert f"Model {scripted}, profile think (chosen because its tokenizer knows </think>)" in said
    assert "warning: the profile think was chosen by default: pass --profile think" in said


def test_a_policy_of_another_model_is_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted = save_scripted(tmp_path / "model", "so it is clear", "7")
    recorded = {"model": "embedded", "profile": "embedded", "stride": 8, "temperature": 1.0,
                "max_tokens": 8}  # fmt: skip
    save_policy(tmp_path / "policy", random_policy(trained={"traces": {"recorded": recorded}}))
    main([str(a) for a in live(scripted, tmp_path / "policy", "--temperature", 0)])
    said = capsys.readouterr().err
    assert "profile embedded (as in the policy's traces)" in said
    assert f"trained on traces of embedded, and now serves {scripted}" in said
    assert "trained at temperature 1.0, and now serves temperature 0.0" in said


def test_import_counts_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "traces.jsonl"
    write_jsonl(file, [make_trace(i) for i in range(3)])
    file.write_text(file.read_text() + "not JSON\n")
    assert f"{file}:4: " in mistake(capsys, "import", file, "--out", tmp_path / "a")
    assert not list((tmp_path / "a").glob("*.parquet"))
    main(["import", str(file), "--out", str(tmp_path / "b"), "--skip-bad"])
    assert "3 traces imported" in capsys.readouterr().err
    assert len(load_traces(tmp_path / "b")) == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_that_explains_every_option(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "usage: rlbudget " + command in shown
    # Each option's own text: from its line to the next option's, frame and default left out.
    parts = re.split(r"^.\s(--[a-z][a-z-]+)", shown, flags=re.MULTILINE)
    assert len(parts) > 2 or set(re.findall(r"--[a-z][a-z-]+", shown)) == {"--help"}
    for option, text in zip(parts[1::2], parts[2::2], strict=True):
        own = re.sub(r"\((required|default: [^)]*)\)|\{[^}]*\}", "", text)
        assert len(re.findall(r"\b[A-Za-z]?[a-z]{2,}", own)) >= 2, (option, own)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that ends the process well prints."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_the_help_lists_every_command_in_its_group_with_an_example(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = printed(capsys, "--help")
    assert set(COMMANDS) == set(ENTRIES)
    assert re.findall(r"^([A-Z][a-z ]+):$", shown, re.MULTILINE) == list(GROUPS)
    for name, entry in ENTRIES.items():
        assert re.search(rf"^  {name} +{re.escape(entry.line)}$", shown, re.MULTILINE)
        assert f"\n      rlbudget {entry.example}\n" in shown


def test_the_help_is_plain_text_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, "--help")
    assert shown.isascii()
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("name", ENTRIES)
def test_the_example_of_a_command_parses_as_that_command(name: str) -> None:
    command = parse(shlex.split(ENTRIES[name].example))
    assert type(command).__name__ == ENTRIES[name].arguments


@pytest.mark.parametrize("name", ENTRIES)
def test_the_help_of_a_command_has_its_example_and_no_type_names(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = printed(capsys, *name.split(), "--help")
    assert f"rlbudget {ENTRIES[name].example}" in " ".join(shown.split())
    assert not re.search(r"\b(PATH|STR|INT|FLOAT|BOOL)\b", shown)
    assert max(map(len, shown.splitlines())) <= 80
    assert not re.search("[\u2500-\u257f]|-{3}", shown)


def test_the_text_of_an_option_flows(capsys: pytest.CaptureFixture[str]) -> None:
    """However its docstring is broken into lines."""
    shown = printed(capsys, "decode", "--help")
    assert (
        """
  --policy FOLDER         Policy folder, or a registry, whose served policy is
                          taken.
  --plan FILE             Plan (TOML): policies, ensemble, guard, rules,
                          correction, cascade, audit.
  --token-price PRICE """
        in shown
    )


def test_the_help_of_a_group_of_commands_lists_these(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, "registry", "--help")
    assert re.findall(r"^  (registry \w+)", shown, re.MULTILINE) == [
        "registry promote", "registry add", "registry list", "registry rollback",
    ]  # fmt: skip
    assert "rules check" not in shown


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "--version") == f"rlbudget {rlbudget.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("recrod", "no command 'recrod'; did you mean record?"),
        ("rule", "no command 'rule'; did you mean rules?"),
        ("registry ad", "no command 'registry ad'; did you mean registry add?"),
        ("xyzzy", "no command 'xyzzy'; see rlbudget --help"),
        ("rules", "rules takes one of: check, explain; see rlbudget rules --help"),
        ("", "no command given; see rlbudget --help"),
    ],
)
def test_a_mistyped_command_is_told_the_nearest(
    typed: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mistake(capsys, *typed.split()) == f"rlbudget: {said}"


HELP = """
import sys, time
start = time.process_time()
from rlbudget.__main__ import main
sys.argv = ["rlbudget", "--help"]
try:
    main()
finally:
    print(time.process_time() - start, *sys.modules, file=sys.stderr)
"""


def test_the_help_is_there_at_once() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", HELP], capture_output=True, text=True, check=True
        ).stderr.split()
        for _ in range(3)
    ]
    assert min(float(seconds) for seconds, *_ in runs) < 0.5
    assert not {"torch", "pyarrow", "rich", "sklearn", "gymnasium", "msgspec"} & set(runs[0])


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_a_reader_that_has_read_enough_gets_no_complaint(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "rlbudget", *words]
    ran = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (1, "")


def test_a_table_is_wider_than_the_terminal_rather_than_cut() -> None:
    file = io.StringIO()
    narrow = Console(file=file, width=40, force_terminal=True, color_system=None)
    rows = [["a method with a long name", *["1,234,567.8"] * 6]]
    console.show(console.plain_table(["method", *["tokens of all"] * 6], rows), on=narrow)
    head, row = file.getvalue().splitlines()
    assert head.split() == ["method", *["tokens", "of", "all"] * 6]
    assert row.split() == ["a", "method", "with", "a", "long", "name", *["1,234,567.8"] * 6]


def test_a_path_in_a_pipe_is_not_wrapped(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = tmp_path / ("a" * 120) / ("b" * 120)
    deep.mkdir(parents=True)
    (deep / "rules.toml").write_text('[[rule]]\nname = "gold"\nthen = "full"\n')
    main(["rules", "check", str(deep / "rules.toml"), "--policy", str(policy)])
    assert capsys.readouterr().out == f"{deep / 'rules.toml'}: 1 rules, no mistake\n"
    main(["registry", "add", str(deep / "registry"), str(policy)])
    capsys.readouterr()
    (deep / "log").mkdir()
    assert str(deep / "traces") in mistake(capsys, "train", deep / "traces", "--out", deep / "run")


Arguments = Callable[[Path, Path, Path, Path], list[object]]
"""(model, traces, policy, a folder to write to) -> a command line"""

MISTAKES: dict[str, tuple[Arguments, str]] = {
    "no command": (lambda m, t, p, o: [], "see rlbudget --help"),
    "unknown command": (lambda m, t, p, o: ["forget"], "forget"),
    "missing argument": (lambda m, t, p, o: ["train", t], "--out"),
    "no traces": (lambda m, t, p, o: ["evaluate", "--out", o], "a folder of traces"),
    "a window without folds": (
        lambda m, t, p, o: ["evaluate", t, "--last", 5, "--out", o], "add --folds",
    ),
    "no number": (lambda m, t, p, o: ["train", t, "--out", o, "--seed", "x"], "--seed"),
    "unknown model": (
        lambda m, t, p, o: ["record", "--model", o / "none", "--task", "embedded", "--n", 1,
                            "--out", o],
        "none",
    ),
    "unknown task": (
        lambda m, t, p, o: ["record", "--model", m, "--task", "chess", "--n", 1, "--out", o],
        "unknown task 'chess'",
    ),
    "unknown profile": (
        lambda m, t, p, o: ["record", "--model", m, "--profile", "loud", "--task", "embedded",
                            "--n", 1, "--out", o],
        "loud",
    ),
    "no questions": (
        lambda m, t, p, o: ["record", "--model", m, "--task", "embedded", "--n", 0, "--out", o],
        "--n must be at least 1, got 0",
    ),
    "quickstart without questions": (
        lambda m, t, p, o: ["quickstart", "--n", 0, "--out", o], "at least 100",
    ),
    "missing traces": (
        lambda m, t, p, o: ["train", o / "none", "--out", o / "run"], "rlbudget record",
    ),
    "missing file": (lambda m, t, p, o: ["import", o / "none.jsonl", "--out", o], "none.jsonl"),
    "missing run": (lambda m, t, p, o: ["freeze", o / "none", "--out", o / "policy"], "none"),
    "missing policy": (
        lambda m, t, p, o: ["evaluate", t, "--policy", o / "none", "--out", o], "none",
    ),
    "prices the wrong way round": (
        lambda m, t, p, o: ["train", t, "--out", o, "--token-price", "0.1", "0.01"], "price",
    ),
    "no steps": (
        lambda m, t, p, o: ["train", t, "--out", o, "--total-timesteps", "0"], "total_timesteps",
    ),
    "no draws": (lambda m, t, p, o: ["evaluate", t, "--out", o, "--draws", "0"], "at least 1"),
    "too few questions to certify": (
        lambda m, t, p, o: ["calibrate", p, t, "--out", o], "needs at least 318",
    ),
    "a bound that is none": (
        lambda m, t, p, o: ["calibrate", p, t, "--out", o, "--max-em-loss", "1.5"], "max_em_loss",
    ),
    "a negative price": (
        lambda m, t, p, o: ["decode", "--model", m, "--profile", "embedded", "--policy", p,
                            "--token-price", "-1", "Why?"],
        "token price",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(
    name: str,
    model: Path,
    traces: Path,
    policy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, expected = MISTAKES[name]
    assert expected in mistake(capsys, *arguments(model, traces, policy, tmp_path / "out"))


def test_an_empty_folder_and_a_torn_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "rlbudget record" in mistake(capsys, "train", empty, "--out", tmp_path / "run")
    torn = tmp_path / "torn"
    with TraceWriter(torn) as writer:
        for i in range(30):
            writer.add(make_trace(i))
    part = next(torn.glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:200])
    assert part.name in mistake(capsys, "evaluate", torn, "--out", tmp_path / "evaluation")


def test_an_unknown_column_and_an_empty_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "questions.jsonl"
    out = ("--n", 1, "--out", tmp_path / "traces")
    file.write_text('{"question": "Why?", "goal": "so"}\n')
    assert f"{file}:1: " in mistake(capsys, "record", "--model", "embedded", "--task", file, *out)
    file.write_text('{"question": "Why?", "target": ""}\n')
    assert "target" in mistake(capsys, "record", "--model", "embedded", "--task", file, *out)


def test_a_damaged_policy(
    policy: Path, traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "policy.safetensors"):
        folder = tmp_path / name
        folder.mkdir()
        for file in policy.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(bytes(content))
        evaluate = ("evaluate", traces, "--policy", folder, "--out", tmp_path / "out")
        assert str(folder) in mistake(capsys, *evaluate)
        (folder / name).unlink()
        assert str(folder) in mistake(capsys, *evaluate)


def test_traces_that_lack_what_a_policy_looks_at(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bare.jsonl"
    write_jsonl(file, [make_trace(i) for i in range(30)])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        for checkpoint in row["checkpoints"]:
            checkpoint["signals"] = {"something": 1.0}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["import", str(file), "--out", str(tmp_path / "traces")])
    capsys.readouterr()
    said = mistake(
        capsys, "evaluate", tmp_path / "traces", "--policy", policy, "--out", tmp_path / "out"
    )
    assert "signal" in said


def test_an_interruption_says_that_what_was_written_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlbudget.cli.quickstart.quickstart", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["quickstart", "--out", str(tmp_path)])
    assert stopped.value.code == 130
    assert "what was written is kept" in capsys.readouterr().err


def test_progress_off_a_terminal_is_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("Counting") as advance:
        for done in range(1001):
            advance(done, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Counting: 0 of 1000"
    assert lines[-1] == "Counting: 1000 of 1000"
    assert len(lines) == 11


def test_rules_are_checked_and_explained(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('[[rule]]\nname = "gold"\nmetadata = { tier = 2 }\nthen = "full"\n')
    main(["rules", "check", str(file), "--policy", str(policy)])
    assert "1 rules, no mistake" in capsys.readouterr().out
    main(["rules", "explain", str(file), "1 + 1?", "--policy", str(policy),
          "--metadata", "tier=2"])  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        "line 1: gold: full",
        "so: runs to its natural end",
    ]
    file.write_text('[[rule]]\nname = "gold"\nthen = "never"\n')
    assert "rules.toml:3: gold" in mistake(capsys, "rules", "check", file, "--policy", policy)
