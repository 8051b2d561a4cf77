"""A stop policy inside llama-cpp-python: a logits processor, one for each request.

    eos = eos_ids(llama, tokenizer)
    plan = make_plan(policy, tokenizer, vocabulary_size=llama.n_vocab(), eos_ids=eos)
    budget = BudgetProcessor(plan)
    llama.create_completion(ids, logits_processor=LogitsProcessorList([budget]), temperature=0)
    budget.outcome

It needs numpy and the tokenizer, neither torch nor llama-cpp-python itself. While the model thinks
it measures the logits and lets no token end the sequence; on a stop it forces the exit text; after
that the answer is greedy and ends where ``rlbudget.decoding.record`` would have ended it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rlbudget.integrations.numpy_signals import token_signals
from rlbudget.integrations.plan import Plan
from rlbudget.integrations.request import Ending, Request
from rlbudget.models.reading import ends_answer

Scores = npt.NDArray[np.single]
Ids = npt.NDArray[np.intc]


class BudgetProcessor:
    """A ``LogitsProcessor`` of llama-cpp-python with the state of one request.

    Put it first in the list: what it measures are the logits it is given. ``question`` is for a
    policy that looks at it. Raises ``UserError``
    for a price the policy does not know and for a ``max_tokens`` (that of the completion) that
    leaves no room to think; ``ValueError`` when it is used for a second request.
    """

    __slots__ = ("_answer", "_forced", "_length", "_measured", "_plan", "_request", "_seen")

    def __init__(
        self,
        plan: Plan,
        *,
        token_price: float | None = None,
        max_tokens: int | None = None,
        question: str | None = None,
    ) -> None:
        self._plan = plan
        self._request = Request(
            plan, token_price=token_price, max_new_tokens=max_tokens, question=question
        )
        self._measured: Scores | None = None
        self._seen: int | None = None
        self._length = 0
        self._forced = False
        self._answer: list[int] = []

    @property
    def outcome(self) -> Ending:
        """Where the request stands; the completion's last token is not counted, it is never fed."""
        return self._request.outcome

    @property
    def answer(self) -> str:
        """The answer so far, read as the recorder reads it."""
        return self._plan.answer(self._answer)

    def __call__(self, input_ids: Ids | Sequence[int], scores: Scores) -> Scores:
        """The scores of the next token, in which nothing but what may come next is possible.

        ``input_ids`` of shape (tokens,) are the prompt and all tokens so far, ``scores`` of shape
        (vocabulary,) float32 the logits after them, which stay as they are.
        """
        self._take(input_ids)
        likeliest = int(np.argmax(scores))
        forced = self._request.forced(likeliest)
        self._forced = forced is not None
        if self._request.thinking:
            self._measured = np.array(scores, dtype=np.single)
            allowed = self._measured.copy()
            allowed[self._plan.vocabulary.eos_ids] = -np.inf
            return allowed
        self._measured = None
        chosen = forced
        if chosen is None:
            chosen = self._end() if self._answered() else likeliest
        allowed = np.full(len(scores), -np.inf, dtype=np.single)
        allowed[chosen] = 0.0
        return allowed

    def _take(self, input_ids: Ids | Sequence[int]) -> None:
        length = len(input_ids)
        if self._seen is None:
            self._seen = length
            return
        if length != self._seen + 1:
            raise ValueError("a BudgetProcessor serves one request: make a new one for each")
        self._seen = length
        token = int(input_ids[-1])
        if self._measured is not None:
            ends = self._plan.vocabulary.end_first_ids
            self._request.push(token, token_signals(self._measured, token, ends))
            return
        self._request.push(token)
        if not self._forced:
            self._answer.append(token)

    def _answered(self) -> bool:
        profile = self._plan.profile
        if len(self._answer) >= profile.max_answer_tokens:
            return True
        stops = profile.answer_stop
        return bool(stops) and ends_answer(self._answer, self._plan.vocabulary, stops)

    def _end(self) -> int:
        return int(self._plan.vocabulary.eos_ids[0])


def eos_ids(llama: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a sequence: the model file's and the tokenizer's."""
    found = {int(llama.token_eos())}
    if tokenizer.eos_token_id is not None:
        found.add(int(tokenizer.eos_token_id))
    return sorted(found)
