from __future__ import annotations

import copy
import errno
import gc
import gzip
import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_makers import make_trace, trace_lists

from rlbudget.errors import UserError
from rlbudget.policy.observation import PROBE_SIGNALS
from rlbudget.signals.questions import CONTEXT_SIGNALS, TASK_SIGNALS
from rlbudget.signals.turns import TURN_SIGNALS
from rlbudget.traces.interchange import import_jsonl, read_jsonl, trace_from_dict, write_jsonl
from rlbudget.traces.store import TraceWriter, load_traces
from rlbudget.traces.trace import RESERVED_SIGNALS, Trace, trace_to_dict

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
    ("7", "the line must be an object, not a whole number"),
    (b'{"trace_id": "\xff"}', "invalid UTF-8 at byte 15"),
    ('{"meta": {"a": ' + "[" * 100_000, "invalid JSON: too many brackets"),
    (changed(lambda r: r.pop("version")), "missing field $.version"),
    (changed(lambda r: r.update(version=2)), "unsupported $.version 2; this rlbudget reads 1"),
    (changed(lambda r: r["final"].pop("answer")), "missing field $.final.answer"),
    (changed(lambda r: r["checkpoints"][1].pop("exit")), "missing field $.checkpoints[1].exit"),
    (changed(lambda r: r["checkpoints"][0]["probe"].pop("tokens")),
     "missing field $.checkpoints[0].probe.tokens"),
    (changed(lambda r: r["checkpoints"][1].update(thinking_tokens="9")),
     "$.checkpoints[1].thinking_tokens must be a whole number, not text"),
    (changed(lambda r: r["checkpoints"][1].update(thinking_tokens=64.5)),
     "$.checkpoints[1].thinking_tokens must be a whole number, not a number"),
    (changed(lambda r: r.update(seed=True)), "$.seed must be a whole number, not true"),
    (changed(lambda r: r.update(target=18)), "$.target must be text, not a whole number"),
    (changed(lambda r: r["checkpoints"][1].update(thinking_tokens=64)),
     "$.checkpoints[1].thinking_tokens must increase: 64 comes after 64"),
    (changed(lambda r: r["final"].update(thinking_tokens=127)),
     "$.checkpoints[1].thinking_tokens is 128, past the natural end at 127"),
    (changed(lambda r: r["checkpoints"][0]["exit"].update(exact_match=2)),
     "$.checkpoints[0].exit.exact_match must be 0 or 1, got 2"),
    (changed(lambda r: r["final"].update(exact_match=-1)), "$.final.exact_match must be 0 or 1"),
    (changed(lambda r: r["checkpoints"][0]["signals"].update(entropy_mean=float("nan"))),
     "invalid JSON: NaN is no number"),
    (changed(lambda r: r["checkpoints"][0]["signals"].update(x=10**400)),
     "$.checkpoints[0].signals.x is not finite"),
    (changed(lambda r: r["checkpoints"][0]["signals"].update(x="a")),
     "$.checkpoints[0].signals.x must be a number, not text"),
    (changed(lambda r: r["checkpoints"][0]["signals"].update(thinking_tokens=1)), "no name for"),
    (changed(lambda r: r["checkpoints"][0]["probe"].update(confidence=1.5)),
     "$.checkpoints[0].probe.confidence must lie in [0, 1]"),
    (changed(lambda r: r["final"].update(answer_tokens=-1)),
     "$.final.answer_tokens must be a number"),
    (changed(lambda r: r.update(target="  ")), "$.target is empty"),
    (changed(lambda r: r.update(trace_id="")), "$.trace_id is empty"),
    (changed(lambda r: r.update(question="\ud800")),
     "not valid Unicode (it holds half of a surrogate pair)"),
    (changed(lambda r: r.update(meta={"a": float("inf")})), "invalid JSON: Infinity is no number"),
    (changed(lambda r: r["final"].update(exat_match=1)),
     "unknown field $.final.exat_match (your own data may go under meta)"),
    (json.dumps(EXAMPLE), "$.trace_id 't1' came before"),
    (changed(lambda r: r["checkpoints"][0]["signals"].update(x=1e39)),
     "$.checkpoints[0].signals.x is 1e+39, beyond the 3.4e+38 that a float32 can hold"),
    (changed(lambda r: r["checkpoints"][0]["signals"].update(x=1)).replace("1}", "-1e400}", 1),
     "$.checkpoints[0].signals.x is not finite: too large"),
    (changed(lambda r: r["checkpoints"][0]["signals"].update(x="a"))[:-1] + ", 'torn",
     "$.checkpoints[0].signals.* must be a number, not text"),
    (changed(lambda r: r["checkpoints"][0]["signals"].update(y=True)),
     "$.checkpoints[0].signals.y must be a number, not true or false"),
    (changed(lambda r: r["checkpoints"][0]["exit"].update(answer=None)),
     "$.checkpoints[0].exit.answer must be text, not null"),
    (changed(lambda r: r["final"].update(answer_tokens=10**30)),
     "$.final.answer_tokens must be a number of tokens"),
    (changed(lambda r: r.update(seed=2**63)), "$.seed does not fit in 64 bits"),
    (changed(lambda r: r.update(meta={"a": 1})).replace('{"a": 1}', '{"a": 1e400}'),
     "$.meta.* is not finite: too large"),
    (json.dumps(EXAMPLE)[:-9], "invalid JSON"),
    (json.dumps(EXAMPLE) + "}", "invalid JSON"),
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


