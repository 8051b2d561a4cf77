"""JSON of ours, read so that nothing odd gets through: known kinds, finite numbers, some depth."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

DEEPEST = 32
"""levels of lists and objects within each other"""


def parse(data: bytes, name: str) -> dict[str, Any]:
    """The JSON object in a file called ``name``; ``ValueError`` for anything else."""
    try:
        value = msgspec.json.decode(data)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not a JSON object")
    check_values(value, name)
    return value


def check_values(value: Any, name: str, left: int = DEEPEST) -> None:
    """``ValueError`` for parsed JSON that is nested deeply, for numbers that are not finite or
    have more than 64 bits, and for texts that are no Unicode."""  # fmt: skip
    if isinstance(value, dict | list):
        if not left:
            raise ValueError(f"{name} is nested too deeply")
        for each in value.values() if isinstance(value, dict) else value:
            check_values(each, name, left - 1)
        if isinstance(value, dict):
            for key in value:
                check_values(key, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} holds a number that is not finite")
    elif isinstance(value, int) and value.bit_length() > 64:
        raise ValueError(f"{name} holds a whole number of more than 64 bits")
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} holds a text that is no Unicode") from None


def conform(value: Any, schema: type[T], name: str) -> T:
    """A parsed value as a ``schema``; ``ValueError`` that says what does not fit and where."""
    try:
        return msgspec.convert(value, schema)
    except (ValueError, OverflowError) as error:
        said = str(error).replace("`", "").replace(" - at $", " at ")
        raise ValueError(f"{name}: {said[:1].lower()}{said[1:]}") from None
