"""Questions from JSONL files: GSM8K, MATH, SQuAD, and your own."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlbudget.errors import UserError
from rlbudget.tasks.scorers import exact_match_math, exact_match_text
from rlbudget.tasks.task import Question, Task

Row = dict[str, Any]


class _BadRowError(Exception):
    """What is wrong with a line."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a kind of file is read and its answers scored."""

    read: Callable[[Row], tuple[str, list[str]]]
    """a line's question and its targets"""
    same: Callable[[str, str], int]
    """``same(answer, target)`` -> 0 or 1"""


def load_file(path: Path, *, name: str, layout: Layout, n: int, seed: int) -> Task:
    """``n`` questions of a file, in an order that depends on ``seed`` and their ids only.

    A line of any layout may have ``options``: at least two different answers, one of them right.
    A larger ``n`` adds questions and keeps those of a smaller one. A question that occurs
    twice with one target counts once. Raises ``UserError`` as ``FILE:LINE: what is wrong``.
    """
    questions = list(_questions(path, name, layout))
    if n > len(questions):
        raise UserError(f"{path} holds {len(questions)} distinct questions, {n} were asked for")
    questions.sort(key=lambda q: hashlib.sha256(f"{seed}:{q.question_id}".encode()).digest())

    def score(question: Question, answer: str) -> int:
        targets = question.meta.get("targets", [question.target])
        return int(any(layout.same(answer, target) for target in targets))

    return Task(name=name, questions=tuple(questions[:n]), score=score)


def _questions(path: Path, name: str, layout: Layout) -> Iterator[Question]:
    known: dict[str, tuple[list[str], tuple[str, ...], int]] = {}
    line_of_id: dict[str, int] = {}
    for number, row in _rows(path):
        try:
            question, targets = layout.read(row)
            if not question.strip():
                raise _BadRowError("the question is empty")
            if not targets or not all(target.strip() for target in targets):
                raise _BadRowError("the target is empty")
            options = _options(row)
            _check_unicode(question, *targets, *options)
            if question in known:
                *earlier, line = known[question]
                if earlier != [targets, options]:
                    what = "another target" if earlier[0] != targets else "other options"
                    raise _BadRowError(f"the question of line {line} with {what}")
                continue
            _check_options(options, targets, layout)
            identity = _identity(row, name, question)
            if identity in line_of_id:
                raise _BadRowError(f"id {identity!r} is also on line {line_of_id[identity]}")
        except _BadRowError as problem:
            raise UserError(f"{path}:{number}: {problem}") from None
        known[question] = (targets, options, number)
        line_of_id[identity] = number
        meta = {"targets": targets} if len(targets) > 1 else {}
        yield Question(identity, question, targets[0], meta, options)


def _options(row: Row) -> tuple[str, ...]:
    given = row.get("options")
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) < 2 or None in given:
        raise _BadRowError("field options must be a list of two texts or more")
    options = tuple(_text({"options": option}, "options").strip() for option in given)
    if not all(options):
        raise _BadRowError("field options holds an empty text")
    return options


def _check_options(options: Sequence[str], targets: Sequence[str], layout: Layout) -> None:
    for one, other in itertools.combinations(options, 2):
        if layout.same(one, other):
            raise _BadRowError(f"the options {one!r} and {other!r} are the same answer")
    if options and not any(layout.same(o, target) for o in options for target in targets):
        raise _BadRowError(f"the target {targets[0]!r} is none of the options")


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        source = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot read this file: {error.strerror}") from None
    with source:
        for number, line in enumerate(source, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                raise UserError(f"{path}:{number}: invalid UTF-8") from None
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number}: invalid JSON: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: a line must be an object")
            yield number, row


def _check_unicode(*texts: str) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise _BadRowError("not valid Unicode (it holds half of a surrogate pair)") from None


def _identity(row: Row, name: str, question: str) -> str:
    given = row.get("id")
    if given is None or given == "":
        return f"{name}-{hashlib.sha256(question.encode()).hexdigest()[:16]}"
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise _BadRowError("field id must be text or a whole number")
    identity = str(given)
    _check_unicode(identity)
    if "\0" in identity or not identity.strip():
        raise _BadRowError("field id must not be blank or hold a NUL character")
    return identity


def _text(row: Row, *names: str) -> str:
    for name in names:
        value = row.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
    if any(row.get(name) is not None for name in names):
        raise _BadRowError(f"field {' or '.join(names)} must be text")
    raise _BadRowError(f"missing field {' or '.join(names)}")


def _read_own(row: Row) -> tuple[str, list[str]]:
    return _text(row, "question"), [_text(row, "target")]


def _read_gsm8k(row: Row) -> tuple[str, list[str]]:
    _, mark, target = _text(row, "answer").rpartition("####")
    if not mark:
        raise _BadRowError("field answer has no #### before the target")
    return _text(row, "question"), [target.strip().replace(",", "")]


def _read_math(row: Row) -> tuple[str, list[str]]:
    return _text(row, "problem", "question"), [_text(row, "answer", "target").strip()]


def _read_squad(row: Row) -> tuple[str, list[str]]:
    question = _text(row, "question")
    if row.get("context") is not None:
        question = f"{_text(row, 'context')}\n\n{question}"
    targets = row.get("target")
    if targets is None and isinstance(row.get("answers"), dict):
        targets = row["answers"].get("text")
    if targets is None:
        raise _BadRowError("missing field target (or answers.text)")
    if not isinstance(targets, list):
        targets = [_text({"target": targets}, "target")]
    if not all(isinstance(target, str) for target in targets):
        raise _BadRowError("field target must be text or a list of texts")
    return question, list(dict.fromkeys(targets))


LAYOUTS = {
    "gsm8k": Layout(_read_gsm8k, exact_match_math),
    "math": Layout(_read_math, exact_match_math),
    "squad": Layout(_read_squad, exact_match_text),
}
"""The named kinds of files, read by ``NAME:PATH.jsonl``."""

OWN = Layout(_read_own, exact_match_text)
"""A plain ``PATH.jsonl`` with question, target and perhaps id."""
