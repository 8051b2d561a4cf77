"""Numbers in English words: ``three hundred and forty-two``, ``two and a half``."""

from __future__ import annotations

import re
from fractions import Fraction

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    " fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_UNDER_HUNDRED = {word: n for n, word in enumerate(_SMALL)} | {
    word: 10 * n for n, word in enumerate(_TENS, start=2)
}
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7,
    "eighth": 8, "ninth": 9, "tenth": 10, "twelfth": 12, "hundredth": 100,
}  # fmt: skip
_SCALES = _LARGE | {"hundred": 100, "dozen": 12, "k": 1000}
_WORD = "|".join(
    sorted({*_UNDER_HUNDRED, *_SCALES, *_PARTS, "halves"} - {"k"}, key=len, reverse=True)
)
RUN = re.compile(
    rf"(?<![\w-])(?:(?:minus|negative)\s+)?(?:an?\s+(?=(?:{_WORD})\b))?(?:{_WORD})s?"
    rf"(?:(?:\s+|-)(?:and\s+(?=(?:an?\s+)?(?:{_WORD})))?(?:a\s+)?(?:{_WORD})s?)*(?![\w-])",
    re.IGNORECASE,
)
"""A run of words that is a number."""


def spoken_number(text: str) -> Fraction | None:
    """The value of a text that is nothing but a number in words, else None."""
    words = re.split(r"[\s-]+", text.strip().casefold())
    if not words or words == [""] or len(words) > 20:
        return None
    if words[0] in ("minus", "negative"):
        value = _value(words[1:])
        return None if value is None else -value
    return _value(words)


def _value(words: list[str]) -> Fraction | None:
    """Whole words, then perhaps "and" and a fraction."""
    if words in (["hundreds"], ["thousands"], ["millions"], ["dozens"]):
        return None
    if (alone := _part(words)) is not None:
        return alone
    for cut in range(len(words), 0, -1):
        whole = _whole(words[:cut])
        rest = words[cut:]
        if whole is None:
            continue
        if not rest:
            return whole
        part = _part(rest[1:]) if rest[0] == "and" else None
        if part is not None:
            return whole + part
    return None


def _whole(words: list[str]) -> Fraction | None:
    total = group = 0
    fresh = True
    for place, word in enumerate(words):
        name = word.removesuffix("s") if word not in _UNDER_HUNDRED else word
        if word in _UNDER_HUNDRED:
            value = _UNDER_HUNDRED[word]
            if not fresh and not (group % 100 >= 20 and group % 10 == 0 and value < 10) and (
                group % 100
            ):  # fmt: skip
                return None
            group, fresh = group + value, False
        elif name in ("hundred", "dozen"):
            group, fresh = max(group, 1) * _SCALES[name], False
        elif name in _LARGE:
            total, group, fresh = total + max(group, 1) * _LARGE[name], 0, False
        elif (word in ("a", "an") and place + 1 < len(words) and fresh) or (
            word == "and" and not fresh and place + 1 < len(words)
        ):
            continue
        else:
            return None
    return None if fresh else Fraction(total + group)


def _part(words: list[str]) -> Fraction | None:
    """``a half``, ``three quarters``."""
    if not words:
        return None
    name = "half" if words[-1] == "halves" else words[-1]
    below = _PARTS.get(name) or _PARTS.get(name.removesuffix("s"))
    if below is None:
        return None
    count = words[:-1]
    if not count or count in (["a"], ["an"]):
        return Fraction(1, below)
    number = _whole(count)
    return None if number is None else number / below


def digits_for_words(line: str) -> str:
    """A line in which each number in words is written with digits."""

    def spelled(match: re.Match[str]) -> str:
        value = spoken_number(match[0])
        if value is None or match[0].casefold() in ("second", "seconds"):
            return match[0]
        whole = value.denominator == 1
        return str(value.numerator) if whole else f"{value.numerator}/{value.denominator}"

    return RUN.sub(spelled, line)
