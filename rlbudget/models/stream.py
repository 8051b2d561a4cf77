"""Any number of questions through one batch: as some end, the next ones join."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlbudget.errors import UserError
from rlbudget.models.attempts import BATCH_TOKENS, Attempts
from rlbudget.models.decode_batch import NOT_NUMBERS, DecodeBatch
from rlbudget.models.transformers_model import TransformersModel

__all__ = ["Attempts", "stream"]


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
