"""What a profile's texts become in a model's vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlbudget.arrays import Bools, Ints
from rlbudget.errors import UserError
from rlbudget.models.profiles import Profile, trusted_ids
from rlbudget.signals.tokens import marker_table

LONGEST_CHARACTER = 4
"""in bytes of UTF-8, and so in tokens"""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Token ids and masks that the decoder looks up every step."""

    tokenizer: Any
    eos_ids: Ints
    """tokens that end a sequence"""
    end_id: int | None
    """the one token that ends the thinking; None where the end is a text of several tokens"""
    end_text: str
    end_first_ids: Ints
    """tokens with which the end of the thinking can begin"""
    end_window: int
    """tokens to look back for the end text"""
    exit_ids: tuple[int, ...]
    probe_ids: tuple[int, ...]
    answer_end_ids: Ints
    """tokens with which the end of a trial answer can begin"""
    pieces: tuple[str, ...]
    """every token as the tokenizer spells it"""
    markers: Bools
    """(vocabulary, 3), columns as in ``rlbudget.signals.tokens.MARKERS``"""

    def text(self, ids: Sequence[int] | Ints, *, special: bool = False) -> str:
        """The text of token ids, with or without special tokens."""
        return str(
            self.tokenizer.decode(
                [int(token) for token in ids],
                skip_special_tokens=not special,
                clean_up_tokenization_spaces=False,
            )
        )

    def added(self, ids: Sequence[int] | Ints, start: int) -> str:
        """What the ids from ``start`` on add to the text of those before them, where these end no
        character in the middle."""
        before = ids[max(start - LONGEST_CHARACTER, 0) : start]
        both = ids[max(start - LONGEST_CHARACTER, 0) :]
        return self.text(both, special=True)[len(self.text(before, special=True)) :]

    def inside_character(self, ids: Sequence[int] | Ints) -> bool:
        """Whether the last of these tokens leaves a character without some of its bytes."""
        return self.text(ids[-LONGEST_CHARACTER:], special=True).endswith("\ufffd")

    def end_length(self, ids: Sequence[int] | Ints) -> int:
        """How many of the last tokens spell the end text; 0 if they do not."""
        tail = list(ids[-self.end_window :])
        if self.end_text not in self.text(tail, special=True):
            return 0
        return next(
            n
            for n in range(1, len(tail) + 1)
            if self.end_text in self.text(tail[len(tail) - n :], special=True)
        )


def build_vocabulary(
    tokenizer: Any, profile: Profile, size: int, eos_ids: Sequence[int]
) -> Vocabulary:
    """Look a profile up in a tokenizer; ``size`` is the number of logits.

    Raises ``UserError`` when the tokenizer cannot spell the profile's texts, spells them with
    tokens that have no logit, or nothing ends a sequence.
    """
    exit_ids = _spell(tokenizer, profile, "exit text", profile.exit_text, size)
    probe_ids = _spell(tokenizer, profile, "probe cue", profile.probe_cue, size)
    end_ids = _spell(tokenizer, profile, "end of thinking", profile.end_of_thinking, size)
    eos_ids = [token for token in eos_ids if token < size]
    if not eos_ids:
        raise UserError("the model names no end-of-sequence token: set eos_token_id in its config")
    if len(end_ids) == 1:
        first = {end_ids[0]}
    else:
        spaced = trusted_ids(tokenizer, " " + profile.end_of_thinking)
        first = {token for token in (end_ids[0], spaced[0]) if token < size}
    stops = {trusted_ids(tokenizer, stop)[0] for stop in profile.probe_stop}
    stops = {token for token in stops if token < size}
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    pieces = [piece or "" for piece in pieces] + [""] * (size - len(pieces))
    return Vocabulary(
        tokenizer=tokenizer,
        eos_ids=np.array(sorted(set(eos_ids)), dtype=np.int64),
        end_id=end_ids[0] if len(end_ids) == 1 else None,
        end_text=profile.end_of_thinking,
        end_first_ids=np.array(sorted(first), dtype=np.int64),
        end_window=2 * len(end_ids) + 2,
        exit_ids=exit_ids,
        probe_ids=probe_ids,
        answer_end_ids=np.array(sorted(stops.union(eos_ids)), dtype=np.int64),
        pieces=tuple(pieces),
        markers=marker_table(pieces),
    )


def _spell(tokenizer: Any, profile: Profile, what: str, text: str, size: int) -> tuple[int, ...]:
    ids = trusted_ids(tokenizer, text)
    back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if not ids or str(back).strip() != text.strip():
        raise UserError(
            f"this model's tokenizer cannot spell the {what} {text!r} of the profile"
            f" {profile.name!r} (it gives {str(back)!r}); choose another profile"
        )
    if max(ids) >= size:
        raise UserError(
            f"this model's tokenizer spells the {what} {text!r} of the profile {profile.name!r}"
            f" with token {max(ids)}, and the model has {size} logits only: its matrices were not"
            " resized to its tokenizer; choose another profile or resize them"
        )
    return tuple(int(token) for token in ids)
