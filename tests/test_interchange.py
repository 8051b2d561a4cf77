from __future__ import annotations

import copy
import gc
import json
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_makers import make_trace, trace_lists, traces

from rlbudget.context import CONTEXT_SIGNALS, TASK_SIGNALS
from rlbudget.errors import UserError
from rlbudget.interchange import (
    import_jsonl,
    read_jsonl,
    trace_from_dict,
    trace_to_dict,
    write_jsonl,
)
from rlbudget.interchange_quick import quick_trace
from rlbudget.looks import LOOK_SIGNALS
from rlbudget.observation import PROBE_SIGNALS
from rlbudget.store import load_traces
from rlbudget.traces import RESERVED_SIGNALS, Trace

EXAMPLE: dict[str, Any] = {
    "version": 1, "trace_id": "t1", "question_id": "q1", "task": "gsm8k", "question": "6 × 3?",
    "target": "18", "model": "name", "seed": 0, "meta": {},
    "final": {"answer": "18", "exact_match": 1, "thinking_tokens": 812, "answer_tokens": 40},
    "checkpoints": [
        {"thinking_tokens": 64, "signals": {"entropy_mean": 0.81},
         "probe": {"answer": "17", "confidence": 0.42, "tokens": 6},
         "exit": {"answer": "17", "exact_match": 0, "answer_tokens": 12}},
        {"thinking_tokens": 128, "signals": {},
         "exit": {"answer": "18", "exact_match": 1, "answer_tokens": 12}},
    ],
}  # fmt: skip


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    record = copy.deepcopy(EXAMPLE)
    change(record)
    return json.dumps(record)


def file_of(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "traces.jsonl"
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
    )
    return path