UNSCORED: dict[str, Any] = {
    **EXAMPLE,
    "task": "mine",
    "final": {"answer": "6 x 3 is 18", "thinking_tokens": 812, "answer_tokens": 40},
    "checkpoints": [{"thinking_tokens": 64, "exit": {"answer": "the 9th", "answer_tokens": 2}}],
}


def scored_as(folder: Path, scorer: str | None = None, **changes: Any) -> tuple[int, int, object]:
    """The exact matches of the end and the exit, and the scorer that the store names."""
    path = file_of(folder, json.dumps({**UNSCORED, **changes}))
    (trace,) = read_jsonl(path, scorer=scorer)
    return (
        trace.final.exact_match, trace.checkpoints[0].exit.exact_match, trace.meta.get("scorer"),
    )  # fmt: skip


def test_what_is_absent_is_scored_by_the_option_then_by_meta_then_by_the_task(
    tmp_path: Path,
) -> None:
    assert scored_as(tmp_path) == (1, 0, None)
    assert scored_as(tmp_path, meta={"scorer": "exact"}) == (0, 0, "exact")
    assert scored_as(tmp_path, "number", meta={"scorer": "exact"}) == (1, 0, "number")
    assert scored_as(tmp_path, task="gsm8k") == (1, 0, "math")
    assert scored_as(tmp_path, "regex:([0-9]+)th", target="9") == (0, 1, "regex:([0-9]+)th")
    options = {"options": ["the 9th", "6 x 3 is 18"], "scorer": "choice"}
    assert scored_as(tmp_path, target="B", meta=options)[:2] == (1, 0)


def test_a_scorer_that_is_none_is_named_and_code_is_not_run_for_a_data_file(
    tmp_path: Path,
) -> None:
    path = file_of(tmp_path, json.dumps({**UNSCORED, "meta": {"scorer": "verifier"}}))
    with pytest.raises(UserError, match=r":1: .*no scorer 'verifier'; there are: auto, exact"):
        next(read_jsonl(path))
    path = file_of(tmp_path, json.dumps({**UNSCORED, "meta": {"scorer": "python:os.system"}}))
    with pytest.raises(UserError, match="would run code that a data file names"):
        next(read_jsonl(path))
    named = file_of(tmp_path, json.dumps({**UNSCORED, "meta": {"scorer": "python:operator.eq"}}))
    (trusted,) = read_jsonl(named, scorer="python:operator.eq")
    assert trusted.meta["scorer"] == "python:operator.eq"
    with pytest.raises(UserError, match="no scorer 'maths'"):
        import_jsonl(path, tmp_path / "out", scorer="maths")


