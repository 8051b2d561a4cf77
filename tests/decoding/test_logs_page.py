"""docs/logs.md: each log on the page becomes the same traces, and the commands lead to a policy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pages import blocks, commands, page, run_command
from trace_makers import make_trace

from rlbudget.traces.store import TraceWriter, load_traces

PAGE = page("logs.md")


def test_every_log_of_the_page_becomes_the_same_traces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat, export = blocks("json", PAGE)
    (printed,) = re.findall(r"```\n(DEBUG.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "requests.jsonl").write_text(chat)
    (tmp_path / "export.jsonl").write_text(export)
    (tmp_path / "vllm.log").write_text(printed)
    annotate, exported = (c for c in commands(PAGE) if c[:2] == ["rlbudget", "annotate"])
    run_command(annotate, tmp_path, {})
    run_command(exported, tmp_path, {})
    run_command([*annotate, "--target-column", ""], tmp_path,
                {"requests.jsonl": "vllm.log", "traces": "printed"})  # fmt: skip
    said = capsys.readouterr().err
    assert "left out" not in said
    assert "Exact match is agreement with the full decode" in said
    found = {name: load_traces(tmp_path / name) for name in ("traces", "exported", "printed")}
    assert [len(traces) for traces in found.values()] == [2, 2, 1]
    (known,) = found["traces"][0].checkpoints
    for traces in found.values():
        first = next(trace for trace in traces if trace.question == "What is 3 + 4?")
        assert (first.final.answer, first.target) == ("7", "7")
        (point,) = first.checkpoints
        assert (point.thinking_tokens, point.exit) == (known.thinking_tokens, known.exit)
        assert point.signals == pytest.approx(known.signals, abs=1e-3)


def test_the_other_commands_of_the_page_take_such_traces(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "traces") as writer:
        for i in range(60):
            writer.add(make_trace(i))
    for command in commands(PAGE):
        if command[1] in ("train", "freeze"):
            more = ["--total-timesteps", "256"] if command[1] == "train" else []
            run_command([*command, *more], tmp_path, {})
    assert json.loads((tmp_path / "policy" / "config.json").read_text())["features"]
