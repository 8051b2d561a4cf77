"""Numbers as people write them, as exact values."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from rlbudget.tasks.notation import THIN, plain_characters

CURRENCIES = "$€£¥₹₩₽₺₫฿₪₦"
LONGEST_NUMBER = 100
"""characters; longer texts are not read as numbers"""
_LARGEST_EXPONENT = 400

_WHOLE = r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?: [0-9]{3})+|[0-9]+"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s*(?P<currency>(?:(?:US|AU|CA|HK|NZ|A|C|R)?[{CURRENCIES}]"
    r"|(?:USD|EUR|GBP|INR|Rs\.?)\s)?)\s*(?P<inner>[+-]?)\s*"
    rf"(?P<whole>{_WHOLE})?(?P<part>\.[0-9]*)?"
    r"(?:\s?(?:[eE]|(?:[xX*]|\\times|\\cdot)\s*10\s*(?:\^|\*\*))\s*[{(]?(?P<power>[+-]?[0-9]{1,5})[)}]?)?"
)


def plain_number(text: str) -> Fraction | None:
    """The value of a text that is one number, else None.

    ``-1,234.50``, ``$18``, ``\\$18.``, ``1{,}234``, ``1 234``, ``1.5e3``, ``1.5 \\times 10^3``,
    digits of any script, a bracket or emphasis around all of it.
    """
    if text.isascii() and text.isdigit():
        return Fraction(int(text)) if len(text) <= LONGEST_NUMBER else None
    if len(text) > LONGEST_NUMBER or not any(map(str.isdigit, text)):
        return None
    return _read(text)


@lru_cache(maxsize=16384)
def _read(text: str) -> Fraction | None:
    bare = _bare(plain_characters(text))
    match = _NUMBER.fullmatch(bare)
    if match is None:
        return None
    whole, part = match["whole"], match["part"] or ""
    if (not whole and len(part) < 2) or (match["sign"] and match["inner"]):
        return None
    digits = (whole or "0").replace(",", "").replace(" ", "")
    power = int(match["power"] or 0)
    if abs(power) > _LARGEST_EXPONENT:
        return None
    value = Fraction(f"{digits}{part if len(part) > 1 else ''}") * Fraction(10) ** power
    return -value if "-" in (match["sign"], match["inner"]) else value


_AROUND = (("$$", "$$"), ("$", "$"), ("**", "**"), ("__", "__"), ("(", ")"), ("`", "`"), ("*", "*"))


def _bare(text: str) -> str:
    """Without what is around a number: spaces, emphasis, dollar signs of LaTeX, a full stop."""
    bare = THIN.sub("", text.replace("\\$", "$")).strip()
    for _ in range(4):
        before = bare
        for left, right in _AROUND:
            if left == "(" and "," in bare:
                continue  # a point, not thousands
            if (
                len(bare) > len(left) + len(right)
                and bare.startswith(left)
                and bare.endswith(right)
            ):
                bare = bare[len(left) : -len(right)].strip()
        if bare.endswith(".") and not bare.endswith(".."):
            bare = bare[:-1].rstrip()
        if bare == before:
            break
    return bare


SCALES = {
    "hundred": 100, "hundreds": 100, "thousand": 1000, "thousands": 1000, "k": 1000,
    "million": 10**6, "millions": 10**6, "billion": 10**9, "billions": 10**9,
    "trillion": 10**12, "trillions": 10**12, "dozen": 12, "dozens": 12,
}  # fmt: skip
"""Words after a number that change its value."""
