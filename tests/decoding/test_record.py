from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import save_tiny_model, tiny_task

from rlbudget.agents.rules.probing import HALT
from rlbudget.decoding.record import RecordStats, record, row_seed
from rlbudget.decoding.record_samples import record_samples
from rlbudget.errors import UserError
from rlbudget.evaluate.evaluation import as_json, assess
from rlbudget.models import load_model
from rlbudget.models.transformers_model import TransformersModel
from rlbudget.policy.observation import features_of
from rlbudget.signals.tokens import EXIT_SIGNALS
from rlbudget.tasks.task import Question, Task
from rlbudget.traces.store import existing_ids, load_table, load_traces
from rlbudget.traces.table import split_questions
from rlbudget.traces.trace import Trace

torch.set_num_threads(1)

HERE = Path(__file__).parents[1] / "shared"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> TransformersModel:
    return load_model(str(folder), profile="embedded")


def run(model: TransformersModel, out: Path, n: int = 20, **settings: object) -> RecordStats:
    wanted: dict[str, object] = {"max_tokens": 40, "batch_size": 8, "probe_tokens": 3}
    return record(model, tiny_task(n), out, **{**wanted, **settings})  # type: ignore[arg-type]


def by_id(out: Path) -> dict[str, Trace]:
    traces = load_traces(out)
    found = {trace.trace_id: trace for trace in traces}
    assert len(found) == len(traces)
    return found


