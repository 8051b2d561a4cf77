"""Examples of README and docs are run as they stand, and what they answer is asserted.

The commands run on fewer questions than a page says, and with a looser bound on lost answers;
everything else of a line is as it is printed. Trained is once, by README's own commands.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES, ROOT, blocks, commands, page, run_block, run_command, script_of

from rlbudget.cli.main import parse
from rlbudget.traces.interchange import import_jsonl, write_jsonl
from rlbudget.traces.store import digest, load_traces
from runs.integrations.llama_process import free_port

FEWER = {"2400": "300", "1200": "300", "0.02": "0.1", "0.01": "0.1"}
MADE = {"record", "train", "freeze"}
PROGRAMS = {"bash", "python", "pip", "curl", "vllm", "printf"}
BUILT = ".llama/"
"""where programs lie that a page has told to build"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder that README's commands leave, and what each of them printed."""
    folder = tmp_path_factory.mktemp("readme")
    (block,) = [b for b in blocks("bash", page("README.md")) if b.startswith("rlbudget record")]
    said = {
        words[1]: run_command(words, folder, FEWER) for words in commands(f"```bash\n{block}```")
    }
    return folder, said


@pytest.fixture
def folder(made: tuple[Path, dict[str, str]], tmp_path: Path) -> Path:
    """A copy of it, for a page of its own."""
    shutil.copytree(made[0], tmp_path / "made")
    return tmp_path / "made"


def write_plans(text: str, folder: Path) -> None:
    """The plans that a page shows, and those that it prints into files."""
    for block, name in re.findall(r"```toml\n(# (\S+)\n.*?)```", text, flags=re.DOTALL):
        (folder / name).write_text(block)
    for said, name in re.findall(r"^printf '([^']*)' > (\S+)$", text, flags=re.MULTILINE):
        (folder / name).write_text(said.replace("\\n", "\n"))


@pytest.fixture(scope="module")
def trained(made: tuple[Path, dict[str, str]]) -> Callable[[list[str], Path], None]:
    """Runs a page's training on README's traces, and copies what the same words trained before."""
    (readme,) = [w for w in commands(page("README.md")) if w[:2] == ["rlbudget", "train"]]
    kept = {_but_out(readme): made[0] / _out(readme)}

    def train(words: list[str], folder: Path) -> None:
        assert digest(folder / words[2]) == digest(made[0] / "traces")
        if _but_out(words) in kept:
            shutil.copytree(kept[_but_out(words)], folder / _out(words))
            return
        run_command(words, folder, {})
        kept[_but_out(words)] = made[0].parent / f"trained-{len(kept)}"
        shutil.copytree(folder / _out(words), kept[_but_out(words)])

    return train


def _out(words: list[str]) -> str:
    return words[words.index("--out") + 1]


def _but_out(words: list[str]) -> tuple[str, ...]:
    return tuple(word for word in words if word != _out(words))


def follow(name: str, folder: Path) -> dict[str, str]:
    """Run the commands of a page that go on from README's; what each printed."""
    write_plans(page(name), folder)
    return {
        words[1]: run_command(words, folder, FEWER)
        for words in commands(page(name))
        if words[0] == "rlbudget" and words[1] not in MADE
    }


def test_the_commands_of_the_readme_lead_to_a_right_answer(
    made: tuple[Path, dict[str, str]],
) -> None:
    folder, said = made
    assert list(said) == ["record", "train", "freeze", "evaluate", "calibrate", "decode"]
    assert len(load_traces(folder / "traces")) == 300
    assert "90 held-out questions" in said["evaluate"]
    assert "Certified on 90 questions" in said["calibrate"]
    assert "\nAnswer: 12\n" in said["decode"]
    assert (folder / "evaluation" / "report.html").is_file()


def test_the_python_of_the_readme_answers_right_and_saves_tokens(folder: Path) -> None:
    (code,) = blocks("python", page("README.md"))
    said, names = run_block(code, folder)
    answer, tokens, reason = said.split()
    assert (answer, reason) == ("12", "policy")
    full = int(re.search(r"fewer than (\d+) tokens", code)[1])  # type: ignore[index]
    assert int(tokens) < full
    import rlbudget

    low, _ = names["policy"].price_range
    never = rlbudget.decode(names["model"], "Solve for m: 9*m + 2 = 110", _Never(), token_price=low)
    assert (never.answer, never.total_tokens, never.reason) == ("12", full, "natural")


class _Never:
    """A policy that never stops."""

    features = ("thinking_tokens",)
    price_range = (1e-9, 1.0)

    def __call__(self, observation: Any, *, token_price: float) -> Any:
        from rlbudget.policy.network import Decision

        return Decision(stop=False, stop_probability=0.0)


