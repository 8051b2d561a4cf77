"""Which questions somebody has seen, as short hashes that a policy folder keeps.

A *mark* is the first 48 bits of a sha256: of a question's id, and of its text where the traces
hold one (Unicode normalised, case and spacing aside), so that a question is known again in any
folder of traces and under another id. Two questions of a million share a mark by chance less than
once in 10^8 cases, and what that does is to leave a question out that could have been used.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import numpy.typing as npt

from rlbudget.arrays import Bools, Strs

Marks = npt.NDArray[np.uint64]
"""(n,) sorted, each once"""
Texts = Mapping[str, Collection[int]]
"""question id -> the marks of its texts"""

NONE: Marks = np.array([], dtype=np.uint64)
"""Of somebody who has seen nothing."""
BYTES = 6
MOST_IDS = 10
"""a text that more questions of a folder share tells them not apart, and is not marked"""


def _mark(kind: str, text: str) -> int:
    found = hashlib.sha256(f"{kind}:{text}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(found[:BYTES], "big")


def text_mark(question: str) -> int | None:
    """The mark of a question's text; None for an empty one."""
    text = " ".join(unicodedata.normalize("NFKC", question).casefold().split())
    return _mark("text", text) if text else None


def texts_of(questions: Iterable[tuple[str, str]]) -> Texts:
    """The marks of the texts of questions, (id, text) each (``traces.store.iter_questions``)."""
    ids: dict[int, set[str]] = defaultdict(set)
    texts: dict[str, set[int]] = defaultdict(set)
    for question_id, question in questions:
        mark = text_mark(question)
        if mark is not None:
            ids[mark].add(question_id)
            texts[question_id].add(mark)
    return {
        question_id: {mark for mark in marks if len(ids[mark]) <= MOST_IDS}
        for question_id, marks in texts.items()
    }


def marks_of(question_ids: Iterable[str] | Strs, texts: Texts | None = None) -> Marks:
    """The marks of questions: of their ids, and of their ``texts``."""
    known = texts or {}
    found: set[int] = set()
    for question_id in set(map(str, question_ids)):
        found.add(_mark("id", question_id))
        found.update(known.get(question_id, ()))
    return np.array(sorted(found), dtype=np.uint64)


def together(*several: Marks | None) -> Marks | None:
    """What all of them have seen; None where one of them does not say."""
    known = [marks for marks in several if marks is not None]
    if len(known) < len(several):
        return None
    marks: Marks = np.unique(np.concatenate([NONE, *known]))
    return marks


def seen_by(marks: Marks, question_ids: Strs, texts: Texts | None = None) -> Bools:
    """(n,) question ids -> whether each question was seen, (n,)."""
    known, all_marks = texts or {}, set(marks.tolist())
    ids, of_each = np.unique(question_ids, return_inverse=True)
    seen = [
        _mark("id", question_id) in all_marks
        or not all_marks.isdisjoint(known.get(question_id, ()))
        for question_id in ids.tolist()
    ]
    rows: Bools = np.array(seen, dtype=bool)[of_each]
    return rows


def one_id_each(question_ids: Strs, texts: Texts) -> Strs:
    """(n,) the same ids, of questions with the same text the first in alphabetical order."""
    first: dict[int, str] = {}
    ids, of_each = np.unique(question_ids, return_inverse=True)
    own = [first.setdefault(min(texts[i]), i) if texts.get(i) else i for i in ids.tolist()]
    return np.array(own, dtype=np.str_)[of_each]


def in_order(question_ids: Strs, texts: Texts) -> list[int]:
    """The places of distinct questions in an order by hash, of the text where there is one: the
    same for the same questions, however their traces lie."""  # fmt: skip
    return sorted(
        range(len(question_ids)),
        key=lambda place: _mark(
            "order",
            str(min(texts.get(str(question_ids[place]), ()), default=str(question_ids[place]))),
        ),
    )


def as_text(marks: Marks) -> str:
    """Marks as JSON files hold them: base64 of 6 bytes each, eight letters a mark."""
    raw = marks.astype(">u8").view(np.uint8).reshape(-1, 8)[:, -BYTES:]
    return base64.b64encode(raw.tobytes()).decode()


def from_text(text: object) -> Marks:
    """What ``as_text`` wrote; ``ValueError`` for anything else."""
    try:
        raw = base64.b64decode(text, validate=True) if isinstance(text, str) else b"?"
    except (binascii.Error, ValueError):
        raw = b"?"
    if len(raw) % BYTES:
        raise ValueError("the marks of the questions that it has seen are damaged")
    rows = np.frombuffer(raw, dtype=np.uint8).reshape(-1, BYTES)
    wide = np.zeros((len(rows), 8), dtype=np.uint8)
    wide[:, -BYTES:] = rows
    marks: Marks = np.unique(wide.reshape(-1).view(">u8").astype(np.uint64))
    return marks
