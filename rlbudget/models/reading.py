"""How an answer is read from the tokens after the end of the thinking. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

from rlbudget.arrays import Ints
from rlbudget.models.profiles import Profile
from rlbudget.models.vocabulary import Vocabulary


def read_answer(
    ids: Sequence[int] | Ints,
    vocabulary: Vocabulary,
    profile: Profile,
    stops: Sequence[str],
) -> str:
    """The answer that generated tokens spell: up to the first stop text, stripped."""
    text = vocabulary.text(ids)
    for stop in stops:
        text = _before(text, stop)
    return text.strip().strip(profile.strip).strip()


def ends_answer(ids: Sequence[int], vocabulary: Vocabulary, stops: Sequence[str]) -> bool:
    """Whether a stop text has been written; only asked where a profile has some."""
    text = vocabulary.text(ids)
    return any(_before(text, stop) != text for stop in stops)


def _before(text: str, stop: str) -> str:
    # A stop before the first word (a line break right after the cue) is not an end.
    head = len(text) - len(text.lstrip())
    at = _closing_brace(text) if stop == "}" else text.find(stop, head)
    return text if at < 0 else text[:at]


def _closing_brace(text: str) -> int:
    """Where the brace closes that the cue has opened; -1 where it does not."""
    depth, escaped = 0, False
    for place, character in enumerate(text):
        if not escaped and character in "{}":
            if character == "}" and not depth:
                return place
            depth += 1 if character == "{" else -1
        escaped = character == "\\" and not escaped
    return -1
