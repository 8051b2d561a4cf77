"""An arithmetic re-check of an exit: does what was written come out? It costs no token.

Each check is 1 for *comes out*, -1 for *does not*, 0 for *cannot tell*:

==================  ==========================================================================
thinking_check      the equations that the model wrote are true (``3+4=7``, ``3+4+5=7+5=12``;
                    one that begins with a sign may continue the result before it)
last_check          those of the last sentence that holds one are
answer_said         the answer is the last number thought of; -1 where it never occurred
==================  ==========================================================================

They know nothing of the question: what is checked is the model's own arithmetic.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate

from rlbudget.tasks.numbers import plain_number
from rlbudget.tasks.remembered import remembered

THINKING_CHECKS = ("thinking_check", "last_check", "answer_said")
LONGEST = 400
"""characters; of a longer text nothing is worked out"""
_DEEPEST = 50
"""parentheses in each other"""

_SPELLED = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/"})
_TOKEN = re.compile(r"\s*(?:((?!0\d)\d{1,30}(?:\.\d{1,30})?)(?![\d.]*\d)|([-+*/()]))")
_SIGNS: Mapping[type[ast.AST], Callable[..., Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.UAdd: operator.pos, ast.USub: operator.neg,
}  # fmt: skip
_WRITTEN = re.compile(r"[-+*/().\d \t=]+")
_SENTENCE_END = re.compile(r"\.\s|\n")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def thinking_checks(thinking: str, answer: str) -> dict[str, float]:
    """``THINKING_CHECKS`` of an answer after the thinking written so far."""
    text = thinking.translate(_SPELLED)
    sentences = [part for part in _SENTENCE_END.split(text) if "=" in part]
    values = (_equations(text), _equations(sentences[-1]) if sentences else 0, _said(text, answer))
    return dict(zip(THINKING_CHECKS, map(float, values), strict=True))


@remembered(4096)  # every checkpoint reads the thinking from its start
def value_of(text: str) -> Fraction | None:
    """What an expression of numbers, ``+ - * /`` and parentheses comes to, exactly.

    None for any other text, a number that begins with a zero (as in dates) and a division by 0.
    Nothing is evaluated but this arithmetic.
    """
    text = text.translate(_SPELLED).strip()
    tokens: list[str] = []
    numbers: list[Fraction] = []
    place = 0
    while place < len(text) <= LONGEST:
        match = _TOKEN.match(text, place)
        if match is None:
            return None
        tokens.append(match[2] or str(len(numbers)))
        numbers += [Fraction(match[1])] if match[1] else []
        place = match.end()
    depths = accumulate((token == "(") - (token == ")") for token in tokens)
    if max(depths, default=_DEEPEST + 1) > _DEEPEST:
        return None  # too deep, or empty
    try:
        return _worked_out(ast.parse(" ".join(tokens), mode="eval").body, numbers)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _worked_out(node: ast.expr, numbers: Sequence[Fraction]) -> Fraction:
    """The value of a tree whose constants are places in ``numbers``."""
    match node:
        case ast.Constant(value=int(place)):
            return numbers[place]
        case ast.UnaryOp():
            return _SIGNS[type(node.op)](_worked_out(node.operand, numbers))
        case ast.BinOp():
            sides = (_worked_out(side, numbers) for side in (node.left, node.right))
            return _SIGNS[type(node.op)](*sides)
    raise ValueError("no plain arithmetic")


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
        start, *results = (value_of(side.strip(" \t.")) for side in sides)
        if None in results:
            continue
        starts = {start}
        if before is not None and first[:1] in ("+", "-", "*", "/"):
            starts.add(value_of(f"({before}){first}"))
        if starts == {None}:
            continue
        if results[0] not in starts or len(set(results)) > 1:
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
