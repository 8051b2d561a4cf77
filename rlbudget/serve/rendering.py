"""Chats that are rendered here, where the server was seen to render them alike: a round trip less.

Only what leaves no doubt: a few texts, by their roles, without anything that may be a control token
or a setting of the template. All else is the server's to render.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlbudget.errors import UserError
from rlbudget.models.chat import has_template
from rlbudget.models.site import ServerError

_MOST = 8_000
"""characters of a chat: more would hold the other streams up"""
_PLAIN = {"role", "content"}
_ROLES = frozenset({"system", "user", "assistant"})
_SAMPLES: Sequence[Sequence[Mapping[str, str]]] = (
    ({"role": "user", "content": "1"},),
    ({"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": " A\n\nb  c "}),
    ({"role": "user", "content": "x"}, {"role": "assistant", "content": "y\n"},
     {"role": "user", "content": "\u00e9\u4e2d\U0001f600 it's 3.5%"}),
)  # fmt: skip

Asks = Callable[[Sequence[Mapping[str, str]]], Awaitable[list[int]]]


@dataclass(frozen=True, slots=True)
class Rendering:
    """The template of a tokenizer; made by ``find_rendering``."""

    tokenizer: Any = field(repr=False)
    marks: frozenset[str]
    """characters with which control tokens begin"""

    def ids(self, messages: Sequence[Any]) -> list[int] | None:
        """Token ids of a chat up to the model's turn; None where it is not plain enough."""
        if not all(map(self._plain, messages)):
            return None
        if sum(len(message["content"]) for message in messages) > _MOST:
            return None
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            encoded = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        except Exception:  # a template is a program of somebody else's: the server may do better
            return None
        return list(encoded.ids)

    def _plain(self, message: Any) -> bool:
        if message.keys() != _PLAIN or message["role"] not in _ROLES:
            return False
        content = message["content"]
        return isinstance(content, str) and self.marks.isdisjoint(content)


async def find_rendering(tokenizer: Any, asks: Asks) -> Rendering | None:
    """That of a server which was seen to render some chats in the same way; else None.

    ``asks`` lets it render one. Raises nothing of what the server says.
    """
    if not has_template(tokenizer) or not hasattr(tokenizer, "backend_tokenizer"):
        return None
    added = (one.content.strip() for one in tokenizer.added_tokens_decoder.values())
    found = Rendering(tokenizer, frozenset(text[0] for text in added if text))
    seen = 0
    for messages in _SAMPLES:
        here = found.ids(messages)
        if here is None:  # the template knows no such role, say: the server is asked for those
            continue
        try:
            if await asks(messages) != here:
                return None
        except (ServerError, UserError):
            return None
        seen += 1
    return found if seen else None