def test_the_correction_page_is_run(folder: Path) -> None:
    shutil.copytree(folder / "traces", folder / "traces-second")
    said = follow("correction.md", folder)
    assert (folder / "correction.safetensors").is_file()
    assert (folder / "second.safetensors").is_file()
    assert "held-out" in said["correct"] or said["correct"].startswith("OFF")
    assert "\nAnswer: 12\n" in said["decode"]


def test_the_production_page_is_run_and_keeps_a_log(folder: Path) -> None:
    shutil.rmtree(folder / "certified")  # README's own
    said = follow("production.md", folder)
    assert "\nAnswer: 12\n" in said["decode"]
    (line,) = (folder / "log" / "decisions.jsonl").read_text().splitlines()
    assert json.loads(line)["request_id"] == "r1"
    assert "version 1" in said["stream"]


def test_the_log_of_the_readme_is_shown(made: tuple[Path, dict[str, str]], folder: Path) -> None:
    write_plans(page("README.md"), folder)
    decode, stream = commands(page("README.md"))[-2:]
    answered = run_command(decode, folder, FEWER)
    assert "\nAnswer: 13\n" in answered
    assert "requests" in run_command(stream, folder, FEWER)


def test_the_impact_page_is_run(folder: Path) -> None:
    said = follow("impact.md", folder)
    assert "ECE" in said["impact"]
    assert "\nAnswer: 12\n" in said["decode"]
    assert "policy+guard" in said["evaluate"]
    (code,) = blocks("python", page("impact.md"))
    printed, names = run_block(code, folder)
    assert printed == f"{names['policy'].price_range}\n"


def test_the_steered_page_is_run(folder: Path) -> None:
    (questions,) = blocks("json", page("steered.md"))
    (folder / "questions.jsonl").write_text(questions)
    said = follow("steered.md", folder)
    assert "ECE" in said["predict"]
    answers = [json.loads(line) for line in said["decode"].splitlines()]
    assert [one["id"] for one in answers] == ["a", "b"]
    assert answers[1]["exempt"]
    assert "critical, bulk" in said["plan"]


def test_hugging_face_answers_right_under_both_of_our_loops(folder: Path) -> None:
    first, second = blocks("python", page("huggingface.md"))
    said, names = run_block(first, folder)
    assert re.findall(r"</think>(\d+)<eos>", said) == ["12", "13"]
    rows = [line.split()[0] for line in said.splitlines() if re.match(r"policy|natural|max", line)]
    assert len(rows) == 2
    assert "policy" in rows
    again, names = run_block(second, folder, names)
    assert [line.split()[0] for line in again.splitlines()] == rows
    texts = names["tokenizer"].batch_decode(names["ids"])
    assert [re.search(r"</think>(\d+)<eos>", text)[1] for text in texts] == ["12", "13"]  # type: ignore[index]


