"""Annotating a log gives the traces that recording the same decodes gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import save_tiny_model, tiny_task

from rlbudget.decoding.annotate import AnnotateStats, annotate
from rlbudget.decoding.record import record
from rlbudget.decoding.reread import speller_of
from rlbudget.errors import UserError
from rlbudget.models import load_model
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.tasks.log_rows import LogColumns, Tags
from rlbudget.tasks.logs import LeftOut, open_log
from rlbudget.traces.store import load_traces
from rlbudget.traces.trace import Trace

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> TransformersModel:
    return load_model("embedded")


@pytest.fixture(scope="module")
def recorded(model: TransformersModel, tmp_path_factory: pytest.TempPathFactory) -> list[Trace]:
    from rlbudget.tasks import load_task

    folder = tmp_path_factory.mktemp("recorded")
    record(model, load_task("embedded", n=6, seed=5), folder, store_text=True)
    return load_traces(folder)


def row_of(trace: Trace, **more: Any) -> dict[str, Any]:
    return {
        "id": trace.trace_id, "question": trace.question, "thinking": trace.meta["thinking"],
        "answer": trace.final.answer, **more,
    }  # fmt: skip


def log_of(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def annotated(
    model: TransformersModel, log: Path, out: Path, **settings: Any
) -> tuple[dict[str, Trace], AnnotateStats]:
    stats = annotate(model, log, out, **settings)
    return {trace.trace_id: trace for trace in load_traces(out)}, stats


def test_annotating_thoughts_gives_what_recording_them_gave(
    model: TransformersModel, recorded: list[Trace], tmp_path: Path
) -> None:
    rows = [row_of(trace, target=trace.target) for trace in recorded]
    found, stats = annotated(model, log_of(tmp_path / "log.jsonl", rows), tmp_path / "out")
    assert (stats.n, stats.left_out.n, stats.agreement) == (6, 0, False)
    for trace in recorded:
        again = found[trace.trace_id]
        assert (again.question, again.target, again.final) == (
            trace.question, trace.target, trace.final,
        )  # fmt: skip
        assert len(again.checkpoints) == len(trace.checkpoints)
        for one, other in zip(again.checkpoints, trace.checkpoints, strict=True):
            assert (one.thinking_tokens, one.exit) == (other.thinking_tokens, other.exit)
            assert one.probe is not None
            assert other.probe is not None
            assert (one.probe.answer, one.probe.tokens) == (other.probe.answer, other.probe.tokens)
            mine = {name: one.signals[name] for name in other.signals}
            assert mine == pytest.approx(other.signals, abs=1e-3)


def test_without_targets_exits_are_compared_with_the_full_decode_and_traces_say_so(
    model: TransformersModel, recorded: list[Trace], tmp_path: Path
) -> None:
    rows = [row_of(trace) for trace in recorded]
    found, stats = annotated(model, log_of(tmp_path / "log.jsonl", rows), tmp_path / "out")
    assert stats.agreement
    for trace in found.values():
        assert trace.meta["compared_with"] == "full decode"
        assert trace.final.exact_match == 1
        for point in trace.checkpoints:
            assert point.exit.exact_match == (point.exit.answer == trace.final.answer)


def test_a_vllm_log_and_a_chat_give_the_same_traces(
    model: TransformersModel, recorded: list[Trace], tmp_path: Path
) -> None:
    prompts = [
        model.vocabulary.text(model.prompt_ids(trace.question), special=True) for trace in recorded
    ]
    texts = [f"{trace.meta['thinking']}</think>{trace.final.answer}" for trace in recorded]
    log = tmp_path / "vllm.log"
    log.write_text(
        "".join(
            f"Request {t.trace_id} details: prompt: {p!r}, prompt_token_ids: [],\n"
            f"Generated response {t.trace_id}: output: {text!r}, finish_reason: stop\n"
            for t, p, text in zip(recorded, prompts, texts, strict=True)
        )
    )
    chat = [
        {"id": t.trace_id, "messages": [{"role": "user", "content": t.question},
                                        {"role": "assistant", "content": f"<think>{text}"}]}
        for t, text in zip(recorded, texts, strict=True)
    ]  # fmt: skip
    printed, _ = annotated(model, log, tmp_path / "printed", task="t")
    talked, _ = annotated(model, log_of(tmp_path / "c.jsonl", chat), tmp_path / "chat", task="t")
    assert printed == talked
    assert {t.question for t in printed.values()} == {t.question for t in recorded}


def test_a_killed_annotation_goes_on_where_it_was(
    model: TransformersModel, recorded: list[Trace], tmp_path: Path
) -> None:
    log = log_of(tmp_path / "log.jsonl", [row_of(trace) for trace in recorded])
    whole, _ = annotated(model, log, tmp_path / "whole")

    def kill(trace: Trace) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        annotate(model, log, tmp_path / "out", on_trace=kill)
    assert len(load_traces(tmp_path / "out")) == 1
    found, stats = annotated(model, log, tmp_path / "out", resume=True)
    assert (stats.n, stats.skipped) == (5, 1)
    assert {name: trace.checkpoints for name, trace in found.items()}.keys() == whole.keys()
    for name, trace in found.items():
        assert [c.exit for c in trace.checkpoints] == [c.exit for c in whole[name].checkpoints]
    with pytest.raises(UserError, match="stride 8, not 16"):
        annotate(model, log, tmp_path / "out", resume=True, stride=16)


def test_rows_that_the_model_cannot_read_are_counted(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = save_tiny_model(tmp_path_factory.mktemp("model"))
    model = load_model(str(folder), profile="embedded")
    good = {"question": "What is 3 + 4?", "thinking": "3 and 4 is 7, so 7.", "answer": "7"}
    rows = [
        good,
        {**good, "thinking": "so " * 5000},
        {**good, "thinking": "so " * 3_500_000},
        {**good, "question": "What is " * 5000},
        {**good, "question": "Q?", "thinking": "so " * 30},
        {"messages": [{"role": "system", "content": "Be short."},
                      {"role": "user", "content": "2 + 2?"}], "thinking": "hm", "answer": "4"},
    ]  # fmt: skip
    told: list[str] = []
    log = log_of(tmp_path / "log.jsonl", rows)
    found, stats = annotated(
        model, log, tmp_path / "out", on_left_out=told.append, max_tokens=40, stride=4
    )
    assert len(found) == 1
    assert stats.left_out.kinds == {
        "longer than the model's context": 3,
        "longer than --max-tokens": 1,
        "of conversations without a chat template": 1,
    }
    assert [one.split(": ")[0] for one in told] == [f"{log}:{n}" for n in range(2, 7)]
    (trace,) = found.values()
    assert trace.meta["max_tokens"] == 40
    assert [c.thinking_tokens for c in trace.checkpoints] == list(
        range(4, trace.final.thinking_tokens + 1, 4)
    )


def test_a_log_of_which_nothing_can_be_annotated_is_refused_with_the_first_reason(
    model: TransformersModel, tmp_path: Path
) -> None:
    log = log_of(tmp_path / "log.jsonl", [{"question": "Q?", "thinking": "", "answer": "4"}])
    with pytest.raises(UserError, match=r"none of its 1 rows.*log\.jsonl:1: the thinking is empty"):
        annotate(model, log, tmp_path / "out")


def test_decodes_of_one_question_share_its_id(
    model: TransformersModel, recorded: list[Trace], tmp_path: Path
) -> None:
    one = row_of(recorded[0])
    rows = [one, {**one, "id": "again", "thinking": one["thinking"] + " Done."}]
    found, _ = annotated(
        model, log_of(tmp_path / "log.jsonl", rows), tmp_path / "out", columns=LogColumns()
    )
    assert len(found) == 2
    assert len({trace.question_id for trace in found.values()}) == 1


def test_a_wide_character_is_never_cut(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = save_tiny_model(tmp_path_factory.mktemp("model"))
    model = load_model(str(folder), profile="embedded")
    row = {"question": tiny_task(1).questions[0].question, "thinking": "é→😀" * 6, "answer": "7"}
    (trace,) = annotated(model, log_of(tmp_path / "log.jsonl", [row]), tmp_path / "out", stride=1)[
        0
    ].values()
    whole = model.tokenizer(row["thinking"])["input_ids"]
    cuts = [c.thinking_tokens for c in trace.checkpoints]
    assert cuts == [n for n in range(1, len(whole) + 1)
                    if "\ufffd" not in model.tokenizer.decode(whole[:n])]  # fmt: skip


def test_a_system_turn_and_earlier_turns_are_in_the_prompt(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = save_tiny_model(tmp_path_factory.mktemp("model"))
    model = load_model(str(folder), profile="embedded")
    model.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"
    )
    messages = [
        {"role": "system", "content": "Be short. </think>"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "2 + 2?"},
    ]
    row = {"messages": messages, "thinking": "\n2 and 2 is 4, so 4.", "answer": "4"}
    left_out = LeftOut()
    log = open_log(
        log_of(tmp_path / "log.jsonl", [row]), LogColumns(), Tags("<think>", "</think>"), left_out
    )
    (logged,) = log.rows
    spelled = speller_of(model, None).spell(logged)
    prompt = model.vocabulary.text(spelled.prompt, special=True)
    assert prompt == (
        "[system]Be short. </think>\n[user]Hi\n[assistant]Hello\n[user]2 + 2?\n[assistant]<think>\n"
    )
    # The tag in a message is text, not the token; the line break after the start is the prompt's.
    assert spelled.prompt.count(model.vocabulary.end_id) == 0
    assert model.vocabulary.text(spelled.thinking) == "2 and 2 is 4, so 4."
    assert (spelled.question, spelled.plain) == ("2 + 2?", False)
