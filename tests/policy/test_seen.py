"""Marks of questions: what they know again, and what they look like on the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from frozen_nets import random_policy
from hypothesis import given
from hypothesis import strategies as st
from trace_makers import make_trace

from rlbudget.errors import UserError
from rlbudget.policy import network
from rlbudget.policy.folder import load_policy, save_policy, seen_also
from rlbudget.policy.seen import (
    MOST_IDS,
    NONE,
    as_text,
    from_text,
    in_order,
    marks_of,
    one_id_each,
    seen_by,
    text_mark,
    texts_of,
    together,
)
from rlbudget.traces.store import TraceWriter, iter_questions

IDS = st.lists(st.text(min_size=1, max_size=5), max_size=20)


@given(IDS, IDS)
def test_marks_know_their_questions_and_no_others_and_survive_being_written(
    seen: list[str], others: list[str]
) -> None:
    marks = from_text(as_text(marks_of(seen)))
    np.testing.assert_array_equal(marks, marks_of(seen))
    asked = [*seen, *others]
    assert seen_by(marks, np.array(asked, dtype=object), {}).tolist() == [q in seen for q in asked]


@given(IDS, IDS)
def test_whoever_was_made_from_others_has_seen_what_they_have(a: list[str], b: list[str]) -> None:
    both = together(marks_of(a), marks_of(b))
    assert both is not None
    np.testing.assert_array_equal(both, marks_of([*a, *b]))
    assert together(marks_of(a), None) is None


def test_case_spacing_and_unicode_forms_do_not_make_another_question() -> None:
    assert text_mark("What is  2 + 3 ?\n") == text_mark("what is 2 + 3 ?")
    assert text_mark("caf\u00e9") == text_mark("cafe\u0301")
    assert text_mark("What is 2 + 4 ?") != text_mark("What is 2 + 3 ?")
    assert text_mark(" \n") is None


def test_a_placeholder_that_many_questions_share_says_nothing_about_them(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "few") as few, TraceWriter(tmp_path / "many") as many:
        for i in range(MOST_IDS + 1):
            trace = replace(make_trace(i), question_id=f"q{i}", question="n/a")
            many.add(trace)
            if i:
                few.add(trace)
    assert all(texts_of(iter_questions(tmp_path / "few")).values())
    assert not any(texts_of(iter_questions(tmp_path / "many")).values())


def test_questions_of_one_text_count_as_one_and_the_order_is_that_of_the_texts() -> None:
    texts = {"b": {7}, "c": {7}, "a": {9}, "d": ()}
    ids = np.array(["c", "b", "a", "d", "c"])
    assert one_id_each(ids, texts).tolist() == ["b", "b", "a", "d", "b"]
    renamed = {"x": {7}, "y": {9}, "d": ()}
    first = [["b", "a", "d"][k] for k in in_order(np.array(["b", "a", "d"]), texts)]
    again = [["d", "x", "y"][k] for k in in_order(np.array(["d", "x", "y"]), renamed)]
    assert [{"b": "x", "a": "y"}.get(i, i) for i in first] == again


def test_a_policy_folder_keeps_what_was_seen_under_its_digest(tmp_path: Path) -> None:
    policy = seen_also(random_policy(seen=marks_of(["a"])), marks_of(["b"]))
    save_policy(tmp_path / "policy", policy)
    loaded = load_policy(tmp_path / "policy")
    assert loaded.seen is not None
    np.testing.assert_array_equal(loaded.seen, marks_of(["a", "b"]))
    assert loaded.digest != random_policy(seen=NONE).digest
    config = tmp_path / "policy" / network.CONFIG
    config.write_text(config.read_text().replace(as_text(loaded.seen), ""))
    with pytest.raises(UserError, match="altered"):
        load_policy(tmp_path / "policy")


@pytest.mark.parametrize("damaged", ["AAA", "!!!!!!!!", "AAAA", 7, ["AAAAAAAA"]])
def test_damaged_marks_are_refused(damaged: object) -> None:
    with pytest.raises(ValueError, match="damaged"):
        from_text(damaged)


def test_an_ancestor_that_does_not_say_leaves_its_heirs_silent() -> None:
    silent = random_policy(seen=None)
    assert silent.seen is None
    assert seen_also(silent, marks_of(["a"])).seen is None
