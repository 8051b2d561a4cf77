"""Reading logs of thinking: every usual shape, and every way in which a row can be no use."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlbudget.errors import UserError
from rlbudget.tasks.log_rows import LogColumns, Logged, Tags
from rlbudget.tasks.logs import LeftOut, open_log

THINK = Tags("<think>", "</think>")


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, columns: LogColumns | None = None) -> tuple[list[Logged], list[str], LeftOut]:
    told: list[str] = []
    left_out = LeftOut(told.append)
    rows = list(open_log(path, columns or LogColumns(), THINK, left_out).rows)
    return rows, told, left_out


USER = {"role": "user", "content": "What is 2 + 2?"}
SHAPES: dict[str, dict[str, Any]] = {
    "flat": {"question": "What is 2 + 2?", "thinking": "two and two", "answer": "4"},
    "prompt and tagged completion": {
        "prompt": "What is 2 + 2?", "completion": "<think>two and two</think>4",
    },
    "the prompt opened the thinking": {
        "prompt": "What is 2 + 2?", "response": "two and two</think>4",
    },
    "a conversation": {
        "messages": [
            USER, {"role": "assistant", "reasoning_content": "two and two", "content": "4"},
        ]
    },
    "a conversation with tags": {
        "messages": [USER, {"role": "assistant", "content": "<think>two and two</think>4"}]
    },
    "request and response": {
        "request": {"model": "m", "messages": [USER]},
        "response": {"choices": [{"message": {"reasoning": "two and two", "content": "4"}}]},
    },
    "a batch of OpenAI's": {
        "custom_id": "r1",
        "body": {"messages": [USER]},
        "response": {"status_code": 200, "body": {"choices": [
            {"message": {"reasoning_content": "two and two", "content": "4"}}]}},
    },
    "a trace of Langfuse": {
        "id": "t1", "input": {"messages": [USER]},
        "output": {"role": "assistant", "content": "4", "reasoning_content": "two and two"},
    },
    "a generation of Langfuse": {
        "id": "t1", "input": [USER],
        "output": {"role": "assistant", "content": "<think>two and two</think>4"},
    },
    "JSON in a text": {
        "id": "t1", "input": json.dumps([USER]),
        "output": json.dumps({"content": "4", "reasoning_content": "two and two"}),
    },
    "content in parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What is 2 + 2?"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "two and two"}, {"type": "text", "text": "4"}]},
        ]
    },
    "choices beside the prompt": {
        "prompt": "What is 2 + 2?", "choices": [{"text": "two and two</think>4"}],
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_usual_shape_is_read_without_a_column_named(shape: str, tmp_path: Path) -> None:
    rows, told, _ = read(written(tmp_path / "log.jsonl", [SHAPES[shape]]))
    assert told == []
    (row,) = rows
    assert (row.question, row.thinking, row.answer) == ("What is 2 + 2?", "two and two", "4")


def test_the_same_rows_are_read_from_csv_and_parquet(tmp_path: Path) -> None:
    row = {"id": "a", "question": "What is 2 + 2?", "thinking": "two and two", "answer": "4"}
    with (tmp_path / "log.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, row)
        writer.writeheader()
        writer.writerow(row)
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "log.parquet")
    found = [read(tmp_path / name)[0][0] for name in ("log.csv", "log.parquet")]
    assert {(r.identity, r.question, r.thinking, r.answer) for r in found} == {
        ("a", "What is 2 + 2?", "two and two", "4")
    }


def test_dots_reach_into_objects_and_lists(tmp_path: Path) -> None:
    row = {"a": {"b": [{"q": "Q?"}]}, "c": {"t": "think"}, "d": {"x": "4"}}
    columns = LogColumns(question="a.b.0.q", thinking="c.t", answer="d.x")
    (found,), _, _ = read(written(tmp_path / "log.jsonl", [row]), columns)
    assert (found.question, found.thinking, found.answer) == ("Q?", "think", "4")


def test_a_system_prompt_and_earlier_turns_are_kept(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "2 + 2?"},
    ]
    row = {"messages": messages, "thinking": "hm", "answer": "4"}
    (found,), _, _ = read(written(tmp_path / "log.jsonl", [row]))
    assert found.question == "2 + 2?"
    assert [message.role for message in found.messages] == [m["role"] for m in messages]


GOOD = SHAPES["flat"]
BAD: dict[str, tuple[Any, str]] = {
    "without a thinking": ({"question": "Q?", "answer": "4"}, "thinking"),
    "with an empty thinking": ({**GOOD, "thinking": " \n"}, "the thinking is empty"),
    "with an open thinking": (
        {"question": "Q?", "completion": "<think>on and on"}, "is not closed by </think>",
    ),
    "without an answer": ({**GOOD, "answer": " "}, "no answer after the thinking"),
    "without a question": ({"thinking": "t", "answer": "4"}, "there is no question"),
    "unreadable": ({**GOOD, "thinking": ["a"]}, "the thinking must be text"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
         "thinking": "t", "answer": "4"},
        "image_url",
    ),
    "half a character": ({**GOOD, "thinking": "\ud800"}, "surrogate"),
    "two choices": (
        {"prompt": "Q?", "choices": [{"text": "a</think>4"}, {"text": "b</think>5"}]},
        "2 choices",
    ),
    "a message without a role": (
        {"messages": [{"content": "Q?"}], "thinking": "t", "answer": "4"}, "has no role",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_row_of_no_use_is_told_by_file_and_line_and_costs_no_other(
    kind: str, tmp_path: Path
) -> None:
    row, said = BAD[kind]
    path = written(tmp_path / "log.jsonl", [GOOD, row, {**GOOD, "question": "Another?"}])
    rows, told, left_out = read(path)
    assert len(rows) == 2
    (problem,) = told
    assert problem.startswith(f"{path}:2: ")
    assert said in problem
    assert left_out.n == 1
    if kind.startswith("with"):
        assert left_out.kinds == {kind: 1}


def test_an_id_that_comes_twice_is_told_and_the_same_row_twice_is_counted(tmp_path: Path) -> None:
    one = {"id": "a", **GOOD}
    path = written(tmp_path / "log.jsonl", [one, {**one, "answer": "5"}, one])
    rows, told, left_out = read(path)
    assert len(rows) == 1
    assert "the id 'a' is also on line 1" in told[0]
    assert left_out.kinds == {"of an id that came before": 1, "logged twice": 1}
    assert len(read(path, LogColumns(identity=""))[0]) == 2


def test_lines_that_are_no_json_are_told(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl", [GOOD])
    path.write_bytes(path.read_bytes() + b"{\n[1]\n\xff\n")
    rows, told, _ = read(path)
    assert len(rows) == 1
    assert [one.split(": ")[0] for one in told] == [f"{path}:{n}" for n in (2, 3, 4)]


def test_a_line_of_ten_megabytes_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl", [{**GOOD, "thinking": "so " * 3_500_000}])
    assert len(read(path)[0][0].thinking) > 10_000_000


@pytest.mark.parametrize("option", ["question", "thinking", "answer", "completion", "target"])
def test_a_column_that_no_row_has_is_refused_with_those_there_are(
    option: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "log.jsonl", [{**GOOD, "meta": {"user": "u"}}])
    with pytest.raises(UserError, match=r"no column 'nope'.*question, thinking.*meta\.user"):
        read(path, LogColumns(**{option: "nope"}))


def test_a_log_without_any_thinking_says_how_to_name_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl", [{"q": "Q?", "t": "think", "a": "4"}])
    with pytest.raises(UserError, match=r"--thinking-column.*there are: q, t, a"):
        read(path)


def test_an_empty_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("")
    with pytest.raises(UserError, match="it is empty"):
        read(path)


def test_what_vllm_prints_is_read(tmp_path: Path) -> None:
    path = tmp_path / "vllm.log"
    path.write_text(
        "(APIServer) DEBUG 11-27 [request_logger.py:54] Request chatcmpl-1 details: prompt:"
        " '<bos>What is \\'2\\' + 2?\\n<think>', prompt_token_ids: [1, 2], prompt_embeds shape:"
        " None.\n"
        "INFO: 127.0.0.1 - POST /v1/chat/completions\n"
        "(APIServer) INFO 11-27 [request_logger.py:95] Generated response chatcmpl-1: output:"
        ' "it\'s\\n4</think>4", finish_reason: stop\n'
        "INFO Generated response chatcmpl-2 (streaming complete): output: 'x</think>4',"
        " finish_reason: streaming_complete\n"
    )
    rows, told, _ = read(path)
    (row,) = rows
    assert (row.question, row.rendered) == ("<bos>What is '2' + 2?\n<think>", True)
    assert (row.identity, row.thinking, row.answer) == ("chatcmpl-1", "it's\n4", "4")
    assert [one.split(": ")[0] for one in told] == [f"{path}:4"]
    assert "chatcmpl-2 was not printed" in told[0]


def test_targets_are_a_column_of_their_own(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl", [{**GOOD, "target": 4}, {**GOOD, "question": "Q?"}])
    left_out = LeftOut()
    log = open_log(path, LogColumns(), THINK, left_out)
    assert log.has_targets
    assert [row.target for row in log.rows] == ["4"]
    assert left_out.kinds == {"without a target": 1}
    assert not open_log(path, LogColumns(target=""), THINK, left_out).has_targets
    assert not open_log(written(path, [GOOD]), LogColumns(), THINK, left_out).has_targets
