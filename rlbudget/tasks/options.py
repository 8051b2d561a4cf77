"""Multiple-choice options in a table, and which of them the target names.

A target names an option by its text, by its letter (A is the first) or label, or by its index
(0 is the first). All rows of a table are read in one of these ways: the one that fits most rows.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlbudget.tasks.choice import LETTERS
from rlbudget.tasks.rows import BadRowError, NumberText

Same = Callable[[str, str], bool]
"""whether two texts are one answer"""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a row."""

    texts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    """letters where the row has none of its own"""


def options_of(given: Any) -> Options:
    """Options from a list of texts, ``{"A": text, …}``, or ``{"text": [...], "label": [...]}``.

    A text that holds one of these as JSON is read as well, for CSV files.
    Raises ``BadRowError``.
    """
    if isinstance(given, str) and given.lstrip()[:1] in ("[", "{"):
        try:
            given = json.loads(given, parse_int=NumberText, parse_float=NumberText)
        except (ValueError, RecursionError):
            raise BadRowError("field options is a text that is no JSON list") from None
    labels: Any = None
    if isinstance(given, dict):
        if {"text", "label"} <= given.keys():
            given, labels = given["text"], given["label"]
        else:
            named = {name: text for name, text in given.items() if text is not None}
            given, labels = list(named.values()), list(named)
    if not isinstance(given, list) or len(given) < 2 or None in given:
        raise BadRowError("field options must be a list of two texts or more")
    if len(given) > len(LETTERS):
        raise BadRowError(f"field options holds {len(given)} texts; {len(LETTERS)} are the most")
    if not all(isinstance(one, str) for one in given):
        raise BadRowError("each of the options must be text")
    texts = tuple(str(one).strip() for one in given)
    if not all(texts):
        raise BadRowError("field options holds an empty text")
    if labels is None:
        return Options(texts, tuple(LETTERS[: len(texts)]))
    if not isinstance(labels, list) or len(labels) != len(texts):
        raise BadRowError("the labels of the options must be as many as their texts")
    return Options(texts, tuple(str(label).strip() for label in labels))


@dataclass(frozen=True, slots=True)
class TableRow:
    """What a row of a table asks, and in a table of answers what a model wrote."""

    place: str
    """``FILE:LINE``"""
    identity: str | None
    question: str
    """"" where a table of answers has none"""
    targets: tuple[str, ...]
    """each of them is right"""
    options: Options
    answer: str = ""


Way = Callable[[TableRow, Same], int | None]
"""The number of the option that a row's target names, None for none."""


def _by_text(row: TableRow, same: Same) -> int | None:
    exact = [i for i, option in enumerate(row.options.texts) if option in row.targets]
    found = exact or [
        i
        for i, option in enumerate(row.options.texts)
        if any(same(option, target) for target in row.targets)
    ]
    return found[0] if found else None


def _by_label(row: TableRow, same: Same) -> int | None:
    target = row.targets[0].strip().strip("().").upper()
    labels = [label.upper() for label in row.options.labels]
    return labels.index(target) if labels.count(target) == 1 else None


def _by_index(row: TableRow, same: Same) -> int | None:
    target = row.targets[0].strip()
    if not (target.isascii() and target.isdigit() and len(target) < 3):
        return None
    return int(target) if int(target) < len(row.options.texts) else None


_AS: dict[Way, str] = {
    _by_text: "the text",
    _by_label: "the letter",
    _by_index: "the index, from 0,",
}


def way_of(rows: Sequence[TableRow], same: Same) -> Way:
    """How most of the rows with options name theirs: by text, then label, then index."""
    chosen = [row for row in rows if row.options.texts]
    return max(_AS, key=lambda way: sum(way(row, same) is not None for row in chosen))


def resolved(row: TableRow, way: Way, same: Same) -> TableRow:
    """The row with the text of the option as its target.

    Where the target is a label or an index, the options are appended to the question, a letter
    each, unless it lists them already. Raises ``BadRowError``.
    """
    texts = row.options.texts
    if not texts:
        return row
    for one, other in itertools.combinations(texts, 2):
        if same(one, other):
            raise BadRowError(f"the options {one!r} and {other!r} are the same answer")
    place = way(row, same)
    if place is None:
        raise BadRowError(
            f"the target {row.targets[0]!r} is none of the options: it is read as {_AS[way]} of one"
            f" of {len(texts)}"
        )
    if way is _by_text:
        return row
    question = row.question
    if not all(text in question for text in texts):
        listed = (f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
        question = "\n".join([question, "", *listed])
    return replace(row, question=question, targets=(texts[place],))
