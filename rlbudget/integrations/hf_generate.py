"""``generate`` for policies that need trial answers, on the caller's model and cache.

::

    budget = BudgetGenerate.for_model(model, tokenizer, policy)
    ids = model.generate(**inputs, custom_generate=budget, max_new_tokens=400)
    endings = budget.report()

transformers prepares everything as for its own sampling (limits, processors, the cache) and
leaves the loop to this object. Trial answers are decoded greedily on forks of the cache, a batch
of rows at a time where the policy wants them at every checkpoint, and thrown away; the report
counts their tokens. It serves policies that need none as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self, cast

import numpy as np
import torch
from transformers import StaticCache
from transformers.cache_utils import Cache, StaticLayer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from rlbudget.decoding.aside import Fork, Wish
from rlbudget.decoding.core import HF_GENERATE, Core, HandOver
from rlbudget.decoding.decoded import Decoded, Ending
from rlbudget.decoding.local import forked
from rlbudget.errors import UserError
from rlbudget.integrations.hf import core_for, requests_of
from rlbudget.integrations.hf_rows import Rows
from rlbudget.models.reading import Continuation
from rlbudget.models.self_check import driving_of
from rlbudget.models.sequences import Sequences
from rlbudget.policy.dial import Dial
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.strategies.plan import Plan

_GUESSING = ("prompt_lookup_num_tokens", "assistant_early_exit", "penalty_alpha", "dola_layers")
_PREPARED = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}


class BudgetGenerate:
    """A ``custom_generate`` of transformers; not to be shared between threads.

    ``token_price`` (or ``dial``, one or one for each prompt) left out is the plan's; ``questions``
    and ``metadata``, one for each prompt, and ``task`` are for policies and rules. ``generate``
    passes on neither streamer nor assistant model. Raises ``UserError`` when called with a cache
    that cannot be forked, with beams, and with a ``max_new_tokens`` that leaves no room to think.
    """

    def __init__(
        self,
        core: Core,
        *,
        token_price: float | None = None,
        dial: Dial | Sequence[Dial | None] | None = None,
        questions: Sequence[str] | None = None,
        task: str = "",
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self._core = core
        self._questions, self._metadata = questions, metadata
        self._said = {"token_price": token_price, "dial": dial, "task": task}
        self._rows: Rows | None = None

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
        probe_tokens: int | None = None,
        questions: Sequence[str] | None = None,
        second: Callable[[HandOver], Decoded] | None = None,
        **said: Any,
    ) -> Self:
        """For one model and a plan or a bare policy; see ``decoding.core.bind`` for what is left
        out and what is raised, the class for the rest. ``second`` answers for a cascade or a
        correction by a second model."""
        if probe_tokens is not None and probe_tokens < 1:
            raise UserError(f"probe_tokens must be at least 1, not {probe_tokens}")
        core = core_for(
            model,
            tokenizer,
            policy,
            HF_GENERATE,
            token_price=token_price,
            profile=profile,
            stride=stride,
            max_thinking_tokens=max_thinking_tokens,
            probe_tokens=probe_tokens,
            questions=questions is not None,
            second=second,
        )
        kind = type(model).__name__
        if driving_of(model, kind, ours=False) != "batch":
            raise UserError(
                f"trial answers of a {kind} cannot be made inside generate: no batch can share its"
                " state; decode with rlbudget.decode, or train a policy with --preset free"
            )
        return cls(core, questions=questions, **said)

    def report(self) -> list[Ending]:
        """Where and why each row of the last call stopped."""
        return [] if self._rows is None else self._rows.endings

    def decoded(self) -> list[Decoded]:
        """What came of each row of the last call, its answer included."""
        return [] if self._rows is None else [r.decoded() for r in self._rows.requests]

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        """Decode; called by ``generate``. Returns ids (n, length), or what holds them and the
        cache where ``return_dict_in_generate`` is set."""  # fmt: skip
        cache = _check(generation_config, model_kwargs)
        n, width = input_ids.shape
        limit = generation_config.max_length - width
        said = {**self._said, "max_new_tokens": limit}
        requests = requests_of(
            self._core, self._questions, self._metadata, input_ids.tolist(), said
        )
        rows = self._rows = Rows(self._core, requests, input_ids.device)
        try:
            sequences = Sequences.resume(
                model, cache, input_ids, model_kwargs.get("attention_mask")
            )
        except ValueError as error:
            raise UserError(str(error)) from error
        pad = generation_config.pad_token_id
        if pad is None:
            pad = min(self._core.eos)
        unfinished = torch.ones(n, dtype=torch.bool, device=input_ids.device)
        while True:
            raw = sequences.logits
            scores = rows.constrain(raw, logits_processor(input_ids, raw.clone()))
            tokens = _choose(scores, generation_config.do_sample)
            tokens = torch.where(unfinished, tokens, pad)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=1)
            unfinished = unfinished & ~stopping_criteria(input_ids, None)
            if not unfinished.any():
                rows.take(tokens)
                break
            sequences.feed(tokens[:, None])
            rows.take(tokens, partial(self._settle, sequences, rows))
        for request in rows.requests:
            request.finish()
            request.close()
        if generation_config.return_dict_in_generate:
            return GenerateDecoderOnlyOutput(
                sequences=cast(torch.LongTensor, input_ids), past_key_values=cache
            )
        return input_ids

    def _settle(self, sequences: Sequences, rows: Rows, wishes: dict[int, Wish]) -> dict[int, Wish]:
        """Do what rows want done aside, those that want the same together; their next wishes."""
        later: dict[int, Wish | None] = {}
        alike: dict[Fork, list[int]] = {}
        for row, wish in wishes.items():
            if isinstance(wish, HandOver):
                later[row] = rows.requests[row].handed_over(self._core.hand_over(wish))
            elif not isinstance(wish, Fork):
                later[row] = rows.requests[row].forked(UserError("no options are read here"))
            else:
                alike.setdefault(wish, []).append(row)
        for wish, members in alike.items():
            found: dict[int, Continuation] | Exception
            try:
                found = self._fork(sequences, wish, members)
            except Exception as error:  # whatever it is, the rows go on without it
                found = error
            for row in members:
                one = found if isinstance(found, Exception) else found[row]
                later[row] = rows.requests[row].forked(one)
        return {row: wish for row, wish in later.items() if wish is not None}

    def _fork(self, sequences: Sequences, wish: Fork, rows: list[int]) -> dict[int, Continuation]:
        vocabulary = self._core.vocabulary
        if 2 * len(rows) < len(sequences):
            chosen = torch.tensor(rows, device=sequences.logits.device)
            few = sequences.selected(chosen)
            found = forked(few, wish, np.ones(len(rows), dtype=bool), vocabulary)
            return {row: found[place] for place, row in enumerate(rows)}
        with sequences.fork() as ahead:
            return forked(ahead, wish, np.isin(np.arange(len(ahead)), rows), vocabulary)


def _check(generation_config: Any, model_kwargs: dict[str, Any]) -> Cache:
    if generation_config.num_beams > 1:
        raise UserError("a budget cannot be given to beams: set num_beams=1")
    for name in _GUESSING:
        if getattr(generation_config, name, None) is not None:
            raise UserError(f"a budget cannot be given to assisted decoding: leave out {name}")
    other = sorted(
        name for name, value in model_kwargs.items() if value is not None and name not in _PREPARED
    )
    if other:
        raise UserError(f"a budget cannot be given to a model with {', '.join(other)}")
    cache = model_kwargs.get("past_key_values")
    if not model_kwargs.get("use_cache", True) or cache is None:
        raise UserError("a budget needs the cache: set use_cache=True")
    layers = getattr(cache, "layers", None)
    fixed = isinstance(cache, StaticCache) or layers is None
    if fixed or any(isinstance(layer, StaticLayer) for layer in layers or ()):
        raise UserError(
            f"trial answers need a cache that can be forked, not {type(cache).__name__}: leave"
            " cache_implementation and past_key_values out"
        )
    found: Cache = cache
    return found


def _choose(scores: torch.Tensor, sample: bool) -> torch.Tensor:
    if not sample:
        return scores.argmax(dim=-1)
    return torch.multinomial(scores.softmax(dim=-1), num_samples=1)[:, 0]
