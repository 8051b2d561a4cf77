"""Text as token ids: our own, in which control tokens count, and a user's, in which none does."""

from __future__ import annotations

import itertools
import re
from functools import lru_cache
from typing import Any

from rlbudget.errors import UserError

_MARK = re.compile(r"<[|\uff5c].*[|\uff5c]>")
_TAG = re.compile(r"\s*[<\[|].*[>\]|]\s*", re.DOTALL)


def trusted_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a profile's own text, in which special tokens count."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def literal_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of text that is not ours: a control token spelled in it stays plain text.

    Raises ``UserError`` for text with a lone surrogate, which no encoding holds.
    """
    check_text(text)
    return _apart(tokenizer, text, _controls(tokenizer, len(tokenizer)))


def control_ids(tokenizer: Any, ids: list[int]) -> list[int]:
    """Those of the ids that are control tokens, in their order."""
    controls = _controls(tokenizer, len(tokenizer))
    return [token for token in ids if token in controls]


def marks_of(tokenizer: Any) -> set[int]:
    """The special tokens, and those like ``<|user|>`` that were added as ordinary ones."""
    added = tokenizer.added_tokens_decoder.items()
    marks = {int(t) for t, one in added if one.special or _MARK.fullmatch(one.content.strip())}
    return marks.union(map(int, tokenizer.all_special_ids))


def check_text(text: str) -> None:
    """Raise ``UserError`` for a lone surrogate: half a character, or bytes that are no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"character {error.start} of the text is {text[error.start]!a}, a lone surrogate,"
            " which is no text: was it read with the right encoding?"
        ) from None


def _apart(tokenizer: Any, text: str, controls: dict[int, str]) -> list[int]:
    ids = list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    spelled = sorted({controls[token].strip() for token in ids if token in controls}, key=len)
    if not spelled or len(text) < 2:
        return [token for token in ids if token not in controls]
    # Tags that were added as ordinary tokens are found in spite of the setting: cut them.
    inside = "|".join(re.escape(content) for content in reversed(spelled))
    cuts = [(m.start() + m.end()) // 2 for m in re.finditer(inside, text)] or [len(text) // 2]
    edges = [0, *cuts, len(text)]
    pieces = (text[a:b] for a, b in itertools.pairwise(edges))
    return [token for piece in pieces for token in _apart(tokenizer, piece, controls)]


@lru_cache(maxsize=8)
def _controls(tokenizer: Any, size: int) -> dict[int, str]:
    """id -> content of the special tokens, and of the tags that were added as ordinary ones."""
    special = set(tokenizer.all_special_ids)
    unknown = tokenizer.unk_token_id  # what no token spells controls nothing
    if unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        unknown = None
    return {
        int(token): added.content
        for token, added in tokenizer.added_tokens_decoder.items()
        if token != unknown and (added.special or token in special or _TAG.fullmatch(added.content))
    }
