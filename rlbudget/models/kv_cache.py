"""A key-value cache that can run ahead and go back without a copy.

transformers' own cache concatenates, so each step copies everything. Here a layer writes
into buffers that double when full and hands out views; going back is setting a length. Models
whose layers forget (sliding windows, linear attention) keep transformers' own layers, and a
fork of them is a copy.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

_FIRST_CAPACITY = 128


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one attention layer: views of shape (n, heads, length, head_dim)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._length = 0
        self._key_buffer: torch.Tensor | None = None
        self._value_buffer: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append, and return everything up to the new length."""
        end = self._length + key_states.shape[-2]
        self._key_buffer = self._with_room(self._key_buffer, key_states, end)
        self._value_buffer = self._with_room(self._value_buffer, value_states, end)
        self._key_buffer[:, :, self._length : end] = key_states
        self._value_buffer[:, :, self._length : end] = value_states
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True
        self._show(end)
        return cast(torch.Tensor, self.keys), cast(torch.Tensor, self.values)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` positions; nothing is moved."""
        self._show(self._length - abs(tokens_to_remove))

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Keep only these rows, in this order."""
        if self._key_buffer is None or self._value_buffer is None:
            return
        length = self._length
        for name in ("_key_buffer", "_value_buffer"):
            old: torch.Tensor = getattr(self, name)
            new = old.new_empty((len(beam_idx), *old.shape[1:]))
            new[:, :, :length] = old[beam_idx, :, :length]
            setattr(self, name, new)
        self._show(length)

    def selected(self, indices: torch.Tensor) -> GrowingLayer:
        """A copy of these rows; this layer stays as it is."""
        other = copy.copy(self)
        other.reorder_cache(cast(torch.LongTensor, indices))
        return other

    def _show(self, length: int) -> None:
        assert self._key_buffer is not None
        assert self._value_buffer is not None
        self._length = length
        self.keys = self._key_buffer[:, :, :length]
        self.values = self._value_buffer[:, :, :length]

    def _with_room(self, buffer: torch.Tensor | None, like: torch.Tensor, end: int) -> torch.Tensor:
        if buffer is not None and buffer.shape[2] >= end:
            return buffer
        rows, heads, _, width = like.shape
        # Prompt and first tokens in one allocation, then doubling: each position is copied
        # less than twice on average however long the decode.
        capacity = end + _FIRST_CAPACITY if buffer is None else 2 * end
        grown = like.new_empty((rows, heads, capacity, width))
        if buffer is not None:
            grown[:, :, : self._length] = buffer[:, :, : self._length]
        return grown


def new_cache(config: Any) -> Cache:
    """An empty cache for a model: growing layers where every layer attends to everything."""
    usual = DynamicCache(config=config)
    if usual.layers and all(type(layer) is DynamicLayer for layer in usual.layers):
        return Cache(layers=[GrowingLayer() for _ in usual.layers])
    return usual


def goes_back(cache: Cache) -> bool:
    """Whether ``cache.crop`` undoes any number of steps exactly."""
    return all(type(layer) is GrowingLayer for layer in cache.layers)


def selected(cache: Cache, indices: torch.Tensor) -> Cache:
    """A copy of some rows of a cache, which itself stays untouched."""
    if goes_back(cache):
        layers = [cast(GrowingLayer, layer).selected(indices) for layer in cache.layers]
        return Cache(layers=list(layers))
    other = copied(cache)
    keep(other, indices)
    return other


def copied(cache: Cache) -> Cache:
    """A copy of a cache of transformers' own layers; neither sees what the other appends."""
    if not all(type(layer) is DynamicLayer for layer in cache.layers):
        return copy.deepcopy(cache)
    # Such a layer appends by making new tensors, so the old ones can be shared.
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other


def keep(cache: Cache, indices: torch.Tensor) -> None:
    """Keep only these rows of a cache, in this order."""
    # Linear-attention layers know only the name that beam search gave the same thing.
    cache.reorder_cache(cast(torch.LongTensor, indices))
