from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from trace_makers import assert_same_table, make_trace, trace_lists

from rlbudget.errors import UserError
from rlbudget.traces.columns import table_of
from rlbudget.traces.store import TraceWriter, digest, existing_ids, load_table, load_traces
from rlbudget.traces.trace import Checkpoint, Exit, Trace


def write(folder: Path, traces: list[Trace], part_size: int = 4, append: bool = False) -> None:
    with TraceWriter(folder, part_size=part_size, append=append) as writer:
        for trace in traces:
            writer.add(trace)


@settings(max_examples=40, deadline=None)
@given(traces=trace_lists())
def test_what_is_written_is_what_is_read_as_traces_and_as_a_table(traces: list[Trace]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), traces, part_size=3)
        assert load_traces(folder) == traces
        assert_same_table(load_table(folder), table_of(traces))
        assert existing_ids(folder) == {trace.trace_id for trace in traces}


def test_a_table_loads_in_a_fraction_of_the_time_of_its_traces(tmp_path: Path) -> None:
    write(tmp_path, [make_trace(i, checkpoints=15) for i in range(1000)], part_size=256)
    took: dict[str, list[float]] = {}
    for _ in range(5):
        for load in (load_table, load_traces):
            start = time.process_time()
            assert len(load(tmp_path)) == 1000
            took.setdefault(load.__name__, []).append(time.process_time() - start)
    assert min(took["load_table"]) < min(took["load_traces"]) / 3  # an eighth


def test_the_digest_depends_on_the_contents_only(tmp_path: Path) -> None:
    traces = [make_trace(i) for i in range(9)]
    write(tmp_path / "a", traces, part_size=2)
    write(tmp_path / "b", traces[::-1], part_size=5)
    changed = dataclasses.replace(traces[3], target="another")
    write(tmp_path / "c", [*traces[:3], changed, *traces[4:]])
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


def test_appending_leaves_the_parts_that_are_there(tmp_path: Path) -> None:
    write(tmp_path, [make_trace(i) for i in range(5)])
    before = {p.name: p.read_bytes() for p in tmp_path.glob("*.parquet")}
    write(tmp_path, [make_trace(i) for i in range(5, 8)], append=True)
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())
    assert [t.trace_id for t in load_traces(tmp_path)] == [f"t{i}" for i in range(8)]


def test_a_folder_with_traces_is_refused_without_append(tmp_path: Path) -> None:
    write(tmp_path, [make_trace()])
    with pytest.raises(UserError, match="--resume"):
        TraceWriter(tmp_path)


def test_a_trace_is_added_once(tmp_path: Path) -> None:
    write(tmp_path, [make_trace()])
    with TraceWriter(tmp_path, append=True) as writer, pytest.raises(UserError, match="already"):
        writer.add(make_trace())


def test_one_writer_a_folder(tmp_path: Path) -> None:
    with TraceWriter(tmp_path), pytest.raises(UserError, match=r"process \d+ is writing here"):
        TraceWriter(tmp_path, append=True)
    TraceWriter(tmp_path, append=True).close()


def test_an_exception_keeps_what_was_added(tmp_path: Path) -> None:
    def interrupted() -> None:
        with TraceWriter(tmp_path) as writer:
            writer.add(make_trace())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(load_traces(tmp_path)) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_signal_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    point = Checkpoint(8, {"entropy_mean": value}, Exit("1", 1, 2))
    trace = dataclasses.replace(make_trace(), checkpoints=(point,))
    with TraceWriter(tmp_path) as writer, pytest.raises(UserError, match="entropy_mean is not fin"):
        writer.add(trace)


@pytest.mark.parametrize("value", [1e39, -1e300])
def test_a_signal_beyond_float32_is_refused_and_in_an_older_store_named_with_its_trace(
    tmp_path: Path, value: float
) -> None:
    traces = [make_trace(i) for i in range(4)]
    traces[2].checkpoints[1].signals["entropy_mean"] = value
    with TraceWriter(tmp_path / "new") as writer, pytest.raises(UserError, match="a float32 can"):
        writer.add(traces[2])
    with TraceWriter(tmp_path / "old") as writer:
        for trace in traces:
            writer.add(trace, checked=True)
    with pytest.raises(UserError, match=r"part-000000.parquet: trace 't2': signals.entropy_mean"):
        load_table(tmp_path / "old")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "empty", "other parquet"])
