"""Sequences in lockstep: one cache, one forward pass a token, rows of different prompt lengths.

Prompts are padded on the left, so every row writes its next token at the same place of the
cache and stands at the same count of generated tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import Cache

from rlbudget.models.kv_cache import copied, goes_back, keep, new_cache, selected

_MASK_ROOM = 256


class Sequences:
    """``n`` unfinished sequences and the logits of the token that comes next in each."""

    __slots__ = ("_cache", "_length", "_mask", "_network", "_padding", "logits")

    logits: torch.Tensor
    """(n, vocabulary) float32, raw"""

    def __init__(
        self,
        network: Any,
        cache: Cache,
        mask: torch.Tensor,
        padding: torch.Tensor,
        length: int,
        logits: torch.Tensor,
    ) -> None:
        self._network = network
        self._cache = cache
        self._mask = mask
        self._padding = padding
        self._length = length
        self.logits = logits

    @classmethod
    def begin(cls, network: Any, prompts: Sequence[Sequence[int]]) -> Sequences:
        """Read the prompts (token ids, none empty) in one forward pass."""
        device = network.device
        width = max(len(prompt) for prompt in prompts)
        ids = torch.zeros((len(prompts), width), dtype=torch.long)
        mask = torch.zeros((len(prompts), width + _MASK_ROOM), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
            mask[row, width - len(prompt) :] = 1
        padding = torch.tensor([width - len(prompt) for prompt in prompts], device=device)
        rows = cls(network, new_cache(network.config), mask.to(device), padding, 0, torch.empty(0))
        rows.feed(ids.to(device))
        return rows

    @classmethod
    def resume(
        cls, network: Any, cache: Cache, ids: torch.Tensor, mask: torch.Tensor | None
    ) -> Sequences:
        """Read what a cache does not hold yet of ``ids`` (n, length), padded on the left.

        ``mask`` (n, length) is 0 where a row is padded, None where none is. Raises ``ValueError``
        for a mask with gaps and a cache that holds all of the ids.
        """
        n, width = ids.shape
        held = cache.get_seq_length()
        given = torch.ones_like(ids) if mask is None else mask.to(ids)
        padding = width - given.sum(dim=1)
        places = torch.arange(width, device=ids.device)
        if given.shape != ids.shape or ((places >= padding[:, None]) != given.bool()).any():
            raise ValueError("the attention mask must be 0 on the left, 1 on the right of a row")
        if held >= width:
            raise ValueError(f"the cache holds {held} tokens of {width}: nothing is left to read")
        room = given.new_ones((n, _MASK_ROOM))
        rows = cls(network, cache, torch.cat([given, room], dim=1), padding, held, torch.empty(0))
        rows.feed(ids[:, held:])
        return rows

    def __len__(self) -> int:
        return len(self._padding)

    def feed(self, tokens: torch.Tensor) -> None:
        """Append ``tokens`` of shape (n, k) and leave the logits that follow the last one."""
        self._forward(tokens, 1)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append ``tokens`` of shape (n, k): the logits before each of them and after the last,
        (n, k + 1, vocabulary)."""  # fmt: skip
        before = self.logits[:, None]
        return torch.cat([before, self._forward(tokens, tokens.shape[1])], dim=1)

    def _forward(self, tokens: torch.Tensor, kept: int) -> torch.Tensor:
        """Append; the logits after the last ``kept`` tokens, (n, kept, vocabulary)."""
        k = tokens.shape[1]
        end = self._length + k
        if end > self._mask.shape[1]:
            room = self._mask.new_ones((len(self), end))
            self._mask = torch.cat([self._mask, room], dim=1)
        positions = torch.arange(self._length, end, device=tokens.device)
        output = self._network(
            input_ids=tokens,
            attention_mask=self._mask[:, :end],
            position_ids=(positions[None, :] - self._padding[:, None]).clamp_(min=0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=kept,
        )
        self._length = end
        logits: torch.Tensor = output.logits.float()
        self.logits = logits[:, -1]
        return logits

    def keep(self, rows: torch.Tensor) -> None:
        """Drop every other row."""
        keep(self._cache, rows)
        self._mask, self._padding = self._mask[rows], self._padding[rows]
        self.logits = self.logits[rows]

    def selected(self, rows: torch.Tensor) -> Sequences:
        """A copy of some rows; these sequences stay as they are."""
        return Sequences(
            self._network,
            selected(self._cache, rows),
            self._mask[rows],
            self._padding[rows],
            self._length,
            self.logits[rows],
        )

    @contextmanager
    def fork(self) -> Iterator[Sequences]:
        """Sequences that may run ahead; on leaving, these stand where they stood.

        Where the cache can go back, the fork runs in the same memory and nothing is copied.
        """
        if not goes_back(self._cache):
            cache = copied(self._cache)
            yield Sequences(
                self._network, cache, self._mask, self._padding, self._length, self.logits
            )
            return
        length, logits = self._length, self.logits
        try:
            yield self
        finally:
            self._cache.crop(length - self._length)
            self._length, self.logits = length, logits
