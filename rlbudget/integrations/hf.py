"""The controller inside transformers' ``generate``: a logits processor.

::

    processor = BudgetProcessor.for_model(model, tokenizer, policy, max_new_tokens=400)
    ids = model.generate(**inputs, logits_processor=[processor], max_new_tokens=400)
    endings = processor.report(ids)

Rows stop at different times and on their own; a stop forces the exit text, and the model then
writes its answer under the caller's own settings. While a row thinks, it cannot end the sequence;
where it would, it answers instead. ``hf_generate`` is the way for policies that need trial
answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from transformers import LogitsProcessor

from rlbudget.decoding.core import HF_PROCESSOR, Core, Engine, bind
from rlbudget.decoding.decoded import Ending
from rlbudget.decoding.request import Request
from rlbudget.errors import UserError
from rlbudget.integrations.hf_rows import Rows
from rlbudget.models.transformers_model import eos_ids, logits_size
from rlbudget.policy.dial import Dial
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.strategies.plan import Plan


def core_for(
    model: Any, tokenizer: Any, policy: Plan | StopPolicy, engine: Engine, **settings: Any
) -> Core:
    """``bind`` for a causal language model of transformers and its tokenizer."""
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError("this model has an encoder; only decoders can be given a budget")
    return bind(
        policy,
        tokenizer,
        engine,
        vocabulary_size=logits_size(model),
        eos_ids=eos_ids(model, tokenizer),
        model=str(getattr(model.config, "_name_or_path", "")),
        **settings,
    )


class BudgetProcessor(LogitsProcessor):
    """Stops the thinking of each row of a ``generate`` call; not to be shared between threads.

    ``token_price`` (or ``dial``) left out is the plan's. ``max_new_tokens`` is what ``generate``
    was given, so that the thinking ends early enough for an answer. ``questions`` and
    ``metadata``, one for each prompt, and ``task`` are for policies and rules that look at them;
    prompts may have a ``dial`` each, too.
    A new call, with other prompts or the same, begins with fresh requests. Beam search, assisted
    decoding and prompt lookup are refused, in the step in which their rows are seen to be no
    continuations. Raises ``UserError`` for a price the policy does not know and for a
    limit that leaves no room to think.
    """

    def __init__(
        self,
        core: Core,
        *,
        token_price: float | None = None,
        dial: Dial | Sequence[Dial | None] | None = None,
        max_new_tokens: int | None = None,
        questions: Sequence[str] | None = None,
        task: str = "",
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self._core = core
        self._questions, self._metadata = questions, metadata
        self._said = {"token_price": token_price, "dial": dial, "task": task,
                      "max_new_tokens": max_new_tokens}  # fmt: skip
        self._rows: Rows | None = None
        self._seen: torch.Tensor | None = None
        self._prompts: torch.Tensor | None = None
        dials = dial if isinstance(dial, Sequence) else ()
        n = max(len(questions or ()), len(metadata or ()), len(dials), 1)
        requests_of(core, questions, metadata, [None] * n, self._said)

    @classmethod
    def for_model(
        cls,
        model: Any,
        tokenizer: Any,
        policy: Plan | StopPolicy,
        *,
        token_price: float | None = None,
        profile: str | None = None,
        stride: int | None = None,
        max_thinking_tokens: int | None = None,
        max_new_tokens: int | None = None,
        questions: Sequence[str] | None = None,
        **said: Any,
    ) -> Self:
        """A processor for one model and a plan or a bare policy; see ``decoding.core.bind`` for
        what is left out and what is raised, the class for the rest."""  # fmt: skip
        core = core_for(
            model,
            tokenizer,
            policy,
            HF_PROCESSOR,
            token_price=token_price,
            profile=profile,
            stride=stride,
            max_thinking_tokens=max_thinking_tokens,
            questions=questions is not None,
        )
        return cls(core, max_new_tokens=max_new_tokens, questions=questions, **said)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Take the last token of every row, and say what may come next.

        ``input_ids`` is (n, length), ``scores`` (n, vocabulary) float32 and raw; they are copied
        where they must change.
        """
        rows = self._rows
        if rows is not None and self._goes_on(input_ids):
            rows.take(input_ids[:, -1])
        else:
            self._refuse_other_rows(input_ids)
            self._finish()
            self._prompts = input_ids
            prompts = input_ids.tolist()
            requests = requests_of(self._core, self._questions, self._metadata, prompts, self._said)
            rows = self._rows = Rows(self._core, requests, scores.device)
        self._seen = input_ids
        return rows.constrain(scores, scores)

    def report(self, output: Any = None) -> list[Ending]:
        """Where and why each row of the last call stopped.

        ``output`` is what ``generate`` returned: it holds the very last token, which no processor
        is shown and which is not counted otherwise. The requests are over then: a plan's log gets
        those that the limit ended, too.
        """
        if self._rows is None or self._seen is None:
            return []
        if output is not None:
            ids = output if isinstance(output, torch.Tensor) else output.sequences
            if self._goes_on(ids):
                self._rows.take(ids[:, -1])
                self._seen = ids
            elif not torch.equal(ids, self._seen):
                raise UserError("this is not the output of the last call of generate")
            self._finish()
        return self._rows.endings

    def _finish(self) -> None:
        for request in [] if self._rows is None else self._rows.requests:
            request.finish()

    def _goes_on(self, ids: torch.Tensor) -> bool:
        """Whether these are the sequences of the last step and one token more."""
        seen = self._seen
        if seen is None or (len(seen), seen.shape[1] + 1) != tuple(ids.shape):
            return False
        return torch.equal(ids[:, :-1], seen)

    def _refuse_other_rows(self, ids: torch.Tensor) -> None:
        """Raise ``UserError`` where a call goes on with rows that are none of its last step.

        Beams change places, and a guess that is taken back shortens the row: no request could
        follow. A call with new prompts does not begin with those of the last one, or is longer
        than all of its text, as the next turn of a chat is.
        """
        if self._prompts is None or self._seen is None:
            return
        n, width = self._prompts.shape
        within = len(ids) == n and width < ids.shape[1] <= self._seen.shape[1] + 1
        if within and torch.equal(ids[:, :width], self._prompts):
            self._rows = self._seen = self._prompts = None
            raise UserError(
                "a budget cannot be given to rows that change places or take tokens back: leave out"
                " num_beams, assistant_model and prompt_lookup_num_tokens (and give a call that"
                " goes on from the middle of the last one a processor of its own)"
            )


def requests_of(
    core: Core,
    questions: Sequence[str] | None,
    metadata: Sequence[Mapping[str, Any]] | None,
    prompts: Sequence[Sequence[int] | None],
    said: Mapping[str, Any],
) -> list[Request]:
    """A request for each of these prompts (token ids, padding included): several rows of one
    question follow each other."""  # fmt: skip
    n, rest = len(prompts), dict(said)
    dial = rest.pop("dial", None)
    dials = _of_rows(dial, n) if isinstance(dial, Sequence) else [dial] * n
    return [
        Request(core, prompt=prompt, question=question, metadata=known, dial=own, **rest)
        for prompt, question, known, own in zip(
            prompts, _of_rows(questions, n), _of_rows(metadata, n), dials, strict=True
        )
    ]


def _of_rows(given: Sequence[Any] | None, n: int) -> list[Any]:
    if given is None:
        return [None] * n
    if not given or n % len(given):
        raise UserError(
            f"{n} prompts and {len(given)} questions, metadata or dials: one is needed for each"
        )
    return [one for one in given for _ in range(n // len(given))]
