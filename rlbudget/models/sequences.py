"""Sequences that grow together: one cache, one forward pass a token; rows come and go.

Every row's last token stands in the last column of the cache, whatever column its first one
stands in, so all rows write their next token at the same place. A row that joins is laid
against the same edge; columns older than every row's first token are forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, Self

import numpy as np
import torch
from transformers.cache_utils import Cache

from rlbudget.arrays import Ints
from rlbudget.models.attention import Group, groups_of_rows
from rlbudget.models.kv_cache import copied, growing_layers, keep, new_cache, selected

_SMALLEST_GROUP = 16
_GROUPS = 4


class Unfinished(Protocol):
    """What decodes and answers need of sequences under way; ``Sequences`` says what each does."""

    logits: torch.Tensor

    def __len__(self) -> int: ...

    @property
    def takes_more(self) -> bool: ...  # noqa: D102

    @property
    def held(self) -> tuple[int, int]: ...  # noqa: D102

    def feed(self, tokens: torch.Tensor) -> None: ...  # noqa: D102

    def read(self, tokens: torch.Tensor) -> torch.Tensor: ...  # noqa: D102

    def oldest_first(self, n: int) -> Ints: ...  # noqa: D102

    def join(self, others: Self) -> None: ...  # noqa: D102

    def keep(self, rows: Ints) -> None: ...  # noqa: D102

    def selected(self, rows: torch.Tensor) -> Unfinished: ...  # noqa: D102

    def fork(self) -> AbstractContextManager[Unfinished]: ...  # noqa: D102


class Sequences:
    """``n`` unfinished sequences and the logits of the token that comes next in each."""

    __slots__ = ("_cache", "_groups", "_growing", "_length", "_network", "_single", "_start",
                 "logits")  # fmt: skip

    logits: torch.Tensor
    """(n, vocabulary) float32, raw"""

    def __init__(
        self,
        network: Any,
        cache: Cache,
        start: torch.Tensor,
        length: int,
        logits: torch.Tensor,
        *,
        single: bool = False,
    ) -> None:
        self._network = network
        self._single = single
        self._cache = cache
        self._groups: tuple[Group, ...] = ()
        self._growing = growing_layers(cache)
        self._length = length
        self.logits = logits
        self._begin_at(start)

    @classmethod
    def begin(
        cls, network: Any, prompts: Sequence[Sequence[int]], *, single: bool = False
    ) -> Sequences:
        """Read the prompts (token ids, none empty) in one forward pass.

        ``single`` feeds tokens one at a time later, for layers that go on only so.
        """
        width = max(len(prompt) for prompt in prompts)
        ids = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        start = torch.tensor([width - len(prompt) for prompt in prompts], device=network.device)
        cache = new_cache(network.config)
        rows = cls(network, cache, start, 0, torch.empty(0), single=single)
        rows.feed(ids.to(network.device))
        return rows

    @classmethod
    def resume(
        cls, network: Any, cache: Cache, ids: torch.Tensor, mask: torch.Tensor | None
    ) -> Sequences:
        """Read what a cache does not hold yet of ``ids`` (n, length), padded on the left.

        ``mask`` (n, length) is 0 where a row is padded, None where none is. Raises ``ValueError``
        for a mask with gaps and a cache that holds all of the ids.
        """
        width = ids.shape[1]
        held = cache.get_seq_length()
        given = torch.ones_like(ids) if mask is None else mask.to(ids)
        start = width - given.sum(dim=1)
        places = torch.arange(width, device=ids.device)
        if given.shape != ids.shape or ((places >= start[:, None]) != given.bool()).any():
            raise ValueError("the attention mask must be 0 on the left, 1 on the right of a row")
        if held >= width:
            raise ValueError(f"the cache holds {held} tokens of {width}: nothing is left to read")
        rows = cls(network, cache, start, held, torch.empty(0))
        rows.feed(ids[:, held:])
        return rows

    def __len__(self) -> int:
        return len(self._start)

    @property
    def takes_more(self) -> bool:
        """Whether ``join`` can be called."""
        return bool(self._growing)

    @property
    def held(self) -> tuple[int, int]:
        """(rows, columns) of the memory that the cache holds; zeros where it is not ours."""
        return self._growing[0].held if self._growing else (0, 0)

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
        if self._single and self._length and tokens.shape[1] > 1:
            each = [self._forward(column, 1) for column in torch.split(tokens, 1, dim=1)]
            return torch.cat(each, dim=1)[:, -kept:]
        end = self._length + tokens.shape[1]
        columns = torch.arange(end, device=tokens.device)
        start = self._start[:, None]
        with groups_of_rows(self._groups):
            output = self._network(
                input_ids=tokens,
                attention_mask=(columns >= start).long(),
                position_ids=(columns[self._length :] - start).clamp_(min=0),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=kept,
            )
        self._length = end
        logits: torch.Tensor = output.logits[:, -kept:].float().to(tokens.device)
        self.logits = logits[:, -1]
        return logits

    def oldest_first(self, n: int) -> Ints:
        """The order in which the groups of rows, when ``n`` in all, follow each other by age; rows
        that stand in the right group keep their place."""
        by_age = np.argsort(self._start.numpy(force=True), kind="stable")
        order = np.arange(len(by_age))
        for rows in _bounds(n):
            wanted, places = by_age[rows], order[rows]
            order[np.setdiff1d(places, wanted)] = np.setdiff1d(wanted, places)
        return order

    def join(self, others: Sequences) -> None:
        """Take other sequences in, after the last."""
        for mine, theirs in zip(self._growing, others._growing, strict=True):
            mine.join(theirs)
        length = max(self._length, others._length)
        start = [self._start + length - self._length, others._start + length - others._length]
        self._length = length
        self.logits = torch.cat([self.logits, others.logits])
        self._begin_at(torch.cat(start))

    def keep(self, rows: Ints) -> None:
        """Keep only these rows, in this order; cheap where few change their place."""
        index = torch.from_numpy(rows).to(self._start.device)
        keep(self._cache, index)
        self.logits = self.logits[index]
        self._begin_at(self._start[index])

    def selected(self, rows: torch.Tensor) -> Sequences:
        """A copy of some rows; these sequences stay as they are."""
        cache = selected(self._cache, rows)
        return Sequences(
            self._network, cache, self._start[rows], self._length, self.logits[rows],
            single=self._single,
        )  # fmt: skip

    @contextmanager
    def fork(self) -> Iterator[Sequences]:
        """Sequences that may run ahead; on leaving, these stand where they stood.

        Where the cache can go back, the fork runs in the same memory and nothing is copied.
        """
        if not self._growing:
            cache = copied(self._cache)
            yield Sequences(
                self._network, cache, self._start, self._length, self.logits, single=self._single
            )
            return
        length, logits = self._length, self.logits
        try:
            yield self
        finally:
            self._cache.crop(length - self._length)
            self._length, self.logits = length, logits

    def _begin_at(self, start: torch.Tensor) -> None:
        """Set the rows' first columns, and forget the columns before all of them."""
        self._start, self._groups = start, ()
        n = len(start)
        if not self._growing or not n:
            return
        first = start.tolist()
        unused = min(first) if self._length else 0
        if unused:
            for layer in self._growing:
                layer.forget(unused)
            self._length -= unused
            self._start = start - unused
        self._groups = tuple(Group(rows, min(first[rows]) - unused) for rows in _bounds(n))


def _bounds(n: int) -> list[slice]:
    """How ``n`` rows are divided into groups."""
    size = max(_SMALLEST_GROUP, -(-n // _GROUPS))
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]
