"""Multiple choice: which of the options an answer names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from rlbudget.tasks.expressions import read
from rlbudget.tasks.forms import Number, same_form
from rlbudget.tasks.notation import tidy
from rlbudget.tasks.text import normalise_text

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_WRAP = re.compile(r"^[\s$*_`\"'.:]+|[\s$*_`\"'.,:;!]+$")
_LABEL = re.compile(
    r"(?:(?:option|choice|answer|letter|alternative|statement)\s+)?"
    r"[(\[]?\s*(?P<label>[A-Za-z]|[0-9]{1,2})\s*(?P<close>[)\].:,-]|\s-)?(?P<rest>\s.*|$)",
    re.DOTALL | re.IGNORECASE,
)
_IN_PROSE = re.compile(
    r"[(\[]\s*(?P<bracketed>[A-Z])\s*[)\]]"
    r"|\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer|[Ll]etter)\s*:?\s*\**[(\[]?(?P<named>[A-Z])\b"
    r"|\b(?:is|be|are|choose|pick|select)\s*:?\s*\**(?P<said>[B-HJ-Z]|A(?=\s*[.,:;!*]|\s*$)|I(?=\s*[.,:;!*]|\s*$))\b"
    r"|(?:^|\s)\**(?P<alone>[A-Z])\**\s*(?:[.):]|$)"
)
_LISTING = re.compile(r"\b([A-Z])\b[)\]]?\s*(?:,|/|&|and|or|,\s*and|,\s*or)\s*[(\[]?([A-Z])\b")
_DENIED = re.compile(r"\b(?:not|n't|never|neither|nor|wrong|incorrect|except)\b", re.IGNORECASE)
_LISTED = re.compile(r"(?m)^\s*[(\[]?(?P<label>[A-Z])[)\].:]\s*(?P<text>\S[^\n]*)$")


@lru_cache(maxsize=4096)
def option_texts(question: str) -> dict[str, str]:
    """Label -> text of the options that a question lists, a line each: ``B. Paris``."""
    found = {m["label"]: m["text"].strip() for m in _LISTED.finditer(question[-8000:])}
    return found if list(found) == list(LETTERS[: len(found)]) else {}


def labels_of(options: Sequence[str]) -> tuple[str, ...]:
    """How options are called: by themselves where they are letters or numbers of one sign, else
    A, B, C in their order."""  # fmt: skip
    bare = tuple(option.strip().strip("()[].:").strip() for option in options)
    if bare and all(len(one) == 1 and one.isalnum() for one in bare):
        return tuple(one.upper() for one in bare)
    return tuple(LETTERS[: len(options)])


def chosen(answer: str, options: Sequence[str], texts: Sequence[str] = ()) -> str | None:
    """The label of the one option that an answer names, None for none or several.

    ``texts`` are those of the options where they are not the options themselves. Without options
    any single letter is taken as one.
    """
    labels = labels_of(options) if options else tuple(LETTERS)
    spelled = tuple(texts) or (tuple(options) if options and labels != _upper(options) else ())
    bare = _bare(answer)
    if not bare:
        return None
    if spelled:
        equal = [label for label, text in zip(labels, spelled, strict=False) if _same(bare, text)]
        if len(equal) == 1:
            return equal[0]
    match = _LABEL.fullmatch(bare)
    if match and (label := match["label"].upper()) in labels:
        rest = _bare(match["rest"])
        told = [other for other, text in zip(labels, spelled, strict=False) if _same(rest, text)]
        if told:
            return label if label in told else None  # "B. Paris", but not "B. Rome"
        if _follows(match, labels):
            return label
    return _named_in_prose(bare, labels)


def _upper(options: Sequence[str]) -> tuple[str, ...]:
    return tuple(option.strip().strip("()[].:").strip().upper() for option in options)


def _bare(answer: str) -> str:
    text = tidy(answer[:2000])
    for _ in range(4):
        before = text
        text = _WRAP.sub("", text)
        for left, right in ((r"\(", r"\)"), (r"\[", r"\]")):
            if text.startswith(left) and text.endswith(right):
                text = text[2:-2]
        if text == before:
            break
    return text


def _same(answer: str, text: str) -> bool:
    if normalise_text(answer, articles=False) == normalise_text(tidy(text), articles=False):
        return bool(answer.strip())
    one, other = read(answer), read(text)
    return isinstance(one, Number) and same_form(one, other, lambda *_: False)


def _follows(match: re.Match[str], labels: Sequence[str]) -> bool:
    """Whether what comes after a label is nothing, or an explanation that names no other."""
    rest = match["rest"].strip()
    if not rest:
        return True
    if match["close"] in (None, ",", "-") and not re.match(
        r"(?:because|since|as|is (?:correct|right|the)|\(|-)", rest
    ):
        return False
    others = [m for m in _labels_in(rest) if m in labels and m != match["label"].upper()]
    return match["label"].isupper() and not others and not re.match(r"(?:and|or|,|&)\b", rest)


def _labels_in(text: str) -> list[str]:
    found = []
    for match in _IN_PROSE.finditer(text):
        found.append(next(group for group in match.groups() if group))
    return found


def _named_in_prose(text: str, labels: Sequence[str]) -> str | None:
    """The one label that a sentence names, if it denies nothing."""
    if _DENIED.search(text) or any(set(m.groups()) <= set(labels) for m in _LISTING.finditer(text)):
        return None
    named = {label for label in _labels_in(text) if label in labels}
    return named.pop() if len(named) == 1 else None
