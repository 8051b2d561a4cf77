"""Never a seen question in the calibration set, whatever the folder of traces looks like."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from frozen_nets import random_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_table
from trace_makers import make_trace, traces_of

from rlbudget.agents.freeze import policy_of_run
from rlbudget.agents.training import train_on
from rlbudget.cli.main import main
from rlbudget.errors import UserError
from rlbudget.evaluate.calibrate import calibrate, calibration_questions
from rlbudget.policy.folder import load_policy, save_policy, seen_also
from rlbudget.policy.seen import marks_of, seen_by, texts_of
from rlbudget.strategies.feedback.registry import Registry
from rlbudget.strategies.feedback.retrain import retrain
from rlbudget.traces.store import TraceWriter, iter_questions, load_table
from rlbudget.traces.table import split_questions
from rlbudget.traces.trace import Trace

QUESTIONS = 12


def _store(folder: Path, traces: list[Trace], part_size: int = 256) -> Path:
    with TraceWriter(folder, part_size=part_size) as writer:
        for trace in traces:
            writer.add(trace)
    return folder


@settings(max_examples=60, deadline=None)
@given(
    seen_by_parent=st.sets(st.integers(0, QUESTIONS - 1)),
    seen_itself=st.sets(st.integers(0, QUESTIONS - 1)),
    folder=st.lists(
        st.tuples(st.integers(0, QUESTIONS + 2), st.booleans(), st.integers(0, 3)),
        min_size=1,
        max_size=30,
    ),
    part_size=st.integers(1, 9),
)
def test_no_seen_question_is_calibrated_on(
    seen_by_parent: set[int],
    seen_itself: set[int],
    folder: list[tuple[int, bool, int]],
    part_size: int,
) -> None:
    """A folder of traces in any order, of any of the questions, some of them more than once, with
    other decodes, or under another id."""
    plain = [make_trace(i) for i in range(QUESTIONS)]
    with tempfile.TemporaryDirectory() as scratch:
        texts = texts_of(iter_questions(_store(Path(scratch) / "old", plain)))
        policy = random_policy(seen=marks_of([f"q{i}" for i in seen_by_parent], texts))
        policy = seen_also(policy, marks_of([f"q{i}" for i in seen_itself], texts))
        traces = [
            replace(
                make_trace(question),
                trace_id=f"t{place}",
                question_id=f"{'other-' if renamed else ''}q{question}",
                seed=seed,
            )
            for place, (question, renamed, seed) in enumerate(folder)
        ]
        there = {question for question, _, _ in folder}
        left = there - seen_by_parent - seen_itself
        new = _store(Path(scratch) / "new", traces, part_size)
        if not left:
            with pytest.raises(UserError, match=f"has seen all {len(there)} questions"):
                calibration_questions(policy, new)
            return
        found = calibration_questions(policy, new)
    ids = set(found.table.question_ids.tolist())
    assert {int(i.rpartition("q")[2]) for i in ids} == left
    assert len(ids) == len(left)
    assert found.left_out == len(there) - len(left)
    of_left = [k for k, (question, _, _) in enumerate(folder) if question in left]
    assert found.table.trace_ids.tolist() == [f"t{k}" for k in of_left]


def test_a_policy_that_does_not_say_what_it_has_seen_is_not_calibrated(tmp_path: Path) -> None:
    new = _store(tmp_path / "new", [make_trace(i) for i in range(3)])
    with pytest.raises(UserError, match="does not say which questions"):
        calibration_questions(random_policy(seen=None), new)


def test_too_few_left_is_one_line_that_says_how_many_are_left_out(tmp_path: Path) -> None:
    new = _store(tmp_path / "new", [make_trace(i) for i in range(20)])
    save_policy(tmp_path / "policy", random_policy(seen=marks_of([f"q{i}" for i in range(12)])))
    with pytest.raises(UserError, match=r"there are 8; 12 that the policy has seen are left out"):
        calibrate(tmp_path / "policy", new, tmp_path / "certified")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry that serves a policy trained on ``old``, and ``both``: ``old`` and new traces."""
    home = tmp_path_factory.mktemp("trained")
    population = traces_of(make_table(700, seed=5))
    for place, trace in enumerate(population):
        population[place] = replace(trace, question=f"What is {place}?")
    old = _store(home / "old", population[:300])
    _store(home / "both", population[::-1])
    train_on(old, home / "run", total_timesteps=20_000)
    registry = Registry(home / "registry")
    registry.promote(registry.add(policy_of_run(home / "run")))
    return home


def test_training_and_validation_are_seen_and_held_out_questions_are_not(trained: Path) -> None:
    policy = Registry(trained / "registry").policy(1)
    split = split_questions(load_table(trained / "old"), seed=0)
    assert policy.seen is not None
    for part, expected in ((split.train, True), (split.validation, True), (split.held_out, False)):
        assert seen_by(policy.seen, part.question_ids).all() == expected
        assert seen_by(policy.seen, part.question_ids).any() == expected
    found = calibration_questions(policy, trained / "old")
    assert set(found.table.question_ids) == set(split.held_out.question_ids)
    grown = calibration_questions(policy, trained / "both")
    unseen = {*split.held_out.question_ids.tolist(), *(f"q{i}" for i in range(300, 700))}
    assert set(grown.table.question_ids.tolist()) == unseen


def test_a_retrained_policy_has_seen_what_its_ancestor_has_and_the_questions_of_its_contest(
    trained: Path,
) -> None:
    registry = Registry(trained / "registry")
    done = retrain(registry, trained / "both", margin=0.5, total_timesteps=20_000, seed=1)
    assert done.promoted
    ancestor, heir = registry.policy(1), registry.policy(done.version)
    assert ancestor.seen is not None
    assert heir.seen is not None
    assert set(ancestor.seen.tolist()) <= set(heir.seen.tolist())
    split = split_questions(load_table(trained / "both"), seed=1)
    fresh = ~seen_by(ancestor.seen, split.held_out.question_ids)
    assert 0 < fresh.sum() < len(fresh)
    assert done.contest.questions == fresh.sum()
    for part in (split.train.question_ids, split.held_out.question_ids[fresh]):
        assert seen_by(heir.seen, part).all()
    with pytest.raises(UserError, match="trained on these traces"):
        retrain(registry, trained / "both", seed=1)


def test_a_certified_folder_has_seen_its_calibration_questions(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_policy(tmp_path / "policy", Registry(trained / "registry").policy(1))
    main(["calibrate", str(tmp_path / "policy"), str(trained / "both"), "--max-em-loss", "0.9",
          "--out", str(tmp_path / "certified")])  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert "210 questions that the policy or its ancestors have seen are left out; 490" in said
    certified = load_policy(tmp_path / "certified")
    assert certified.config["calibration"]["left_out"] == 210
    with pytest.raises(UserError, match="has seen all 700 questions"):
        calibration_questions(certified, trained / "both")


def test_the_certificate_does_not_depend_on_how_the_traces_lie(
    trained: Path, tmp_path: Path
) -> None:
    save_policy(tmp_path / "policy", Registry(trained / "registry").policy(1))
    traces = traces_of(make_table(700, seed=5))
    order = np.random.default_rng(1).permutation(700)
    found = []
    for name, places, size in (("a", range(700), 256), ("b", order.tolist(), 37)):
        _store(tmp_path / name, [traces[k] for k in places], size)
        certified = calibrate(
            tmp_path / "policy", tmp_path / name, tmp_path / f"{name}-out", max_em_loss=0.3
        )
        found.append(certified.config["calibration"])
    assert found[0] == found[1]
