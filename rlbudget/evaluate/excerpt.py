"""Texts cut for people: never within a word, and at the end of a sentence where one is near."""

from __future__ import annotations

import re
from collections.abc import Sequence

MOST = 160
"""characters of a question that are shown"""
SAME = 40
"""characters that all questions begin with, from which on they are passed over"""
NEAR = 0.6
"""of the room, from which on the end of a sentence is a better end than more words"""
LONGEST_WORD = 60
"""characters; what has no gap in so many (Chinese, a number of many digits) is cut anyway"""
_SENTENCE = re.compile(r"[.!?。！？](?:[\"')\]]?)(?=\s)|[。！？]")
_WORD = re.compile(r"\S+")


def beginning(text: str, most: int = MOST, *, sentences: bool = True) -> str:
    """At most ``most`` characters of the beginning, and an ellipsis where more follows."""
    text = text.rstrip()
    if len(text) <= most:
        return text
    kept = text[:most]
    whole = text[most].isspace() or kept[-1].isspace()
    space = max(kept.rfind(gap) for gap in " \n\t")
    if not whole and space >= most - LONGEST_WORD:
        kept = kept[:space]
    if sentences:
        ends = [found.end() for found in _SENTENCE.finditer(text[: most + 1])]
        if ends and NEAR * most <= ends[-1] <= most:
            kept = kept[: ends[-1]]
    return kept.rstrip() + " …"


def ending(text: str, most: int) -> str:
    """At most ``most`` characters of the end, after an ellipsis where more came before."""
    if len(text) <= most:
        return text
    kept = text[-most:]
    if not text[-most - 1].isspace():
        space = re.search(r"\s", kept[:LONGEST_WORD])
        kept = kept[space.start() :] if space else kept
    return "… " + kept.lstrip()


def excerpts(questions: Sequence[str], most: int = MOST) -> list[str]:
    """Each question on one line of at most ``most`` characters and two ellipses.

    A long beginning that all of them share, such as an instruction, is passed over.
    """
    lines = [" ".join(_WORD.findall(question)) for question in questions]
    same = _shared(min(lines), max(lines)) if len(set(lines)) > 1 else ""
    start = 0
    if len(same) >= SAME:
        # Back to where a sentence or else a word begins.
        ends = [found.end() for found in _SENTENCE.finditer(same)]
        start = (ends[-1] if ends else same.rfind(" ")) + 1
    return [("… " if start else "") + beginning(line[start:].lstrip(), most) for line in lines]


def _shared(first: str, last: str) -> str:
    """What two texts begin with; of the first and the last of several in their order, all do."""
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:n]
