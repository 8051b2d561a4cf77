"""Tables of questions in every kind of file, and what is wrong with them."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlbudget.errors import UserError
from rlbudget.tasks import Columns, load_task
from rlbudget.tasks.task import Question, Task

Rows = Sequence[Mapping[str, Any]]


def as_jsonl(folder: Path, rows: Rows) -> Path:
    path = folder / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_csv(folder: Path, rows: Rows) -> Path:
    path = folder / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            lists = {n: json.dumps(v) for n, v in row.items() if isinstance(v, list | dict)}
            writer.writerow({**row, **lists})
    return path


def as_parquet(folder: Path, rows: Rows) -> Path:
    path = folder / "t.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def as_saved(folder: Path, rows: Rows, metadata: dict[bytes, bytes] | None = None) -> Path:
    """What ``datasets.Dataset.save_to_disk`` writes, in two files."""
    path = folder / "t"
    path.mkdir(parents=True)
    table = pa.Table.from_pylist(list(rows)).replace_schema_metadata(metadata)
    cut = (len(rows) + 1) // 2
    names = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
    for name, part in zip(names, (table[:cut], table[cut:]), strict=True):
        with pa.OSFile(str(path / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as w:
            w.write_table(part)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "test"}
    (path / "state.json").write_text(json.dumps(state))
    (path / "dataset_info.json").write_text("{}")
    return path


Maker = Callable[[Path, Rows], Path]
KINDS: list[Maker] = [as_jsonl, as_csv, as_parquet, as_saved]
all_kinds = pytest.mark.parametrize("make", KINDS)


def by_question(task: Task) -> dict[str, Question]:
    return {question.question: question for question in task.questions}


@all_kinds
def test_every_kind_of_file_gives_the_same_questions(tmp_path: Path, make: Maker) -> None:
    rows = [{"question": f"q{i}\u2028é", "target": "yes", "id": i, "options": ["yes", "no"]}
            for i in range(5)]  # fmt: skip
    path = make(tmp_path, rows)
    task = load_task(str(path), seed=3)
    wanted = load_task(str(as_jsonl(tmp_path, rows)), seed=3)
    assert task.questions == wanted.questions
    assert (task.name, task.scorer, len(task.questions)) == ("t", "auto", 5)
    assert task.questions[0].options == ("yes", "no")
    assert task.score(task.questions[0], "The answer is **Yes**.") == 1
    assert load_task(str(tmp_path / path.name), n=2, seed=3).questions == task.questions[:2]


@all_kinds
def test_named_layouts_read_every_kind_of_file(tmp_path: Path, make: Maker) -> None:
    rows = [{"question": "How many?", "answer": "9 * 200 = 1800\n#### 1,800"}]
    task = load_task(f"gsm8k:{make(tmp_path, rows)}")
    assert (task.questions[0].target, task.scorer) == ("1800", "math")


@all_kinds
def test_columns_are_named(tmp_path: Path, make: Maker) -> None:
    rows = [{"prompt": "Odd?", "gold": "no", "choices": ["yes", "no"], "key": "k1"},
            {"prompt": "Even?", "gold": "yes", "choices": ["yes", "no"], "key": "k2"}]  # fmt: skip
    path = str(make(tmp_path, rows))
    found = load_task(path, columns=Columns("prompt", "gold", "choices", "key"))
    assert {q.question_id: q.target for q in found.questions} == {"k1": "no", "k2": "yes"}
    assert {q.options for q in found.questions} == {("yes", "no")}
    with pytest.raises(
        UserError, match=r"missing field question \(there is: prompt, gold, choices"
    ):
        load_task(path)
    with pytest.raises(UserError, match="missing field nothing"):
        load_task(path, columns=Columns("prompt", "gold", identity="nothing"))
    with pytest.raises(UserError, match="missing field none"):
        load_task(path, columns=Columns("prompt", "gold", options="none"))


def test_an_empty_name_says_that_there_are_no_options(tmp_path: Path) -> None:
    path = str(as_jsonl(tmp_path, [{"question": "?", "target": "t", "options": "A) t B) u"}]))
    with pytest.raises(UserError, match="field options must be a list of two texts"):
        load_task(path)
    assert load_task(path, columns=Columns(options="")).questions[0].options == ()


def test_dots_reach_into_objects(tmp_path: Path) -> None:
    rows = [{"question": "Who?", "answer": {"value": "Ada", "aliases": ["Ada", "Lovelace"]}}]
    for make in (as_jsonl, as_parquet):
        path = make(tmp_path, rows)
        task = load_task(str(path), columns=Columns(target="answer.value"))
        assert task.questions[0].target == "Ada"
        task = load_task(f"squad:{path}", columns=Columns(target="answer.aliases"))
        assert task.score(task.questions[0], "Lovelace") == 1


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("73.0", "73.0"), ("1e3", "1e3"), ("-0.50", "-0.50"), ("1E-7", "1E-7"), ("73", "73"),
        ("80241446968629135069123456789", "80241446968629135069123456789"),
        ('"073"', "073"), ('"1e400"', "1e400"), ("0.1000000000000000055", "0.1000000000000000055"),
    ],
)  # fmt: skip
def test_a_number_keeps_its_literal_form(tmp_path: Path, written: str, kept: str) -> None:
    (tmp_path / "t.jsonl").write_text(f'{{"question": {written}, "target": {written}}}\n')
    (tmp_path / "t.csv").write_text(f"question,target\n{kept},{kept}\n")
    for name in ("t.jsonl", "t.csv"):
        (question,) = load_task(str(tmp_path / name)).questions
        assert (question.question, question.target) == (kept, kept)


def test_numbers_of_columns_of_numbers_are_written_as_short_as_they_are_exact(
    tmp_path: Path,
) -> None:
    kinds = {
        "73.0": pa.array([73.0]), "0.1": pa.array([0.1], pa.float32()),
        "9007199254740993": pa.array([2**53 + 1]), "1.50": pa.array([Decimal("1.50")]),
    }  # fmt: skip
    for kept, column in kinds.items():
        table = pa.table({"question": ["?"], "target": column})
        pq.write_table(table, tmp_path / "t.parquet")
        assert load_task(str(tmp_path / "t.parquet")).questions[0].target == kept


@pytest.mark.parametrize("written", ["NaN", "Infinity", "-Infinity", "1e400", "-1e999"])
@pytest.mark.parametrize("field", ["question", "target", "other"])
def test_what_is_no_number_is_refused_by_file_and_line(
    tmp_path: Path, written: str, field: str
) -> None:
    row = {"question": '"q"', "target": '"t"', field: written}
    path = tmp_path / "t.jsonl"
    path.write_text('{"question": "a", "target": "b"}\n{' + ", ".join(
        f'"{name}": {value}' for name, value in row.items()) + "}\n")  # fmt: skip
    with pytest.raises(UserError, match=rf"t\.jsonl:2: {written} is no number"):
        load_task(str(path))


@pytest.mark.parametrize("make", [as_csv, as_parquet, as_saved])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_in_a_table_is_refused_by_row(tmp_path: Path, make: Maker, value: float) -> None:
    path = make(tmp_path, [{"question": "a", "target": 1.0}, {"question": "b", "target": value}])
    line = 3 if make is as_csv else 2
    with pytest.raises(UserError, match=rf":{line}: {value}.* is no number"):
        load_task(str(path))


@all_kinds
def test_a_missing_target_is_refused_and_skipped_rows_are_told(tmp_path: Path, make: Maker) -> None:
    rows = [{"question": f"q{i}", "target": None if i in (1, 2) else "t"} for i in range(4)]
    path = make(tmp_path, rows)
    with pytest.raises(UserError, match=r":\d: missing field target"):
        load_task(str(path))
    told: list[str] = []
    task = load_task(str(path), skip_bad=True, on_bad=told.append)
    assert {q.question for q in task.questions} == {"q0", "q3"}
    first = 3 if make is as_csv else 2
    assert [one.partition(": ")[0] for one in told] == [f"{path}:{first}", f"{path}:{first + 1}"]
    with pytest.raises(UserError, match=r"holds no question; .*missing field nowhere"):
        load_task(str(path), columns=Columns(target="nowhere"), skip_bad=True)


MMLU_PRO = [
    {"question": "Which is a city?", "options": ["Rome", "Rhine", "Alps"], "answer": "A"},
    {"question": "Which is a river?", "options": ["Oslo", "Rhine"], "answer": "B"},
]


@all_kinds
def test_a_letter_names_an_option_and_the_question_lists_them(tmp_path: Path, make: Maker) -> None:
    path = make(tmp_path, MMLU_PRO)
    task = load_task(str(path), columns=Columns(target="answer"))
    river = next(q for q in task.questions if "river" in q.question)
    assert river.question == "Which is a river?\n\nA. Oslo\nB. Rhine"
    assert (river.target, river.options) == ("Rhine", ("Oslo", "Rhine"))
    for answer, right in (("The answer is (B).", 1), ("Rhine", 1), ("B. Rhine", 1), ("A", 0)):
        assert task.score(river, answer) == right, answer


@pytest.mark.parametrize(
    ("row", "target"),
    [
        ({"options": ["4", "2", "8"], "target": 2}, "2"),  # a text before an index
        ({"options": ["x", "y", "z"], "target": 2}, "z"),
        ({"options": ["x", "y", "z"], "target": "0"}, "x"),
        ({"options": ["x", "y"], "target": "(b)"}, "y"),
        ({"options": {"A": "x", "B": "y"}, "target": "B"}, "y"),
        ({"options": {"text": ["x", "y"], "label": ["1", "2"]}, "target": "1"}, "x"),
        ({"options": ["A", "B"], "target": "B"}, "B"),
        ({"options": ["yes", "no"], "target": "Yes."}, "Yes."),
    ],
)
def test_a_target_names_an_option_by_text_label_or_index(
    tmp_path: Path, row: dict[str, Any], target: str
) -> None:
    (question,) = load_task(str(as_jsonl(tmp_path, [{"question": "?", **row}]))).questions
    assert question.target == target


def test_all_rows_of_a_file_name_their_options_in_one_way(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "options": ["u", "v", "w"], "target": 2} for i in range(3)]
    rows.append({"question": "sum", "options": ["4", "2", "1"], "target": 1})
    task = load_task(str(as_jsonl(tmp_path, rows)))
    assert next(q.target for q in task.questions if q.question.startswith("sum")) == "2"
    rows.append({"question": "bad", "options": ["x", "y"], "target": 2})
    with pytest.raises(UserError, match=r":5: the target '2' is none of the options: .* the index"):
        load_task(str(as_jsonl(tmp_path, rows)))


def test_options_that_the_question_lists_are_not_listed_again(tmp_path: Path) -> None:
    row = {"question": "Which?\n(A) left\n(B) right", "options": ["left", "right"], "target": "B"}
    (question,) = load_task(str(as_jsonl(tmp_path, [row]))).questions
    assert question.question == row["question"]


def test_class_labels_are_read_by_their_names(tmp_path: Path) -> None:
    features = {"target": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    rows = [{"question": "a", "target": 1}, {"question": "b", "target": 0}]
    found = by_question(load_task(str(as_saved(tmp_path, rows, metadata))))
    assert {name: q.target for name, q in found.items()} == {"a": "yes", "b": "no"}


def test_a_folder_of_splits_asks_which(tmp_path: Path) -> None:
    as_saved(tmp_path, [{"question": "a", "target": "b"}]).rename(tmp_path / "test")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UserError) as raised:
        load_task(str(tmp_path))
    assert f"name one: {tmp_path / 'train'}, {tmp_path / 'test'}" in str(raised.value)
    assert len(load_task(str(tmp_path / "test")).questions) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no folder of questions: it holds no state\.json"):
        load_task(str(tmp_path / "empty"))


def test_a_byte_order_mark_crlf_and_blank_lines_are_taken(tmp_path: Path) -> None:
    lines = [json.dumps({"question": f"q{i}\u2028", "target": "t"}, ensure_ascii=False)
             for i in range(3)]  # fmt: skip
    (tmp_path / "t.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n \r\n".join(lines).encode())
    rows = ["question,target", *(f'"q{i}\u2028",t' for i in range(3))]
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(rows).encode())
    for name in ("t.jsonl", "t.csv"):
        found = by_question(load_task(str(tmp_path / name)))
        assert set(found) == {f"q{i}\u2028" for i in range(3)}


GOOD = '{"question": "q", "target": "t"}\n'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.jsonl", GOOD.encode("utf-16"), "is UTF-16"),
        ("t.csv", "question,target\nq,t\n".encode("utf-16"), "is UTF-16"),
        ("t.jsonl", gzip.compress(GOOD.encode(), mtime=0), "is compressed (gzip)"),
        ("t.jsonl.gz", gzip.compress(GOOD.encode(), mtime=0), "is compressed (gzip)"),
        ("t.jsonl", f"[{GOOD}]".encode(), ":1: a list, where one object a line"),
        ("t.jsonl", GOOD.encode()[:-4], ":1: invalid JSON"),
        ("t.jsonl", b'{"question": "\xff", "target": "t"}', ":1: invalid UTF-8 at byte 15"),
        ("t.jsonl", b'{"question": "\\ud83d", "target": "t"}', ":1: not valid Unicode"),
        ("t.jsonl", b'{"question": ' + b"[" * 100_000, ":1: invalid JSON: too many brackets"),
        ("t.jsonl", b"PAR1", "is a Parquet file"),
        ("t.jsonl", b"", "holds no question"),
        ("t.csv", b"question,target\n", "holds no question"),
        ("t.csv", b'question,target\nq,"t', ":2: invalid CSV"),
        ("t.csv", b"question,target\nq\n", ":2: 1 cells where the first line names 2 columns"),
        ("t.csv", b"question,target\nq,\xfft\n", ":2: invalid UTF-8"),
        ("t.csv", b"question,question\nq,t\n", ":1: the column 'question' is there twice"),
        ("t.csv", b'question,target,options\nq,t,"[t"\n', ":2: field options is a text that is no"),
        ("t.parquet", GOOD.encode(), "damaged, or no file of this kind"),
        ("t.parquet", b"", "damaged, or no file of this kind"),
        ("t.xlsx", b"question", "what kind of file is it?"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_one_line_of_error(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        load_task(str(path))
    assert str(raised.value).startswith(str(path))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_cut_parquet_file_or_arrow_stream_is_one_line_of_error(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "target": "t"} for i in range(50)]
    parquet = as_parquet(tmp_path, rows)
    parquet.write_bytes(parquet.read_bytes()[:-20])
    folder = as_saved(tmp_path, rows)
    stream = folder / "data-00000-of-00002.arrow"
    stream.write_bytes(stream.read_bytes()[:300])
    for path in (parquet, folder):
        with pytest.raises(UserError, match="damaged, or no file of this kind"):
            load_task(str(path))
    stream.unlink()
    with pytest.raises(UserError, match="cannot read this file"):
        load_task(str(folder))


def test_a_long_cell_is_read_whole(tmp_path: Path) -> None:
    path = as_csv(tmp_path, [{"question": "x" * 300_000, "target": "t"}])
    assert len(load_task(str(path)).questions[0].question) == 300_000


def test_a_scorer_is_named_by_the_file_or_by_the_caller(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "target": "18", "scorer": "exact"} for i in range(2)]
    path = as_jsonl(tmp_path, rows)
    exact, number = load_task(str(path)), load_task(str(path), scorer="number")
    assert (exact.scorer, number.scorer) == ("exact", "number")
    assert [t.score(t.questions[0], "It is 18.0.") for t in (exact, number)] == [0, 1]
    with pytest.raises(UserError, match="no scorer 'maths'"):
        load_task(str(path), scorer="maths")
    for named, said in {
        ("exact", "text"): ":2: field scorer is 'text', and 'exact' on an earlier line",
        ("maths", "maths"): ":1: field scorer: no scorer 'maths'",
        ("python:os.system",): ":1: field scorer 'python:os.system' would run code",
        (7,): ":1: field scorer must be text",
    }.items():
        rows = [{"question": f"q{i}", "target": "t", "scorer": n} for i, n in enumerate(named)]
        with pytest.raises(UserError) as raised:
            load_task(str(as_jsonl(tmp_path, rows)))
        assert said in str(raised.value)


def test_a_row_with_a_wrong_scorer_is_skipped_whole(tmp_path: Path) -> None:
    names = ("exact", "text", "maths")
    rows = [{"question": f"q{i}", "target": "t", "scorer": n} for i, n in enumerate(names)]
    told: list[str] = []
    task = load_task(str(as_jsonl(tmp_path, rows)), skip_bad=True, on_bad=told.append)
    assert ([q.question for q in task.questions], task.scorer) == (["q0"], "exact")
    assert len(told) == 2


def test_all_questions_of_a_file_are_taken_without_n_and_a_generator_wants_n(
    tmp_path: Path,
) -> None:
    rows = [{"question": f"q{i}", "target": "t"} for i in range(7)]
    assert len(load_task(str(as_jsonl(tmp_path, rows))).questions) == 7
    with pytest.raises(UserError, match="--n is needed: the task embedded"):
        load_task("embedded")
    with pytest.raises(UserError, match="the task embedded is no file"):
        load_task("embedded", n=3, columns=Columns(question="q"))
