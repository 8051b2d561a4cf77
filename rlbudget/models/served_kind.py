"""What a server on the other side of an address is: its kind, its models, its context."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlbudget.errors import UserError
from rlbudget.models.asking import ask_once
from rlbudget.models.completions import Endpoint
from rlbudget.models.wire import ServerError

Kind = Literal["vllm", "sglang", "llama-server", "openai"]

_OWNERS: Mapping[str, Kind] = {
    "vllm": "vllm", "sglang": "sglang", "llamacpp": "llama-server",
}  # fmt: skip
_TELLTALE: Mapping[Kind, tuple[str, str]] = {
    "sglang": ("/get_server_info", "attention_backend"),
    "llama-server": ("/props", "default_generation_settings"),
    "vllm": ("/version", "version"),
}
"""kind -> a route that only this server has, and a field of its answer"""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found at an address."""

    kind: Kind
    model: str
    """the name that requests say"""
    weights: str | None
    """folder or hub name of the model, where the server tells it"""
    context: int | None
    """most tokens of prompt and completion, where it tells"""
    size: int | None
    """tokens of the vocabulary, where it tells"""


def root_of(endpoint: Endpoint) -> str:
    """The address without ``/v1``: where servers keep routes that are not OpenAI's."""
    return endpoint.site.url.rstrip("/").removesuffix("/v1")


async def find(endpoint: Endpoint, wanted: str | None, *, seconds: float) -> Found:
    """Look at a server and at the model ``wanted``, by default the first that it lists.

    Raises ``UserError`` where there are no models, or not this one, and where the key is not
    taken; ``ServerError`` where nobody answers.
    """
    entries = await _models(endpoint, seconds)
    names = [str(entry["id"]) for entry in entries]
    if wanted is not None and wanted not in names:
        raise UserError(
            f"{endpoint.site.name} serves no model {wanted!r}; it serves: {', '.join(names[:8])}"
        )
    entry = entries[0 if wanted is None else names.index(wanted)]
    kind = _OWNERS.get(str(entry.get("owned_by", "")).lower())
    if kind is None:
        kind = await _by_routes(endpoint, seconds)
    meta = entry.get("meta") or {}
    root = entry.get("root")
    return Found(
        kind=kind,
        model=str(entry["id"]),
        weights=str(root) if root else None,
        context=_number(entry.get("max_model_len") or meta.get("n_ctx")),
        size=_number(meta.get("n_vocab")),
    )


async def _models(endpoint: Endpoint, seconds: float) -> Sequence[dict[str, Any]]:
    site = endpoint.site
    advice = "is this the address of an OpenAI-compatible server, ending in /v1?"
    try:
        found = await ask_once(endpoint, "models", None, seconds)
    except UserError as error:
        if "does not accept the key" in str(error):
            raise
        status = re.search(r"status \d+", str(error))
        said = status[0] if status else str(error)
        raise UserError(f"{site.name} lists no models ({said}): {advice}") from None
    except ServerError as error:
        if "cannot be read" in str(error):
            raise UserError(f"{site.name} answers something that is no JSON: {advice}") from None
        raise
    data = found.get("data") if isinstance(found, dict) else None
    listed = [one for one in data or () if isinstance(one, dict) and "id" in one]
    if not listed:
        raise UserError(f"{site.name} lists no models: {advice}")
    return listed


async def _by_routes(endpoint: Endpoint, seconds: float) -> Kind:
    for kind, (route, field) in _TELLTALE.items():
        try:
            found = await ask_once(endpoint, root_of(endpoint) + route, None, seconds)
        except (UserError, ServerError):
            continue
        if isinstance(found, dict) and field in found:
            return kind
    return "openai"


def _number(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and value > 0 else None