def test_null_is_as_good_as_absent(tmp_path: Path) -> None:
    line = copy.deepcopy(EXAMPLE)
    line["meta"] = line["checkpoints"][0]["probe"] = line["checkpoints"][1]["signals"] = None
    line["final"]["exact_match"] = None
    line["checkpoints"][0]["signals"] = {"a": None, "b": 2}
    (trace,) = read_jsonl(file_of(tmp_path, json.dumps(line)))
    assert (trace.meta, trace.final.exact_match) == ({"scorer": "math"}, 1)
    assert [p.signals for p in trace.checkpoints] == [{"b": 2.0}, {}]
    assert trace.checkpoints[0].probe is None


@pytest.mark.parametrize("big", [2**63, -(2**64), 80241446968629135069, 10**300])
def test_integers_of_any_size_survive_anywhere_in_meta(tmp_path: Path, big: int) -> None:
    meta = {"request": big, "nested": {"list": [1, {"deep": [big, -big]}]}, "half": 0.1}
    for name, record in {"given": EXAMPLE, "scored": UNSCORED}.items():
        import_jsonl(file_of(tmp_path, json.dumps({**record, "meta": meta})), tmp_path / name)
        (trace,) = load_traces(tmp_path / name)
        assert trace.meta == meta
        assert type(trace.meta["request"]) is int


def test_a_byte_order_mark_crlf_and_blank_lines_are_taken(tmp_path: Path) -> None:
    lines = [json.dumps({**EXAMPLE, "trace_id": f"t{i}", "target": "a\u2028b"}, ensure_ascii=False)
             for i in range(3)]  # fmt: skip
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n \r\n".join(lines).encode())
    assert [t.target for t in read_jsonl(path)] == ["a\u2028b"] * 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(EXAMPLE).encode("utf-16"), "is UTF-16"),
        (gzip.compress(json.dumps(EXAMPLE).encode(), mtime=0), "is compressed (gzip)"),
        (b"PAR1....", "is a Parquet file"),
        (b"PK\x03\x04", "is a zip archive"),
        (b" [" + json.dumps(EXAMPLE).encode() + b"]", ":1: a list, where one object a line"),
    ],
)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_file_of_another_kind_is_one_line_of_error(
    tmp_path: Path, content: bytes, said: str, skip_bad: bool
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        import_jsonl(path, tmp_path / "out", skip_bad=skip_bad)
    assert str(raised.value).startswith(f"{path}")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


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
    made = {*PROBE_SIGNALS, *TURN_SIGNALS, *CONTEXT_SIGNALS, *TASK_SIGNALS, "thinking_tokens"}
    assert made == RESERVED_SIGNALS


def peak_of_import(folder: Path, n: int, *, bad: bool, unscored: bool) -> int:
    """Bytes at the height of an import of ``n`` traces, a line in two bad where asked."""
    folder.mkdir()
    file = folder / "traces.jsonl"
    with file.open("w") as out:
        for i in range(n):
            record = trace_to_dict(make_trace(i, checkpoints=12))
            if unscored:
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


@pytest.mark.parametrize(("bad", "unscored"), [(False, False), (False, True), (True, False)])
def test_four_times_the_traces_take_no_more_memory(
    bad: bool, unscored: bool, tmp_path: Path
) -> None:
    """But for the ids, which are kept to find one that comes twice: some 200 bytes each."""
    peak_of_import(tmp_path / "warm", 1, bad=False, unscored=unscored)
    once, four = (
        peak_of_import(tmp_path / str(n), n, bad=bad, unscored=unscored) for n in (300, 1200)
    )
    assert four <= once * 1.02 + 900 * 200
    assert once > 1e6, "the traces are too small to show a leak"


def test_collection_is_on_again_after_an_import(tmp_path: Path) -> None:
    assert gc.isenabled()
    import_jsonl(file_of(tmp_path, json.dumps(EXAMPLE)), tmp_path / "good")
    with pytest.raises(UserError):
        import_jsonl(file_of(tmp_path, "{"), tmp_path / "bad")
    assert gc.isenabled()


def lines_of(n: int) -> list[str]:
    return [
        changed(lambda r, i=i: r.update(trace_id=f"t{i}", question_id=f"q{i}"))  # type: ignore[misc]
        for i in range(n)
    ]


def test_the_second_of_two_imports_into_a_folder_is_told_so_and_changes_nothing(
    tmp_path: Path,
) -> None:
    path, out = file_of(tmp_path, *lines_of(150)), tmp_path / "out"
    told: list[str] = []

    def second(done: int, total: int) -> None:
        if not told:
            with pytest.raises(UserError, match=r"process \d+ is writing here") as caught:
                import_jsonl(path, out)
            told.append(str(caught.value))

    assert import_jsonl(path, out, progress=second).n == 150
    assert len(told) == 1
    assert len(load_traces(out)) == 150
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "traces.jsonl"]
    assert sorted(p.name for p in out.iterdir()) == ["_parts", "part-000000.parquet"]


