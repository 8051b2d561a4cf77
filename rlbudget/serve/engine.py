"""An upstream that cuts by itself: a vLLM with our logits processor.

The gateway tells it price, policy, budget and ``off`` in ``vllm_xargs``, and reads off its tokens
what it did. It is known by its refusal of an argument that only our processor reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

from rlbudget.decoding.core import VLLM, Core, refusals
from rlbudget.decoding.wanted import Wanted
from rlbudget.errors import UserError
from rlbudget.integrations.engine_settings import PREFIX, Settings, check_room, identity
from rlbudget.models.site import ServerError
from rlbudget.models.wire import Endpoint
from rlbudget.policy.dial import DIALS
from rlbudget.signals.questions import CONTEXT_SIGNALS

XARGS = "vllm_xargs"
OFF: Mapping[str, Any] = {PREFIX + "off": 1}
"""what leaves a request alone"""
_UNKNOWN = PREFIX + "is_this_our_processor"
_SAID = 400
"""characters of a refusal that are told"""


async def has_processor(endpoint: Endpoint, model: str) -> bool:
    """Whether the server at ``endpoint`` (below ``/v1``) decodes with our processor."""
    said = await _refusal(endpoint, model, {_UNKNOWN: 1})
    return said is not None and f"no argument '{_UNKNOWN}'" in said


async def disagreement(endpoint: Endpoint, model: str, settings: Settings) -> str | None:
    """Why its processor cannot cut for the gateway, in a line; None where it can, for its plans
    are the gateway's."""  # fmt: skip
    for name, plan in settings.plans.items():
        for line in refusals(plan, VLLM):
            return line
        asked = {f"{PREFIX}policy": name, f"{PREFIX}fingerprint": identity(settings, name), **OFF}
        said = await _refusal(endpoint, model, asked)
        if said is not None:
            return said
    return None


async def _refusal(endpoint: Endpoint, model: str, xargs: Mapping[str, Any]) -> str | None:
    """What it says against a request with these arguments; None where it answers it."""
    body = {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0.0, XARGS: xargs}
    clock = endpoint.clock(whole=True)
    try:
        answer = await endpoint.fetch("completions", body, clock)
    except ServerError as error:
        return str(error)[:_SAID]
    if answer.status == 200:
        return None
    return _message(answer.content)


def _message(content: bytes) -> str:
    try:
        said = orjson.loads(content)
        said = said.get("error", said)
        return str(said["message"])[:_SAID]
    except (ValueError, TypeError, KeyError, AttributeError):
        return content[:_SAID].decode(errors="replace")


def xargs_for(wanted: Wanted, core: Core, settings: Settings, limit: int | None) -> dict[str, Any]:
    """What tells the processor of one request; ``UserError`` where ``limit`` tokens leave no room
    to think."""  # fmt: skip
    check_room(wanted, settings, limit)
    if wanted.off:
        return dict(OFF)
    said = dict(wanted.said or {})
    needed = {feature.partition(".")[0] for feature in core.plan.features}
    if core.composed is None and core.log is None and not needed & set(CONTEXT_SIGNALS):
        said.pop("question", None)
    if "metadata" in said:
        said["metadata"] = json.dumps(said["metadata"])
    dial = wanted.dial
    told = {name: getattr(dial, name) for name in DIALS if getattr(dial, name) is not None}
    if not told:
        spot = core.spot()
        told = {"token_price": spot.token_price} if spot.stops == "policy" else {
            name: getattr(core.plan.dial, name)
            for name in DIALS if getattr(core.plan.dial, name) is not None
        }  # fmt: skip
    if wanted.thinking_budget is not None:
        told["thinking_budget"] = wanted.thinking_budget
    return {PREFIX + name: value for name, value in {"policy": wanted.name, **told, **said}.items()}


def with_xargs(fields: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """A body whose arguments for the processor are ours, and whose others are the client's."""
    given = fields.get(XARGS)
    if given is not None and not isinstance(given, Mapping):
        raise UserError(f"{XARGS}: an object is needed")
    others = {n: v for n, v in (given or {}).items() if not str(n).startswith(PREFIX)}
    return {**fields, XARGS: {**others, **ours}}
