"""Sealed files: nothing altered is read, nothing odd gets through although its digest is right."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlbudget.errors import UserError
from rlbudget.policy.parsing import DEEPEST, check_values, parse
from rlbudget.policy.sealed import read_sealed, seal, seal_tensors, unseal, unseal_tensors

SAID = {"format": "test", "version": 1, "price": 0.1, "names": ["ä", "b"], "trained": {"n": None}}
NUMBERS = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(4, np.float32)}
PLAIN, WITH_NUMBERS = seal(SAID), seal_tensors(SAID, NUMBERS)


def opened(data: bytes) -> Any:
    return unseal(data, "test", 1, "it")


def opened_numbers(data: bytes) -> Any:
    content, tensors = unseal_tensors(data, "test", 1, "it")
    return content, {name: (str(t.dtype), t.tolist()) for name, t in tensors.items()}


def test_what_is_sealed_is_what_is_read() -> None:
    assert opened(PLAIN) == SAID
    content, tensors = opened_numbers(WITH_NUMBERS)
    assert content == SAID
    assert tensors == {n: (str(t.dtype), t.tolist()) for n, t in NUMBERS.items()}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_is_noticed_or_changes_nothing(data: st.DataObject) -> None:
    for whole, read in ((PLAIN, opened), (WITH_NUMBERS, opened_numbers)):
        changed = bytearray(whole)
        place = data.draw(st.integers(0, len(changed) - 1))
        end = place + data.draw(st.integers(0, 9))
        changed[place:end] = data.draw(st.binary(max_size=9))
        with contextlib.suppress(ValueError):
            assert read(bytes(changed)) == read(whole)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_neither_written_nor_read(value: float) -> None:
    with pytest.raises(ValueError):
        seal({**SAID, "price": value})
    with pytest.raises(ValueError, match="b holds a number that is not finite"):
        opened_numbers(seal_tensors(SAID, {**NUMBERS, "b": np.array([value])}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a":' * (DEEPEST + 1) + b"1" + b"}" * (DEEPEST + 1), "is nested too deeply"),
        (b'{"a": NaN}', "is not JSON"),
        (b'{"a": 1e999}', "is not JSON"),
        (b'{"a": %s}' % (b"9" * 400), "holds a whole number of more than 64 bits"),
        (b'{"a": %s}' % (b"9" * 5000), "is not JSON"),
        (b'{"a": "\\ud800"}', "is not JSON"),
        (b"[1]", "is not a JSON object"),
        (b"\xff\xfe", "is not JSON"),
        (b"", "is not JSON"),
    ],
)
def test_odd_json_is_one_clear_line(text: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=f"it {said}"):
        parse(text, "it")


@pytest.mark.parametrize("value", [math.inf, "\ud800", {"\ud800": 1}, 2**65])
def test_values_that_another_reader_let_through_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="it holds"):
        check_values({"a": [value]}, "it")


def test_another_kind_and_another_version_say_so() -> None:
    for data, read in ((PLAIN, unseal), (WITH_NUMBERS, unseal_tensors)):
        with pytest.raises(ValueError, match="another kind"):
            read(data, "else", 1, "it")
        with pytest.raises(ValueError, match="version 1, but this rlbudget reads 2"):
            read(data, "test", 2, "it")
    with pytest.raises(ValueError, match="altered"):
        opened(json.dumps(SAID).encode())


def test_a_file_that_cannot_be_read_is_one_line_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "blend.json"
    with pytest.raises(UserError, match="there is no blend"):
        read_sealed(file, "a blend", opened)
    file.mkdir()
    with pytest.raises(UserError, match=r"blend.json is not a blend: .*plain file|cannot read"):
        read_sealed(file, "a blend", opened)
