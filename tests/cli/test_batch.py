"""A file of questions under one budget, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from frozen_nets import FREE, random_policy

from rlbudget.cli.batch import read_questions
from rlbudget.cli.main import main
from rlbudget.errors import UserError
from rlbudget.policy.folder import save_policy


def test_a_file_is_answered_a_line_each_and_what_is_exempt_is_not_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_policy(tmp_path / "policy", random_policy(FREE))
    rows = [
        {"question": "Solve for m: 9*m + 2 = 110", "id": "a"},
        {"question": "3 + 4 - 2", "id": "b", "exempt": True},
        {"question": "5 - 1 + 2", "id": "c"},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = ["decode", "--model", "embedded", "--policy", str(tmp_path / "policy")]
    main([*said, "--file", str(tmp_path / "q.jsonl"), "--token-budget", "120"])
    out = capsys.readouterr()
    found = [json.loads(line) for line in out.out.splitlines()]
    assert [one["id"] for one in found] == ["a", "b", "c"]
    assert found[1]["token_price"] is None
    assert found[0]["token_price"] > 0
    assert found[2]["spent"] == found[0]["tokens"] + found[2]["tokens"]
    assert "of 120 tokens spent" in out.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no question"),
        ('{"question": "a"}\n{"question": " "}', ":2: an empty question"),
        ('{"questions": "a"}', ":1: 'questions': unknown"),
        ('{"id": "a"}', ":1: "),
        ('{"question": 3}', ":1: "),
        ("[1]", ":1: "),
        ('{"question": "a", "exempt": "yes"}', ":1: "),
        ("nonsense", ":1: "),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_questions(file)
    assert said in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    "said",
    [
        ["--file", "q.jsonl"],
        ["1 + 1", "--token-budget", "9"],
        ["1 + 1", "--file", "q.jsonl", "--token-budget", "9"],
        ["--file", "q.jsonl", "--token-budget", "9", "--token-price", "0.001"],
        [],
    ],
)
def test_what_does_not_go_together_is_one_line(
    tmp_path: Path, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    save_policy(tmp_path / "policy", random_policy(FREE))
    with pytest.raises(SystemExit) as stopped:
        main(["decode", "--model", "embedded", "--policy", str(tmp_path / "policy"), *said])
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
