"""What an OpenAI-compatible server is: its models, and what its completions give and take."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from rlbudget.errors import UserError
from rlbudget.models.completions import Endpoint, Prompt, Stream, Token, spelling_of
from rlbudget.models.profiles import Profile
from rlbudget.models.vocabulary import Vocabulary
from rlbudget.models.wire import NEUTRAL, ServerError, httpx, loads

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
_EVERYWHERE = frozenset({"top_p", "presence_penalty", "frequency_penalty"})


async def find_model(endpoint: Endpoint, wanted: str | None) -> tuple[str, int | None]:
    """The model's name and its context, as far as the server tells."""
    site, patience = endpoint.site, endpoint.patience
    while True:
        try:
            response = await endpoint.client.get("models")
            if wanted is None or response.status_code in (401, 403):
                site.check(response)
            break
        except httpx.TransportError as error:
            what = site.clean(str(error)) or type(error).__name__
            raise ServerError(f"cannot reach {site.name}: {what}") from None
        except ServerError as error:
            await asyncio.sleep(patience.pause(error))
    listed: list[dict[str, Any]] = []
    try:
        listed = [entry for entry in loads(response.content)["data"] if "id" in entry]
    except (ValueError, LookupError, TypeError):
        if wanted is None:
            raise UserError(
                f"{site.name} lists no models: name one, and let the address end in /v1"
            ) from None
    if wanted is None and not listed:
        raise UserError(f"{site.name} lists no models: name one")
    entry = next((e for e in listed if wanted in (None, e["id"])), {})
    room = entry.get("max_model_len") or (entry.get("meta") or {}).get("n_ctx")
    return str(wanted or entry["id"]), int(room) if room else None


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
    spelling, refused = spelling_of(vocabulary), UserError("")
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
                    asked | {"temperature": 0.0}, endpoint.patience,
                )  # fmt: skip
                try:
                    async with aclosing(stream.tokens()) as tokens:
                        first = await anext(tokens, Token(0, ""))
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
