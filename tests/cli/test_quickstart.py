"""The main job in one call, small: every file is there, and a second call keeps what is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlbudget.agents import config
from rlbudget.cli.quickstart import SHOWN, quickstart
from rlbudget.errors import UserError
from rlbudget.traces.store import load_table, load_traces
from rlbudget.traces.table import split_questions

N = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quickstart") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "MOST_STEPS", 40_000)  # it is shown, not to be good
        quickstart(out, n=N)
    return out


def test_everything_is_there(folder: Path) -> None:
    assert len(load_traces(folder / "traces")) == N
    assert list((folder / "run").rglob("events.out.tfevents*"))
    assert (folder / "policy" / "policy.safetensors").exists()
    evaluation = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    assert evaluation["held_out_questions"] == 30
    assert evaluation["train_questions"] == 70
    report = (folder / "report.md").read_text()
    assert "(evaluation/frontier.svg)" in report
    assert (folder / "evaluation" / "frontier.svg").exists()


def test_the_decodes_shown_are_held_out_and_replay_what_was_recorded(folder: Path) -> None:
    shown = json.loads((folder / "decodes.json").read_text())
    assert len(shown) == SHOWN
    traces = {trace.question: trace for trace in load_traces(folder / "traces")}
    held_out = set(split_questions(load_table(folder / "traces")).held_out.question_ids.tolist())
    for row in shown:
        trace = traces[row["question"]]
        assert trace.question_id in held_out
        full = trace.final.thinking_tokens + trace.final.answer_tokens
        assert row["full"] == {"answer": trace.final.answer, "tokens": full}
        live = row["policy"]
        if live["reason"] == "policy":
            point = next(c for c in trace.checkpoints if c.thinking_tokens == live["stopped_at"])
            assert live["answer"] == point.exit.answer
            assert live["tokens"] == point.thinking_tokens + point.exit.answer_tokens
        else:
            assert (live["answer"], live["tokens"]) == (trace.final.answer, full)


def test_a_second_call_changes_nothing(folder: Path) -> None:
    kept = ("policy/policy.safetensors", "evaluation/evaluation.json", "decodes.json")
    before = [(folder / name).read_bytes() for name in kept]
    quickstart(folder, n=N)
    assert [(folder / name).read_bytes() for name in kept] == before


def test_another_number_of_questions_in_the_same_folder_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="another"):
        quickstart(folder, n=N + 20)
