"""An arithmetic re-check of an exit: does what was written come out? It costs no token.

Each check is 1 for *comes out*, -1 for *does not*, 0 for *cannot tell*:

==================  ==========================================================================
thinking_check      the equations that the model wrote are true (``3+4=7``, ``3+4+5=7+5=12``;
                    one that begins with a sign may go on from the result before it)
last_check          those of the last sentence that holds one are
answer_said         the answer is the last number thought of; -1 where it never occurred
==================  ==========================================================================

They know nothing of the question: what is checked is the model's own arithmetic.
"""

from __future__ import annotations

import re
from fractions import Fraction

from rlbudget.strategies.correction.arithmetic import SPELLED, value_of
from rlbudget.tasks.numbers import plain_number

THINKING_CHECKS = ("thinking_check", "last_check", "answer_said")

_WRITTEN = re.compile(r"[-+*/().\d \t=]+")
_SENTENCE_END = re.compile(r"\.\s|\n")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def thinking_checks(thinking: str, answer: str) -> dict[str, float]:
    """``THINKING_CHECKS`` of an answer after the thinking written so far."""
    text = thinking.translate(SPELLED)
    sentences = [part for part in _SENTENCE_END.split(text) if "=" in part]
    values = (_equations(text), _equations(sentences[-1]) if sentences else 0, _said(text, answer))
    return dict(zip(THINKING_CHECKS, map(float, values), strict=True))


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
