"""Exact match of an answer and a target: as text, and as mathematics.

Both take any text and never raise. Two plain numbers are compared as numbers in either, so
that ``18.0`` is ``18`` and ``1.5`` is not ``15``.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from rlbudget.tasks.mathematics import same_mathematics

_NUMBER = re.compile(r"([+-]?)([0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)?(\.[0-9]+)?")
_MINUS = str.maketrans({"\u2212": "-", "\u2013": "-", "\ufe63": "-", "\uff0d": "-"})
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_LONGEST_NUMBER = 100
_MATHEMATICS_TAIL = 300


def exact_match_text(answer: str, target: str) -> int:
    """1 if both texts are equal once case, punctuation, articles and spacing are set aside.

    Signs and decimal points of numbers count. Where nothing would be left of the target (it
    is ``A``, or ``<``), less is set aside, so that a choice ``A`` is still told from ``the``.
    """
    left, right = plain_number(answer), plain_number(target)
    if left is not None and right is not None:
        return int(left == right)
    for normalise in (_without_articles, _without_punctuation, _folded):
        if wanted := normalise(target):
            return int(normalise(answer) == wanted)
    return 0


def exact_match_math(answer: str, target: str) -> int:
    """1 if answer and target are the same mathematics, else 0.

    Plain numbers and equal texts are decided at once; the rest goes to ``math-verify``, which
    reads the last expression of the answer. Of a long answer only the end is read. An
    expression whose value could take for ever to work out (towers of powers, factorials,
    sums) counts as wrong unless its text is the target's.
    """
    left, right = plain_number(answer), plain_number(target)
    if left is not None and right is not None:
        return int(left == right)
    if not answer.strip() or not target.strip():
        return 0
    if answer.split() == target.split():
        return 1
    wanted = target if right is None else str(right)
    return int(same_mathematics(_end_of(answer), wanted))


def plain_number(text: str) -> Fraction | None:
    """The value of a text that is one number: ``-1,234.50``, ``$18``, ``18.``; else None."""
    if len(text) > _LONGEST_NUMBER:
        return None
    bare = text.translate(_MINUS).strip()
    bare = bare.removesuffix(".").replace("\\$", "$").replace("\\!", "").strip()
    if len(bare) > 1 and bare[0] == bare[-1] == "$":
        bare = bare[1:-1].strip()
    sign = "-" if bare.startswith("-") else ""
    bare = sign + bare.removeprefix(sign).lstrip().removeprefix("$").lstrip()
    match = _NUMBER.fullmatch(bare)
    if match is None or not (match[2] or match[3]):
        return None
    return Fraction(bare.replace(",", ""))


def _end_of(text: str) -> str:
    if len(text) <= _MATHEMATICS_TAIL:
        return text
    words = text[-_MATHEMATICS_TAIL:].split(None, 1)
    return words[1] if len(words) == 2 else words[0]


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text.translate(_MINUS)).casefold()
    return " ".join(folded.split())


def _without_punctuation(text: str) -> str:
    folded = _folded(text)
    kept = [c for i, c in enumerate(folded) if not _set_aside(folded, i)]
    return " ".join("".join(kept).split())


def _without_articles(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", _without_punctuation(text)).split())


def _set_aside(text: str, place: int) -> bool:
    """Whether the character is punctuation that is no part of a number."""
    character = text[place]
    if not (unicodedata.category(character)[0] == "P" or character in "$+<=>^`|~"):
        return False
    digit_after = text[place + 1 : place + 2].isdigit()
    before = text[place - 1] if place else " "
    if character == ".":
        return not (digit_after and (before.isdigit() or before in " -$+"))
    if character == "-":
        return not (digit_after and not before.isalpha())
    return True
