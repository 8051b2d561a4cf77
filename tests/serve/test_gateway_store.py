"""The store: one behaviour on SQLite and PostgreSQL, the log's own lines, never an answer lost."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text
from stores import fresh, postgres
from trace_makers import make_trace

from rlbudget.cli.main import main
from rlbudget.errors import UserError
from rlbudget.serve.store.opening import open_store
from rlbudget.serve.store.reading import (
    counts,
    entries,
    events,
    knows,
    last_lines,
    price_of,
    prices,
    prune,
    read_entries,
)
from rlbudget.serve.store.store import Assignment, Store, opened
from rlbudget.serve.store.tables import DECISIONS, METADATA, SHADOWS
from rlbudget.serve.store.writer import LostRowError, Writer
from rlbudget.strategies.feedback.entries import read_log
from rlbudget.strategies.feedback.log import (
    DecisionLog,
    Feedback,
    LoggedRequest,
    Stop,
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


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "store.sqlite3")
    return fresh(request.getfixturevalue("server"), f"t{uuid.uuid4().hex[:12]}")


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    made = opened(where, store_text=True)
    yield made
    made.close()


def test_what_is_written_is_read_and_equals_a_decision_log(store: Store, tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log", store_text=True)
    requests = [served("r0"), served("t4", audited=True, registry_version=3)]
    for one in requests:
        store.decision(one)
        log.decision(one)
    store.audit(make_trace(4))
    log.audit(make_trace(4))
    told = feedback(tmp_path / "log", "t4", target="7")
    store.outcome(told).result(60)
    assert store.writer.flush()
    assert entries(store.engine) == read_log(tmp_path / "log")
    lines = (tmp_path / "log" / "decisions.jsonl").read_text().splitlines()
    assert last_lines(store.engine, DECISIONS, 9) == [json.loads(x) for x in reversed(lines)]


def test_texts_are_kept_only_when_asked_for(where: str) -> None:
    quiet = opened(where)
    quiet.decision(served("r0"))
    quiet.shadow("r0", {"shadow": {"saved_tokens": 4, "answer": "Ada"}})
    quiet.outcome(Feedback("r0", now(), right=True, comment="by Ada")).result(60)
    quiet.writer.flush()
    with quiet.engine.connect() as connection:
        for name in METADATA.tables:
            rows = connection.execute(text(f"SELECT * FROM {name}")).all()
            assert "Ada" not in repr(rows)
            assert "Who?" not in repr(rows)
    assert last_lines(quiet.engine, SHADOWS, 1)[0]["shadow"] == {"saved_tokens": 4}
    quiet.close()


@given(said=st.text(max_size=40))
@settings(max_examples=30, deadline=None)
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, said: str) -> None:
    made = opened(str(tmp_path_factory.mktemp("s") / "store"), store_text=True)
    made.decision(served("r", question=said, answer=said))
    made.writer.flush()
    (kept,) = entries(made.engine).decisions.values()
    assert (kept.question, kept.answer) == (said, said)
    made.close()


def test_strange_texts_survive_in_both(store: Store) -> None:
    strange = ["\0", "é\u2028", "'; DROP TABLE decisions; --", "%s"]
    for number, said in enumerate(strange):
        store.decision(served(f"r{number}", question=said))
    store.writer.flush()
    kept = [one.question for one in entries(store.engine).decisions.values()]
    assert kept == strange


def test_the_arm_of_a_request_is_on_its_line(store: Store) -> None:
    store.assign("r1", Assignment("e", "cheap", 0.25, "ab"))
    store.decision(served("r0"))
    store.decision(served("r1"))
    store.decision(served("r1"))
    store.writer.flush()
    with store.engine.connect() as connection:
        kept = connection.execute(select(DECISIONS.c.arm).order_by(DECISIONS.c.id)).scalars().all()
    assert kept == [None, "cheap", None]
    only = entries(store.engine, experiment="e").decisions["r1"]
    assert (only.arm, only.propensity, only.unit) == ("cheap", 0.25, "ab")


def test_the_tables_are_those_of_the_migrations(store: Store) -> None:
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_a_store_is_opened_by_many_at_once(where: str) -> None:
    faults: list[Exception] = []

    def begin() -> None:
        try:
            open_store(where).dispose()
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_a_store_of_a_later_version_is_refused(where: str) -> None:
    engine = open_store(where)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'later'"))
    engine.dispose()
    with pytest.raises(UserError, match="later"):
        open_store(where)


def test_gateways_share_prices_secrets_and_events(where: str) -> None:
    first, second = opened(where), opened(where)
    assert first.secret("feedback") == second.secret("feedback")
    assert first.secret("feedback") != first.secret("other")
    assert price_of(second.engine, "default") is None
    first.set_price("default", 1e-3, "by hand").result(60)
    second.set_price("default", 2e-3, "by hand").result(60)
    second.set_price("other", 9e-3, "by hand").result(60)
    assert price_of(first.engine, "default") == 2e-3
    assert [one.token_price for one in prices(first.engine)] == [1e-3, 2e-3, 9e-3]
    first.event("alarm", plan="default").result(60)
    assert [one.kind for one in events(second.engine, 9)] == ["alarm"]
    first.close()
    second.close()


def test_old_rows_are_pruned_and_running_experiments_kept(store: Store) -> None:
    store.assign("r1", Assignment("running", "a", 0.5, "ab"))
    for name in ("r0", "r1"):
        store.decision(served(name))
        store.outcome(Feedback(name, now(), right=True)).result(60)
    store.set_price("default", 1e-3, "old").result(60)
    store.set_price("default", 2e-3, "the one that holds").result(60)
    store.writer.flush()
    assert sum(prune(store.engine, days=1).values()) == 0
    time.sleep(0.01)
    done = prune(store.engine, days=0, running=("running",))
    assert (done["decisions"], done["outcomes"], done["prices"]) == (1, 1, 1)
    assert list(entries(store.engine).decisions) == ["r1"]
    assert list(entries(store.engine).outcomes) == ["r1"]
    assert price_of(store.engine, "default") == 2e-3
    prune(store.engine, days=0)
    assert counts(store.engine)["decisions"] == 0
    for days in (-1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="days"):
            prune(store.engine, days=days)


def test_a_full_queue_loses_records_and_counts_them(tmp_path: Path) -> None:
    file = tmp_path / "store"
    engine = open_store(file)
    blocking = sqlite3.connect(file, isolation_level=None)
    blocking.execute("BEGIN EXCLUSIVE")
    writer = Writer(engine, waiting=50)
    row = {"at": 0.0, "request_id": "r", "line": "{}"}
    start = time.monotonic()
    for _ in range(200):
        writer.add(SHADOWS, row)
    took = time.monotonic() - start
    refused = writer.added(SHADOWS, row)
    with pytest.raises(LostRowError, match="behind"):
        refused.result(60)
    lost = writer.written.lost
    assert lost >= 100
    assert took < 30  # 200 that wait for a locked database take minutes
    blocking.execute("ROLLBACK")
    assert writer.flush(60)
    assert writer.written.rows == 201 - lost
    with engine.connect() as connection:
        there = connection.execute(select(func.count()).select_from(SHADOWS)).scalar_one()
    assert there == writer.written.rows
    writer.close()
    assert not writer.add(SHADOWS, row)


def test_a_row_that_the_database_refuses_costs_no_other(store: Store) -> None:
    good = {"at": 0.0, "request_id": "r", "line": "{}"}
    futures = [store.writer.added(SHADOWS, one) for one in (good, {**good, "line": None}, good)]
    futures[0].result(60)
    futures[2].result(60)
    with pytest.raises(LostRowError):
        futures[1].result(60)
    assert counts(store.engine)["shadows"] == 2
    assert store.writer.written.lost == 1


def test_a_decision_that_cannot_be_written_down_raises_nothing(store: Store) -> None:
    broken = served("r0", token_price=float("nan"))
    store.decision(broken)
    store.audit(replace(make_trace(0), seed=object()))  # type: ignore[arg-type]
    assert store.writer.written.lost == 2


def test_a_request_is_known_once_it_is_written(store: Store) -> None:
    assert not knows(store.engine, "r0")
    store.decision(served("r0"))
    store.writer.flush()
    assert knows(store.engine, "r0")


@pytest.mark.parametrize(
    ("said", "why"),
    [("", "no place"), ("mysql://host/db", "not mysql"), ("sqlite://", "needs a file"),
     ("postgresql://u:sesame@127.0.0.1:1/x", "127.0.0.1")],
)  # fmt: skip
def test_a_store_that_cannot_be_is_one_line(said: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        open_store(said)
    assert "\n" not in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, only words, and more than sixteen bytes\n" * 20)
    with pytest.raises(UserError, match="not a database"):
        open_store(tmp_path / "text")
    with pytest.raises(UserError, match="folder"):
        open_store(tmp_path)
    with pytest.raises(UserError, match="no such store"):
        open_store(tmp_path / "none", make=False)
    with pytest.raises(UserError, match="no such store"):
        read_entries(tmp_path)


def test_an_operator_tells_a_store_by_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "store")
    made = opened(file)
    made.decision(served("r0"))
    made.close()
    main(["feedback", file, "--request-id", "r0", "--target", "7"])
    assert read_entries(file).outcomes["r0"].target == "7"
    for words, said in (
        (["r1", "--right"], "holds no request"), (["r0"], "takes one of"),
        (["r0", "--target", " "], "empty"),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            main(["feedback", file, "--request-id", *words])
        assert said in capsys.readouterr().err
