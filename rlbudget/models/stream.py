"""Any number of questions through one batch: as some end, the next ones join."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from rlbudget.errors import UserError
from rlbudget.models.decode_batch import NOT_NUMBERS, DecodeBatch
from rlbudget.models.devices import out_of_memory

if TYPE_CHECKING:
    from rlbudget.models.transformers_model import TransformersModel

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


def stream(
    model: TransformersModel,
    questions: Sequence[str],
    seeds: Sequence[int],
    *,
    batch_size: int,
    batch_tokens: int = BATCH_TOKENS,
    temperature: float | None = None,
    max_tokens: int | None = None,
    stride: int | None = None,
) -> Iterator[DecodeBatch]:
    """Decode all questions; the row's number is the question's.

    Yields the batch at every checkpoint and, last, where all rows are through; between two
    yields rows join. ``batch.final`` gains the rows that ended: take them out. At most
    ``batch_size`` rows are under way, fewer where ``batch_tokens`` does not hold so many decodes
    of full length. Give the longest prompts first: what ends last should be short. Other settings
    are those of ``TransformersModel.begin``, which says what is raised; a model whose logits are
    NaN is a ``UserError`` too.
    """
    if not questions:
        return
    longest = max(len(model.prompt_ids(question)) for question in questions)
    longest += model.profile.max_tokens if max_tokens is None else max_tokens
    longest += model.profile.max_answer_tokens + len(model.vocabulary.exit_ids)
    width = max(1, min(batch_size, batch_tokens // longest))
    batch = model.begin(
        questions[:width], seeds[:width],
        temperature=temperature, max_tokens=max_tokens, stride=stride,
    )  # fmt: skip
    begun = min(width, len(questions))
    while True:
        batch.advance()
        if batch.broken:
            raise UserError(NOT_NUMBERS)
        yield batch
        free = width - batch.under_way
        if begun < len(questions) and free and batch.takes_more:
            joining = slice(begun, begun + free)
            model.join(batch, questions[joining], seeds[joining])
            begun = min(begun + free, len(questions))
        elif batch.done:
            return
