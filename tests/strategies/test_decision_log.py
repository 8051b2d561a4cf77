"""The decision log: lines whole or skipped, and never at the cost of an answer."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_makers import make_trace

from rlbudget.errors import UserError
from rlbudget.strategies.feedback.entries import read_log
from rlbudget.strategies.feedback.log import (
    AUDITS,
    DECISIONS,
    OUTCOMES,
    DecisionLog,
    LoggedRequest,
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
    assert entries.damaged == int(start < kept < len(content) - 1)


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
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    ids = [json.loads(line)["request_id"] for line in file.read_text().splitlines() if line]
    assert sorted(ids) == sorted(f"{k}-{i}" for k in range(4) for i in range(200))


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
