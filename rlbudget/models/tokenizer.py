"""Tokenizers of transformers, which is imported when one is read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlbudget.errors import UserError, missing_extra

_EMBEDDED = Path(__file__).parent / "embedded"


def read_tokenizer(name: str | Path, *, trust_remote_code: bool = False, **settings: Any) -> Any:
    """The tokenizer of a folder or a hub name; ``settings`` are those of ``from_pretrained``.

    A folder's own Python is run only where ``trust_remote_code`` says so.
    Raises ``UserError`` where transformers is not installed, else what it raises.
    """
    read = _transformers().AutoTokenizer
    return read.from_pretrained(str(name), trust_remote_code=trust_remote_code, **settings)


def served_tokenizer(given: Any, eos_ids: Iterable[int] = ()) -> tuple[Any, list[int]]:
    """The tokenizer of a served model, and all the tokens known to end its sequences.

    ``given`` is a tokenizer of transformers or the name that loads it: ``"embedded"``, a folder, a
    hub name. The ends are ``eos_ids``, the tokenizer's, and those of the model's configuration and
    generation configuration where they lie beside it. Raises ``UserError`` for a name that loads
    none.
    """
    named = isinstance(given, str | Path)
    name = str(_EMBEDDED if given == "embedded" else given)
    if named and Path(name).is_dir() and not any(Path(name).glob("*token*")):
        raise UserError(f"{given} holds no tokenizer.json: name the model's transformers folder")
    try:
        tokenizer = read_tokenizer(name) if named else given
    except UserError:
        raise
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot load the tokenizer of {str(given)!r}: {reason}") from error
    found = {*eos_ids, *_ids(tokenizer.eos_token_id)}
    place = name if named else getattr(tokenizer, "name_or_path", "")
    for file in ("config.json", "generation_config.json"):
        config = _configuration(place, file, download=named) if place else {}
        found.update(_ids(config.get("eos_token_id")))
        found.update(_ids((config.get("text_config") or {}).get("eos_token_id")))
    return tokenizer, sorted(found)


def _configuration(place: str, file: str, *, download: bool) -> dict[str, Any]:
    try:
        cached = _transformers().utils.cached_file(place, file, local_files_only=not download)
        return dict(json.loads(Path(cached).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _ids(value: Any) -> list[int]:
    return [int(one) for one in (value if isinstance(value, list) else [value]) if one is not None]


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise missing_extra("models", str(error.name)) from error
    return transformers
