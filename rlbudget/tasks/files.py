"""Questions and answers from tables: GSM8K, MATH, SQuAD and your own, in any format of ``rows``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlbudget.errors import UserError
from rlbudget.tasks.lines import at_place
from rlbudget.tasks.options import Options, Same, TableRow, options_of, resolved, way_of
from rlbudget.tasks.rows import BadRowError, NumberText, Row, rows_of
from rlbudget.tasks.scorer import NOTHING
from rlbudget.tasks.scorers import find_scorer
from rlbudget.tasks.task import LONGEST_ID, LONGEST_QUESTION, Question, Task

OnBad = Callable[[str], None]

_SHOWN_NAMES = 10


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of a table's columns that override those of its layout.

    A name with dots reaches into objects: ``answers.text``. An empty ``options`` ignores the column
    that the table has.
    """

    question: str | None = None
    target: str | None = None
    options: str | None = None
    identity: str | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of a kind of table, and the scorer of its answers."""

    question: tuple[str, ...]
    """columns; the first one present is read"""
    target: tuple[str, ...]
    scorer: str
    """by its name"""
    context: str | None = None
    """a column put before the question where it is present"""
    marked: bool = False
    """the target follows the last ``####``"""
    several: bool = False
    """the target may be a list of texts, each right"""


LAYOUTS = {
    "gsm8k": Layout(("question",), ("answer",), "math", marked=True),
    "math": Layout(("problem", "question"), ("answer", "target"), "math"),
    "squad": Layout(("question",), ("target", "answers.text"), "text", "context", several=True),
}
"""The named kinds of tables, read by ``NAME:FILE``."""

OWN = Layout(("question",), ("target",), "auto")
"""A plain ``FILE`` with question, target and perhaps options and id."""


def load_file(
    path: Path,
    *,
    name: str,
    layout: Layout,
    n: int | None = None,
    seed: int = 0,
    columns: Columns | None = None,
    scorer: str | None = None,
    skip_bad: bool = False,
    on_bad: OnBad | None = None,
) -> Task:
    """``n`` questions of a table, or all, in an order that depends on ``seed`` and their ids only.

    A larger ``n`` contains the questions of a smaller one. A question that occurs twice with the
    same target counts once. The scorer is ``scorer``, else the one that the rows name, else the
    layout's. Raises ``UserError`` as ``FILE:LINE: what is wrong`` for a bad row, which with
    ``skip_bad`` is skipped and reported to ``on_bad``, and for a table without a good row or with
    fewer than ``n``.
    """
    bad = _Bad(skip_bad, on_bad)
    layout, columns = _with(layout, columns or Columns()), columns or Columns()
    asked, named = _read(path, bad, lambda place, row: _asked(place, row, layout, columns))
    scorer = scorer or named or layout.scorer
    questions = list(_questions(asked, name, _same_by(scorer), bad))
    if not questions:
        raise UserError(f"{path} holds no question" + (f"; {bad.first}" if bad.first else ""))
    if n is not None and n > len(questions):
        raise UserError(f"{path} holds {len(questions)} distinct questions, {n} were asked for")
    questions.sort(key=lambda q: hashlib.sha256(f"{seed}:{q.question_id}".encode()).digest())
    return task_of(name, questions[:n], scorer)


def task_of(name: str, questions: Sequence[Question], scorer: str) -> Task:
    """Questions with the scorer of a name. Raises ``UserError`` for a name that is none."""
    chosen = find_scorer(scorer)

    def score(question: Question, text: str) -> int:
        targets = map(str, question.meta.get("targets", [question.target]))
        return chosen.score(text, *targets, options=question.options, question=question.question)

    return Task(name=name, questions=tuple(questions), score=score, scorer=scorer)