def test_an_interrupted_import_says_that_nothing_was_imported_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    path, out = file_of(tmp_path, *lines_of(150)), tmp_path / "out"

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="nothing was imported to"):
        import_jsonl(path, out, progress=interrupt)
    assert not out.exists()
    assert import_jsonl(path, out).n == 150


def test_what_a_killed_import_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".out.4000000-0123abcd.importing"
    with TraceWriter(left) as writer:
        writer.add(make_trace())
    assert import_jsonl(file_of(tmp_path, *lines_of(2)), tmp_path / "out").n == 2
    assert not left.exists()


def test_a_full_disk_under_an_import_says_that_nothing_was_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("rlbudget.traces.store.write_bytes", full)
    with pytest.raises(UserError, match="No space left on device; nothing was imported: make room"):
        import_jsonl(file_of(tmp_path, *lines_of(2)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


SAMPLES = {
    "version": 1, "question_id": "q", "task": "t", "question": "?", "target": "1", "model": "m",
}  # fmt: skip
POINT = {"thinking_tokens": 1, "exit": {"answer": "1", "exact_match": 1, "answer_tokens": 1}}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (changed(lambda r: r.update(trace_id="x" * 10**6)), "trace_id is 1,000,000 characters"),
        (changed(lambda r: r.update(question_id="x" * 300)), "question_id is 300 characters"),
        (changed(lambda r: r.update(question="x " * 10**6)), "question is 2,000,000 characters"),
        (changed(lambda r: r.update(target="x" * (10**6 + 1))), "target is 1,000,001 characters"),
        (changed(lambda r: r.update(task="x" * 10**4)), "task is 10,000 characters"),
        (changed(lambda r: r["meta"].update(family="x" * 10**4)), "meta.family is 10,000 char"),
        (changed(lambda r: r["meta"].update(family=[[1]])), "meta.family must be text"),
        (
            changed(lambda r: r["checkpoints"][1].update(signals={f"s{i}": 1 for i in range(900)})),
            "signals are 900; 500 are the most",
        ),
        (
            changed(lambda r: r["checkpoints"][1].update(signals={"x" * 999: 1})),
            "a name is 999 characters",
        ),
        (
            changed(
                lambda r: r.update(
                    checkpoints=[{**POINT, "thinking_tokens": i} for i in range(30_000)],
                    final={**r["final"], "thinking_tokens": 10**6},
                )
            ),
            "checkpoints are 30,000",
        ),
        (
            json.dumps({**SAMPLES, "samples": [{"answer": "1", "tokens": 1}] * 4000}),
            "samples are 4,000; 1,000 are the most",
        ),
        (
            json.dumps({**SAMPLES, "samples": [{"answer": "x" * 10**6, "tokens": 1}] * 9}),
            "an answer of 1,000,000 characters; 222,222 are the most for each of 9 samples",
        ),
        ('{"a": "' + "x" * (17 << 20) + '"}', "the line is longer than 16 MiB"),
    ],
)
def test_what_is_too_large_is_refused_by_file_and_line_at_once(
    tmp_path: Path, line: str, said: str
) -> None:
    path = file_of(tmp_path, "", line)
    begun = time.process_time()
    with pytest.raises(UserError, match=said) as caught:
        import_jsonl(path, tmp_path / "out")
    assert str(caught.value).startswith(f"{path}:2: ")
    assert time.process_time() - begun < 10  # a tenth of a second
