from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlbudget.errors import UserError
from rlbudget.tasks import exact_match_math, exact_match_text, load_task
from rlbudget.tasks.mathematics import is_tame
from rlbudget.tasks.worker import Worker


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("answer", "target", "same"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1),
        ("Eiffel", "Eiffel Tower", 0),
        ("A", "a", 1),
        ("The", "A", 0),
        ("(A)", "A", 1),
        ("B", "A", 0),
        ("", "A", 0),
        ("<", ">", 0),
        ("1.5", "15", 0),
        ("-5", "5", 0),
        ("-5 metres", "5 metres", 0),
        ("1,000", "1000", 1),
        ("$18.00", "18", 1),
        ("\u22125", "-5", 1),
        ("state-of-the-art", "state of the art", 0),
    ],
)
def test_text_exact_match(answer: str, target: str, same: int) -> None:
    assert exact_match_text(answer, target) == same


@pytest.mark.parametrize(
    ("answer", "target", "same"),
    [
        ("18", "18", 1),
        ("18.0", "18", 1),
        ("$1,234.50", "1234.5", 1),
        ("18.", "18", 1),
        ("19", "18", 0),
        ("-18", "18", 0),
        ("1,8", "18", 0),
        ("", "18", 0),
        ("18 dollars", "18", 1),
        ("\\boxed{18}", "18", 1),
        ("1/2", "0.5", 1),
        ("\\frac{2}{4}", "\\frac{1}{2}", 1),
        ("1+x^2", "x^2+1", 1),
        ("x^2-1", "x^2+1", 0),
        ("so it is " + "long " * 500 + "18", "18", 1),
    ],
)
def test_mathematical_exact_match(answer: str, target: str, same: int) -> None:
    pytest.importorskip("math_verify")
    assert exact_match_math(answer, target) == same


@settings(max_examples=300, deadline=None)
@given(st.text(), st.text(min_size=1))
def test_text_scoring_takes_any_text(answer: str, target: str) -> None:
    assert exact_match_text(answer, target) in (0, 1)
    if target.strip():
        assert exact_match_text(target, target) == 1


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("19xe^{}()\\/+-*$ .,!%=|"), max_size=12) | st.text(max_size=20))
def test_mathematical_scoring_takes_any_text(answer: str) -> None:
    pytest.importorskip("math_verify")
    assert exact_match_math(answer, "x^2+1") in (0, 1)


@pytest.mark.parametrize(
    "text", ["9^9^9", "9**9**9", "((9^99)^99)^99", "9^{9^9}", "99999!", "1e999999", "3^9,999,999"]
)
def test_expressions_that_never_end_are_not_worked_out(text: str) -> None:
    assert not is_tame(text)
    assert exact_match_math(text, "18") == 0


def test_mathematical_scoring_works_off_the_main_thread() -> None:
    pytest.importorskip("math_verify")
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(exact_match_math("\\frac{2}{4}", "1/2")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1, 1, 1, 1]


def test_a_worker_that_hangs_or_dies_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_for_worker.py").write_text(
        "import os, time\n"
        "def said(text):\n"
        "    print('noise')\n"
        "    if text == 'hang': time.sleep(60)\n"
        "    if text == 'die': os._exit(1)\n"
        "    return text\n"
    )
    path = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    worker = Worker("made_for_worker:said", "first")
    try:
        assert worker.ask("hang", seconds=0.2) is None
        assert worker.ask("one", seconds=20) == "one"
        assert worker.ask("die", seconds=20) is None
        assert worker.ask("two", seconds=20) == "two"
    finally:
        worker.close()


def test_gsm8k_targets_follow_the_mark(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "g.jsonl",
        {"question": "How many?", "answer": "6*300=<<6*300=1800>>1800\n#### 1,800"},
        {"question": "Less?", "answer": "#### -3"},
    )
    task = load_task(f"gsm8k:{path}", n=2)
    targets = {q.question: q for q in task.questions}
    assert targets["How many?"].target == "1800"
    assert task.score(targets["How many?"], "$1,800.00") == 1
    assert task.score(targets["Less?"], "3") == 0


def test_squad_takes_any_of_its_targets(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "s.jsonl",
        {"question": "Who?", "target": ["Ada Lovelace", "Lovelace"]},
        {"context": "Bob.", "question": "Who?", "answers": {"text": ["Bob"], "answer_start": [0]}},
    )
    task = load_task(f"squad:{path}", n=2)
    by_target = {q.target: q for q in task.questions}
    assert by_target["Bob"].question == "Bob.\n\nWho?"
    assert task.score(by_target["Ada Lovelace"], "the lovelace.") == 1
    assert task.score(by_target["Ada Lovelace"], "Bob") == 0


