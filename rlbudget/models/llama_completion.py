"""llama-server's own ``/completion``: token ids in, token ids and what is listed of them out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlbudget.errors import UserError
from rlbudget.models.completions import Listed, Spelling, aligned, listed_token
from rlbudget.models.profiles import Profile, trusted_ids
from rlbudget.models.wire import NEUTRAL, Caller, Patience, ServerError

PLAIN: Mapping[str, Any] = {**NEUTRAL, "samplers": ["temperature"]}
"""The temperature alone: the server's own cuts would sample from another distribution."""

ENDS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
    "<|eom_id|>", "< EOT >", "_<EOT>", "<end_of_utterance>", "<|return|>", "<|call|>",
})  # fmt: skip
"""Tokens that llama.cpp takes for an end of sequence by their text alone."""

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
    while True:
        found = caller.ask("/completion", body, patience)
        try:
            return read_reply(spelling, found)
        except UserError:
            raise
        except ServerError as error:
            fault = ServerError(f"{caller.site.name}: {error}")
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            fault = caller.site.fault(error)
        time.sleep(patience.pause(fault))


def read_reply(spelling: Spelling, found: Mapping[str, Any]) -> Reply:
    """The reply in a server's JSON object; ``ServerError`` where it holds nothing."""
    tokens = [int(token) for token in found.get("tokens") or ()]
    ended = found.get("stop_type") == "eos"
    if not tokens and not ended:
        raise ServerError("it sent no tokens")
    ends = [place for place, token in enumerate(tokens) if token in spelling.ends]
    if ends:
        tokens, ended = tokens[: ends[0] + 1], True  # padding follows an end
    unknown = ended and not ends and bool(tokens) and spelling.may_end(tokens[-1])
    paid = len(tokens) + int(ended and not ends and not unknown)
    predicted = found.get("tokens_predicted")
    if isinstance(predicted, int) and not ends:
        paid = max(len(tokens), predicted)
    listed = [listed_token(item) for item in found.get("completion_probabilities") or ()]
    listed = listed[: len(tokens)]
    keys = [spelling.id(one.key) for one in listed]
    beside = aligned(tokens, keys, listed, spelling) or [None] * len(tokens)
    known = len(tokens) - unknown
    return Reply(tokens[:known], beside[:known], ended, paid)


def look(caller: Caller) -> tuple[int, int]:
    """The size of the vocabulary and the context of one request."""
    found = caller.ask("/v1/models")
    try:
        meta = found["data"][0]["meta"]
        return int(meta["n_vocab"]), int(meta["n_ctx"])
    except (LookupError, TypeError, ValueError):
        raise UserError(
            f"{caller.site.name} is no llama-server of 2026 or later: for another OpenAI-compatible"
            " server use rlbudget.integrations.openai"
        ) from None


def check_spelling(caller: Caller, profile: Profile, tokenizer: Any) -> None:
    """The server's tokenizer must spell the exit text as ours does."""
    body = {"content": profile.exit_text, "add_special": False, "parse_special": True}
    found = caller.ask("/tokenize", body).get("tokens")
    if found != trusted_ids(tokenizer, profile.exit_text):
        raise UserError(
            f"the server's model spells the exit text {profile.exit_text!r} in other tokens than"
            " this tokenizer: name the tokenizer of the served model"
        )
