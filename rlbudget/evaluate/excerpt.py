"""Texts cut for people: never within a word, and at the end of a sentence where one is near."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

MOST = 160
"""characters of a question that are shown"""
SAME = 40
"""characters that questions begin with alike, from which on they are passed over"""
NEAR = 0.6
"""of the room, from which on the end of a sentence or clause is better than more words"""
LONGEST_WORD = 60
"""characters; what has no gap in so many (Chinese, a number of many digits) is cut anyway"""
_SENTENCE = re.compile(r"[.!?](?:[\"')\]])?(?=\s)|[。！？]")
_CLAUSE = re.compile(r"[,;:](?=\s)|[，；：、]")
_WORD = re.compile(r"\S+")


def beginning(text: str, most: int = MOST, *, sentences: bool = True) -> str:
    """At most ``most`` characters of the beginning, and an ellipsis where more follows.

    It ends with a sentence or else a part of one where one ends late enough, else with a word.
    """
    text = text.rstrip()
    if len(text) <= most:
        return text
    kept = text[:most]
    whole = text[most].isspace() or kept[-1].isspace()
    space = max(kept.rfind(gap) for gap in " \n\t")
    if not whole and space >= most - LONGEST_WORD:
        kept = kept[:space]
    for mark in (_SENTENCE, _CLAUSE) if sentences else ():
        ends = [found.end() for found in mark.finditer(text[: most + 1])]
        if ends and NEAR * most <= ends[-1] <= most:
            kept = kept[: ends[-1]]
            break
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

    A long beginning that several of them share, such as an instruction, is passed over.
    """
    lines = [" ".join(_WORD.findall(question)) for question in questions]
    of_line = {line: _beginnings(line) for line in lines}
    shared = Counter(line[:end] for line, ends in of_line.items() for end in ends)
    shown = []
    for line in lines:
        start = max((end for end in of_line[line] if shared[line[:end]] > 1), default=0)
        shown.append(("… " if start else "") + beginning(line[start:].lstrip(), most))
    return shown


def _beginnings(line: str) -> list[int]:
    """Where a beginning could end: behind a sentence or a colon, with more to follow."""
    ends = [found.end() for mark in (_SENTENCE, _CLAUSE) for found in mark.finditer(line)]
    return [end for end in ends if SAME <= end < len(line) and line[end - 1] not in ",;，；、"]
