"""Multiple choice: which of the options an answer names, by letter or by text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from rlbudget.tasks.expressions import read
from rlbudget.tasks.forms import Expression, Number, same_form
from rlbudget.tasks.mathematics import same_mathematics
from rlbudget.tasks.notation import tidy
from rlbudget.tasks.text import normalise_text

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_WRAP = re.compile(r"^[\s$*_`\"'.:{]+|[\s$*_`\"'.,:;!}]+$")
_LABEL = re.compile(
    r"(?:(?:option|choice|answer|letter|alternative|statement)\s+)?"
    r"[(\[{]?\s*(?P<label>[A-Za-z]|[0-9]{1,2})\s*(?P<close>[)\]}.:,]|\s?-(?=\s))?(?P<rest>\s.*|$)",
    re.DOTALL | re.IGNORECASE,
)
_STANDING = re.compile(
    r"[(\[]\s*(?P<bracketed>[A-Z])\s*[)\]]"
    r"|\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer|[Ll]etter)\s*:?\s*\**[(\[]?(?P<named>[A-Z])\b"
    r"|(?<![A-Za-z'])(?P<alone>[B-HJ-Z])(?![A-Za-z'])"
    r"|(?<![A-Za-z'])(?P<article>[AI])(?=\s*(?:[.,:;!*)]|$|is (?:correct|right|true|best)))"
)
_LISTING = re.compile(r"\b([A-Z])\b[)\]]?\s*(?:,|/|&|and|or|,\s*and|,\s*or)\s*[(\[]?([A-Z])\b")
_DENIED = re.compile(
    r"n't\b|\b(?:not|never|neither|nor|wrong|incorrect|except|excluding|everything but|all but"
    r"|better than|eliminate|rather than)\b",
    re.IGNORECASE,
)
_CONTRAST = re.compile(
    r",?\s+(?:not|rather than|instead of|because|since|as|while|whereas)\b.*"
    r"|,\s*so\b(?=.*\bnot\b).*",
    re.DOTALL | re.IGNORECASE,
)
_LEFT_OVER = re.compile(
    r"\b(?:leaving|leaves|so|thus|therefore|hence)\s+(?:only\s+)?\W*([A-Z])\W*$"
)
_LISTED = re.compile(r"(?m)^\s*[(\[]?(?P<label>[A-Z])[)\].:]\s*(?P<text>\S[^\n]*)$")
_INLINE = re.compile(r"(?:^|\s)[(\[]?([A-Z])[)\].:]\s+")


def option_texts(question: str) -> dict[str, str]:
    """Label -> text of the options that a question lists: a line each (``B. Paris``), or one
    after the other (``(A) 3 (B) 4``)."""  # fmt: skip
    return _listed(question[-8000:])


@lru_cache(maxsize=1024)
def _listed(tail: str) -> dict[str, str]:
    found = {m["label"]: m["text"].strip() for m in _LISTED.finditer(tail)}
    if len(found) > 1 and list(found) == list(LETTERS[: len(found)]):
        return found
    plain = re.sub(r"\s*\n\s*", " ", tidy(tail))
    wanted, places = 0, []
    for match in _INLINE.finditer(plain):
        if match[1] == LETTERS[wanted]:
            places.append((match.start(), match.end()))
            wanted += 1
        elif match[1] == "A":
            places, wanted = [(match.start(), match.end())], 1
    ends = [start for start, _ in places[1:]] + [len(plain)][: len(places)]
    texts = [plain[end:stop].strip() for (_, end), stop in zip(places, ends, strict=True)]
    return dict(zip(LETTERS, texts, strict=False)) if len(texts) > 1 and all(texts) else {}


def labels_of(options: Sequence[str]) -> tuple[str, ...]:
    """How options are called: by themselves where they are letters, else A, B, C in their order."""
    bare = _upper(options)
    if bare and all(len(one) == 1 and one.isalpha() for one in bare):
        return bare
    return tuple(LETTERS[: len(options)])


def _upper(options: Sequence[str]) -> tuple[str, ...]:
    return tuple(option.strip().strip("()[].:").strip().upper() for option in options)


def chosen(answer: str, options: Sequence[str], texts: Sequence[str] = ()) -> str | None:
    """The label of the one option that an answer names, None for none or several.

    ``texts`` are those of the options where they are not the options themselves. Without options
    any single letter is taken as one.
    """
    labels = labels_of(options) if options else tuple(LETTERS)
    spelled = tuple(texts)
    if not spelled and options and labels != _upper(options):
        spelled = tuple(options)
    bare = _bare(answer)
    if not bare:
        return None
    if not _BEGINS_WITH_LABEL.match(bare):
        equal = [label for label, text in zip(labels, spelled, strict=False) if _same(bare, text)]
        if len(equal) == 1:
            return equal[0]
    match = _LABEL.fullmatch(bare)
    if match and (label := match["label"].upper()) in labels:
        rest = _bare(match["rest"].strip(" -"))
        told = [other for other, text in zip(labels, spelled, strict=False) if _same(rest, text)]
        if told:
            return label if label in told else None  # "B. Paris", but not "B. Rome"
        if _follows(match, labels):
            return label
    first, _, others = answer.strip().partition("\n")
    if others.strip() and len(_bare(first)) == 1 and _bare(first).upper() in labels:
        return _bare(first).upper()
    return _named_by_letter(bare, labels) or _named_by_text(bare, labels, spelled)


_BEGINS_WITH_LABEL = re.compile(r"[(\[]?[A-Za-z][)\].:]\s")


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
    if not answer.strip():
        return False
    for articles in (True, False):
        wanted = normalise_text(tidy(text), articles=articles)
        if wanted and normalise_text(answer, articles=articles) == wanted:
            return True
    one, other = read(answer), read(text)
    if isinstance(one, Number) and isinstance(other, Number):
        return same_form(one, other, lambda *_: False)
    formulas = isinstance(one, Number | Expression) and isinstance(other, Number | Expression)
    return formulas and any(map(str.isdigit, text)) and same_form(one, other, same_mathematics)


def _follows(match: re.Match[str], labels: Sequence[str]) -> bool:
    """Whether what comes after a label is nothing, or an explanation that names no other."""
    rest = match["rest"].strip()
    if not rest:
        return True
    if match["close"] in (None, ",") and not re.match(
        r"(?:because|since|as|is (?:correct|right|the)|\(|-)", rest
    ):
        return False
    others = [m for m in _letters_in(rest) if m in labels and m != match["label"].upper()]
    return match["label"].isupper() and not others and not re.match(r"(?:and|or|,|&)\b", rest)


def _letters_in(text: str) -> list[str]:
    return [next(filter(None, match.groups())) for match in _STANDING.finditer(text)]


def _named_by_letter(text: str, labels: Sequence[str]) -> str | None:
    """The one label that a sentence names, if it denies nothing."""
    left_over = _LEFT_OVER.search(text)
    if left_over and left_over[1] in labels:
        return left_over[1]
    said = _CONTRAST.sub("", text)
    listed = any(set(match.groups()) <= set(labels) for match in _LISTING.finditer(said))
    if listed or _DENIED.search(said):
        return None
    named = {label for label in _letters_in(said) if label in labels}
    return named.pop() if len(named) == 1 else None


def _named_by_text(text: str, labels: Sequence[str], spelled: Sequence[str]) -> str | None:
    """The one option whose words stand in a sentence; of "carbon" and "carbon dioxide" the longer.

    A sentence that begins with an option and a comma ("No, it does not") says that one.
    """
    if not spelled or len(text) > 600:
        return None
    words = {label: f" {normalise_text(tidy(t), articles=False)} "
             for label, t in zip(labels, spelled, strict=False)}  # fmt: skip
    opening = f" {normalise_text(re.split('[,.;:]', text)[0], articles=False)} "
    begun = [label for label, option in words.items() if option == opening]
    if len(begun) == 1:
        return begun[0]
    said = _CONTRAST.sub("", text)
    if _DENIED.search(said):
        return None
    sentence = f" {normalise_text(said, articles=False)} "
    inside = {
        label: option for label, option in words.items() if option.strip() and option in sentence
    }
    longest = [
        label
        for label, option in inside.items()
        if not any(option in other and option != other for other in inside.values())
    ]
    return longest[0] if len(longest) == 1 else None