@pytest.fixture
def port() -> Iterator[str]:
    """A free port, on which the toy server of the page is started by the page's own line."""
    number = str(free_port())
    (words,) = [w for w in commands(page("openai.md")) if w[0] == "python"]
    server = subprocess.Popen(
        [sys.executable, *(number if word == "8100" else word for word in words[1:])],
        cwd=ROOT, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait_for(f"http://127.0.0.1:{number}/v1/models")
        yield number
    finally:
        server.terminate()
        server.wait(120)


def _wait_for(url: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=10).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(url)


def test_a_server_of_the_openai_kind_answers_right(
    folder: Path, port: str, trained: Callable[[list[str], Path], None]
) -> None:
    shutil.rmtree(folder / "run")
    shutil.rmtree(folder / "policy")
    train, freeze = [w for w in commands(page("openai.md")) if w[0] == "rlbudget"]
    trained(train, folder)
    run_command(freeze, folder, {})
    (code,) = blocks("python", page("openai.md"))
    said, _ = run_block(code.replace("8100", port), folder)
    rows = [line.split() for line in said.splitlines()]
    assert [answer for answer, _, _ in rows] == ["12", "13"]
    assert {reason for _, _, reason in rows} <= {"policy", "natural"}


def test_the_gateway_answers_openais_client_and_saves_tokens(
    folder: Path, port: str, trained: Callable[[list[str], Path], None]
) -> None:
    write_plans(page("gateway.md"), folder)
    line, train, freeze = [w for w in commands(page("gateway.md")) if w[0] == "rlbudget"]
    trained(train, folder)
    run_command(freeze, folder, {})
    own = str(free_port())
    words = [w.replace("8100", port).replace("8080", own) for w in line[1:]]
    served = subprocess.Popen([sys.executable, "-m", "rlbudget", *words], cwd=folder)
    try:
        _wait_for(f"http://127.0.0.1:{own}/readyz")
        (code,) = blocks("python", page("gateway.md"))
        said, _ = run_block(code.replace("8080", own), folder)
    finally:
        served.terminate()
        assert served.wait(120) == 0
    (answer, tokens, reason), (again, full) = map(str.split, said.splitlines())
    assert (answer, again, reason) == ("12", "12", "policy")
    assert int(tokens) < int(full)
    assert len((folder / "log" / "decisions.jsonl").read_text().splitlines()) == 2


def test_the_traces_page_leads_from_a_file_to_a_report(
    folder: Path, tmp_path: Path, trained: Callable[[list[str], Path], None]
) -> None:
    write_jsonl(tmp_path / "traces.jsonl", load_traces(folder / "traces"))
    lines = [words for words in commands(page("traces.md")) if words[0] == "rlbudget"]
    for words in lines:
        if words[1] == "train":
            trained(words, tmp_path)
        else:
            run_command(words, tmp_path, {})
    assert [words[1] for words in lines] == ["import", "train", "freeze", "evaluate"]
    assert load_traces(tmp_path / "traces") == load_traces(folder / "traces")
    assert (tmp_path / "evaluation" / "report.html").is_file()


def test_the_worked_example_turns_the_table_into_traces(tmp_path: Path) -> None:
    (table,), (code,) = blocks("csv", page("traces.md")), blocks("python", page("traces.md"))
    (tmp_path / "log.csv").write_text(table)
    run_block(code, tmp_path)
    assert import_jsonl(tmp_path / "traces.jsonl", tmp_path / "traces").n == 1
    (trace,) = load_traces(tmp_path / "traces")
    assert [c.thinking_tokens for c in trace.checkpoints] == [64, 128]
    assert [c.exit.exact_match for c in trace.checkpoints] == [0, 1]
    assert trace.final.exact_match == 1
    assert trace.final.thinking_tokens == 171


def test_the_request_shown_to_sglang_names_our_processor(tmp_path: Path) -> None:
    (code,) = blocks("python", page("sglang.md"))
    _, names = run_block(code, tmp_path)
    request = names["request"]
    assert request["custom_params"] == {"token_price": 2e-4}
    named = bytes.fromhex(json.loads(request["custom_logit_processor"])["callable"])
    assert b"rlbudget.integrations.sglang" in named
    assert b"StopProcessor" in named


@pytest.mark.slow
def test_the_ensembles_page_is_run(tmp_path: Path) -> None:
    from rlbudget.policy.folder import load_policy

    rule = '[[rule]]\nname = "gold"\nmetadata = { tier = 2 }\nthen = "full"\n'
    (tmp_path / "rules.toml").write_text(rule)
    decodes, said = [], {}
    for words in commands(page("ensembles.md")):
        if words[0] != "rlbudget":
            continue
        printed = run_command(words, tmp_path, FEWER)
        said[words[1]] = printed
        if words[1] == "decode":
            decodes.append(re.search(r"^Answer: (.*)$", printed, re.MULTILINE)[1])  # type: ignore[index]
    assert decodes == ["12", "13", "13"]
    for row in ("blend", "blend+guard", "blend+guard+rules"):
        assert f"\n{row} " in said["evaluate"]
    chooser, cascade, several = blocks("python", page("ensembles.md"))
    printed, _ = run_block(chooser, tmp_path)
    assert re.match(r"12 by member [01] for [\d.]+ tokens\n", printed)
    printed, _ = run_block(cascade, tmp_path)
    actions = [int(action) for action in re.findall(r"action=(\d)", printed)]
    assert len(actions) == 2
    assert set(actions) <= {0, 1, 2}
    _, names = run_block(several, tmp_path)
    assert names["done"].outcome.exact_match.shape == (300,)
    assert names["served"].price_range[1] <= load_policy(tmp_path / "policies" / "0").price_range[1]
    assert names["blend"].price_range == names["together"].price_range


# What every page shows


@pytest.mark.parametrize("name", PAGES)
def test_every_command_line_is_one(name: str) -> None:
    for words in commands(page(name)):
        if words[0] == "rlbudget":
            parse(words[1:])
            continue
        program = next(word for word in words if "=" not in word)
        assert program in PROGRAMS or program.startswith(("runs/", BUILT)), words
        for word in words:
            if word.startswith("runs/"):
                assert (ROOT / word).is_file(), words
            if word.startswith("runs."):
                assert script_of(word).is_file(), words


@pytest.mark.parametrize("name", PAGES)
def test_every_name_that_is_imported_from_us_is_there(name: str) -> None:
    for code in blocks("python", page(name)):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlbudget"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), (name, node.module, alias.name)