def load_answers(
    path: Path, *, answer: str = "answer", columns: Columns | None = None, scorer: str | None = None
) -> tuple[list[TableRow], str]:
    """A table of answers and the name of its scorer; targets and options as ``load_file`` reads
    them. A target may be a list of texts, each right; an empty cell is an empty answer.

    Raises ``UserError`` as ``FILE:LINE: what is wrong`` for a bad row, and for a table without a
    row.
    """
    columns = columns or Columns()
    layout = _with(replace(OWN, several=True), columns)
    bad = _Bad()

    def written(place: str, row: Row) -> TableRow:
        empty = _value(row, answer, absent=NOTHING) is None
        text = "" if empty else _text(row, (answer,))
        _check_unicode(text)
        known = any(_value(row, name) is not None for name in layout.question)
        question = _text(row, layout.question) if known else ""
        return TableRow(place, None, question, *_answer_key(row, layout, columns), answer=text)

    rows, named = _read(path, bad, written)
    if not rows:
        raise UserError(f"{path} holds no answer")
    scorer = scorer or named or layout.scorer
    same = _same_by(scorer)
    way = way_of(rows, same)
    for place, row in enumerate(rows):
        with bad.told(row.place):
            rows[place] = resolved(row, way, same)
    return rows, scorer


@dataclass
class _Bad:
    """Handles bad rows: the first one raises, or each is reported and skipped."""

    skip: bool = False
    tell: OnBad | None = None
    first: str | None = None

    @contextmanager
    def told(self, place: str) -> Iterator[None]:
        """Wraps the work on one row."""
        try:
            yield
        except BadRowError as problem:
            message = at_place(place, problem)
            if not self.skip:
                raise UserError(message) from None
            self.first = self.first or message
            if self.tell is not None:
                self.tell(message)


def _read(
    path: Path, bad: _Bad, made: Callable[[str, Row], TableRow]
) -> tuple[list[TableRow], str | None]:
    """What ``made`` gives for the place and the row of each good row, and the scorer they name."""
    found: list[TableRow] = []
    named: str | None = None
    for place, row in rows_of(path):
        with bad.told(place):
            if isinstance(row, BadRowError):
                raise row
            one, named = made(place, row), _scorer(row, named)
            found.append(one)
    return found, named


def _with(layout: Layout, columns: Columns) -> Layout:
    if columns.question is not None:
        layout = replace(layout, question=(columns.question,))
    return layout if columns.target is None else replace(layout, target=(columns.target,))


def _same_by(scorer: str) -> Same:
    """How options are compared: as formulas where the answers are, else as words."""
    compared = find_scorer("math" if scorer in ("math", "number") else "text")
    return lambda one, other: compared.same(one, other)


def _questions(asked: Sequence[TableRow], name: str, same: Same, bad: _Bad) -> Iterator[Question]:
    known: dict[str, TableRow] = {}
    place_of_id: dict[str, str] = {}
    way = way_of(asked, same)
    for given in asked:
        with bad.told(given.place):
            _check_length("question", given.question)
            for target in given.targets:
                _check_length("target", target)
            row = resolved(given, way, same)
            if row.question in known:
                _check_repeated(row, known[row.question])
                continue
            identity = row.identity or f"{name}-{short_hash(row.question)}"
            if identity in place_of_id:
                raise BadRowError(f"id {identity!r} is also on line {place_of_id[identity]}")
            known[row.question] = row
            place_of_id[identity] = _line(row)
            targets = list(row.targets)
            meta = {"targets": targets} if len(targets) > 1 else {}
            yield Question(identity, row.question, targets[0], meta, row.options.texts)


def _check_length(name: str, text: str) -> None:
    if len(text) > LONGEST_QUESTION:
        raise BadRowError(
            f"the {name} is {len(text):,} characters long; {LONGEST_QUESTION:,} are the most"
        )


def _check_repeated(row: TableRow, earlier: TableRow) -> None:
    if row.targets != earlier.targets:
        raise BadRowError(f"the question of line {_line(earlier)} with another target")
    if row.options != earlier.options:
        raise BadRowError(f"the question of line {_line(earlier)} with other options")


def _line(row: TableRow) -> str:
    return row.place.rpartition(":")[2]


