"""What a client asks of the gateway beside the model's own fields: in the body, or in headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from rlbudget.decoding.wanted import Wanted
from rlbudget.errors import UserError
from rlbudget.integrations.engine_settings import Settings, wish_of
from rlbudget.policy.dial import DIALS

OURS = "rlbudget"
"""the object of a body that is for the gateway alone"""
HEADER = "x-rlbudget-"
"""headers for clients that cannot set a body"""
BUDGETS = ("thinking_token_budget", "thinking_budget", "thinking_budget_tokens",
           "reasoning_budget", "max_thinking_tokens")  # fmt: skip
"""names by which clients know a cap on thinking tokens"""
EFFORTS: Mapping[str, str] = {"xhigh": "max"}
"""OpenAI's names for which policies have no operating point of their own"""
_FIELDS = ("token_price", "effort", "max_em_loss", "answer_worth", "price_per_million", "policy",
           "off", "task", "metadata", "question", "request_id", "thinking_budget")  # fmt: skip
_NUMBERS = ("token_price", "max_em_loss", "answer_worth", "price_per_million")
_NOTED = ("priority", "user")
_UNHEARD: Mapping[str, tuple[Any, ...]] = {
    "service_tier": ("auto", "default"), "verbosity": ("medium",), "store": (False,),
    "include_reasoning": (True,),
}  # fmt: skip
"""fields of a chat that a steered request does not honour, and what is so anyway"""
_MOST_HEADER = 4096
_MOST_TOLD = 400


@dataclass(frozen=True, slots=True)
class Wishes:
    """What one request asks for."""

    wanted: Wanted
    body: Mapping[str, Any]
    """the request without what is for the gateway alone"""
    not_honoured: tuple[str, ...] = ()
    """what was asked for and cannot be given, a line each"""


def wishes_of(body: Mapping[str, Any], headers: Mapping[str, str], settings: Settings) -> Wishes:
    """Read a request; ``UserError`` for a value of the wrong kind or one that is not served.

    An effort in ``reasoning_effort`` that the policy has no operating point for is told as not
    honoured, for clients send it to every model; one in ``rlbudget.effort`` is an error.
    """
    own = body.get(OURS, {})
    if not isinstance(own, Mapping):
        raise UserError(f"{OURS}: an object, not {_shown(own)}")
    given = {**_of_headers(headers), **own}
    if unknown := sorted(set(given) - {*_FIELDS, *_NOTED}):
        there = ", ".join((*_FIELDS, *_NOTED))
        raise UserError(f"{OURS}: no field {unknown[0]!r}; there are: {there}")
    rest = {name: value for name, value in body.items() if name != OURS}
    budget = _budget(rest)
    if budget is not None and "thinking_budget" not in given:
        if budget == 0:
            given.setdefault("effort", "none")
        else:
            given["thinking_budget"] = budget
    metadata = _object(given.pop("metadata", None))
    for name in _NOTED:
        if name in given:
            metadata.setdefault(name, given.pop(name))
    if metadata:
        given["metadata"] = metadata
    prefixed = {f"{OURS}.{name}": value for name, value in given.items()}
    effort = _effort(rest)
    refused: tuple[str, ...] = ()
    if effort is not None and not any(given.get(name) is not None for name in DIALS):
        try:
            asked = {**prefixed, f"{OURS}.effort": effort}
            return Wishes(wish_of(asked, settings, f"{OURS}."), rest)
        except UserError as error:
            refused = (f"reasoning_effort {_shown(effort)}: {error}"[:_MOST_TOLD],)
    return Wishes(wish_of(prefixed, settings, f"{OURS}."), rest, refused)


def unheard(body: Mapping[str, Any]) -> tuple[str, ...]:
    """What a steered request asks for and does not get, a line each."""
    return tuple(
        f"{name}: not known to a steered request; rlbudget.off passes it on"
        for name, usual in _UNHEARD.items()
        if body.get(name) is not None and body[name] not in usual
    )


def _of_headers(headers: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for header, value in headers.items():
        if not header.startswith(HEADER):
            continue
        name = header.removeprefix(HEADER).replace("-", "_")
        if len(value) > _MOST_HEADER:
            raise UserError(f"the header {header} is longer than {_MOST_HEADER} characters")
        found[name] = _read_header(header, name, value.strip())
    return found


def _read_header(header: str, name: str, value: str) -> Any:
    try:
        if name in _NUMBERS:
            return float(value)
        if name == "thinking_budget":
            return int(value)
    except ValueError:
        raise UserError(f"the header {header}: {value[:80]!r} is not a number") from None
    if name == "off":
        if value.lower() not in ("true", "false", "1", "0"):
            raise UserError(f"the header {header}: true or false, not {value[:80]!r}")
        return value.lower() in ("true", "1")
    return value


def _object(given: Any) -> dict[str, Any]:
    if isinstance(given, str):
        try:
            given = orjson.loads(given)
        except orjson.JSONDecodeError:
            raise UserError(f"{OURS}.metadata: no JSON object") from None
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UserError(f"{OURS}.metadata: an object, not {_shown(given)}")
    return dict(given)


def _budget(body: Mapping[str, Any]) -> int | None:
    """A cap on thinking tokens by any of its names; 0 for no thinking, None for no cap."""
    named = {name: body[name] for name in BUDGETS if body.get(name) is not None}
    for name, key in (("thinking", "budget_tokens"), ("reasoning", "max_tokens")):
        part = body.get(name)
        if isinstance(part, Mapping) and part.get(key) is not None:
            named[f"{name}.{key}"] = part[key]
    thinking = body.get("thinking")
    if isinstance(thinking, Mapping) and thinking.get("type") == "disabled":
        named["thinking.type"] = 0
    for name, value in named.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < -1:
            raise UserError(f"{name}: a whole number of tokens, not {_shown(value)}")
    caps = [value for value in named.values() if value >= 0]
    return min(caps, default=None)


def _effort(body: Mapping[str, Any]) -> str | None:
    value = body.get("reasoning_effort")
    part = body.get("reasoning")
    if value is None and isinstance(part, Mapping):
        value = part.get("effort")
    if value is None:
        return None
    if not isinstance(value, str):
        raise UserError(f"reasoning_effort: a text, not {_shown(value)}")
    return EFFORTS.get(value, value)


def _shown(value: Any) -> str:
    return repr(value)[:80]
