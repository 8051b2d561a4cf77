"""Backends that decode. ``load_model`` imports torch and transformers when it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlbudget.errors import missing_package

if TYPE_CHECKING:
    from rlbudget.models.devices import DeviceMap
    from rlbudget.models.transformers_model import TransformersModel

__all__ = ["load_model"]


def load_model(
    name: str,
    *,
    profile: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    device_map: DeviceMap | None = None,
) -> TransformersModel:
    """Load a causal language model with its tokenizer.

    ``name`` is ``"embedded"`` (the small reasoner inside the package), ``"smollm2"`` (the
    pretrained one of ``rlbudget.models.smollm2``), a folder or a hub name; only safetensors
    weights are read and no code from the folder is run. ``profile`` names how the model is asked
    and stopped (``rlbudget.models.profiles``); by default that of the two models, ``think`` where
    the tokenizer knows ``</think>``, else ``plain``.

    ``device`` is ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"`` or ``"auto"``, which spreads the
    layers over all devices as ``device_map`` of transformers does; by default the first CUDA
    device, else the CPU. ``dtype`` is ``"float32"``, ``"bfloat16"`` or ``"float16"``; by default
    that of the weights.

    A model of an architecture that is new here is compared with transformers' ``generate`` on two
    short prompts: it decodes as that does, in batches or row by row.
    Raises ``UserError`` for a model that neither way does, an unknown model, profile, device or
    dtype, and weights that the memory does not hold.
    """
    try:
        from rlbudget.models.transformers_model import load
    except ModuleNotFoundError as error:
        said = missing_package(error)
        if said is None:
            raise
        raise said from error
    return load(name, profile=profile, device=device, dtype=dtype, device_map=device_map)