@settings(max_examples=40, deadline=None)
@given(traces=trace_lists())
def test_written_and_read_again_traces_are_the_same(traces: list[Trace]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        write_jsonl(path, traces)
        assert list(read_jsonl(path)) == traces
        stats = import_jsonl(path, Path(folder) / "out")
        assert (stats.n, stats.bad) == (len(traces), 0)
        assert load_traces(Path(folder) / "out") == traces


def test_the_documented_example_is_read_field_by_field() -> None:
    trace = trace_from_dict(EXAMPLE)
    assert trace_to_dict(trace) == EXAMPLE
    assert trace.checkpoints[1].probe is None


BAD: list[tuple[str | bytes, str]] = [
    ("{", "invalid JSON"),
    ("[1]", "the line must be an object, not a list"),
    (b'{"version": "\xff"}', "invalid UTF-8 at byte 14"),
    ("[" * 100_000, "invalid JSON"),
    (changed(lambda r: r.pop("version")), "missing field version"),
    (changed(lambda r: r.update(version=2)), "unsupported version 2"),
    (changed(lambda r: r["final"].pop("answer")), "missing field final.answer"),
    (changed(lambda r: r["checkpoints"][1].pop("exit")), "missing field checkpoints[1].exit"),
    (changed(lambda r: r["checkpoints"][0]["probe"].pop("tokens")),
     "missing field checkpoints[0].probe.tokens"),
    (changed(lambda r: r["checkpoints"][1].update(thinking_tokens="9")),
     "checkpoints[1].thinking_tokens must be a whole number, not text"),
    (changed(lambda r: r["checkpoints"][1].update(thinking_tokens=64.5)),
     "checkpoints[1].thinking_tokens must be a whole number, not a number"),
    (changed(lambda r: r.update(seed=True)), "seed must be a whole number, not true"),
    (changed(lambda r: r.update(target=18)), "target must be text, not a whole number"),
    (changed(lambda r: r["checkpoints"][1].update(thinking_tokens=64)),
     "checkpoints[1].thinking_tokens must increase: 64 comes after 64"),
    (changed(lambda r: r["final"].update(thinking_tokens=127)),
     "checkpoints[1].thinking_tokens is 128, past the natural end at 127"),
    (changed(lambda r: r["checkpoints"][0]["exit"].update(exact_match=2)),
     "checkpoints[0].exit.exact_match must be 0 or 1, got 2"),
    (changed(lambda r: r["final"].update(exact_match=-1)), "final.exact_match must be 0 or 1"),
    (changed(lambda r: r["checkpoints"][0]["signals"].update(entropy_mean=float("nan"))),
     "checkpoints[0].signals.entropy_mean is not finite"),
    (changed(lambda r: r["checkpoints"][0]["signals"].update(x=10**400)),
     "checkpoints[0].signals.x is not finite"),
    (changed(lambda r: r["checkpoints"][0]["signals"].update(x="a")),
     "checkpoints[0].signals.x must be a number, not text"),
    (changed(lambda r: r["checkpoints"][0]["signals"].update(thinking_tokens=1)), "no name for"),
    (changed(lambda r: r["checkpoints"][0]["probe"].update(confidence=1.5)),
     "checkpoints[0].probe.confidence must lie in [0, 1]"),
    (changed(lambda r: r["final"].update(answer_tokens=-1)),
     "final.answer_tokens must be a number"),
    (changed(lambda r: r.update(target="  ")), "target is empty"),
    (changed(lambda r: r.update(trace_id="")), "trace_id is empty"),
    (changed(lambda r: r.update(question="\ud800")), "question is not valid Unicode"),
    (changed(lambda r: r.update(meta={"a": float("inf")})), "meta is not plain JSON"),
    (changed(lambda r: r["final"].update(exat_match=1)), "unknown field final.exat_match"),
    (json.dumps(EXAMPLE), "trace_id 't1' came before"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "problem"), BAD, ids=[problem for _, problem in BAD])
def test_a_bad_line_is_named_and_nothing_is_written(
    tmp_path: Path, line: str | bytes, problem: str
) -> None:
    path = file_of(tmp_path, json.dumps(EXAMPLE), "", line)
    with pytest.raises(UserError) as caught:
        import_jsonl(path, tmp_path / "out")
    assert str(caught.value).startswith(f"{path}:3: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == {"traces.jsonl"}
    stats = import_jsonl(path, tmp_path / "out", skip_bad=True)
    assert (stats.n, stats.bad) == (1, 1)
    assert problem in stats.problems[0]
    assert [t.trace_id for t in load_traces(tmp_path / "out")] == ["t1"]


@settings(max_examples=200, deadline=None)
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from([*EXAMPLE, *EXAMPLE["checkpoints"][0], "answer"]), inner, max_size=4),
), st.sampled_from([*EXAMPLE, "checkpoints.0", "final.answer"]))  # fmt: skip
def test_any_json_in_any_place_is_a_trace_or_a_user_error(value: object, place: str) -> None:
    record = copy.deepcopy(EXAMPLE)
    name, _, below = place.partition(".")
    if not below:
        record[name] = value
    elif name == "checkpoints":
        record[name][0] = value
    else:
        record[name][below] = value
    try:
        assert isinstance(trace_from_dict(record), Trace)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_an_absent_exact_match_is_scored_from_answer_and_target(tmp_path: Path) -> None:
    def unscored(record: dict[str, Any]) -> None:
        del record["final"]["exact_match"]
        record["final"]["answer"] = "$18.0"
        for point in record["checkpoints"]:
            del point["exit"]["exact_match"]

    (trace,) = read_jsonl(file_of(tmp_path, changed(unscored)))
    assert trace.final.exact_match == 1
    assert [point.exit.exact_match for point in trace.checkpoints] == [0, 1]


def test_only_bad_lines_or_none_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no trace"):
        import_jsonl(file_of(tmp_path, ""), tmp_path / "out")
    with pytest.raises(UserError, match="none of its 2 lines is a trace"):
        import_jsonl(file_of(tmp_path, "{", "{"), tmp_path / "out", skip_bad=True)
    with pytest.raises(UserError, match="No such file"):
        import_jsonl(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_import_never_touches_a_folder_that_holds_something(tmp_path: Path) -> None:
    path = file_of(tmp_path, json.dumps(EXAMPLE))
    import_jsonl(path, tmp_path / "out")
    with pytest.raises(UserError, match="not empty"):
        import_jsonl(path, tmp_path / "out")


def test_progress_counts_bytes_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_jsonl(path, [make_trace(i) for i in range(250)])
    seen: list[tuple[int, int]] = []
    import_jsonl(path, tmp_path / "out", progress=lambda *pair: seen.append(pair))
    size = path.stat().st_size
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)


