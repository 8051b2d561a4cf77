"""An arithmetic re-check of an exit: does what was written come out? It costs no token.

Each check is 1 for *comes out*, -1 for *does not*, 0 for *cannot tell*:

==================  ==========================================================================
thinking_check      the equations that the model wrote are true (``3+4=7``, ``3+4+5=7+5=12``;
                    one that begins with a sign may go on from the result before it)
last_check          those of the last sentence that holds one are
answer_said         the answer is the last number thought of; -1 where it never occurred
question_check      the answer fits the question's own sum, or its linear equation in one unknown
==================  ==========================================================================

The first three know nothing of the question. ``question_check`` is a calculator for the questions
that it covers, and nothing else is covered: no legs of animals, weekdays or divisors. ``proposed``
gives its result; with that the model is not needed, so what a correction owes to it is told apart
(docs/correction.md).
"""

from __future__ import annotations

import re
from fractions import Fraction

from rlbudget.strategies.arithmetic import SPELLED, Linear, linear, value_of
from rlbudget.tasks.scorers import plain_number

THINKING_CHECKS = ("thinking_check", "last_check", "answer_said")
QUESTION_CHECK = "question_check"

_CHARACTERS = "+-*/().0123456789 \t"
_WRITTEN = re.compile(r"[-+*/().\d \t=]+")
_EQUATION = re.compile(r"(?:[-+*/().\d \t=]|(?<![A-Za-z])[A-Za-z](?![A-Za-z]))+")
_SENTENCE_END = re.compile(r"\.\s|\n")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_LONGEST_QUESTION = 2000
"""characters of a question that are looked at, from its end"""


def thinking_checks(thinking: str, answer: str) -> dict[str, float]:
    """``THINKING_CHECKS`` of an answer after the thinking written so far."""
    text = thinking.translate(SPELLED)
    sentences = [part for part in _SENTENCE_END.split(text) if "=" in part]
    values = (_equations(text), _equations(sentences[-1]) if sentences else 0, _said(text, answer))
    return dict(zip(THINKING_CHECKS, map(float, values), strict=True))


def question_check(question: str, answer: str) -> float:
    """Whether the answer is that of the question's own sum or equation."""
    given, asked = plain_number(answer), _asked(question)
    if asked is None:
        return 0.0
    return 1.0 if given is not None and asked.at(given) == 0 else -1.0


def proposed(question: str) -> str | None:
    """The answer to a question that is a sum or a linear equation in one unknown, else None."""
    asked = _asked(question)
    return None if asked is None else str(-asked.constant / asked.slope)


def _equations(text: str) -> int:
    """Whether all equations are true: 1, -1, or 0 where none can be read."""
    found = 0
    before: Fraction | None = None
    for match in _WRITTEN.finditer(text):
        sides = match[0].split("=")
        if match.end() == len(text):
            sides.pop()  # it may not be finished
        if len(sides) < 2:
            continue
        first = sides[0].strip(" \t.")
        values = [value_of(side.strip(" \t.")) for side in sides]
        results = values[1:]
        if results[0] is None or None in results:
            continue
        starts = {values[0]}
        if before is not None and first[:1] in ("+", "-", "*", "/"):
            starts.add(value_of(f"({before}){first}"))
        if starts == {None}:
            continue
        if results[0] not in starts or any(value != results[0] for value in results):
            return -1
        found, before = 1, results[-1]
    return found


def _said(text: str, answer: str) -> int:
    value = plain_number(answer)
    if value is None:
        return 1 if answer.strip() and answer.strip().lower() in text.lower() else -1
    numbers = [plain_number(number) for number in _NUMBER.findall(text)]
    if value not in numbers:
        return -1
    return int(numbers[-1] == value)


def _asked(question: str) -> Linear | None:
    """What is 0 at the right answer, its slope never 0; None for any other question."""
    text = question[-_LONGEST_QUESTION:].translate(SPELLED)
    runs = [match[0] for match in _EQUATION.finditer(text) if match[0].count("=") == 1]
    equations = [found for run in runs if (found := _zero_at(*run.split("="))) is not None]
    if equations:
        return equations[0] if len(equations) == 1 else None
    bare = text.rstrip(" \t\n?.=")
    run = bare[len(bare.rstrip(_CHARACTERS)) :].strip(" \t.")
    value = value_of(run) if re.search(r"\d[ )]*[-+*/]", run) else None
    return None if value is None else Linear(value, Fraction(-1))


def _zero_at(left: str, right: str) -> Linear | None:
    unknowns = set(re.findall(r"[A-Za-z]", left + right))
    if len(unknowns) != 1:
        return None
    (unknown,) = unknowns
    sides = [linear(side.strip(" \t."), unknown) for side in (left, right)]
    if sides[0] is None or sides[1] is None or sides[0].slope == sides[1].slope:
        return None
    return Linear(sides[0].constant - sides[1].constant, sides[0].slope - sides[1].slope)
