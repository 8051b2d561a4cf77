"""Regular expressions that a user gives, matched in time linear in the text.

The engine is RE2, which never backtracks: what cannot be matched so (look-around, back-references)
it does not have. A pattern is bounded in size as well. Python's own patterns differ a little: here
``\\d``, ``\\w`` and ``\\b`` know ASCII only, ``$`` is the end of the text, ``\\z`` stands for
``\\Z``.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

LONGEST_PATTERN = 1_000
"""characters"""
MOST_STEPS = 5_000
"""instructions of a compiled pattern: what each character of a text may cost"""
_MEMORY = 4 * 2**20
"""bytes of a compiled pattern and what it remembers while it matches"""

_REPEATED = re.compile(r"(?<!\\)\{[0-9]*,?[0-9]{5}")


class Pattern:
    """A compiled pattern."""

    def __init__(self, written: str) -> None:
        """Raises ``ValueError`` saying why a text is no pattern."""
        self.written = written
        self._compiled = _compiled(written)

    def __repr__(self) -> str:
        return f"Pattern({self.written!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and other.written == self.written

    def __hash__(self) -> int:
        return hash(self.written)

    def __reduce__(self) -> tuple[type[Pattern], tuple[str]]:
        return Pattern, (self.written,)

    def found_in(self, text: str) -> bool:
        """Whether it matches anywhere in a text."""
        return self._compiled.search(_encoded(text)) is not None

    def last_in(self, text: str) -> str:
        """Its last match, or the first group of that where it has one; "" where there is none.

        The matches of a text are found one after the other, each in linear time.
        """
        last = None
        for last in self._compiled.finditer(_encoded(text)):  # noqa: B007
            pass
        if last is None:
            return ""
        found: bytes = (last[1] or b"") if self._compiled.groups else last[0]
        return found.decode("utf-8", "replace")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # half of a surrogate pair is a question mark


@lru_cache(maxsize=128)
def _compiled(written: str) -> Any:
    import re2

    if len(written) > LONGEST_PATTERN:
        raise ValueError(f"it has {len(written)} characters; {LONGEST_PATTERN} are the most")
    if _REPEATED.search(written):
        raise ValueError("invalid repetition size")  # RE2 would take it for plain text
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY
    try:
        compiled = re2.compile(written.encode(), options)
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair") from None
    except re2.error as error:
        raise ValueError(_said(error)) from None
    if compiled.programsize > MOST_STEPS:
        raise ValueError(f"it is too large: {compiled.programsize} steps of {MOST_STEPS}")
    return compiled


def _said(error: Exception) -> str:
    said = error.args[0] if error.args else ""
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    if "invalid perl operator" in text:
        text += "; what looks around or back cannot be matched in linear time"
    elif text.startswith("invalid escape sequence: \\"):
        if text[-1:].isdigit():
            text += "; a back-reference cannot be matched in linear time"
        elif text[-1:] == "Z":
            text += r"; the end of the text is \z"
    return text