def test_every_question_is_recorded_once_with_its_exits(
    model: TransformersModel, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    stats = run(model, tmp_path, progress=lambda done, total: seen.append((done, total)))
    traces = by_id(tmp_path)
    assert set(traces) == {f"q{i}-s0" for i in range(20)}
    assert seen[0] == (0, 20)
    assert seen[-1] == (20, 20)
    assert len(seen) > 3
    assert seen == sorted(set(seen))
    assert (stats.n, stats.skipped) == (20, 0)
    tokens = sum(t.final.thinking_tokens + t.final.answer_tokens for t in traces.values())
    assert stats.tokens == tokens
    assert stats.exit_tokens == sum(
        c.exit.answer_tokens for t in traces.values() for c in t.checkpoints
    )
    task = tiny_task(20)
    questions = {question.question_id: question for question in task.questions}
    assert any(trace.checkpoints for trace in traces.values())
    for trace in traces.values():
        question = questions[trace.question_id]
        assert trace.meta["row_seed"] == row_seed(0, trace.question_id)
        assert trace.meta["profile"] == "embedded"
        assert trace.meta["exit_text"] == "</think>"
        assert trace.meta["natural"] == (trace.final.thinking_tokens < 40)
        assert "thinking" not in trace.meta
        assert trace.final.exact_match == task.score(question, trace.final.answer)
        grid = [c.thinking_tokens for c in trace.checkpoints]
        assert grid == sorted({*grid} & {*range(8, min(trace.final.thinking_tokens, 39) + 1, 8)})
        for point in trace.checkpoints:
            assert point.exit.exact_match == task.score(question, point.exit.answer)
            assert point.probe is not None
            assert 1 <= point.probe.tokens <= 3
            tail = point.signals["probe_tail"]
            assert 0 < tail < 1 if point.probe.tokens > 1 else tail == 0


def test_text_is_kept_on_demand_with_the_places_of_the_checkpoints(
    model: TransformersModel, tmp_path: Path
) -> None:
    run(model, tmp_path, store_text=True)
    for trace in load_traces(tmp_path):
        cuts, text = trace.meta["cuts"], trace.meta["thinking"]
        assert len(cuts) == len(trace.checkpoints)
        assert cuts == sorted(cuts)
        assert all(0 <= cut <= len(text) for cut in cuts)


def test_probes_can_be_left_out(model: TransformersModel, tmp_path: Path) -> None:
    run(model, tmp_path, probe_tokens=0)
    points = [c for trace in load_traces(tmp_path) for c in trace.checkpoints]
    assert points
    assert all(c.probe is None and "probe_tail" not in c.signals for c in points)


def test_a_probe_with_a_cue_of_its_own_is_recorded(folder: Path, tmp_path: Path) -> None:
    model = load_model(str(folder), profile="think")
    run(model, tmp_path, n=2, max_tokens=20, stride=8)
    points = [c for trace in load_traces(tmp_path) for c in trace.checkpoints]
    assert points
    assert all(c.probe is not None and 1 <= c.probe.tokens <= 3 for c in points)


def choice_task(n: int) -> Task:
    """Every third question may be answered by any text."""
    choices = (("yes", "no"), ("2", "12", "1/2"), ())
    questions = [
        replace(question, options=choices[i % 3], target=(*choices[i % 3], "2")[0])
        for i, question in enumerate(tiny_task(n).questions)
    ]
    return Task("choice", tuple(questions), lambda q, answer: int(answer == q.target))


@pytest.fixture(scope="module")
def chosen(model: TransformersModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("chosen")
    record(model, choice_task(60), out, max_tokens=40, batch_size=16, probe_tokens=3)
    return out


def test_the_choice_among_options_is_recorded_and_changes_nothing_else(
    model: TransformersModel, chosen: Path, tmp_path: Path
) -> None:
    task = choice_task(60)
    bare = replace(task, questions=tuple(replace(q, options=()) for q in task.questions))
    record(model, bare, tmp_path, max_tokens=40, batch_size=16, probe_tokens=3)
    plain, options = by_id(tmp_path), {q.question_id: q.options for q in task.questions}
    seen = set()
    for name, trace in by_id(chosen).items():
        given = options[trace.question_id]
        assert trace.meta.pop("options", []) == list(given)
        for point in trace.checkpoints:
            looks = [point.signals.pop(s, None) for s in ("answer_entropy", "option_tokens")]
            if not given:
                assert looks == [None, None]
                continue
            entropy, tokens = looks
            assert entropy is not None
            assert 0 <= entropy <= math.log(len(given))
            assert tokens == 1 + sum(map(len, model.option_ids(given)))
            seen.add(round(entropy, 6))
        assert trace == plain[name]
    assert len(seen) > 20


def test_the_recorded_choice_is_that_of_a_live_decode(
    model: TransformersModel, chosen: Path
) -> None:
    traces = [t for t in load_traces(chosen) if t.meta.get("options") and t.checkpoints][:6]
    assert len(traces) == 6
    for trace in traces:
        batch = model.begin([trace.question], [trace.meta["row_seed"]], max_tokens=40)
        options = model.option_ids(trace.meta["options"])
        for point in trace.checkpoints:
            batch.advance()
            (found,) = batch.fork_options([0], [options])
            assert batch.thinking_tokens([0]) == [point.thinking_tokens]
            assert found.entropy == pytest.approx(point.signals["answer_entropy"], abs=1e-4)


def test_halt_applies_where_options_were_recorded_and_no_policy_sees_them(
    chosen: Path, model: TransformersModel, tmp_path: Path
) -> None:
    table = load_table(chosen)
    assert not HALT.lacking(table)
    entropy = table.signals["answer_entropy"]
    halfway = float(np.nanmedian(entropy) / np.log(2))
    stops = HALT.stops(table, {"theta": halfway, "times": 1.0})
    paid = HALT.outcome(table, {"theta": halfway, "times": 1.0})
    free = {f"q{i}-s0" for i in range(2, 60, 3)}
    assert (stops >= 0).sum() > 10
    for name, stop, tokens, length in zip(
        table.trace_ids.tolist(), stops, paid.probe, table.lengths, strict=True
    ):
        looks = length if stop < 0 else stop + 1
        each = 1 + sum(map(len, model.option_ids(("yes", "no")
                           if int(name[1:-3]) % 3 == 0 else ("2", "12", "1/2"))))  # fmt: skip
        assert tokens == (0 if name in free else looks * each)
        assert stop < 0 or name not in free
    assert not {f.partition(".")[0] for f in features_of(table, "probe")} & set(EXIT_SIGNALS)
    split = split_questions(table)
    found = as_json(assess(split.train, split.held_out, {}, draws=20))
    assert "halt" in {row["method"] for row in found["summary"]}
    assert "halt" not in {entry["method"] for entry in found["not_applicable"]}
    run(model, tmp_path, n=8)
    assert HALT.lacking(load_table(tmp_path)) == ("answer_entropy",)


LONG = Question("long", "one two three, " * 400 + "?", "1")
NOTHING = Question("nothing", "", "1")
WORDY = Question("wordy", "What?", "1", options=("1", "7" * 40))


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        (LONG, "no max_tokens is small enough: shorten the question"),
        (NOTHING, "it is no token to this model"),
        (WORDY, "is 40 tokens long: an answer has 1 to 32"),
    ],
    ids=lambda value: value.question_id if isinstance(value, Question) else "",
)
def test_a_question_that_cannot_be_decoded_is_left_out_and_named(
    model: TransformersModel, tmp_path: Path, odd: Question, why: str
) -> None:
    task = tiny_task(4)
    mixed = replace(task, questions=(*task.questions[:2], odd, *task.questions[2:]))
    settings: dict[str, Any] = {"max_tokens": 24}
    told: list[str] = []
    stats = record(model, mixed, tmp_path / "mixed", on_left_out=told.append, **settings)
    assert (stats.n, list(stats.left_out)) == (4, told)
    assert len(told) == 1
    assert told[0].startswith(f"question '{odd.question_id}' is left out: ")
    assert why in told[0]
    record(model, task, tmp_path / "plain", **settings)
    assert by_id(tmp_path / "mixed") == by_id(tmp_path / "plain")
    again = record(model, mixed, tmp_path / "mixed", resume=True, **settings)
    assert (again.n, again.skipped, len(again.left_out)) == (0, 4, 1)
    sampled = record_samples(model, mixed, tmp_path / "sampled", samples=2, **settings)
    assert (sampled.n, len(sampled.left_out)) == (4, 1)
    with pytest.raises(UserError, match="none of the 1 questions of the task"):
        record(model, replace(task, questions=(odd,)), tmp_path / "none", **settings)
    assert not (tmp_path / "none").exists()


