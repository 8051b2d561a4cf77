"""What the client is shown of a request under a plan: thoughts and answer, without the tags.

Nothing is decided here: every token is shown by where ``Request`` stands before and after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Literal, NamedTuple

from rlbudget.decoding.core import Core
from rlbudget.decoding.request import Request, State


class Piece(NamedTuple):
    """A part of the text that the client sees."""

    kind: Literal["thought", "answer"]
    text: str


class Shown:
    """Follows one request: tell it the state ``before`` a push, and the token's text after it."""

    __slots__ = ("_begun", "_core", "_end", "_held", "_request", "_told_exit")

    def __init__(self, core: Core, request: Request) -> None:
        self._core, self._request = core, request
        # A tag of one token is never a thought; one of several may be half said.
        self._end = "" if core.vocabulary.end_id is not None else core.vocabulary.end_text
        self._held = ""
        self._begun = self._told_exit = False

    def pushed(self, before: State, text: str, *, end: bool = False) -> list[Piece]:
        """The pieces that a token, pushed in the state ``before``, makes visible.

        ``text`` is what the token adds; ``end`` says that it ended the sequence.
        """
        after = self._request.state
        if end:
            text = ""
        if before is State.WAITING:
            self._held += text
            if after is State.WAITING:
                return []
            held, self._held = self._held, ""
            return [] if after is State.THINKING else self._answer(held)
        if before is not State.THINKING:
            return self._answer(text)
        if after is State.THINKING:
            return self._thought(text)
        if self._request.forced() is not None:  # the exit begins behind this token
            return [*self._thought(text), *self._flush()]
        if after is State.ALONE:
            return [*self._flush(), *self._answer(text)]
        self._held = ""
        return []

    def exit(self) -> list[Piece]:
        """The exit text is forced: what stands in it behind the end of the thinking is seen."""
        if self._told_exit:
            return []
        self._told_exit = True
        profile = self._core.profile
        behind = profile.exit_text.partition(profile.end_of_thinking)[2]
        return [*self._flush(), *self._answer(behind)]

    def rest(self) -> list[Piece]:
        """What was written aside and stands in for the rest of a request that is over."""
        if self._begun or not self._request.settled:
            return []
        decoded, tag = self._request.decoded(), self._core.profile.end_of_thinking
        if (second := decoded.second) is not None:
            thoughts, _, _ = second.text.rpartition(second.answer)
            thoughts = thoughts.rpartition(tag)[0] or thoughts
            return [
                *([Piece("thought", thoughts)] if thoughts else []),
                *self._answer(second.answer),
            ]
        return self._answer(self._written(decoded.text.rpartition(tag)[2])) if (
            tag in decoded.text
        ) else []  # fmt: skip

    def _written(self, text: str) -> str:
        """An answer without the token that ended it."""
        core = self._core
        ends = [core.vocabulary.text([token], special=True) for token in core.eos]
        return next((text.removesuffix(end) for end in ends if end and text.endswith(end)), text)

    def _thought(self, text: str) -> list[Piece]:
        if not self._end:
            return [Piece("thought", text)] if text else []
        held = self._held + text
        keep = _overlap(held, self._end)
        self._held = held[len(held) - keep :]
        said = held[: len(held) - keep]
        return [Piece("thought", said)] if said else []

    def _flush(self) -> list[Piece]:
        held, self._held = self._held, ""
        return [Piece("thought", held)] if held else []

    def _answer(self, text: str) -> list[Piece]:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return [Piece("answer", text)] if text else []


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours of one kind as one."""
    if len(pieces) < 2:
        return list(pieces)
    return [
        Piece(kind, "".join(piece.text for piece in group))
        for kind, group in groupby(pieces, key=lambda piece: piece.kind)
    ]


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of ``text`` with which ``tag`` can begin."""
    if tag[0] not in text:
        return 0
    most = min(len(text), len(tag))
    return next((n for n in range(most, 0, -1) if tag.startswith(text[-n:])), 0)
