"""Amounts: a number with its unit and the words around it, a fraction, or an expression."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from rlbudget.tasks.forms import Clock, Expression, Form, Number, Words
from rlbudget.tasks.notation import compact
from rlbudget.tasks.numbers import SCALES, plain_number
from rlbudget.tasks.spoken import RUN, spoken_number
from rlbudget.tasks.units import Unit, is_unit_word, unit_of, unit_of_currency

_ABOUT = re.compile(
    r"^(?:about|approximately|approx\.?|roughly|around|exactly|only|just|simply"
    r"|a total of|precisely|equal to|equals?|is|are|was|be|the|a|an|option|choice|x is"
    r"|\u2248|~|=|\\approx|:)\s+",
    re.IGNORECASE,
)
_UNIT = r"(?:[A-Za-z][A-Za-z'.-]*|[%€£])(?:\s*\^\s*\{?-?[0-9]\}?)?"
_MORE = rf"(?:(?:\s*/\s*|\s+(?:per\s+)?){_UNIT})*"
_TAIL = re.compile(
    rf"(?P<head>.*?[0-9}})\]a-zA-Z%.])(?P<gap>\s*/?\s*)"
    rf"(?P<words>(?<![a-zA-Z\\^_{{])(?=[A-Za-z]{{2}}|[%€£]){_UNIT}{_MORE})"
)
_LETTER = re.compile(
    rf"(?P<head>.*[0-9}})])(?P<gap>\s+)(?P<words>[A-Za-z](?![A-Za-z])"
    rf"(?:\s*\^\s*\{{?-?[0-9]\}}?)?{_MORE})"
)
"""A number and a unit of one letter."""
_CHANGES = frozenset(
    "more less fewer greater half least most over under above below not thousand plus minus"
    " negative times than if unless until or short squared cubed percentage into divided modulo"
    " mod choose th st nd rd doubled tripled halved lakh crore score pairs"
    " multiplied factorial tenth tenths hundredth hundredths thousandth thousandths"
    " billion million dozen hundred trillion".split()
)
_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc log ln exp sqrt frac arcsin arccos arctan sinh cosh tanh lim max min"
    " gcd lcm mod det".split()
)
_SHORT_WORDS = frozenset(
    "is of in to or at as an by it he we so if no on up be do go my me us am the a and".split()
)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[a-zA-Z*]+\}")
_WORD = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z]{2,}|[^\W\d_a-zA-Z\u0370-\u03ff]+")


def amount(text: str, read: Callable[[str], Form]) -> Form:
    """A number with words around it, words alone, or an expression."""
    bare = _with_angles(text)
    while match := _ABOUT.match(bare):
        bare = bare[match.end() :]
    value = plain_number(bare)
    if value is not None:
        return Number(value, unit_of_currency(bare))
    for reader in (_clock, _scaled, _spoken):
        if found := reader(bare):
            return found
    head, words = _without_tail(bare)
    if words and is_mathematics(head):
        inner = read(head)
        if isinstance(inner, Number):
            return Number(inner.value, _unit_after(head, words) or inner.unit)
        return inner
    if not is_mathematics(bare):
        return Words(folded(bare))
    return leaf(bare)


_CLOCK = re.compile(
    r"(?P<hour>[01]?[0-9]|2[0-4])(?::(?P<minute>[0-5][0-9]))?\s*"
    r"(?:o'clock\s*)?(?P<half>[aApP]\.?\s?[mM]\.?)?"
)


def _clock(text: str) -> Form | None:
    """``3:15``, ``3:15 p.m.``, ``3 PM``."""
    match = _CLOCK.fullmatch(text)
    if match is None or (match["minute"] is None and match["half"] is None):
        return None
    hour, half = int(match["hour"]), (match["half"] or "")[:1].lower()
    if half:
        hour = hour % 12 + (12 if half == "p" else 0)
    return Clock(60 * hour + int(match["minute"] or 0), exact=bool(half) or hour > 12)


_SCALED = re.compile(
    rf"(?P<number>.+?)\s*(?P<scales>(?:(?:{'|'.join(SCALES)})\b\s*)+)(?P<rest>.*)", re.IGNORECASE
)


def _scaled(text: str) -> Number | None:
    """``42 thousand``, ``3 dozen eggs``, ``$1.25k``."""
    match = _SCALED.fullmatch(text)
    if match is None:
        return None
    value = _value(match["number"])
    scales = match["scales"].lower().split()
    if value is None or (scales == ["k"] and unit_of_currency(match["number"]) is None):
        return None
    rest = match["rest"].lower().split()
    if any(word in _CHANGES or any(map(str.isdigit, word)) for word in rest):
        return None
    for scale in scales:
        value *= SCALES[scale]
    return Number(value, unit_of(" ".join(rest)) or unit_of_currency(match["number"]))


def _spoken(text: str) -> Number | None:
    """``two``, ``three quarters``, ``minus seven degrees``."""
    signed = _SIGNED.match(text)
    if signed:
        value = plain_number(signed[1])
        return None if value is None else Number(-value, unit_of(signed[2]))
    match = RUN.match(text)
    if match is None:
        return None
    value = spoken_number(match[0])
    rest = text[match.end() :].split()
    if value is None or any(word.lower() in _CHANGES for word in rest) or len(rest) > 4:
        return None
    if any(not word.replace(".", "").isalpha() for word in rest) or rest[:1] in (["of"], ["to"]):
        return None
    return Number(value, unit_of(" ".join(rest)))


_SIGNED = re.compile(r"(?:negative|minus)\s+([0-9][0-9.,/]*)\s*((?:[a-z]+\s*)*)$", re.IGNORECASE)


def _unit_after(head: str, words: str) -> Unit | None:
    """The unit of the words after a number, its currency counted: ``$18 per day``."""
    currency = unit_of_currency(head)
    if currency is None:
        return unit_of(words)
    return unit_of(f"dollar {words}") if words.startswith(("per", "/")) else currency


def _without_tail(text: str) -> tuple[str, str]:
    """An expression and the words after it, which are no part of it: units, things counted.

    After anything but a number a single letter is a variable, not a unit.
    """
    match = _LETTER.fullmatch(text)
    if not match or not is_unit_word(match["words"][0]) or _value(match["head"]) is None:
        match = _TAIL.fullmatch(text)
    if match is None:
        return text, ""
    spoken = [word.lower() for word in re.findall(r"[A-Za-z]+", match["words"])]
    if any(word in _CHANGES for word in spoken) or (spoken and spoken[0] in _FUNCTIONS):
        return text, ""
    if spoken and not match["gap"] and not is_unit_word(spoken[0]):
        return text, ""
    formula = _value(match["head"]) is None
    if formula and spoken and not is_unit_word(spoken[0]) and spoken[0] not in ("square", "cubic"):
        return text, ""
    per = "/" if "/" in match["gap"] else ""
    if per and (formula or not spoken or len(spoken[0]) < 2):
        return text, ""
    return match["head"].rstrip(), per + match["words"]


def is_mathematics(text: str) -> bool:
    """Whether there are no words in it but the names of functions."""
    environments = _ENVIRONMENT.sub("", text)
    return all(map(_is_no_word, _WORD.findall(environments)))


def _is_no_word(word: str) -> bool:
    """A function, two letters multiplied, or the name of a segment or an angle."""
    if not word.isascii():
        return False
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
    r"(?P<sign>[+-]?)(?P<before>[0-9]*\.[0-9]*)"
    r"(?:\\(?:overline|bar|dot)\{?(?P<period>[0-9]+)\}?|\((?P<bracketed>[0-9]+)\))"
)
_GOING_ON = re.compile(
    r"(?P<sign>[+-]?)(?P<before>[0-9]*\.[0-9]*?)(?P<period>[0-9]{1,6}?)(?P=period){2,}\.\.\."
)
_MIXED = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>[0-9]+) (?:and )?(?P<above>[0-9]+)/(?P<below>[0-9]+)"
)


def _value(text: str) -> Fraction | None:
    """The value of a tidy number, fraction, mixed number or repeating decimal."""
    value = plain_number(text)
    return _fraction(compact(text)) if value is None else value


def _fraction(text: str) -> Fraction | None:
    """The value of a compact fraction, mixed number or repeating decimal."""
    if match := _REPEATING.fullmatch(text) or _GOING_ON.fullmatch(text):
        whole, _, part = match["before"].partition(".")
        digits = match["period"] or match["bracketed"]
        period = Fraction(int(digits), int("9" * len(digits)))
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
    exact = _value(text)
    return Expression(_spelled_out(text)) if exact is None else Number(exact)


_BARE_FUNCTION = re.compile(
    r"(?<![\\a-zA-Z])(sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|ln|log|exp)"
    r"(?![a-zA-Z])"
)
_ANGLE = re.compile(r"([0-9]+(?:\.[0-9]+)?|[a-zA-Z]) ?degrees")
_TRIGONOMETRY = re.compile(r"(?<![a-z])(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_EULER = re.compile(r"\\log_\{?e\}?")


def _with_angles(text: str) -> str:
    """The degrees inside trigonometric functions are part of the expression."""
    if "degrees" not in text or not _TRIGONOMETRY.search(text):
        return text
    return _ANGLE.sub(r"\\frac{\1\\pi}{180}", text)


def _spelled_out(text: str) -> str:
    """A compact expression with functions as commands."""
    spelled = _EULER.sub(r"\\ln ", _BARE_FUNCTION.sub(r"\\\1 ", text))
    return compact(" ".join(spelled.split()))


_MEANINGLESS = re.compile(r"[\s\"'`*_.,;:!?()\[\]{}$]+")


def folded(text: str) -> str:
    """Words without case, emphasis and punctuation."""
    return _MEANINGLESS.sub(" ", text.casefold()).strip()