def test_math_files_are_scored_as_mathematics(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    path = jsonl(tmp_path / "m.jsonl", {"problem": "Half?", "answer": "\\frac{1}{2}"})
    task = load_task(f"math:{path}", n=1)
    assert task.score(task.questions[0], "0.5") == 1


def test_more_questions_keep_the_ones_of_fewer(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "own.jsonl", *({"question": f"q{i}", "target": str(i)} for i in range(30))
    )
    few, more = (load_task(str(path), n=n, seed=3).questions for n in (10, 20))
    assert more[:10] == few
    assert few != load_task(str(path), n=10, seed=4).questions[:10]


def test_ids_are_kept_and_repeated_questions_count_once(tmp_path: Path) -> None:
    row = {"id": 7, "question": "q", "target": "t"}
    path = jsonl(tmp_path / "own.jsonl", row, row)
    assert [q.question_id for q in load_task(str(path), n=1).questions] == ["7"]
    with pytest.raises(UserError, match="holds 1 distinct questions, 2 were asked for"):
        load_task(str(path), n=2)


def test_options_are_read_from_any_file(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "own.jsonl",
        {"question": "Odd?", "target": "Yes.", "options": ["yes", " no "]},
        {"question": "Half?", "target": "0.50", "options": [0.5, 1, "2"]},
        {"question": "Why?", "target": "because", "options": None},
    )
    options = {q.question: q.options for q in load_task(str(path), n=3).questions}
    assert options == {"Odd?": ("yes", "no"), "Half?": ("0.5", "1", "2"), "Why?": ()}
    path = jsonl(tmp_path / "s.jsonl", {"question": "Who?", "target": ["Ada Lovelace", "Ada"],
                                        "options": ["Bob", "Ada"]})  # fmt: skip
    assert load_task(f"squad:{path}", n=1).questions[0].options == ("Bob", "Ada")


@pytest.mark.parametrize(
    ("kind", "row", "problem"),
    [
        ("", {"question": "b", "target": "x", "options": "xy"}, "must be a list of two texts"),
        ("", {"question": "b", "target": "x", "options": {"A": "x"}}, "must be a list of two"),
        ("", {"question": "b", "target": "x", "options": ["x"]}, "must be a list of two texts"),
        ("", {"question": "b", "target": "x", "options": ["x", None]}, "must be a list of two"),
        ("", {"question": "b", "target": "x", "options": ["x", True]}, "options must be text"),
        ("", {"question": "b", "target": "x", "options": ["x", " "]}, "holds an empty text"),
        ("", {"question": "b", "target": "x", "options": ["y", "z"]}, "'x' is none of the options"),
        ("", {"question": "b", "target": "x", "options": ["x", "y", "X."]}, "are the same answer"),
        ("", {"question": "b", "target": "x", "options": ["x", "\ud800"]}, "not valid Unicode"),
        ("", {"question": "a", "target": "t", "options": ["t", "u"]}, "line 1 with other options"),
        ("gsm8k:", {"question": "b", "answer": "#### 4", "options": [1, 2]}, "none of the options"),
        ("", {"question": "b", "target": " "}, "the target is empty"),
        ("", {"question": " ", "target": "x"}, "the question is empty"),
        ("", {"question": "b"}, "missing field target"),
        ("", {"question": "b", "target": ["x"]}, "field target must be text"),
        ("", {"question": "a", "target": "other"}, "the question of line 1 with another target"),
        ("", {"id": "1", "question": "b", "target": "x"}, "id '1' is also on line 1"),
        ("", ["b"], "a line must be an object"),
        ("gsm8k:", {"question": "b", "answer": "4"}, "no ####"),
        ("gsm8k:", {"question": "b", "answer": "4 #### "}, "the target is empty"),
        ("squad:", {"question": "b", "target": []}, "the target is empty"),
        ("squad:", {"question": "b", "answers": {"text": []}}, "the target is empty"),
    ],
)
def test_a_bad_question_is_named_by_file_and_line(
    tmp_path: Path, kind: str, row: object, problem: str
) -> None:
    good = {"id": "1", "question": "a", "target": "t", "answer": "#### 1"}
    path = jsonl(tmp_path / "own.jsonl", good, row)
    with pytest.raises(UserError) as caught:
        load_task(f"{kind}{path}", n=1)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize("spec", ["gsm9k", "gsm8k:", "reasoning-gym:", "reasoning-gym", ""])
def test_an_unknown_task_lists_the_known_ones(spec: str) -> None:
    with pytest.raises(UserError, match="embedded, smollm2, reasoning-gym:FAMILY, gsm8k:FILE"):
        load_task(spec, n=1)


def test_a_missing_file_and_n_0_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load_task(f"gsm8k:{tmp_path / 'none.jsonl'}", n=1)
    with pytest.raises(UserError, match="--n must be at least 1, got 0"):
        load_task("embedded", n=0)


def test_the_embedded_task_is_reserved_mixed_scored_and_the_same_again() -> None:
    pytest.importorskip("reasoning_gym")
    from rlbudget.tasks.reasoning_gym import EMBEDDED_FAMILIES, reserved

    task = load_task("embedded", n=12, seed=5)
    assert task.questions == load_task("embedded", n=12, seed=5).questions
    assert {q.meta["family"] for q in task.questions} == set(EMBEDDED_FAMILIES)
    assert all(reserved(q.question) for q in task.questions)
    assert len({q.question_id for q in task.questions}) == 12
    assert all(task.score(q, q.target) == 1 for q in task.questions)
    assert all(task.score(q, "\0 strange \ud800") == 0 for q in task.questions)
    json.dumps([q.meta for q in task.questions])


def test_a_family_of_reasoning_gym_is_a_task_and_an_unknown_one_is_refused() -> None:
    pytest.importorskip("reasoning_gym")
    assert len(load_task("reasoning-gym:chain_sum", n=3).questions) == 3
    with pytest.raises(UserError, match="no_such_family"):
        load_task("reasoning-gym:no_such_family", n=3)


def test_importing_the_tasks_loads_no_heavy_package() -> None:
    program = (
        "import sys, rlbudget.tasks, rlbudget.traces.store, rlbudget.traces.interchange\n"
        "assert not {'torch', 'sympy', 'math_verify', 'reasoning_gym'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
