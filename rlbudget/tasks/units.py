"""Units after a number: which words they are, and when two of them differ.

A unit is its size and its kind: ``km/h`` is 5/18 of ``length/time``. Words that are no known unit
(``eggs``, ``units``) are no unit, and so differ from none.
"""

from __future__ import annotations

import re
from fractions import Fraction

Unit = tuple[Fraction, str]
"""(size, kind)"""

_F = Fraction
_TABLE: dict[str, Unit] = {}


def _unit(kind: str, size: Fraction | int, *names: str) -> None:
    _TABLE.update(dict.fromkeys(names, (_F(size), kind)))


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
_unit("time", 31557600, "year", "yr")
_unit("volume", _F(1, 1000), "ml", "milliliter", "millilitre")
_unit("volume", 1, "liter", "litre", "l")
_unit("money", 1, "dollar", "usd", "buck")
_unit("money", _F(1, 100), "cent")
_unit("euro", 1, "euro", "eur")
_unit("pound sterling", 1, "gbp")
_unit("rupee", 1, "rupee", "rs", "inr")
_unit("angle", 1, "degree", "deg")
_unit("radian", 1, "radian", "rad")
_unit("temperature", 1, "celsius")
_unit("per cent", 1, "percent", "%", "pct")
_unit("length/time", _F(1609344, 3600000), "mph")
_unit("length/time", _F(1000, 3600), "kph", "kmh")

PER_CENT: Unit = (_F(1), "per cent")
ANGLE: Unit = (_F(1), "angle")
_CURRENCY = {"$": "dollar", "€": "euro", "£": "gbp", "₹": "rupee", "¢": "cent"}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cubed": 3}
_PIECE = re.compile(
    r"(?P<name>[A-Za-z]+|[%€£$¢])\.?(?:\s*\^\s*\{?\s*(?P<power>-?[0-9])\s*\}?)?|(?P<per>/)"
)


def unit_of(words: str) -> Unit | None:
    """The size and the kind of a known unit, None for any other words.

    ``square inches``, ``inches ^2`` and ``in^2`` are one; ``m/s^2`` is ``m s^{-2}``.
    """
    size = _F(1)
    kinds: dict[str, int] = {}
    sign, spoken_power = 1, 0
    for piece in _PIECE.finditer(words.replace("per cent", "percent")):
        name = (piece["name"] or "").lower()
        if piece["per"] or name == "per":
            sign = -1
            continue
        if name in _POWERS:
            spoken_power = _POWERS[name]
            if name.endswith("ed") and kinds:
                last = next(reversed(kinds))
                kinds[last], size, spoken_power = kinds[last] * spoken_power, size**spoken_power, 0
            continue
        known = _known(name)
        if known is None:
            return None
        power = sign * int(piece["power"] or spoken_power or 1)
        size *= known[0] ** power
        kinds[known[1]] = kinds.get(known[1], 0) + power
        spoken_power = 0
    if not kinds:
        return None
    return size, _name_of(kinds)


def _name_of(kinds: dict[str, int]) -> str:
    """``length/time`` for {length: 1, time: -1}."""
    above = [f"{kind}^{n}" if n > 1 else kind for kind, n in sorted(kinds.items()) if n > 0]
    below = [f"{kind}^{-n}" if n < -1 else kind for kind, n in sorted(kinds.items()) if n < 0]
    return "/".join(["*".join(above) or "1", *below])


def _known(name: str) -> Unit | None:
    if name in _CURRENCY:
        return _TABLE[_CURRENCY[name]]
    return (
        _TABLE.get(name)
        or (_TABLE.get(name.removesuffix("s")) if len(name) > 2 else None)
        or (_TABLE.get(name.removesuffix("es")) if len(name) > 3 else None)
    )


def is_unit_word(name: str) -> bool:
    """Whether a word is a unit by itself, ``unit`` included."""
    return _known(name.lower()) is not None or name.lower() in ("unit", "units")


def unit_of_currency(expression: str) -> Unit | None:
    """The unit of the one currency sign in an expression."""
    signs = [sign for sign in _CURRENCY if sign in expression]
    return unit_of(signs[0]) if len(signs) == 1 and expression.count(signs[0]) == 1 else None
