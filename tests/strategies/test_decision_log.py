"""The decision log: lines whole or skipped, and never at the cost of an answer."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_makers import make_trace

from rlbudget.errors import UserError
from rlbudget.strategies.feedback.entries import read_log
from rlbudget.strategies.feedback.lines import PATIENCE
from rlbudget.strategies.feedback.log import (
    AUDITS,
    DECISIONS,
    OUTCOMES,
    CorrectionEntry,
    DecisionLog,
    GuardEntry,
    LoggedRequest,
    ModelTokens,
    Stop,
    append,
    feedback,
    now,
)


def served(request_id: str = "r0", **changes: object) -> LoggedRequest:
    given: dict[str, object] = {
        "request_id": request_id, "time": now(), "policy": "ab" * 32, "registry_version": None,
        "strategy": None, "token_price": 1e-3, "audited": False,
        "stop": Stop("policy", 16, 0.75, 16, 0, 4), "question": "Who?", "answer": "Ada",
    }  # fmt: skip
    return LoggedRequest(**{**given, **changes})  # type: ignore[arg-type]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log", store_text=True)
    first, second = served("r0"), served("r1", audited=True, registry_version=3)
    log.decision(first)
    log.decision(second)
    log.audit(make_trace(4))
    entries = read_log(tmp_path / "log")
    assert list(entries.decisions.values()) == [first, second]
    assert entries.damaged == 0
    (audit,) = entries.audits.values()
    assert audit.checkpoints[0].signals == make_trace(4).checkpoints[0].signals
    assert audit.target == ""
    assert {audit.final.exact_match, *(c.exit.exact_match for c in audit.checkpoints)} == {0}


def test_texts_are_kept_only_when_asked_for(tmp_path: Path) -> None:
    DecisionLog(tmp_path).decision(served())
    line = (tmp_path / DECISIONS).read_text()
    assert "Who?" not in line
    assert "Ada" not in line
    (kept,) = read_log(tmp_path).decisions.values()
    assert kept == served(time=kept.time, question=None, answer=None)


@settings(deadline=None)
@given(cut=st.integers(0, 10**6), next_lines=st.integers(0, 2))
def test_a_torn_line_is_skipped_and_counted_and_costs_no_other(
    tmp_path_factory: pytest.TempPathFactory, cut: int, next_lines: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = DecisionLog(folder)
    for name in ("r0", "r1", "r2"):
        log.decision(served(name))
    content = (folder / DECISIONS).read_bytes()
    start = content.rstrip(b"\n").rindex(b"\n") + 1
    kept = start + cut % (len(content) - start)
    (folder / DECISIONS).write_bytes(content[:kept])
    for i in range(next_lines):
        log.decision(served(f"next{i}"))
    entries = read_log(folder)
    # Of the last line all may be there but its end.
    whole = ["r2"] if kept == len(content) - 1 else []
    assert list(entries.decisions) == ["r0", "r1", *whole, *(f"next{i}" for i in range(next_lines))]
    # The next writer cuts it off.
    assert entries.damaged == int(start < kept < len(content) - 1 and not next_lines)


@pytest.mark.parametrize(
    "line",
    ["[]", "{}", '{"version": 2}', '{"version": 1, "request_id": "x"}', "\xff\xfe{", "1e999"],
)
def test_a_line_that_is_none_is_counted(tmp_path: Path, line: str) -> None:
    DecisionLog(tmp_path).decision(served())
    for name in (DECISIONS, AUDITS, OUTCOMES):
        with (tmp_path / name).open("ab") as file:
            file.write(line.encode("latin-1") + b"\n")
    entries = read_log(tmp_path)
    assert list(entries.decisions) == ["r0"]
    assert entries.damaged == 3


def test_many_writers_at_once_leave_whole_lines(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from rlbudget.strategies.feedback.log import append\n"
        "for i in range(200):\n"
        "    append(Path(sys.argv[1]), {'request_id': f'{sys.argv[2]}-{i}', 'text': 'x' * 9000})\n"
    )
    file = tmp_path / "lines.jsonl"
    command = [sys.executable, "-c", code, str(file)]
    running = [subprocess.Popen([*command, str(k)]) for k in range(2)]

    def write(k: int) -> None:
        for i in range(200):
            append(file, {"request_id": f"{k}-{i}", "text": "x" * 9000})

    threads = [threading.Thread(target=write, args=(k,)) for k in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(timeout=240) for process in running] == [0, 0]
    ids = [json.loads(line)["request_id"] for line in file.read_text().splitlines() if line]
    assert sorted(ids) == sorted(f"{k}-{i}" for k in range(4) for i in range(200))


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork, flock and SIGKILL")
@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_kills_cost_no_line_but_the_one_that_was_being_written(tmp_path: Path, kills: int) -> None:
    code = (
        "import sys, json\nfrom dataclasses import asdict\nfrom pathlib import Path\n"
        "from runs.integrations.decision_log import storm\n"
        "found = storm(Path(sys.argv[1]), kills=int(sys.argv[2]), processes=4, threads=8, seed=1)\n"
        "print(json.dumps(asdict(found)))\n"
    )
    # In a process of its own: that of the tests has threads, and must not be forked.
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log"), str(kills)],
        capture_output=True, text=True, check=True, timeout=250,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["lines"] == found["whole"] > 0
    assert (found["lost"], found["too_many"]) == (0, 0)
    assert found["unflushed"] <= 8 * (kills + 4)


@pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
def test_a_halted_writer_is_waited_for_once_and_not_cut_off(tmp_path: Path) -> None:
    import fcntl

    log = DecisionLog(tmp_path)
    log.decision(served("r0"))
    with (tmp_path / DECISIONS).open("ab") as halted:
        fcntl.flock(halted, fcntl.LOCK_EX)
        halted.write(b'{"version": 1, "request_id": "half')
        halted.flush()
        begun = time.monotonic()
        for n in range(1, 31):
            log.decision(served(f"r{n}"))
        assert time.monotonic() - begun < 15 * PATIENCE
    log.decision(served("r31"))
    entries = read_log(tmp_path)
    assert list(entries.decisions) == [f"r{n}" for n in range(32)]
    assert entries.damaged == 1
    assert log.failures == 0


def test_what_is_nobody_s_line_is_not_cut_off(tmp_path: Path) -> None:
    for kept in (b"a note of mine", b'{"version": 1, "request_id": "only its end is missing"}'):
        (tmp_path / "f").write_bytes(b"x\n" + kept)
        append(tmp_path / "f", {"a": 1})
        assert (tmp_path / "f").read_bytes() == b"x\n" + kept + b'\n{"version": 1, "a": 1}\n'


def test_a_very_long_torn_line_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "f").write_bytes(b"x\n" + b'{"version": 1, "text": "' + b"y" * 200_000)
    append(tmp_path / "f", {"a": 1})
    assert (tmp_path / "f").read_bytes() == b'x\n{"version": 1, "a": 1}\n'
    assert "cut off 200024 bytes" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_disk_that_fills_up_within_a_line_leaves_none_of_it(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\n"
        "from rlbudget.strategies.feedback.lines import add_line\n"
        "add_line(Path(sys.argv[1]), b'a' * 50)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60, 1000))\n"
        "try:\n    add_line(Path(sys.argv[1]), b'b' * 50)\n"
        "except OSError as error:\n    print(error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "add_line(Path(sys.argv[1]), b'c' * 50)\n"
    )
    file = tmp_path / "f"
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True
    )
    assert "no room" in done.stdout
    assert file.read_bytes() == b"a" * 50 + b"\n" + b"c" * 50 + b"\n"


def test_a_log_that_is_moved_away_begins_anew(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log")
    log.decision(served("r0"))
    (tmp_path / "log").rename(tmp_path / "old")
    log.decision(served("r1"))
    assert list(read_log(tmp_path / "old").decisions) == ["r0"]
    assert list(read_log(tmp_path / "log").decisions) == ["r1"]


def test_all_that_decides_is_kept(tmp_path: Path) -> None:
    full = served(
        stop=Stop("loop", None, 0.1, 700, 0, 9), engine="vllm", effort="low", token_price=2e-4,
        rules=("long ones", "no code"), members={"a": 0.25, "b": 0.5},
        guard=GuardEntry(0.02, 0.01, 3), correction=CorrectionEntry(2, 0.4, "large"),
        answered_by="large", escalated=True, question=None, answer=None,
        models=(ModelTokens("small", 64, 0, 0, 0.1), ModelTokens("large", 700, 0, 9)),
    )  # fmt: skip
    log = DecisionLog(tmp_path)
    log.decision(full)
    log.decision(served("r1", members=MappingProxyType({"a": 0.5})))
    assert log.failures == 0
    entries = read_log(tmp_path)
    assert entries.decisions["r0"] == full
    assert entries.decisions["r1"].members == {"a": 0.5}
    # What says nothing is not in the line: the keys of a plain request are those of version 1.
    log.decision(served("r2"))
    plain = json.loads((tmp_path / DECISIONS).read_text().splitlines()[-1])
    assert list(plain) == [
        "version", "request_id", "time", "policy", "registry_version", "strategy", "token_price",
        "audited", "stop",
    ]  # fmt: skip


def test_nothing_that_is_logged_raises(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = DecisionLog(tmp_path)
    log.decision(served(members={"a": math.nan}))
    log.decision(served(policy=object()))
    log.decision(None)  # type: ignore[arg-type]
    log.audit(None)  # type: ignore[arg-type]
    assert log.failures == 4
    assert len(caplog.records) == 1
    log.decision(served("r1"))
    assert list(read_log(tmp_path).decisions) == ["r1"]


def test_failures_of_many_threads_are_all_counted_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    log = DecisionLog(tmp_path / "file")
    threads = [
        threading.Thread(target=lambda: [log.decision(served()) for _ in range(50)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.failures == 400
    assert len(caplog.records) == 1


def test_the_latest_feedback_wins(tmp_path: Path) -> None:
    DecisionLog(tmp_path).decision(served())
    feedback(tmp_path, "r0", right=False)
    feedback(tmp_path, "r0", target="Ada")
    latest = feedback(tmp_path, "r0", target="Grace")
    assert read_log(tmp_path).outcomes == {"r0": latest}
    assert latest.target == "Grace"
    assert latest.right is None
    assert len((tmp_path / OUTCOMES).read_text().splitlines()) == 3


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no decision log"):
        read_log(tmp_path)
    with pytest.raises(UserError, match="holds no request 'r0'"):
        feedback(tmp_path, "r0", right=True)
    DecisionLog(tmp_path).decision(served())
    for told in ({}, {"target": "x", "right": True}):
        with pytest.raises(UserError, match="one of"):
            feedback(tmp_path, "r0", **told)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="empty"):
        feedback(tmp_path, "r0", target=" ")
    with pytest.raises(UserError, match="holds no request 'ab'"):
        feedback(tmp_path, "ab", right=True)  # a text of the log, but no id


def test_a_log_that_cannot_be_written_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    log = DecisionLog(tmp_path / "file")
    with caplog.at_level(logging.WARNING, logger="rlbudget"):
        for _ in range(3):
            log.decision(served())
        log.audit(make_trace())
    assert log.failures == 4
    assert [record.message for record in caplog.records if "cannot be written" in record.message]
    assert len(caplog.records) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / DECISIONS).symlink_to("/dev/full")
    log = DecisionLog(tmp_path)
    for _ in range(2):
        log.decision(served())
    assert log.failures == 2
    assert "No space left" in caplog.text
    assert len(caplog.records) == 1
