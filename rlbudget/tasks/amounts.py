"""Amounts: a number with its unit and the words around it, a fraction, or an expression."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from rlbudget.tasks.forms import Expression, Form, Number, Words
from rlbudget.tasks.notation import compact
from rlbudget.tasks.numbers import CURRENCIES, SCALES, WORDS, plain_number
from rlbudget.tasks.units import is_unit_word, unit_of, unit_of_currency

_ABOUT = re.compile(
    r"^(?:about|approximately|approx\.?|roughly|around|exactly|only|just|simply"
    r"|a total of|precisely|equal to|equals?|is|are|was|be|the|a|an|option|choice|x is"
    r"|\u2248|~|=|\\approx|:)\s+",
    re.IGNORECASE,
)
_UNIT = r"(?:[A-Za-z][A-Za-z'.-]*|[%€£])(?:\s*\^\s*\{?[23]\}?)?"
_MORE = rf"(?:(?:\s*/\s*|\s+(?:per\s+)?){_UNIT})*"
_TAIL = re.compile(
    rf"(?P<head>.*?[0-9}})\]a-zA-Z%.])(?P<gap>\s*)"
    rf"(?P<words>(?<![a-zA-Z\\^_{{])(?=[A-Za-z]{{2}}|[%€£]){_UNIT}{_MORE})"
)
_LETTER = re.compile(rf"(?P<head>[^a-zA-Z]*[0-9])(?P<gap>\s+)(?P<words>[A-Za-z]{_MORE})")
"""A number and a unit of one letter."""
_CHANGES = frozenset(
    "more less fewer greater half least most over under above below not thousand plus minus"
    " negative times than if unless until or short squared cubed percentage into divided modulo"
    " mod choose".split()
)
_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc log ln exp sqrt frac arcsin arccos arctan sinh cosh tanh lim max min"
    " gcd lcm mod det deg dim".split()
)
_SHORT_WORDS = frozenset(
    "is of in to or at as an by it he we so if no on up be do go my me us am the a and".split()
)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[a-zA-Z*]+\}")
_WORD = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z]{2,}")


def amount(text: str, read: Callable[[str], Form]) -> Form:
    """A number with words around it, words alone, or an expression."""
    bare = text
    while match := _ABOUT.match(bare):
        bare = bare[match.end() :]
    value = plain_number(bare)
    if value is not None:
        return Number(value, unit_of_currency(bare))
    if spoken := _spoken(bare):
        return spoken
    head, words = _without_tail(bare)
    if words and is_mathematics(head):
        inner = read(head)
        if isinstance(inner, Number):
            return Number(inner.value, unit_of(words, _currency_sign(head)) or inner.unit)
        return inner
    if not is_mathematics(bare):
        return Words(folded(bare))
    return leaf(bare)


def _spoken(text: str) -> Number | None:
    """``two``, ``42 thousand``, ``3 dozen eggs``."""
    words = text.casefold().split()
    if not words:
        return None
    value = plain_number(words[0])
    if value is None:
        value = Fraction(WORDS[words[0]]) if words[0] in WORDS else None
        if value is None or (len(words) > 1 and words[1] not in SCALES):
            return None
    place = 1
    while place < len(words) and words[place] in SCALES:
        value *= SCALES[words[place]]
        place += 1
    if place == 1 and words[0] not in WORDS:
        return None
    rest = words[place:]
    if any(word in _CHANGES or any(map(str.isdigit, word)) for word in rest):
        return None
    return Number(value, unit_of(" ".join(rest)))


def _currency_sign(text: str) -> str:
    return next((sign for sign in CURRENCIES if sign in text), "")


def _without_tail(text: str) -> tuple[str, str]:
    """An expression and the words after it, which are no part of it: units, things counted.

    After anything but a number a single letter is a variable, not a unit.
    """
    match = _LETTER.fullmatch(text)
    if match is None or not is_unit_word(match["words"][0]):
        match = _TAIL.fullmatch(text)
    if match is None:
        return text, ""
    spoken = [word.lower() for word in re.findall(r"[A-Za-z]+", match["words"])]
    if any(word in _CHANGES for word in spoken) or (spoken and spoken[0] in _FUNCTIONS):
        return text, ""
    if spoken and not match["gap"] and not is_unit_word(spoken[0]):
        return text, ""
    return match["head"].rstrip(), match["words"]


def is_mathematics(text: str) -> bool:
    """Whether there are no words in it but the names of functions."""
    environments = _ENVIRONMENT.sub("", text)
    return all(map(_is_no_word, _WORD.findall(environments)))


def _is_no_word(word: str) -> bool:
    """A function, two letters multiplied, or the name of a segment or an angle."""
    if word in _FUNCTIONS or (len(word) == 2 and word.lower() not in _SHORT_WORDS):
        return True
    return len(word) <= 3 and word.isupper()


_INTEGER_PART = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_VALUE = rf"(?:[+-]?(?:{_INTEGER_PART}))"
_FRACTION = re.compile(
    rf"(?P<sign>[+-]?)(?:(?P<mixed>[0-9]+))?\\frac\{{(?P<above>{_VALUE})\}}\{{(?P<below>{_VALUE})\}}"
)
_SLASHED = re.compile(
    rf"(?P<sign>[+-]?)[({{]?(?P<above>{_VALUE})[)}}]?/[({{]?(?P<below>{_VALUE})[)}}]?"
)
_REPEATING = re.compile(
    r"(?P<sign>[+-]?)(?P<before>[0-9]*\.[0-9]*)\\(?:overline|bar|dot)\{?(?P<period>[0-9]+)\}?"
)
_MIXED = re.compile(r"(?P<sign>[+-]?)(?P<whole>[0-9]+) (?P<above>[0-9]+)/(?P<below>[0-9]+)")


def _fraction(text: str) -> Fraction | None:
    """The value of a compact fraction, mixed number or repeating decimal."""
    if match := _REPEATING.fullmatch(text):
        whole, _, part = match["before"].partition(".")
        period = Fraction(int(match["period"]), int("9" * len(match["period"])))
        value = Fraction(f"{whole or 0}.{part or 0}") + period / Fraction(
            int("1" + "0" * len(part))
        )
    elif match := _FRACTION.fullmatch(text) or _SLASHED.fullmatch(text):
        below = Fraction(match["below"])
        if not below or len(text) > 100:
            return None
        value = Fraction(match["above"]) / below
        if match.re is _FRACTION and match["mixed"]:
            value += int(match["mixed"])
    else:
        return None
    return -value if match["sign"] == "-" else value


def leaf(text: str) -> Form:
    """A number where it is one after all, else the expression."""
    if match := _MIXED.fullmatch(text):
        if not int(match["below"]):
            return Expression(compact(text))
        value = int(match["whole"]) + Fraction(int(match["above"]), int(match["below"]))
        return Number(-value if match["sign"] == "-" else value)
    exact = _fraction(compact(text))
    return Expression(compact(text)) if exact is None else Number(exact)


_MEANINGLESS = re.compile(r"[\s\"'`*_.,;:!?()\[\]{}$]+")


def folded(text: str) -> str:
    """Words without case, emphasis and punctuation."""
    return _MEANINGLESS.sub(" ", text.casefold()).strip()
