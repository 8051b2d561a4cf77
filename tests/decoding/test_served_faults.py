"""Recording through servers that fail, differ or are none: each trace once, and one line each."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_servers import Handler, listening
from pages import blocks, page

from rlbudget.cli.main import main
from rlbudget.traces.store import digest, load_traces
from runs.common import ROOT
from runs.integrations.toy_script import DIGITS, scripted, written

PROMPT = [1]


def questions(folder: Path, n: int) -> Path:
    file = folder / "questions.jsonl"
    rows = [{"id": f"q{i}", "question": f"What is {i} + 3?", "target": str(10 + i)}
            for i in range(n)]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def record(urls: Sequence[str], file: Path, out: Path, *more: str) -> list[str]:
    return ["record", "--model", ",".join(urls), "--profile", "embedded", "--tokenizer",
            "embedded", "--task", str(file), "--out", str(out), "--stride", "16",
            "--temperature", "0", "--patience", "20", *more]  # fmt: skip


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail as a user's mistake; its last line."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line]
    assert said[-1].startswith("rlbudget: ")
    return said[-1]


def test_faults_and_kills_leave_each_trace_once_and_the_same_set(tmp_path: Path) -> None:
    file = questions(tmp_path, 150)
    with scripted() as url:
        main(record([url], file, tmp_path / "quiet"))
    with scripted(faults=0.02, die=0.001) as url:
        command = [sys.executable, "-m", "rlbudget.cli.main",
                   *record([url], file, tmp_path / "storm", "--resume")]  # fmt: skip
        for _ in range(2):
            with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as one:
                assert one.stderr is not None
                for line in one.stderr:
                    if re.match(r"Recording: ([3-9]\d|\d{3})", line):
                        one.send_signal(signal.SIGKILL)
                        break
        main(record([url], file, tmp_path / "storm", "--resume"))
    assert len(load_traces(tmp_path / "storm")) == 150
    assert digest(tmp_path / "storm") == digest(tmp_path / "quiet")


def test_two_servers_share_the_questions_and_one_that_is_gone_gives_its_work_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = questions(tmp_path, 50)
    with scripted() as one, scripted(die=0.02, delay=0.05) as other:
        main(record([one, other], file, tmp_path / "traces"))
    assert len(load_traces(tmp_path / "traces")) == 50
    assert "toy at 2 servers: vLLM" in capsys.readouterr().err


def test_llama_server_is_asked_by_its_own_route_and_gives_the_same_traces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = questions(tmp_path, 12)
    for owner in ("vllm", "llamacpp"):
        with scripted(owner=owner) as url:
            main(record([url], file, tmp_path / owner))
    assert "llama-server, prefixes as token ids" in capsys.readouterr().err
    assert digest(tmp_path / "llamacpp") == digest(tmp_path / "vllm")


def test_an_interrupted_recording_keeps_what_it_has(tmp_path: Path) -> None:
    file = questions(tmp_path, 400)
    with scripted(delay=0.05) as url:
        command = [sys.executable, "-m", "rlbudget.cli.main",
                   *record([url], file, tmp_path / "traces", "--concurrency", "8")]  # fmt: skip
        with subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, text=True,
            # Who started the tests in the background of a shell passes on that it is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as one:  # fmt: skip
            assert one.stderr is not None
            said, done = "", 0
            for line in one.stderr:
                said += line
                # Whichever is shown first: a loaded machine skips some.
                shown = re.match(r"Recording: (\d+) of", line)
                if shown and int(shown[1]) and not done:
                    done = int(shown[1])
                    one.send_signal(signal.SIGINT)
        assert one.returncode == 130
    assert 0 < done < 400
    assert "interrupted; what was written is kept" in said
    assert done <= len(load_traces(tmp_path / "traces")) < 400


def test_shards_are_put_together_and_recording_one_again_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = questions(tmp_path, 40)
    with scripted() as url:
        for shard in ("1/3", "2/3", "3/3", "2/3"):
            main(record([url], file, tmp_path / "shards", "--shard", shard))
        main(record([url], file, tmp_path / "whole"))
    assert "0 traces recorded" in capsys.readouterr().err
    main(["traces", "merge", str(tmp_path / "shards"), "--out", str(tmp_path / "all")])
    main(["traces", "validate", str(tmp_path / "all")])
    assert digest(tmp_path / "all") == digest(tmp_path / "whole")
    assert "40 traces in 1 folders: whole, each id once" in capsys.readouterr().out


def test_the_five_commands_of_the_page_lead_from_a_server_to_a_policy_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = blocks("bash", page("server.md"))[0].replace("http://127.0.0.1:8000/v1", "{url}")
    lines = [shlex.split(line)[1:] for line in lines.splitlines()]
    assert len(lines) <= 5
    monkeypatch.chdir(tmp_path)
    rows = []
    for i in range(80):
        prompt = prompt_of(question := f"What is {i} + 3?")
        answer = written(prompt, 200)[-3:-1]
        target = "".join(str(token - DIGITS) for token in answer)
        rows.append({"question": question, "target": target})
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with scripted() as url:
        for line in lines:
            more = []
            if line[0] == "record":
                more = ["--profile", "embedded"]
            elif line[0] == "train":
                more = ["--total-timesteps", "20000"]
            main([word.replace("{url}", url) for word in line] + more)
        said = capsys.readouterr()
        assert re.search(r"^Answer: \d\d$", said.out, re.MULTILINE)
        assert "all 80 questions would take about: " in said.err
        assert "exact match 100.0%" in said.err
        gone = "http://127.0.0.1:9/v1"
        main(["decode", "--model", f"{gone},{url}", "--policy", "policy", "What is 2 + 3?"])
        assert "Answer: " in capsys.readouterr().out
        decode = ["decode", "--model", url, "--policy", "policy", "What is 2 + 3?"]
        wrong = mistake(capsys, *decode, "--system", "be brief")
        assert "--system: the policy was trained on traces with none" in wrong


def prompt_of(question: str) -> list[int]:
    from rlbudget.models.profiles import find_profile
    from rlbudget.models.tokenizer import served_tokenizer

    return find_profile("embedded").prompt(question, served_tokenizer("embedded")[0])


# Bad input


MODELS = {"data": [{"id": "toy", "owned_by": "vllm", "root": "embedded"}]}


@contextmanager
def fake(routes: dict[str, Any]) -> Iterator[str]:
    """A server that answers a path with JSON, with (status, JSON), or with bytes."""

    class Fake(Handler):
        def do_GET(self) -> None:  # noqa: N802
            self.answer()

        def do_POST(self) -> None:  # noqa: N802
            self.body()
            self.answer()

        def answer(self) -> None:
            said = routes.get(self.path, (404, {"detail": "Not Found"}))
            if isinstance(said, bytes):
                self.send_response(200)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)
            elif isinstance(said, tuple):
                self.send_json(said[1], said[0])
            else:
                self.send_json(said)

    with listening(Fake) as url:
        yield f"{url}/v1"


@pytest.mark.parametrize(
    ("routes", "line"),
    [
        ({}, r"lists no models \(status 404\): is this the address .* ending in /v1\?"),
        ({"/v1/models": {"data": []}}, "lists no models: is this the address"),
        ({"/v1/models": b"<html><body>hello</body></html>"}, "answers something that is no JSON"),
        ({"/v1/models": (401, {"error": "who?"})}, "does not accept the key"),
        (
            {"/v1/models": MODELS, "/tokenize": {"tokens": [1, 2, 3]}},
            "3 tokens that are not those of this tokenizer: name the tokenizer of 'toy'",
        ),
        ({"/v1/models": MODELS}, "refuses the request .status 404"),
    ],
)
def test_what_is_no_server_is_said_in_one_line(
    routes: dict[str, Any], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake(routes) as url:
        said = mistake(capsys, *record([url], questions(tmp_path, 12), tmp_path / "traces"))
    assert re.search(line, said), said
    assert not list((tmp_path / "traces").glob("part-*"))


def test_what_is_said_of_a_server_wrongly_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = questions(tmp_path, 12), tmp_path / "traces"
    with scripted() as url:
        common = record([url], file, out)
        for more, line in (
            (["--served-model", "qwen"], "serves no model 'qwen'; it serves: toy"),
            (["--device", "cpu"], "--device is for a model loaded here"),
            (["--chat-template-kwargs", "{"], "takes a JSON object"),
            (["--system", "be brief"], "the profile embedded has a prompt of its own"),
            (["--shard", "4/3"], "--shard takes I/N"),
            (["--key-env", "NO_SUCH_KEY"], "this environment variable is not set"),
        ):
            assert line in mistake(capsys, *common, *more)
        local = ["record", "--model", "embedded", "--task", str(file), "--out", str(out)]
        assert "--concurrency is for a server" in mistake(capsys, *local, "--concurrency", "3")
        assert "names an address twice" in mistake(capsys, *record([url, url], file, out))
    gone = mistake(capsys, *record([url], file, out))
    assert "Cannot connect" in gone or "cannot reach" in gone or "Connect call failed" in gone
