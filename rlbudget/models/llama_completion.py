"""llama-server's own ``/completion``: token ids in, token ids and what is listed of them out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from rlbudget.errors import UserError
from rlbudget.models.caller import Caller
from rlbudget.models.completions import Spelling, aligned
from rlbudget.models.messages import Completion, Listed, Listing, Model, Tokens, listed_token, read
from rlbudget.models.patience import Patience
from rlbudget.models.profiles import Profile, trusted_ids
from rlbudget.models.site import ServerError
from rlbudget.models.wire import NEUTRAL, ROOM, room_for

PLAIN: Mapping[str, Any] = {**NEUTRAL, "samplers": ["temperature"]}
"""The temperature alone: the server's own cuts would sample from another distribution."""

ENDS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
    "<|eom_id|>", "< EOT >", "_<EOT>", "<end_of_utterance>", "<|return|>", "<|call|>",
})  # fmt: skip
"""Tokens that llama.cpp takes for an end of sequence by their text alone."""

_VOCABULARY = 1 << 22
"""Tokens that no vocabulary exceeds."""
_FIELDS = ("tokens", "completion_probabilities", "stop_type", "tokens_predicted")


@dataclass(frozen=True, slots=True)
class Reply:
    """What one request gave."""

    tokens: list[int]
    """without an end that only the server knows"""
    listed: list[Listed | None]
    """of each token, what was listed beside it"""
    ended: bool
    """whether the model ended the sequence"""
    paid: int
    """tokens that the server made"""


def complete(
    caller: Caller,
    spelling: Spelling,
    ids: Sequence[int],
    n: int,
    settings: Mapping[str, Any],
    patience: Patience,
) -> Reply:
    """At most ``n`` tokens after ``ids``; raises as ``Caller.ask`` does."""
    body = {
        "prompt": list(ids),
        "n_predict": n,
        "cache_prompt": True,
        "return_tokens": True,
        "response_fields": _FIELDS,
        **PLAIN,
        **settings,
    }
    clock = caller.endpoint.clock(whole=True)
    most = room_for(n, int(settings.get("n_probs", 0)))
    while True:
        found = caller.ask(
            Completion, "/completion", body, patience=patience, clock=clock, most=most
        )
        try:
            return read_reply(spelling, found, n)
        except ServerError as error:
            fault = ServerError(f"{caller.site.name}: {error}")
        time.sleep(clock.pause(patience, fault))


def read_reply(spelling: Spelling, found: Completion, n: int) -> Reply:
    """The reply in a server's message, where ``n`` tokens were asked for.

    Raises ``ServerError`` where it holds nothing, or what names no token, and ``UserError`` for
    tokens that the tokenizer does not have.
    """
    tokens = [spelling.known(token) for token in (found.tokens or ())[:n]]
    ended = found.stop_type == "eos"
    if not tokens and not ended:
        raise ServerError("it sent no tokens")
    ends = [place for place, token in enumerate(tokens) if token in spelling.ends]
    if ends:
        tokens, ended = tokens[: ends[0] + 1], True  # padding follows an end
    unknown = ended and not ends and bool(tokens) and spelling.may_end(tokens[-1])
    paid = len(tokens) + int(ended and not ends and not unknown)
    predicted = found.tokens_predicted
    if predicted is not None and predicted <= n + 1 and not ends:
        paid = max(len(tokens), predicted)
    try:
        entries = (found.completion_probabilities or ())[: len(tokens)]
        listed = [listed_token(entry) for entry in entries]
    except ValueError as error:
        raise ServerError(str(error)) from None
    keys = [spelling.id(one.key) for one in listed]
    beside = aligned(tokens, keys, listed, spelling) or [None] * len(tokens)
    known = len(tokens) - unknown
    return Reply(tokens[:known], beside[:known], ended, paid)


def look(caller: Caller) -> tuple[int, int]:
    """The size of the vocabulary and the context of one request."""
    found = caller.ask(Listing, "/v1/models", most=4 * ROOM)
    with suppress(msgspec.MsgspecError, ValueError, RecursionError, IndexError):
        meta = read(Model, bytes((found.data or [])[0])).meta
        if meta and 0 < (meta.n_vocab or 0) <= _VOCABULARY and (meta.n_ctx or 0) > 0:
            return meta.n_vocab or 0, meta.n_ctx or 0
    raise UserError(
        f"{caller.site.name} is no llama-server of 2026 or later: for another OpenAI-compatible"
        " server use rlbudget.integrations.openai"
    )


def check_spelling(caller: Caller, profile: Profile, tokenizer: Any) -> None:
    """The server's tokenizer must spell the exit text as ours does."""
    body = {"content": profile.exit_text, "add_special": False, "parse_special": True}
    if caller.ask(Tokens, "/tokenize", body).tokens != trusted_ids(tokenizer, profile.exit_text):
        raise UserError(
            f"the server's model spells the exit text {profile.exit_text!r} in other tokens than"
            " this tokenizer: name the tokenizer of the served model"
        )
