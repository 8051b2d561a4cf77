"""Tokenizers of transformers, which is imported when one is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlbudget.errors import missing_extra


def read_tokenizer(name: str | Path, **settings: Any) -> Any:
    """The tokenizer of a folder or a hub name; ``settings`` are those of ``from_pretrained``.

    Raises ``UserError`` where transformers is not installed, else what it raises.
    """
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise missing_extra("models", str(error.name)) from error
    return AutoTokenizer.from_pretrained(str(name), **settings)
