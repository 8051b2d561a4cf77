"""What a server on the other side of an address is: its kind, its models, its context."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlbudget.errors import UserError
from rlbudget.models.asking import ask_once, root_of
from rlbudget.models.messages import Listing, Model, Telltale
from rlbudget.models.openai_server import models_in
from rlbudget.models.site import ServerError
from rlbudget.models.wire import ROOM, Endpoint

Kind = Literal["vllm", "sglang", "llama-server", "openai"]

_OWNERS: Mapping[str, Kind] = {
    "vllm": "vllm", "sglang": "sglang", "llamacpp": "llama-server",
}  # fmt: skip
_TELLTALE: Mapping[Kind, tuple[str, str]] = {
    "sglang": ("get_server_info", "attention_backend"),
    "llama-server": ("props", "default_generation_settings"),
    "vllm": ("version", "version"),
}
"""kind -> a route that only this server has, and a field of its answer"""
_ADVICE = "is this the address of an OpenAI-compatible server, ending in /v1?"


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


async def find(endpoint: Endpoint, wanted: str | None) -> Found:
    """Look at a server and at the model ``wanted``, by default the first that it lists.

    Raises ``UserError`` where there are no models, or not this one, and where the key is not
    taken; ``ServerError`` where nobody answers.
    """
    models = await _models(endpoint)
    names = [one.id for one in models]
    if wanted is not None and wanted not in names:
        raise UserError(
            f"{endpoint.site.name} serves no model {wanted!r}; it serves: {', '.join(names[:8])}"
        )
    model = models[0 if wanted is None else names.index(wanted)]
    kind = _OWNERS.get((model.owned_by or "").lower()) or await _by_routes(endpoint)
    room = model.max_model_len or (model.meta.n_ctx if model.meta else None) or 0
    size = (model.meta.n_vocab if model.meta else None) or 0
    return Found(kind, model.id, model.root, room if room > 0 else None, size or None)


async def _models(endpoint: Endpoint) -> Sequence[Model]:
    name = endpoint.site.name
    try:
        found = await ask_once(endpoint, Listing, "models", most=4 * ROOM)
    except UserError as error:
        if "does not accept the key" in str(error):
            raise
        status = re.search(r"status \d+", str(error))
        said = status[0] if status else str(error)
        raise UserError(f"{name} lists no models ({said}): {_ADVICE}") from None
    except ServerError as error:
        if "cannot be read" not in str(error):
            raise
        raise UserError(f"{name} answers something that is no JSON: {_ADVICE}") from None
    models = list(models_in(found))
    if not models:
        raise UserError(f"{name} lists no models: {_ADVICE}")
    return models


async def _by_routes(endpoint: Endpoint) -> Kind:
    for kind, (route, field) in _TELLTALE.items():
        try:
            found = await ask_once(root_of(endpoint), Telltale, route)
        except (UserError, ServerError):
            continue
        if getattr(found, field) is not None:
            return kind
    return "openai"
