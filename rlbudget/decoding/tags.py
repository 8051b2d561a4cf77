"""Where thinking stands in a stream of tokens: opened, ended, inside a tool call.

The one place that looks for the texts around a thinking. Most are single control tokens; where a
tokenizer spells one in pieces, only tokens that could finish it cost a look at the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlbudget.errors import UserError
from rlbudget.models.profiles import Profile, trusted_ids
from rlbudget.models.spelling import marks_of
from rlbudget.models.vocabulary import Vocabulary

TOOL_CALLS = (
    "<tool_call>", "<|tool_call_begin|>", "<|tool_calls_section_begin|>", "[TOOL_CALLS]",
    "<\uff5ctool\u2581calls\u2581begin\uff5c>", "<\uff5ctool\u2581call\u2581begin\uff5c>",
    "<\uff5cDSML\uff5cfunction_calls>", "<|tool_call|>", "<|tool_call_start|>", "<function_call>",
    "<function_calls>", "<tool_calls>", "<|python_tag|>", "<|python_start|>",
    "<start_function_call>", "<minimax:tool_call>", "<seed:tool_call>", "<TOOLCALL>",
    "<|START_ACTION|>", "<|action_start|>", "<|tools_prefix|>",
)  # fmt: skip
"""texts with which families of models begin a tool call"""
_RECENT = 24
"""tokens that a text around the thinking may be spelled in, for the least"""
_BEGUN = 4
"""characters of a spelled tool call from which on it is taken to have begun"""
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
    tool_texts: tuple[str, ...]
    """beginnings of tool calls that are spelled in several tokens, as the tokens' pieces are"""
    tool_begun: frozenset[str]
    """what a half spelled one may look like"""
    tool_window: int
    """tokens to look back for one of them"""
    breaks: bool
    """whether the profile's own prompts hold a line break after the start of the thinking"""

    def opened(self, prompt: Sequence[int]) -> Opened:
        """Whether a prompt leaves the thinking open, closes it, or leaves opening it to the
        model."""  # fmt: skip
        if not self.start_text:
            return "open"
        start, end = self.start_id, self.vocabulary.end_id
        known = start is not None and end is not None
        for place in range(len(prompt) - 1, -1, -1):
            token = prompt[place]
            if token in self.control:
                return "not yet" if known else self._opened_in(prompt[place + 1 :], marked=True)
            if known and token == start:
                return "open"
            if known and token == end:
                told = any(before in self.control for before in prompt[:place])
                return _closed(self.vocabulary.text(prompt[place + 1 :], special=True), told)
        return "not yet" if known else self._opened_in(prompt, marked=False)

    def _opened_in(self, ids: Sequence[int], *, marked: bool) -> Opened:
        text = self.vocabulary.text(ids, special=True)
        at_start, at_end = text.rfind(self.start_text), text.rfind(self.vocabulary.end_text)
        if at_start > at_end:
            return "open"
        if at_end < 0:
            return "not yet"
        return _closed(text[at_end + len(self.vocabulary.end_text) :], marked)

    def opens(self, ids: Sequence[int]) -> Opened:
        """What the first tokens of a reply say, where opening the thinking is left to the model."""
        text = self.vocabulary.text(ids, special=True).strip()
        if text.startswith(self.start_text):
            return "open"
        return "not yet" if self.start_text.startswith(text) else "closed"

    def end_length(self, token: int, ids: Sequence[int]) -> int:
        """How many of the last ``ids``, ``token`` the last of them, spell the end."""
        if self.vocabulary.end_id is not None:
            return int(token == self.vocabulary.end_id)
        return self.vocabulary.end_length(ids[-_RECENT:]) if token in self.closing else 0

    def begins_tool_call(self, token: int, ids: Sequence[int]) -> bool:
        """Whether ``token``, the last of the ``ids``, begins a tool call."""
        if token in self.tool_ids:
            return True
        if token not in self.tool_last:
            return False
        spelled = self._spelled(ids)
        return any(text in spelled for text in self.tool_texts)

    def may_begin_tool_call(self, ids: Sequence[int]) -> bool:
        """Whether the last of the ``ids`` leave the beginning of a tool call half spelled."""
        spelled = self._spelled(ids) if self.tool_texts else ""
        place = max(spelled.rfind("<"), spelled.rfind("["))
        return place >= 0 and spelled[place:] in self.tool_begun

    def _spelled(self, ids: Sequence[int]) -> str:
        pieces = self.vocabulary.pieces
        return "".join([pieces[token] for token in ids[-self.tool_window :]])


def _closed(behind: str, marked: bool) -> Opened:
    # Where no control token tells whose text it is, a user may have written of the end.
    return "closed" if marked or not behind.strip() else "not yet"


def find_tags(vocabulary: Vocabulary, profile: Profile) -> Tags:
    """Look the texts around the thinking up in a vocabulary."""
    tokenizer = vocabulary.tokenizer
    start = profile.start_of_thinking
    start_ids = trusted_ids(tokenizer, start) if start else []
    start_id = start_ids[0] if len(start_ids) == 1 else None
    known = {text: trusted_ids(tokenizer, text) for text in TOOL_CALLS}
    single = {ids[0] for ids in known.values() if len(ids) == 1}
    spelled = [text for text, ids in known.items() if len(ids) > 1]
    pieces = vocabulary.pieces
    texts = ["".join(pieces[token] for token in known[text]).lstrip("\u0120\u2581")
             for text in spelled]  # fmt: skip
    end = [] if vocabulary.end_id is not None else [profile.end_of_thinking.strip()[-1]]
    return Tags(
        vocabulary=vocabulary,
        start_text=start,
        start_id=start_id,
        control=frozenset(marks_of(tokenizer) - {start_id, vocabulary.end_id} - single),
        closing=_last_ones(pieces, end),
        tool_ids=frozenset(single),
        tool_last=_last_ones(pieces, {text[-1] for text in texts}),
        tool_texts=tuple(texts),
        tool_begun=frozenset(text[:n] for text in texts for n in range(_BEGUN, len(text))),
        tool_window=max([_RECENT, *(len(known[text]) + 1 for text in spelled)]),
        breaks=_breaks(tokenizer, profile),
    )


def _breaks(tokenizer: Any, profile: Profile) -> bool:
    try:
        prompt = profile.prompt("1", tokenizer)
    except UserError:  # whoever decodes by the profile's prompts is told
        return True
    text = tokenizer.decode(prompt[-_RECENT:], skip_special_tokens=False)
    return str(text).endswith("\n")


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