def test_the_advice_to_lower_max_tokens_is_exact(model: TransformersModel, tmp_path: Path) -> None:
    task = tiny_task(1)
    with pytest.raises(UserError, match=r"lower max_tokens to \d+ or less") as raised:
        record(model, task, tmp_path, max_tokens=10**6)
    most = int(str(raised.value).split("max_tokens to ")[1].split()[0])
    question = task.questions[0].question
    assert model.refusal(question, max_tokens=most) is None
    assert model.refusal(question, max_tokens=most + 1) is not None


def test_the_same_seed_records_the_same_traces(model: TransformersModel, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(model, tmp_path / name, n=8, seed=seed)
    first, again = by_id(tmp_path / "a"), by_id(tmp_path / "b")
    assert first == again
    other = by_id(tmp_path / "c")
    assert {t.question_id: t.final for t in other.values()} != {
        t.question_id: t.final for t in first.values()
    }


def test_resuming_records_only_what_is_missing(model: TransformersModel, tmp_path: Path) -> None:
    run(model, tmp_path / "whole", n=20)
    seen = []

    def interrupt(done: int, total: int) -> None:
        seen.append(done)
        if done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "part", n=20, progress=interrupt)
    assert 10 <= seen[-1] < 20
    assert len(existing_ids(tmp_path / "part")) == seen[-1]
    stats = run(model, tmp_path / "part", n=20, resume=True)
    assert (stats.n, stats.skipped) == (20 - seen[-1], seen[-1])
    assert_alike(by_id(tmp_path / "part"), by_id(tmp_path / "whole"))


