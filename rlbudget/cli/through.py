"""The arguments that say how a model behind a server is asked, shared by what can ask one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

import tyro

from rlbudget.cli.arguments import N, Number, OptionalName, OptionalText
from rlbudget.errors import UserError

KEY_VARIABLE = "RLBUDGET_API_KEY"
"""holds the key of a server where no other variable is named"""


@dataclass(frozen=True)
class Through:
    """How a model behind a server is asked."""

    served_model: OptionalName = None
    """The model, as the server calls it; by default the first that it lists."""
    tokenizer: OptionalName = None
    """The model's tokenizer, a folder or a hub name; by default as the server says."""
    concurrency: N = 32
    """Requests at once, of each address."""
    timeout: Number = 600.0
    """Seconds that one request may take."""
    patience: Number = 600.0
    """Seconds to wait for servers of which none answers."""
    system: OptionalText = None
    """A system turn before the question."""
    chat_template_kwargs: Annotated[
        str | None, tyro.conf.arg(metavar="JSON", help_behavior_hint="")
    ] = None
    """Settings of the server's chat template, such as {"enable_thinking": true}."""
    key_env: OptionalName = None
    """Environment variable that holds the server's key; by default RLBUDGET_API_KEY."""

    def recorded_with(self, recorded: Mapping[str, Any]) -> Through:
        """What is left out as in a policy's traces; ``UserError`` for what differs from them."""
        settings = json.dumps(dict(self.template), sort_keys=True) if self.template else None
        for name, now in (("system", self.system), ("chat_template_kwargs", settings)):
            made = recorded.get(name)
            if now not in (None, made):
                shown = "none" if made is None else repr(made)
                raise UserError(f"{_flag(name)}: the policy was trained on traces with {shown}")
        return replace(
            self, system=recorded.get("system"),
            chat_template_kwargs=recorded.get("chat_template_kwargs"),
        )  # fmt: skip

    @property
    def key(self) -> str | None:
        """The key in the environment; ``UserError`` where a variable is named and not set."""
        key = os.environ.get(self.key_env or KEY_VARIABLE, "").strip()
        if self.key_env is not None and not key:
            raise UserError(f"--key-env {self.key_env}: this environment variable is not set")
        return key or None

    @property
    def template(self) -> Mapping[str, Any]:
        """The settings of the chat template; ``UserError`` for text that is no JSON object."""
        if self.chat_template_kwargs is None:
            return {}
        try:
            found = json.loads(self.chat_template_kwargs)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UserError(
                f"--chat-template-kwargs takes a JSON object, not {self.chat_template_kwargs!r}"
            )
        return found


@dataclass(frozen=True, slots=True)
class Prices:
    """Money for a million tokens."""

    sent: float | None = None
    cached: float | None = None
    """of those sent, the ones in the server's cache; by default as the others"""
    written: float | None = None


def addresses(model: str) -> tuple[str, ...]:
    """The addresses that ``--model`` names, none where it is a folder or a name.

    Raises ``UserError`` where only some of them are addresses.
    """
    parts = [part.strip() for part in model.split(",")]
    urls = tuple(part.rstrip("/") for part in parts if "://" in part)
    if urls and len(urls) < len(parts):
        raise UserError(f"--model {model!r}: several addresses, or one model, not both")
    if len(set(urls)) < len(urls):
        raise UserError(f"--model {model!r} names an address twice")
    return urls


def refuse_others(command: Any, urls: Sequence[str], local: Sequence[str]) -> None:
    """Refuse what is said of the other kind of model: ``UserError`` naming the first argument.

    ``local`` are the arguments of ``command`` that are for a model loaded here; those of a server
    are the fields whose value is a dataclass.
    """
    for one in fields(command):
        value = getattr(command, one.name)
        if urls and one.name in local and value != one.default:
            raise UserError(f"{_flag(one.name)} is for a model loaded here: the server has its own")
        if not urls and hasattr(value, "__dataclass_fields__"):
            for inner in fields(value):
                if getattr(value, inner.name) != inner.default:
                    raise UserError(
                        f"{_flag(inner.name)} is for a server: name its address, --model"
                        " http://HOST:PORT/v1"
                    )


def shard_of(text: str | None) -> tuple[int, int] | None:
    """``i/n``, the first 1/n; ``UserError`` for another text."""
    if text is None:
        return None
    place, slash, n = text.partition("/")
    if not (slash and place.isdecimal() and n.isdecimal() and 1 <= int(place) <= int(n)):
        raise UserError(f"--shard takes I/N, from 1/N to N/N, not {text!r}")
    return int(place), int(n)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
