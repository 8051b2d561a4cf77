"""Backends that decode. ``load_model`` imports torch and transformers when it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlbudget.errors import missing_package

if TYPE_CHECKING:
    from rlbudget.models.transformers_model import TransformersModel

__all__ = ["load_model"]


def load_model(name: str, *, profile: str | None = None) -> TransformersModel:
    """Load a causal language model with its tokenizer.

    ``name`` is ``"embedded"`` (the small reasoner inside the package), ``"smollm2"`` (the
    pretrained one of ``rlbudget.models.smollm2``), a folder or a hub name; only safetensors
    weights are read and no code from the folder is run. ``profile`` names how the model is asked
    and stopped (``rlbudget.models.profiles``); by default that of the two models, ``think`` where
    the tokenizer knows ``</think>``, else ``plain``.
    Raises ``UserError`` for an unknown model or profile.
    """
    try:
        from rlbudget.models.transformers_model import load
    except ModuleNotFoundError as error:
        said = missing_package(error)
        if said is None:
            raise
        raise said from error
    return load(name, profile=profile)