def short_hash(question: str) -> str:
    """The part of an id that tells a question from others: 16 hex digits."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def _asked(place: str, row: Row, layout: Layout, columns: Columns) -> TableRow:
    """A row as it is read, its target not yet matched with its options."""
    question = _text(row, layout.question)
    if layout.context is not None and row.get(layout.context) not in (None, ""):
        question = f"{_text(row, (layout.context,))}\n\n{question}"
    if not question.strip():
        raise BadRowError("the question is empty")
    targets, options = _answer_key(row, layout, columns)
    _check_unicode(question)
    return TableRow(place, _identity(row, columns.identity), question, targets, options)


def _answer_key(row: Row, layout: Layout, columns: Columns) -> tuple[tuple[str, ...], Options]:
    targets = _targets(row, layout)
    if not targets or not all(target.strip() for target in targets):
        raise BadRowError("the target is empty")
    options = _options(row, columns.options)
    _check_unicode(*targets, *options.texts)
    return targets, options


def _options(row: Row, column: str | None) -> Options:
    if column == "":
        return Options()
    given = _value(row, column or "options")
    if given is None and column is not None:
        raise BadRowError(_missing(row, (column,)))
    return Options() if given is None else options_of(given)


def _targets(row: Row, layout: Layout) -> tuple[str, ...]:
    if layout.marked:
        _, mark, target = _text(row, layout.target).rpartition("####")
        if not mark:
            raise BadRowError(f"field {layout.target[0]} has no #### before the target")
        return (target.strip().replace(",", ""),)
    if layout.several:
        found = next((v for name in layout.target if (v := _value(row, name)) is not None), None)
        if isinstance(found, list):
            if not all(isinstance(target, str) for target in found):
                raise BadRowError(f"field {layout.target[0]} must be text or a list of texts")
            return tuple(dict.fromkeys(map(str, found)))
    return (_text(row, layout.target).strip(),)


def _value(row: Row, name: str, absent: Any = None) -> Any:
    """A column's value, None for an empty cell, ``absent`` where there is no such column; dots
    reach into objects."""  # fmt: skip
    if name in row or "." not in name:
        return row.get(name, absent)
    outer, _, inner = name.partition(".")
    below = row.get(outer)
    return _value(below, inner, absent) if isinstance(below, dict) else absent


def _text(row: Row, names: Sequence[str]) -> str:
    """The text of the first column that has one; a number is the text it was written as."""
    values = [_value(row, name) for name in names]
    for value in values:
        if isinstance(value, str):
            return str(value)
    if any(value is not None for value in values):
        raise BadRowError(f"field {' or '.join(names)} must be text")
    raise BadRowError(_missing(row, names))


def _missing(row: Row, names: Sequence[str]) -> str:
    named = [str(name) for name, value in row.items() if value is not None]
    there = ", ".join(named[:_SHOWN_NAMES]) or "nothing"
    return f"missing field {' or '.join(names)} (there is: {there})"


def _scorer(row: Row, named: str | None) -> str | None:
    """The scorer that a row names, which must be the one that others named."""
    given = row.get("scorer")
    if given in (None, ""):
        return named
    if not isinstance(given, str) or isinstance(given, NumberText):
        raise BadRowError("field scorer must be text")
    if named not in (None, given):
        raise BadRowError(f"field scorer is {given!r}, and {named!r} on an earlier line")
    if given.startswith("python:"):
        raise BadRowError(
            f"field scorer {given!r} would run code that a data file names: if you trust it, name"
            " it by --scorer"
        )
    try:
        return find_scorer(given).name
    except UserError as error:
        raise BadRowError(f"field scorer: {error}") from None


def _check_unicode(*texts: str) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise BadRowError("not valid Unicode (it holds half of a surrogate pair)") from None


def _identity(row: Row, column: str | None) -> str | None:
    given = _value(row, column or "id")
    if given is None or given == "":
        if column is not None:
            raise BadRowError(_missing(row, (column,)))
        return None
    if not isinstance(given, str):
        raise BadRowError(f"field {column or 'id'} must be text or a number")
    identity = str(given)
    _check_unicode(identity)
    if len(identity) > LONGEST_ID:
        long = f"{len(identity):,} characters long; {LONGEST_ID} are the most"
        raise BadRowError(f"field {column or 'id'} is {long}")
    if "\0" in identity or not identity.strip():
        raise BadRowError(f"field {column or 'id'} must not be blank or hold a NUL character")
    return identity
