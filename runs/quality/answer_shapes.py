r"""What kind of thing a reference answer is: a number, a point, an interval, a word, …

Read by a few rules of its own, not by the scorers that are measured with it. Written for the
targets of MATH and GSM8K; what no rule knows is an ``expression``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

_THOUSANDS = re.compile(r"-?[0-9]{1,3}(?:(?:,|\{,\}|,\\!\s*)[0-9]{3})+(?:\.[0-9]+)?")
_DECIMAL = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)")
_FRACTION = re.compile(r"(-?)\\frac\{(-?[0-9]+)\}\{([0-9]+)\}")
_MIXED = re.compile(r"(-?)([0-9]+)\s*\\frac\{([0-9]+)\}\{([0-9]+)\}")
_BASE = re.compile(r"([0-9]+)_\{?([0-9]+)\}?")
_UNIT = re.compile(r"\s*(?:\^\{?\\circ\}?|\\(?:text|mbox|mathrm)\{([^{}]*)\}(\^\{?[0-9]\}?)?)$")
_SHORT_FRACTION = re.compile(r"\\[dt]?frac\s*(\{[^{}]*\}|[0-9])\s*(\{[^{}]*\}|[0-9])")
_CUT = re.compile(r"\\left(?!a)|\\right(?!a)|\\[,!;: ]|\s")


@dataclass(frozen=True, slots=True)
class Shape:
    """A reference answer, and what was found out about it."""

    text: str
    """as it stands in the data"""
    kind: str
    """number, fraction, mixed, base, word, interval, union, membership, point, set, list, matrix,
    equation, plus-minus, sum, term"""
    bare: str
    r"""the text without unit, currency and thousands separators; ``\frac12`` as ``\frac{1}{2}``"""
    unit: str = ""
    """degrees, dollars, or the words of the target; empty where there is none"""
    value: Fraction | None = None
    """of a number, fraction or mixed number"""
    parts: tuple[str, ...] = ()
    """members of a list, set, point, interval; signed terms of a sum; digits and base"""

    @property
    def integer(self) -> int | None:
        """The value, if it is one."""
        whole = self.value is not None and self.value.denominator == 1 and self.kind == "number"
        return int(self.value) if whole and self.value is not None else None


@cache
def shape_of(target: str) -> Shape:
    """What a reference answer is."""
    bare, unit = _without_unit(with_braces(target.strip()))
    kind, parts = _kind_and_parts(bare)
    return Shape(target, kind, bare, unit, value_of(bare), parts)


def value_of(bare: str) -> Fraction | None:
    """The value of a decimal, a fraction or a mixed number without unit."""
    if _DECIMAL.fullmatch(bare):
        return Fraction(bare)
    if found := _FRACTION.fullmatch(bare):
        return int(found[1] + "1") * Fraction(int(found[2]), int(found[3]))
    if found := _MIXED.fullmatch(bare):
        return int(found[1] + "1") * (int(found[2]) + Fraction(int(found[3]), int(found[4])))
    return None


def same_answer(left: str, right: str) -> bool:
    """Whether two targets may be one answer: equal values, or texts equal but for spacing.

    Units, brackets of words, a left side and ``\\left`` count for nothing, so that no pair is
    called wrong that somebody would call right.
    """
    one, other = shape_of(left), shape_of(right)
    value, other_value = (_value_behind(s.bare) for s in (one, other))
    if value is not None and other_value is not None:
        return value == other_value
    return _plainly(one.bare) == _plainly(other.bare)


def with_braces(text: str) -> str:
    r"""``\frac12``, ``\dfrac 1{2}`` as ``\frac{1}{2}``, and ``\sqrt2`` as ``\sqrt{2}``."""
    text = re.sub(r"\\sqrt\s*([0-9])", r"\\sqrt{\1}", text)
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return _SHORT_FRACTION.sub(
        lambda m: f"\\frac{{{m[1].strip('{}')}}}{{{m[2].strip('{}')}}}", text
    )


def split_at(text: str, marks: str) -> list[str]:
    """The parts of a text between marks outside all brackets; a mark ``+`` or ``-`` is kept."""
    parts, depth = [""], 0
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth or character not in marks:
            parts[-1] += character
        elif character in "+-":
            if text[:place].strip():
                parts.append(character)
            else:
                parts[-1] += character
        else:
            parts.append("")
    return [part.strip() for part in parts]


def _kind_and_parts(bare: str) -> tuple[str, tuple[str, ...]]:
    if found := re.fullmatch(r"\\text\{(.*)\}", bare):
        return "word", (found[1].strip("()"),)
    for kind, form in (("number", _DECIMAL), ("fraction", _FRACTION), ("mixed", _MIXED)):
        if form.fullmatch(bare):
            return kind, ()
    if found := _BASE.fullmatch(bare):
        return "base", (found[1], found[2])
    for mark, kind in (("\\begin{", "matrix"), ("\\cup", "union"), ("\\in ", "membership")):
        if mark in bare:
            return kind, ()
    if "=" in bare:
        return "equation", tuple(side.strip() for side in bare.split("="))
    if bracketed := _bracketed(bare):
        return bracketed
    for marks, kind in ((",", "list"), ("+-", "sum")):
        if "\\pm" not in bare and len(parts := split_at(bare, marks)) > 1:
            return kind, tuple(parts)
    return ("plus-minus" if "\\pm" in bare else "term"), ()


def _bracketed(bare: str) -> tuple[str, tuple[str, ...]] | None:
    cut = bare.replace("\\left", "").replace("\\right", "").strip()
    if cut.startswith("\\{") and cut.endswith("\\}"):
        return "set", tuple(split_at(cut[2:-2], ","))
    if cut[:1] not in ("(", "[") or cut[-1:] not in (")", "]"):
        return None
    parts = tuple(split_at(cut[1:-1], ","))
    if len(parts) < 2:
        return None
    plain = cut[0] == "(" and cut[-1] == ")" and "\\infty" not in cut
    return ("point" if plain else "interval"), parts


def _without_unit(text: str) -> tuple[str, str]:
    unit = ""
    if text.startswith("\\$"):
        text, unit = text[2:].strip(), "dollars"
    elif (found := _UNIT.search(text)) and found.start():
        text, unit = text[: found.start()], (found[1] or "degrees").strip() + (found[2] or "")
    if _THOUSANDS.fullmatch(text):
        text = re.sub(r"[,{}\\! ]", "", text)
    return text, unit


def _value_behind(bare: str) -> Fraction | None:
    return value_of(re.sub(r"^[a-z]\s*=\s*", "", bare))


def _plainly(bare: str) -> str:
    return _CUT.sub("", re.sub(r"\\text\{\(?|\)?\}$", "", bare)).casefold()