@pytest.mark.parametrize("load", [load_traces, load_table, existing_ids])
def test_a_damaged_part_is_named_with_what_to_do(tmp_path: Path, damage: str, load: object) -> None:
    write(tmp_path, [make_trace(i) for i in range(8)])
    part = sorted(tmp_path.glob("*.parquet"))[1]
    content = bytearray(part.read_bytes())
    if damage == "truncated":
        part.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[30] ^= 0xFF  # inside the first column, trace_id
        part.write_bytes(content)
    elif damage == "foreign":
        part.write_text("hello")
    elif damage == "empty":
        part.write_bytes(b"")
    else:
        pq.write_table(pa.table({"a": [1]}), part)
    with pytest.raises(UserError) as caught:
        load(tmp_path)  # type: ignore[operator]
    message = str(caught.value)
    assert str(part) in message
    assert "delete it" in message
    assert "--resume" in message
    assert "\n" not in message


def test_a_trace_in_two_parts_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "a", [make_trace(1)])
    (tmp_path / "a/part-000001.parquet").write_bytes(
        (tmp_path / "a/part-000000.parquet").read_bytes()
    )
    for load in (load_traces, load_table, existing_ids):
        with pytest.raises(UserError, match="'t1' is also in part-000000"):
            load(tmp_path / "a")


def test_missing_and_empty_folders_say_how_traces_are_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path, tmp_path / "none", tmp_path / "file"):
        for load in (load_traces, load_table, digest):
            with pytest.raises(UserError, match="rlbudget record"):
                load(folder)
    assert existing_ids(tmp_path / "none") == set()
    with pytest.raises(UserError, match="is a file"):
        TraceWriter(tmp_path / "file")


_ENDLESS = """
import sys
sys.path.insert(0, {tests!r})
from rlbudget.traces.store import TraceWriter, existing_ids
from trace_makers import make_trace
have = existing_ids({folder!r})
with TraceWriter({folder!r}, append=True, part_size=2) as writer:
    print("writing", flush=True)
    for i in range({n}):
        if f"t{{i}}" not in have:
            writer.add(make_trace(i, checkpoints=20))
"""


def test_killed_at_any_moment_and_resumed_it_holds_every_trace_once(tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[1] / "shared")
    folder = tmp_path / "traces"
    for delay in (0.0, 0.02, 0.07, 0.15):
        program = _ENDLESS.format(tests=tests, folder=str(folder), n=100_000)
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"writing\n"
            time.sleep(delay)
            os.kill(process.pid, signal.SIGKILL)
        if existing_ids(folder):
            assert {t.trace_id for t in load_traces(folder)} == existing_ids(folder)
    (folder / ".part-999999.parquet.tmp").write_bytes(b"half")
    n = len(existing_ids(folder)) + 5
    program = _ENDLESS.format(tests=tests, folder=str(folder), n=n)
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    assert sorted(t.trace_id for t in load_traces(folder)) == sorted(f"t{i}" for i in range(n))
    assert not list(folder.glob(".part*"))


def test_a_file_size_limit_while_writing_is_one_line_and_keeps_whole_parts(tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import resource, sys
        sys.path.insert(0, {str(Path(__file__).parents[1] / "shared")!r})
        from rlbudget.traces.store import TraceWriter
        from trace_makers import make_trace
        with TraceWriter({str(tmp_path)!r}, part_size=3) as writer:
            for i in range(3):
                writer.add(make_trace(i))
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
            for i in range(3, 7):
                writer.add(make_trace(i))
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "UserError" in done.stderr
    assert "the 3 traces written before are kept" in done.stderr
    assert len(load_traces(tmp_path)) == 3
    assert not list(tmp_path.glob(".part*"))


def test_a_full_disk_is_one_line_and_keeps_whole_parts(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        with pytest.raises(UserError, match="No space left") as caught:
            write(tmp_path / "traces", [make_trace(i, checkpoints=20) for i in range(2000)])
        assert "--resume" in str(caught.value)
        kept = load_traces(tmp_path / "traces")
        assert f"the {len(kept)} traces" in str(caught.value)
        assert len(kept) > 0
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