def assert_alike(found: dict[str, Trace], expected: dict[str, Trace]) -> None:
    """The same traces up to the last bits, which depend on the rows beside."""
    assert set(found) == set(expected)
    for name, trace in expected.items():
        assert len(found[name].checkpoints) == len(trace.checkpoints)
        near = []
        for ours, theirs in zip(found[name].checkpoints, trace.checkpoints, strict=True):
            assert ours.signals == pytest.approx(theirs.signals, rel=1e-3, abs=1e-4)
            probe = ours.probe
            if probe is not None and theirs.probe is not None:
                assert probe.confidence == pytest.approx(theirs.probe.confidence, rel=1e-3)
                probe = replace(probe, confidence=theirs.probe.confidence)
            near.append(replace(ours, signals=theirs.signals, probe=probe))
        assert replace(found[name], checkpoints=tuple(near)) == trace


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_traces_are_the_same_whatever_the_batch(
    model: TransformersModel, tmp_path: Path, batch_size: int
) -> None:
    run(model, tmp_path / "a", n=20)
    run(model, tmp_path / "b", n=20, batch_size=batch_size)
    assert_alike(by_id(tmp_path / "b"), by_id(tmp_path / "a"))


def test_a_folder_with_traces_is_not_written_over(model: TransformersModel, tmp_path: Path) -> None:
    run(model, tmp_path, n=4)
    before = by_id(tmp_path)
    with pytest.raises(UserError, match="already holds traces"):
        run(model, tmp_path, n=4)
    assert by_id(tmp_path) == before


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"stride": 4}, "stride 8, not 4"),
        ({"seed": 3}, "seed 0, not 3"),
        ({"temperature": 0.5}, r"temperature 1.0, not 0.5"),
        ({"max_tokens": 24}, "max_tokens 40, not 24"),
        ({"probe_tokens": 0}, "probe_tokens 3, not 0"),
        ({"store_text": True}, "store_text False, not True"),
    ],
)
def test_resuming_with_other_settings_is_refused_by_name(
    model: TransformersModel, tmp_path: Path, other: dict[str, object], said: str
) -> None:
    run(model, tmp_path, n=2)
    before = by_id(tmp_path)
    with pytest.raises(UserError, match=f"was recorded with {said}: record into another"):
        run(model, tmp_path, n=4, resume=True, **other)
    assert by_id(tmp_path) == before


def test_a_folder_knows_its_settings_before_its_first_trace(
    model: TransformersModel, tmp_path: Path
) -> None:
    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path, n=2, progress=interrupted)
    with pytest.raises(UserError, match="was recorded with stride 8, not 4"):
        run(model, tmp_path, n=2, stride=4)
    assert run(model, tmp_path, n=2).n == 2


def test_another_task_or_another_question_of_the_same_id_is_refused(
    model: TransformersModel, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"max_tokens": 16, "resume": True}
    task = tiny_task(2)
    record(model, task, tmp_path, **settings)
    with pytest.raises(UserError, match="task 'tiny', not 'other'"):
        record(model, replace(task, name="other"), tmp_path, **settings)
    first = replace(task.questions[0], target="another")
    with pytest.raises(UserError, match=r"the target of 'q0' was '.*' when 'q0-s0' was recorded"):
        record(model, replace(task, questions=(first,)), tmp_path, **settings)


def test_settings_out_of_range_are_refused(model: TransformersModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size"):
        run(model, tmp_path / "a", batch_size=0)
    with pytest.raises(UserError, match="probe_tokens"):
        run(model, tmp_path / "b", probe_tokens=-1)
    assert not (tmp_path / "a").exists()


RECORDING = """
    import sys
    import torch
    torch.set_num_threads(1)
    from tiny_model import tiny_task
    from rlbudget.models import load_model
    from rlbudget.decoding.record import record
    model = load_model(sys.argv[1], profile="embedded")
    print("ready", flush=True)
    record(model, tiny_task(60), sys.argv[2], max_tokens=40, batch_size=6, probe_tokens=3,
           resume=True)
"""


def test_a_recording_killed_at_any_moment_resumes_to_the_same_traces(
    model: TransformersModel, folder: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    begun = time.monotonic()
    run(model, whole, n=60, batch_size=6)
    seconds = time.monotonic() - begun
    command = [sys.executable, "-c", textwrap.dedent(RECORDING), str(folder), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    counts = []
    for share in (0.25, 0.4):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(share * seconds)
            process.send_signal(signal.SIGKILL)
        counts.append(len(existing_ids(out)) if out.exists() else 0)
    assert counts[0] <= counts[1]
    run(model, out, n=60, batch_size=6, resume=True)
    assert_alike(by_id(out), by_id(whole))
