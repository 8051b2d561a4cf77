"""Batches that the memory holds: where it runs out, the rest begins again in smaller ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType

import torch

from rlbudget.errors import UserError
from rlbudget.models.devices import out_of_memory

BATCH_TOKENS = 2**17
"""Rows at once times the tokens of the longest decode there can be: the bound on the memory."""


class Attempts:
    """Decoding ``n`` questions in batches that the memory holds.

    ::

        for attempt in attempts:
            with attempt:
                for batch in stream(model, those(attempt.rows), batch_size=attempt.width): ...
                    attempts.ended(row)

    Where the memory runs out the batch is halved and what had not ended begins again: a decode
    depends on its own seed alone. ``on_halved`` is told. Raises ``UserError`` where one decode is
    too much.
    """

    def __init__(
        self, n: int, width: int, *, on_halved: Callable[[str], None] | None = None
    ) -> None:
        self.width = min(width, max(n, 1))
        """decodes at once"""
        self._left = dict.fromkeys(range(n))
        self._on_halved = on_halved

    @property
    def rows(self) -> list[int]:
        """The questions that have not ended."""
        return list(self._left)

    def ended(self, row: int) -> None:
        """A question's decode has ended, and was kept."""
        del self._left[row]

    def __iter__(self) -> Iterator[Attempts]:
        while self._left:
            self.width = min(self.width, len(self._left))
            yield self

    def __enter__(self) -> Attempts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if error is None or not out_of_memory(error):
            return False
        if self.width == 1:
            raise UserError(
                "the memory does not hold a single decode: lower max_tokens, choose a dtype of two"
                " bytes (bfloat16), a smaller model or another device"
            ) from None
        self.width = self.width // 2
        if self._on_halved is not None:
            self._on_halved(f"out of memory: goes on with {self.width} decodes at once")
        error.__traceback__ = None  # its frames hold on to the batch
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True
