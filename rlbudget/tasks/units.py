"""Units after a number: which words they are, and when two of them differ."""

from __future__ import annotations

import re
from fractions import Fraction

_F = Fraction
_TABLE: dict[str, tuple[Fraction, str, str]] = {}


def _unit(kind: str, factor: Fraction | int, *names: str) -> None:
    for name in names:
        _TABLE[name] = (_F(factor), kind, names[0])


_unit("length", _F(1, 1000), "mm", "millimeter", "millimetre")
_unit("length", _F(1, 100), "cm", "centimeter", "centimetre")
_unit("length", 1, "m", "meter", "metre")
_unit("length", 1000, "km", "kilometer", "kilometre")
_unit("length", _F(254, 10000), "inch", "in", "inches")
_unit("length", _F(3048, 10000), "ft", "foot", "feet")
_unit("length", _F(9144, 10000), "yard", "yd")
_unit("length", _F(1609344, 1000), "mile", "mi")
_unit("mass", _F(1, 1000), "mg", "milligram")
_unit("mass", 1, "g", "gram")
_unit("mass", 1000, "kg", "kilogram", "kilo")
_unit("mass", _F(45359237, 100000), "pound", "lb")
_unit("mass", _F(45359237, 1600000), "ounce", "oz")
_unit("mass", 1000000, "tonne", "ton")
_unit("time", 1, "second", "sec", "s")
_unit("time", 60, "minute", "min")
_unit("time", 3600, "hour", "hr", "h")
_unit("time", 86400, "day")
_unit("time", 604800, "week")
_unit("time", 2629800, "month")
_unit("time", 31557600, "year")
_unit("volume", _F(1, 1000), "ml", "milliliter", "millilitre")
_unit("volume", 1, "liter", "litre", "l")
_unit("money", 1, "dollar", "usd", "buck")
_unit("money", _F(1, 100), "cent")
_unit("euro", 1, "euro", "eur")
_unit("pound sterling", 1, "gbp")
_unit("angle", 1, "degree", "deg")
_unit("temperature", 1, "celsius")
_unit("per cent", 1, "percent", "%")

_CURRENCY = {"$": "dollar", "€": "euro", "£": "gbp"}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cubed": 3, "cu": 3}
_WORD = re.compile(r"[A-Za-z%]+")
_POWER = re.compile(r"\^\s*\{?\s*([23])\s*\}?")


def unit_of(words: str, currency: str = "") -> tuple[Fraction, str] | None:
    """The size and the kind of a known unit, None for any other words.

    ``square inches``, ``inches ^2`` and ``in^2`` are one; ``eggs`` and ``units`` are no unit.
    """
    if currency in _CURRENCY and not words.strip():
        return _F(1), _TABLE[_CURRENCY[currency]][1]
    powers = [int(found) for found in _POWER.findall(words)]
    names = [word.lower() for word in _WORD.findall(words)]
    powers += [_POWERS[name] for name in names if name in _POWERS]
    known = [found for name in names if name not in _POWERS and (found := _known(name))]
    if len(known) != 1 or len(powers) > 1:
        return None
    factor, kind, _ = known[0]
    power = powers[0] if powers else 1
    return factor**power, kind if power == 1 else f"{kind}^{power}"


def _known(name: str) -> tuple[Fraction, str, str] | None:
    return (
        _TABLE.get(name)
        or _TABLE.get(name.removesuffix("s"))
        or _TABLE.get(name.removesuffix("es"))
    )


def is_unit_word(name: str) -> bool:
    """Whether a word is a unit by itself, ``unit`` included."""
    return _known(name.lower()) is not None or name.lower() in ("unit", "units")


def unit_of_currency(expression: str) -> tuple[Fraction, str] | None:
    """The unit of the one currency sign in an expression."""
    signs = [sign for sign in _CURRENCY if sign in expression]
    return unit_of("", signs[0]) if len(signs) == 1 and expression.count(signs[0]) == 1 else None