def test_no_recorded_signal_can_take_a_name_the_observation_makes() -> None:
    made = {*PROBE_SIGNALS, *LOOK_SIGNALS, *CONTEXT_SIGNALS, *TASK_SIGNALS, "thinking_tokens"}
    assert made == RESERVED_SIGNALS


@given(traces())
def test_the_quick_way_reads_what_the_careful_way_reads(trace: Trace) -> None:
    line = json.dumps(trace_to_dict(trace), ensure_ascii=False).encode()
    quick = quick_trace(line, 1)
    assert quick is None or quick == trace_from_dict(json.loads(line)) == trace


def test_plain_lines_take_the_quick_way() -> None:
    line = json.dumps(trace_to_dict(make_trace(3))).encode()
    assert quick_trace(line, 1) == make_trace(3)


@pytest.mark.parametrize("nothing", ["", {}, None])
def test_checkpoints_that_are_no_list_are_no_trace(nothing: object) -> None:
    line = json.dumps({**trace_to_dict(make_trace(3)), "checkpoints": nothing}).encode()
    assert quick_trace(line, 1) is None


@given(st.data())
def test_a_line_that_is_changed_anywhere_is_read_alike_or_left_to_the_careful_way(
    data: st.DataObject,
) -> None:
    record = trace_to_dict(make_trace(1))
    place: Any = data.draw(
        st.sampled_from(
            [record, record["final"], record["checkpoints"][1], record["checkpoints"][0]["exit"],
             record["checkpoints"][2]["probe"], record["checkpoints"][1]["signals"]]
        )
    )  # fmt: skip
    name = data.draw(st.sampled_from([*place, "more"]))
    if data.draw(st.booleans()) and name in place:
        del place[name]
    else:
        place[name] = data.draw(
            st.sampled_from(
                [None, True, -1, 0, 1, 2, 10**18, 0.5, 1e308, "", "x", [], {}, "\ud800"]
            )
        )
    line = json.dumps(record).encode()
    quick = quick_trace(line, 1)
    if quick is not None:
        assert quick == trace_from_dict(json.loads(line))


def peak_of_import(folder: Path, n: int, *, bad: bool, careful: bool) -> int:
    """Bytes at the height of an import of ``n`` traces, a line in two bad where asked."""
    folder.mkdir()
    file = folder / "traces.jsonl"
    with file.open("w") as out:
        for i in range(n):
            record = trace_to_dict(make_trace(i, checkpoints=12))
            if careful:  # left out, it is scored: the careful way
                del record["final"]["exact_match"]
            out.write(json.dumps(record) + "\n" + bad * (json.dumps(record)[:-9] + "\n"))
    tracemalloc.start()
    try:
        stats = import_jsonl(file, folder / "out", skip_bad=bad)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (stats.n, stats.bad) == (n, n * bad)
    return peak


@pytest.mark.parametrize(("bad", "careful"), [(False, False), (False, True), (True, False)])
def test_four_times_the_traces_take_no_more_memory(
    bad: bool, careful: bool, tmp_path: Path
) -> None:
    """But for the ids, which are kept to find one that comes twice: some 200 bytes each."""
    peak_of_import(tmp_path / "warm", 1, bad=False, careful=careful)
    once, four = (
        peak_of_import(tmp_path / str(n), n, bad=bad, careful=careful) for n in (300, 1200)
    )
    assert four <= once * 1.02 + 900 * 200
    assert once > 1e6, "the traces are too small to show a leak"


def test_collection_is_on_again_after_an_import(tmp_path: Path) -> None:
    assert gc.isenabled()
    import_jsonl(file_of(tmp_path, json.dumps(EXAMPLE)), tmp_path / "good")
    with pytest.raises(UserError):
        import_jsonl(file_of(tmp_path, "{"), tmp_path / "bad")
    assert gc.isenabled()
