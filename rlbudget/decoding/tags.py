"""Where thinking stands in a stream of tokens: opened, ended, inside a tool call.

The one place that looks for the texts around a thinking. Most are single control tokens; where a
tokenizer spells one in pieces, only tokens that could finish it cost a look at the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rlbudget.models.profiles import Profile, trusted_ids
from rlbudget.models.vocabulary import Vocabulary

TOOL_CALLS = (
    "<tool_call>", "<|tool_call_begin|>", "<|tool_calls_section_begin|>", "[TOOL_CALLS]",
    "<\uff5ctool\u2581calls\u2581begin\uff5c>", "<\uff5ctool\u2581call\u2581begin\uff5c>",
    "<|tool_call|>", "<|tool_call_start|>", "<function_call>", "<|python_tag|>",
    "<|python_start|>", "<start_function_call>",
)  # fmt: skip
"""texts with which families of models begin a tool call"""
LOOK_BACK = 4096
"""tokens of a prompt that are looked at for an open thinking"""

Opened = Literal["open", "closed", "not yet"]


@dataclass(frozen=True, slots=True)
class Tags:
    """The texts around the thinking of one profile in one vocabulary."""

    vocabulary: Vocabulary
    start_text: str
    """opens the thinking; empty where everything before the end is thinking"""
    start_id: int | None
    """the one token of it, if it is one"""
    control: frozenset[int]
    """control tokens that are neither start nor end of a thinking"""
    closing: frozenset[int]
    """tokens that can be the last one of the end of the thinking"""
    tool_ids: frozenset[int]
    """single tokens that begin a tool call"""
    tool_last: frozenset[int]
    """tokens that can be the last one of a spelled beginning of a tool call"""

    def opened(self, prompt: Sequence[int]) -> Opened:
        """Whether a prompt leaves the thinking open, closes it, or leaves opening it to the
        model."""  # fmt: skip
        if not self.start_text:
            return "open"
        tail = list(prompt[-LOOK_BACK:])
        last = max((i for i, token in enumerate(tail) if token in self.control), default=-1)
        tail = tail[last + 1 :]
        end_id = self.vocabulary.end_id
        if self.start_id is not None and end_id is not None:
            starts = [i for i, token in enumerate(tail) if token == self.start_id]
            ends = [i for i, token in enumerate(tail) if token == end_id]
            at_start, at_end = max(starts, default=-1), max(ends, default=-1)
        else:
            text = self.vocabulary.text(tail, special=True)
            at_start = text.rfind(self.start_text)
            at_end = text.rfind(self.vocabulary.end_text)
        if at_start > at_end:
            return "open"
        return "closed" if at_end >= 0 else "not yet"

    def opens(self, ids: Sequence[int]) -> Opened:
        """What the first tokens of a reply say, where opening the thinking is left to the model."""
        text = self.vocabulary.text(ids, special=True).strip()
        if text.startswith(self.start_text):
            return "open"
        return "not yet" if self.start_text.startswith(text) else "closed"

    def end_length(self, token: int, recent: Sequence[int]) -> int:
        """How many of the ``recent`` tokens, ``token`` the last of them, spell the end."""
        if self.vocabulary.end_id is not None:
            return int(token == self.vocabulary.end_id)
        return self.vocabulary.end_length(recent) if token in self.closing else 0

    def begins_tool_call(self, token: int, recent: Sequence[int]) -> bool:
        """Whether ``token``, the last of the ``recent``, begins a tool call."""
        if token in self.tool_ids:
            return True
        if token not in self.tool_last:
            return False
        text = self.vocabulary.text(recent, special=True).rstrip()
        return text.endswith(TOOL_CALLS)


def find_tags(vocabulary: Vocabulary, profile: Profile) -> Tags:
    """Look the texts around the thinking up in a vocabulary."""
    tokenizer = vocabulary.tokenizer
    start = profile.start_of_thinking
    start_ids = trusted_ids(tokenizer, start) if start else []
    start_id = start_ids[0] if len(start_ids) == 1 else None
    known = {text: trusted_ids(tokenizer, text) for text in TOOL_CALLS}
    single = {ids[0] for ids in known.values() if len(ids) == 1}
    spelled = [text for text, ids in known.items() if len(ids) > 1]
    specials = {int(token) for token in tokenizer.all_special_ids}
    pieces = vocabulary.pieces
    end = [] if vocabulary.end_id is not None else [profile.end_of_thinking.strip()[-1]]
    return Tags(
        vocabulary=vocabulary,
        start_text=start,
        start_id=start_id,
        control=frozenset(specials - {start_id, vocabulary.end_id}),
        closing=_last_ones(pieces, end),
        tool_ids=frozenset(single),
        tool_last=_last_ones(pieces, {text[-1] for text in spelled if text[-1].isascii()}),
    )


def _last_ones(pieces: Sequence[str], characters: Iterable[str]) -> frozenset[int]:
    """Tokens that may hold one of these characters."""
    found: set[int] = set()
    for last in characters:
        # Byte-level pieces spell only ASCII as it is; any token may hold a part of another
        # character. Fallback pieces are bytes in hexadecimal.
        found.update(
            token
            for token, piece in enumerate(pieces)
            if not last.isascii() or last in piece or piece.startswith("<0x")
        )
    return frozenset(found)
