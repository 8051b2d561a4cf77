"""What an OpenAI-compatible server is: its models, and what its completions give and take."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import aclosing, suppress
from typing import Any

import msgspec

from rlbudget.errors import UserError
from rlbudget.models.completions import Prompt, Stream, Token, spelling_of
from rlbudget.models.messages import Listing, Model, read
from rlbudget.models.profiles import Profile
from rlbudget.models.site import KeyRefusedError, ServerError
from rlbudget.models.vocabulary import Vocabulary
from rlbudget.models.wire import NEUTRAL, ROOM, Endpoint

_IDS: Mapping[str, Any] = {
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "skip_special_tokens": False,
}
_TEXT: Mapping[str, Any] = {"skip_special_tokens": False, "add_special_tokens": False}
_SPARE_FIELDS: Mapping[str, Any] = {
    **NEUTRAL,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}
_ENTRIES = 10_000
"""Models that are looked at."""
_NAME = 1000
"""Characters of a model's name."""
_EVERYWHERE = frozenset({"top_p", "presence_penalty", "frequency_penalty"})


async def find_model(endpoint: Endpoint, wanted: str | None) -> tuple[str, int | None]:
    """The model's name and its context, as far as the server tells.

    Raises ``UserError`` where none is ``wanted`` and none is listed, ``ServerError`` for a server
    that cannot be reached.
    """
    site, patience, clock = endpoint.site, endpoint.patience, endpoint.clock(whole=True)
    while True:
        try:
            answer = await endpoint.fetch("models", None, clock, most=4 * ROOM)
        except ServerError as error:
            raise ServerError(f"cannot reach {error}") from None
        try:
            if wanted is None or answer.status in (401, 403):
                site.check(answer.status, answer.content, answer.headers)
            break
        except ServerError as error:
            await asyncio.sleep(clock.pause(patience, error))
    listed = Listing()
    with suppress(msgspec.MsgspecError, ValueError, RecursionError):
        listed = read(Listing, answer.content)
    for model in models_in(listed):
        if wanted in (None, model.id):
            known = model.max_model_len or (model.meta.n_ctx if model.meta else None) or 0
            return model.id, known if known > 0 else None
    if wanted is None:
        raise UserError(f"{site.name} lists no models: name one, and let the address end in /v1")
    return wanted, None


def models_in(listing: Listing) -> Iterator[Model]:
    """The entries that are models; what else a server lists is passed over."""
    for entry in (listing.data or ())[:_ENTRIES]:
        try:
            model = read(Model, bytes(entry))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue
        if model.id.isprintable() and 0 < len(model.id) <= _NAME:
            yield model


async def look(
    endpoint: Endpoint, own: dict[str, Any], profile: Profile, vocabulary: Vocabulary
) -> tuple[bool, Mapping[str, Any], Token, bool]:
    """Ask for one token, first with everything one could wish for, then with less.

    Returns whether token ids go both ways, the fields of all requests, the token, and whether the
    server names tokens by their text. A field that a refusal names is left out from then on.
    """
    ids = profile.prompt("1", vocabulary.tokenizer)
    text = vocabulary.text(ids, special=True)
    ways: list[tuple[Mapping[str, Any], bool]] = [
        (_IDS, True), ({}, True), (_TEXT, False), ({}, False),
    ]  # fmt: skip
    spelling, refused, clock = spelling_of(vocabulary), UserError(""), endpoint.clock()
    left_out: set[str] = set()
    spare = set(_SPARE_FIELDS)
    for less in (set[str](), spare - _EVERYWHERE, spare):
        left_out |= less
        for extra, by_ids in ways:
            named: set[str] | None = None
            while named is None or named:
                wished = {**_SPARE_FIELDS, **extra}
                asked = {n: value for n, value in wished.items() if n not in left_out} | own
                stream = Stream(
                    endpoint, spelling, Prompt([*ids], text, by_ids), 1,
                    asked | {"temperature": 0.0}, endpoint.patience, clock,
                )  # fmt: skip
                try:
                    async with aclosing(stream.tokens()) as tokens:
                        first = await anext(tokens, Token(0, ""))
                except KeyRefusedError:
                    raise
                except UserError as error:
                    refused, said = error, str(error)
                    named = {n for n in asked if n in wished and n not in own and n in said}
                    left_out |= named
                    continue
                reader = stream.readers[-1]
                if reader.ids_given or not by_ids or first.logprob is None:
                    by_text = not reader.ids_given or reader.names_given
                    return by_ids and reader.ids_given, asked, first, by_text
                named = set()
    raise refused
