"""What the gateway serves, as OpenAPI: ``/openapi.json``. What passes through is the upstream's."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from rlbudget.serve.wishes import BUDGETS, OURS

_Schema = Mapping[str, Any]

_TEXT: _Schema = {"type": "string"}
_EVENT: _Schema = {"type": "object", "required": ["data"], "properties": {"data": _TEXT}}
_COUNT: _Schema = {"type": "integer", "minimum": 1}
_SHARE: _Schema = {"type": "number", "minimum": 0, "maximum": 1}
_CAP: _Schema = {"type": "integer", "minimum": -1, "description": "thinking tokens; -1: no cap"}
_ERROR: _Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": "integer"},
            },
        }
    },
}
_SAID: Mapping[str, str] = {
    "400": "a field, a header or the body is wrong", "401": "the key is not known here",
    "404": "no such model", "408": "the body did not come in time", "429": "too many requests",
    "502": "the upstream failed", "503": "the gateway is about to end",
}  # fmt: skip
_WISHES: _Schema = {
    "type": "object",
    "description": "for the gateway alone",
    "additionalProperties": False,
    "properties": {
        "token_price": {"type": "number", "minimum": 0},
        "effort": _TEXT,
        "max_em_loss": _SHARE,
        "answer_worth": {"type": "number", "exclusiveMinimum": 0},
        "price_per_million": {"type": "number", "exclusiveMinimum": 0},
        "policy": _TEXT,
        "off": {"type": "boolean"},
        "task": _TEXT,
        "metadata": {"type": "object"},
        "question": _TEXT,
        "request_id": _TEXT,
        "thinking_budget": _COUNT,
        "priority": {},
        "user": {},
    },
}
_COMMON: Mapping[str, _Schema] = {
    "model": {"type": "string", "minLength": 1},
    "max_tokens": _COUNT,
    "max_completion_tokens": _COUNT,
    "temperature": {"type": "number", "minimum": 0},
    "top_p": {"type": "number"},
    "seed": {"type": "integer"},
    "n": _COUNT,
    "stream": {"type": "boolean"},
    "stream_options": {"type": "object"},
    "reasoning_effort": _TEXT,
    **dict.fromkeys(BUDGETS, _CAP),
    OURS: {"$ref": "#/components/schemas/Wishes"},
}
_MESSAGE: _Schema = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": _TEXT, "content": _TEXT},
}


def description() -> dict[str, Any]:
    """The document."""
    chat = _asked({"messages": {"type": "array", "minItems": 1, "items": _MESSAGE}}, "messages")
    ids = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
    text = _asked({"prompt": {"oneOf": [_TEXT, ids]}}, "prompt")
    whole = {"type": "object"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "rlbudget serve", "version": version("rlbudget")},
        "paths": {
            "/v1/chat/completions": {"post": _route("A chat, which thinks less.", whole, chat)},
            "/v1/completions": {"post": _route("A text completion.", whole, text)},
            "/v1/models": {"get": _route("The models of the upstreams.", whole)},
            "/healthz": {"get": _open("Whether the process lives.")},
            "/readyz": {"get": _open("Whether an upstream answers.")},
        },
        "components": {
            "schemas": {"Error": _ERROR, "Wishes": _WISHES},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _asked(more: Mapping[str, _Schema], needed: str) -> dict[str, Any]:
    return {"type": "object", "required": ["model", needed], "properties": {**_COMMON, **more}}


def _route(summary: str, whole: _Schema, asked: _Schema | None = None) -> dict[str, Any]:
    kinds: dict[str, Any] = {"application/json": {"schema": whole}}
    if asked is not None:
        kinds["text/event-stream"] = {"schema": _EVENT}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    told: dict[str, Any] = {"200": {"description": "the answer", "content": kinds}}
    told |= {status: {"description": said, "content": error} for status, said in _SAID.items()}
    found: dict[str, Any] = {"summary": summary, "responses": told}
    if asked is not None:
        found["requestBody"] = {"required": True, "content": {"application/json":
                                                              {"schema": asked}}}  # fmt: skip
    return found


def _open(summary: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}}}
    return {
        "summary": summary,
        "security": [],
        "responses": {
            status: {"description": said, "content": content}
            for status, said in (("200", "yes"), ("503", "no"))
        },
    }
