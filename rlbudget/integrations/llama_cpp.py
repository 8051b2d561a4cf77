"""A stop policy or a plan inside llama-cpp-python: a logits processor, one for each request.

    eos = eos_ids(llama, tokenizer)
    core = bind(plan, tokenizer, LLAMA_CPP, vocabulary_size=llama.n_vocab(), eos_ids=eos)
    budget = BudgetProcessor(core)
    llama.create_completion(ids, logits_processor=LogitsProcessorList([budget]), temperature=0)
    budget.decoded()

It needs numpy and the tokenizer, neither torch nor llama-cpp-python itself. While the model thinks
it measures the logits and lets no token end the sequence; on a stop it forces the exit text; after
that the answer is greedy and ends where ``rlbudget.decoding.record`` would have ended it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rlbudget.decoding.core import LLAMA_CPP, Core, bind
from rlbudget.decoding.decoded import Decoded, Ending
from rlbudget.decoding.request import Request
from rlbudget.models.numpy_signals import token_signals

__all__ = ["LLAMA_CPP", "BudgetProcessor", "bind", "eos_ids"]

Scores = npt.NDArray[np.single]
Ids = npt.NDArray[np.intc]


class BudgetProcessor:
    """A ``LogitsProcessor`` of llama-cpp-python with the state of one request.

    Put it first in the list: what it measures are the logits it is given. What a request may say
    (``question``, ``task``, ``metadata``, ``token_price``, ``dial``, ``request_id``) is that of
    ``rlbudget.decoding.request.Request``; ``max_tokens`` is that of the completion. Raises
    ``UserError`` for a price the policy does not know and for a ``max_tokens`` that leaves no room
    to think; ``ValueError`` when it is used for a second request.
    """

    __slots__ = ("_core", "_length", "_measured", "_request", "_said", "_seen")

    def __init__(self, core: Core, *, max_tokens: int | None = None, **said: Any) -> None:
        self._core = core
        self._said = {**said, "max_new_tokens": max_tokens}
        self._request = Request(core, **self._said)
        self._measured: Scores | None = None
        self._seen: int | None = None

    @property
    def ending(self) -> Ending:
        """Where the request stands; the completion's last token is not counted, it is never fed."""
        return self._request.ending

    @property
    def answer(self) -> str:
        """The answer so far, read as the recorder reads it."""
        return self._request.answer

    def decoded(self) -> Decoded:
        """What came of it, once the completion is over; a plan's log has it from then on."""
        self._request.finish()
        return self._request.decoded()

    def __call__(self, input_ids: Ids | Sequence[int], scores: Scores) -> Scores:
        """The scores of the next token, in which nothing but what may come next is possible.

        ``input_ids`` of shape (tokens,) are the prompt and all tokens so far, ``scores`` of shape
        (vocabulary,) float32 the logits after them, which stay as they are.
        """
        self._take(input_ids)
        request = self._request
        likeliest = int(np.argmax(scores))
        chosen = request.forced(likeliest)
        if request.thinking:
            self._measured = np.array(scores, dtype=np.single)
            allowed = self._measured.copy()
            allowed[self._core.vocabulary.eos_ids] = -np.inf
            return allowed
        self._measured = None
        if chosen is None:
            if not request.answering:
                return scores  # nothing to decide
            chosen = int(self._core.vocabulary.eos_ids[0]) if request.done else likeliest
        allowed = np.full(len(scores), -np.inf, dtype=np.single)
        allowed[chosen] = 0.0
        return allowed

    def _take(self, input_ids: Ids | Sequence[int]) -> None:
        length = len(input_ids)
        if self._seen is None:
            self._seen = length
            self._request = Request(self._core, prompt=[int(t) for t in input_ids], **self._said)
            return
        if length != self._seen + 1:
            raise ValueError("a BudgetProcessor serves one request: make a new one for each")
        self._seen = length
        token = int(input_ids[-1])
        signals = None
        if self._measured is not None:
            ends = self._core.vocabulary.end_first_ids
            signals = token_signals(self._measured, token, ends)
        self._request.push(token, signals)


def eos_ids(llama: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a sequence: the model file's and the tokenizer's."""
    found = {int(llama.token_eos())}
    if tokenizer.eos_token_id is not None:
        found.add(int(tokenizer.eos_token_id))
    return sorted(found)
