"""Questions and verifiers of reasoning-gym."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlbudget.errors import UserError
from rlbudget.tasks import load_task
from rlbudget.tasks.reasoning_gym import (
    ALLOWED,
    EMBEDDED_FAMILIES,
    OPTIONS,
    Item,
    draw,
    reserved,
    score,
)

pytest.importorskip("reasoning_gym")

EVALUATING = [
    "string_insertion",
    "spiral_matrix",
    "binary_matrix",
    "simple_integration",
    "intermediate_integration",
    "polynomial_multiplication",
    "n_queens",
    "puzzle24",
    "countdown",
    "number_sorting",
    "bitwise_arithmetic",
    "codeio",
]


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return draw(EMBEDDED_FAMILIES, 80, seed=3, reserved=True)


def test_same_seed_draws_the_same_questions_and_another_seed_others(items: list[Item]) -> None:
    assert draw(EMBEDDED_FAMILIES, 80, seed=3, reserved=True) == items
    assert draw(EMBEDDED_FAMILIES, 80, seed=4, reserved=True) != items


def test_questions_are_distinct_and_families_take_turns(items: list[Item]) -> None:
    assert len({item.question for item in items}) == len(items)
    assert [item.family for item in items[:8]] == [*EMBEDDED_FAMILIES, *EMBEDDED_FAMILIES]


def test_training_and_held_out_questions_never_meet(items: list[Item]) -> None:
    trained = draw(EMBEDDED_FAMILIES, 200, seed=3, reserved=False)
    assert all(reserved(item.question) for item in items)
    assert not any(reserved(item.question) for item in trained)


def test_one_question_in_eight_is_reserved() -> None:
    share = sum(reserved(f"question {i}") for i in range(8000)) / 8000
    assert 0.11 < share < 0.14


def test_the_target_scores_and_a_longer_number_does_not(items: list[Item]) -> None:
    for item in items:
        assert score(item.family, item.entry, item.target) == 1
        assert score(item.family, item.entry, item.target + "1") == 0


def test_partial_credit_is_not_an_exact_match(items: list[Item]) -> None:
    gcd = next(item for item in items if item.family == "gcd")
    assert score("gcd", gcd.entry, f"the answer is {gcd.target}") == 0


def test_an_entry_scores_the_same_after_json(items: list[Item]) -> None:
    for item in items:
        stored = json.loads(json.dumps(item.entry))
        assert stored == item.entry
        assert score(item.family, stored, item.target) == 1


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_scoring_never_raises_on_strange_text(answer: str) -> None:
    for item in draw(EMBEDDED_FAMILIES, 4, seed=1):
        assert score(item.family, item.entry, answer) in (0, 1)


@pytest.mark.parametrize("family", [*EVALUATING, "no_such_family"])
def test_verifiers_that_evaluate_text_are_refused(family: str) -> None:
    assert family not in ALLOWED
    with pytest.raises(UserError, match=family):
        score(family, {"answer": "1", "metadata": {}}, "1")
    with pytest.raises(UserError, match=family):
        draw({family: {}}, 1, seed=0, reserved=None)


def test_every_allowed_family_exists_in_the_package() -> None:
    from reasoning_gym.factory import DATASETS

    assert set(DATASETS) >= ALLOWED


def test_any_allowed_family_is_drawn() -> None:
    items = draw({"word_sequence_reversal": {}}, 5, seed=0, reserved=None)
    assert len({item.question for item in items}) == 5
    assert all(score(item.family, item.entry, item.target) for item in items)


@pytest.mark.parametrize("family", OPTIONS)
def test_the_options_of_a_family_hold_every_target_and_one_is_right(family: str) -> None:
    task = load_task(f"reasoning-gym:{family}", n=12)
    for question in task.questions:
        assert question.options == OPTIONS[family]
        right = [option for option in question.options if task.score(question, option)]
        assert right == [question.target]


def test_families_with_any_number_as_answer_have_no_options(items: list[Item]) -> None:
    assert not {item.family for item in items} & set(OPTIONS)
    assert not any(question.options for question in load_task("embedded", n=4).questions)


def test_wrong_numbers_of_questions_are_refused() -> None:
    with pytest.raises(UserError, match="at least 1"):
        draw(EMBEDDED_FAMILIES, 0)
    with pytest.raises(UserError, match="only"):
        draw({"gcd": {"min_value": 2, "max_value": 3}}, 50, seed=0, reserved=None)


def test_a_bad_configuration_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="configuration"):
        draw({"gcd": {"no_such_setting": 1}}, 1, seed=0, reserved=None)
