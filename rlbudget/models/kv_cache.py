"""A key-value cache of rows that come and go, and that can run ahead and go back without a copy.

transformers' own cache concatenates, so each step copies everything. Here a layer writes
into buffers with room and hands out views: going back is setting a length, forgetting the oldest
columns is setting a beginning, and a row that leaves gives its place to the last one. Models
whose layers forget (sliding windows, linear attention) keep transformers' own layers: a
fork of them is a copy, and no row joins them under way.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

_ROOM = 128
"""columns of room that a new buffer has at least"""


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one attention layer: views of shape (n, heads, length, head_dim).

    All rows end at the same column. The buffers hold at most half as many columns again as are
    in use, and ``_ROOM``.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rows = 0
        self._begin = 0
        self._end = 0
        self._key_buffer: torch.Tensor | None = None
        self._value_buffer: torch.Tensor | None = None

    @property
    def held(self) -> tuple[int, int]:
        """(rows, columns) of the memory that is held."""
        buffer = self._key_buffer
        return (0, 0) if buffer is None else (buffer.shape[0], buffer.shape[2])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append, and return everything up to the new length."""
        k = key_states.shape[-2]
        if self._key_buffer is None:
            self._rows = key_states.shape[0]
            shape = (self._rows, key_states.shape[1], k + _ROOM)
            self._key_buffer = key_states.new_empty((*shape, key_states.shape[3]))
            self._value_buffer = value_states.new_empty((*shape, value_states.shape[3]))
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
        elif self._end + k > self._key_buffer.shape[2]:
            self._rebuild(rows=self._rows, before=0, after=k)
        end = self._end + k
        key_buffer, value_buffer = self._buffers()
        key_buffer[: self._rows, :, self._end : end] = key_states
        value_buffer[: self._rows, :, self._end : end] = value_states
        self._end = end
        self._show()
        return cast(torch.Tensor, self.keys), cast(torch.Tensor, self.values)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` positions; nothing is moved."""
        self._end -= abs(tokens_to_remove)
        self._show()

    def forget(self, columns: int) -> None:
        """Forget the first columns; nothing is moved."""
        self._begin += columns
        self._show()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Keep only these rows, in this order; only rows whose place changes are moved."""
        kept = len(beam_idx)
        place = torch.arange(kept, device=beam_idx.device)
        moved = place[beam_idx != place]
        if len(moved):
            for buffer in self._buffers():
                used = buffer[:, :, self._begin : self._end]
                used[moved] = used[beam_idx[moved]]
        self._rows = kept
        self._show()

    def selected(self, indices: torch.Tensor) -> GrowingLayer:
        """A copy of these rows; this layer stays as it is."""
        other = copy.copy(self)
        for name in ("_key_buffer", "_value_buffer"):
            old: torch.Tensor = getattr(self, name)
            shape = (len(indices), old.shape[1], self._end - self._begin + _ROOM, old.shape[3])
            new = old.new_empty(shape)
            new[:, :, : self._end - self._begin] = old[:, :, self._begin : self._end][indices]
            setattr(other, name, new)
        other._rows = len(indices)
        other._begin, other._end = 0, self._end - self._begin
        other._show()
        return other

    def join(self, others: GrowingLayer) -> None:
        """Take the rows of another layer after the last; their last columns lie side by side."""
        rows = self._rows + others._rows
        length, width = self._end - self._begin, others._end - others._begin
        before = max(width - length, 0)
        if rows > self.held[0] or before > self._begin:
            self._rebuild(rows=rows, before=before, after=1)
        self._begin -= before
        joined = slice(self._rows, rows)
        for mine, theirs in zip(self._buffers(), others._buffers(), strict=True):
            # What is masked must still be finite: a weight of nothing times NaN is NaN.
            mine[: self._rows, :, self._begin : self._begin + before] = 0
            mine[joined, :, self._begin : self._end - width] = 0
            new = theirs[: others._rows, :, others._begin : others._end]
            mine[joined, :, self._end - width : self._end] = new
        self._rows = rows
        self._show()

    def _buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        return cast(torch.Tensor, self._key_buffer), cast(torch.Tensor, self._value_buffer)

    def _show(self) -> None:
        keys, values = self._buffers()
        self.keys = keys[: self._rows, :, self._begin : self._end]
        self.values = values[: self._rows, :, self._begin : self._end]

    def _rebuild(self, *, rows: int, before: int, after: int) -> None:
        """Move what is in use into buffers with room for rows and for columns on both sides."""
        length = self._end - self._begin
        needed = before + length + after
        # Each position is copied a few times on average, however long the decode.
        columns = needed + max(needed // 2, _ROOM)
        for name in ("_key_buffer", "_value_buffer"):
            old: torch.Tensor = getattr(self, name)
            new = old.new_empty((max(rows, len(old)), old.shape[1], columns, old.shape[3]))
            live = old[: self._rows, :, self._begin : self._end]
            new[: self._rows, :, before : before + length] = live
            setattr(self, name, new)
        self._begin, self._end = before, before + length


def new_cache(config: Any) -> Cache:
    """An empty cache for a model: growing layers where every layer attends to everything."""
    usual = DynamicCache(config=config)
    if usual.layers and all(type(layer) is DynamicLayer for layer in usual.layers):
        return Cache(layers=[GrowingLayer() for _ in usual.layers])
    return usual


def growing_layers(cache: Cache) -> list[GrowingLayer]:
    """The layers of a cache whose rows may come, run ahead and go back; else none."""
    layers = [layer for layer in cache.layers if type(layer) is GrowingLayer]
    return layers if len(layers) == len(cache.layers) else []


def selected(cache: Cache, indices: torch.Tensor) -> Cache:
    """A copy of some rows of a cache, which itself stays untouched."""
    growing = growing_layers(cache)
    if growing:
        return Cache(layers=[layer.selected(indices) for layer in growing])
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
