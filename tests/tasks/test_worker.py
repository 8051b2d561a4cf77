"""Texts that hang: every scorer is bounded, and its process ends with the one that asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlbudget.errors import UserError
from rlbudget.tasks import exact_match_math, mathematics
from rlbudget.tasks.patterns import Pattern
from rlbudget.tasks.scorers import find_scorer, vote_key
from rlbudget.tasks.worker import Worker

MODULE = """
import os, time
def did(what="first"):
    if what == "busy":
        9**9**9**9
    if what == "large":
        return len(bytearray(2**30))
    if what == "raise":
        raise ValueError("no")
    if what == "process":
        return os.getpid()
    return what
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    (tmp_path / "made_here.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return Worker("made_here:did", "first")


def test_a_call_that_holds_the_interpreter_ends_in_time_and_another_is_answered(
    worker: Worker,
) -> None:
    assert worker.ask("one", seconds=20) == "one"
    begun = time.monotonic()
    assert worker.ask("busy", seconds=1) is None
    assert time.monotonic() - begun < 15  # what it does takes centuries
    assert worker.ask("two", seconds=20) == "two"
    worker.close()


def test_a_call_that_wants_too_much_memory_has_no_result_and_another_is_answered(
    worker: Worker,
) -> None:
    assert worker.ask("large", seconds=20) is None
    assert worker.ask("raise", seconds=20) is None
    assert worker.ask("two", seconds=20) == "two"
    worker.close()


def test_what_was_loaded_is_not_loaded_again_after_a_kill(worker: Worker, tmp_path: Path) -> None:
    assert worker.ask("one", seconds=20) == "one"
    (tmp_path / "made_here.py").write_text("raise SystemExit('loaded again')")
    for _ in range(2):
        assert worker.ask("busy", seconds=0.2) is None
        assert worker.ask("two", seconds=20) == "two"
    worker.close()


def test_where_all_its_processes_were_killed_others_are_started(worker: Worker) -> None:
    first = worker.ask("process", seconds=20)
    assert worker._template is not None
    template = worker._template.process.pid
    os.kill(template, signal.SIGKILL)
    os.kill(first, signal.SIGKILL)
    assert worker.ask("process", seconds=20) is None
    second = worker.ask("process", seconds=20)
    assert second not in (None, first)
    assert worker._template.process.pid != template
    worker.close()
    deadline = time.monotonic() + 60
    while _runs(second) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(second)


def test_a_forked_process_asks_a_process_of_its_own(worker: Worker) -> None:
    mine = worker.ask("process", seconds=20)
    read, write = os.pipe()
    with worker._asking:  # as another thread would hold it at the moment of the fork
        child = os.fork()
        if child == 0:
            os.write(write, str(worker.ask("process", seconds=20)).encode())
            worker.close()
            os._exit(0)
    os.waitpid(child, 0)
    theirs = int(os.read(read, 100))
    os.close(read)
    os.close(write)
    assert theirs != mine
    assert worker.ask("process", seconds=20) == mine
    worker.close()


ORPHAN = """
import sys
sys.path.insert(0, sys.argv[1])
from rlbudget.tasks.worker import Worker
worker = Worker("made_here:did")
print(worker.ask("process", seconds=20), worker._template.process.pid, flush=True)
worker.ask(sys.argv[2], seconds=60, cpu_seconds=60)
print("idle", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("doing", ["busy", "nothing"])
def test_the_process_ends_when_the_one_that_asks_it_is_killed(
    doing: str, worker: Worker, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(tmp_path), doing],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as asking:  # fmt: skip
        assert asking.stdout is not None
        kids = list(map(int, asking.stdout.readline().split()))
        if doing == "nothing":
            asking.stdout.readline()
        else:
            time.sleep(0.3)
        assert all(map(_runs, kids))
        asking.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(map(_runs, kids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(_runs, kids))


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # nobody may be there to wait for it


def test_many_threads_are_answered_each_its_own_question(monkeypatch: pytest.MonkeyPatch) -> None:
    # They wait for each other, on a busy machine for longer than an answer may take.
    monkeypatch.setattr(mathematics, "SECONDS", 120.0)
    monkeypatch.setattr(mathematics, "_SECONDS", 120.0)
    wrong: list[int] = []

    def score(thread: int) -> None:
        for i in range(10):
            if exact_match_math(f"x+{i}+{thread}", f"{i + thread}+x") != 1:
                wrong.append(i)

    threads = [threading.Thread(target=score, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


HOSTILE = {
    "brackets": "(" * 10**5 + "1" + ")" * 10**5,
    "boxes": "\\boxed{" * 10**5,
    "digits": "9" * 10**6,
    "exponent": "1e99999999",
    "tower": "$9^{9^{9^{9}}}$",
    "factorials": "5" + "!" * 10**5,
    "commas": "1," * 10**5,
    "dollars": "$" * 10**5,
    "backslashes": "\\" * 10**5,
    "spaces": " " * 10**6 + "1",
    "digits of another script": "\u0661" * 10**5,
    "powers": "(a+b+c+d)^{1999}",
    "sines": "\\sin(" * 40 + "x" + ")" * 40,
}


@pytest.mark.parametrize(
    "scorer", ["auto", "exact", "text", "number", "math", "choice", "regex:a.*b|1"]
)
@pytest.mark.parametrize("answer", HOSTILE)
def test_every_scorer_takes_seconds_at_most(scorer: str, answer: str) -> None:
    judge = find_scorer(scorer)
    begun = time.monotonic()
    assert judge.score(HOSTILE[answer], "x+1") == 0
    vote_key(HOSTILE[answer], scorer)
    assert time.monotonic() - begun < 60  # both: some seconds, and the start of a process


def test_a_long_answer_is_scored_as_a_short_one() -> None:
    prose = "We add the numbers and see what comes out. " * 200
    for scorer, target in (("math", "x+1"), ("auto", "18"), ("number", "18"), ("text", "Paris")):
        judge = find_scorer(scorer)
        assert judge.score(f"{prose}\nThe answer is \\boxed{{{target}}}.", target) == 1
        assert judge.score(f"{prose}\nThe answer is \\boxed{{7}}.", target) == 0


def test_more_options_than_letters_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="4000 options; 26 are the most"):
        find_scorer("choice").score("A", "1", options=[str(i) for i in range(4000)])


def test_a_pattern_that_backtracks_without_end_elsewhere_is_matched_at_once() -> None:
    begun = time.process_time()
    assert not Pattern("(a+)+$").found_in("a" * 10**6 + "!")
    assert Pattern("(a|a)*b").last_in("a" * 10**5 + "b") == "a"
    assert time.process_time() - begun < 20


@pytest.mark.parametrize(
    ("pattern", "said"),
    [("(?=a)b", "linear time"), (r"(a)\1", "linear time"), ("a{1001}", "repetition"),
     ("a{99999999999999}", "repetition"), (r"a\Z", r"\\z"), ("[", "missing"), ("a" * 1001, "1000"),
     (r"\pL{900}", "too large"), ("\ud800", "surrogate")],
)  # fmt: skip
def test_what_is_no_pattern_of_bounded_time_is_refused_by_what_it_is(
    pattern: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        find_scorer(f"regex:{pattern}")
