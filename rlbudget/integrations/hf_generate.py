"""``generate`` for policies that need trial answers, on the caller's model and cache.

::

    budget = BudgetGenerate.for_model(model, tokenizer, policy)
    ids = model.generate(**inputs, custom_generate=budget, max_new_tokens=400)
    outcomes = budget.report()

transformers prepares everything as for its own sampling (limits, processors, the cache) and
leaves the loop to this object. Trial answers are decoded greedily on forks of the cache, a batch
of rows at a time where the policy wants them at every checkpoint, and thrown away; the report
counts their tokens. It serves policies that need none as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self, cast

import numpy as np
import torch
from transformers import StaticCache
from transformers.cache_utils import Cache, StaticLayer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from rlbudget.errors import UserError
from rlbudget.integrations.hf import of_rows, plan_for
from rlbudget.integrations.hf_rows import Rows
from rlbudget.integrations.plan import Plan
from rlbudget.integrations.request import Ending, Request
from rlbudget.models.answers import continue_greedily
from rlbudget.models.reading import make_probe
from rlbudget.models.self_check import driving_of
from rlbudget.models.sequences import Sequences
from rlbudget.policy.observation import PROBE_SIGNALS
from rlbudget.policy.stop_policy import StopPolicy
from rlbudget.traces.trace import PROBE_TOKENS, Probe

_GUESSING = ("prompt_lookup_num_tokens", "assistant_early_exit", "penalty_alpha", "dola_layers")
_PREPARED = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}


class BudgetGenerate:
    """A ``custom_generate`` of transformers; not to be shared between threads.

    ``probe_tokens`` is the longest a trial answer may be; ``questions``, one for each prompt, are
    for policies that look at them. ``generate`` passes on neither streamer
    nor assistant model. Raises ``UserError`` when called with a cache that cannot be forked, with
    beams, and with a ``max_new_tokens`` that leaves no room to think.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        probe_tokens: int = PROBE_TOKENS,
        questions: Sequence[str] | None = None,
    ) -> None:
        if probe_tokens < 1:
            raise UserError(f"probe_tokens must be at least 1, not {probe_tokens}")
        self._plan = plan
        self._probe_tokens = probe_tokens
        self._questions = questions
        self._always = any(f.partition(".")[0] in PROBE_SIGNALS for f in plan.policy.features)
        self._rows: Rows | None = None

    @classmethod
    def for_model(
        cls,
        model: Any,
        tokenizer: Any,
        policy: StopPolicy,
        *,
        token_price: float | None = None,
        profile: str | None = None,
        stride: int | None = None,
        max_thinking_tokens: int | None = None,
        probe_tokens: int | None = None,
        questions: Sequence[str] | None = None,
    ) -> Self:
        """For one model; see ``make_plan`` for what is left out and what is raised.

        ``probe_tokens`` left out is that of the traces the policy was trained on.
        """
        plan = plan_for(
            model,
            tokenizer,
            policy,
            token_price=token_price,
            profile=profile,
            stride=stride,
            max_thinking_tokens=max_thinking_tokens,
            probes=True,
            questions=questions is not None,
        )
        kind = type(model).__name__
        if driving_of(model, kind, ours=False) != "batch":
            raise UserError(
                f"trial answers of a {kind} cannot be made inside generate: no batch can share its"
                " state; decode with rlbudget.decode, or train a policy with --preset free"
            )
        if probe_tokens is None:
            recorded = getattr(policy, "recorded", {})
            probe_tokens = int(recorded.get("probe_tokens") or PROBE_TOKENS)
        return cls(plan, probe_tokens=probe_tokens, questions=questions)

    def report(self) -> list[Ending]:
        """Where and why each row of the last call stopped."""
        return [] if self._rows is None else self._rows.outcomes

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
        requests = [
            Request(self._plan, max_new_tokens=limit, question=question)
            for question in of_rows(self._questions, n)
        ]
        rows = self._rows = Rows(self._plan, requests, input_ids.device)
        try:
            sequences = Sequences.resume(
                model, cache, input_ids, model_kwargs.get("attention_mask")
            )
        except ValueError as error:
            raise UserError(str(error)) from error
        pad = generation_config.pad_token_id
        if pad is None:
            pad = min(self._plan.eos)
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
            rows.take(tokens, self._trials(sequences, rows))
        if generation_config.return_dict_in_generate:
            return GenerateDecoderOnlyOutput(
                sequences=cast(torch.LongTensor, input_ids), past_key_values=cache
            )
        return input_ids

    def _trials(self, sequences: Sequences, rows: Rows) -> Callable[[int], Callable[[], Probe]]:
        """For a row what makes its trial answer here."""
        made: dict[int, Probe] = {}
        # Before the first of them is asked: those that stop now are rid of theirs afterwards.
        thinking = rows.thinking

        def trial(row: int) -> Probe:
            if row not in made:
                made.update(self._try(sequences, thinking if self._always else [row]))
            return made[row]

        return lambda row: partial(trial, row)

    def _try(self, sequences: Sequences, rows: list[int]) -> dict[int, Probe]:
        vocabulary, profile = self._plan.vocabulary, self._plan.profile
        ahead = partial(
            continue_greedily,
            cue=vocabulary.probe_ids,
            cap=self._probe_tokens,
            vocabulary=vocabulary,
            stops=profile.probe_stop,
        )
        if 2 * len(rows) < len(sequences):
            chosen = torch.tensor(rows, device=sequences.logits.device)
            places = list(range(len(rows)))
            found = ahead(sequences.selected(chosen), wanted=np.ones(len(rows), dtype=bool))
        else:
            places = rows
            with sequences.fork() as fork:
                found = ahead(fork, wanted=np.isin(np.arange(len(fork)), rows))
        probes = {}
        for row, place in zip(rows, places, strict=True):
            trial = make_probe(found[place], self._probe_tokens, vocabulary, profile)
            probes[row] = Probe(trial.answer, trial.confidence, trial.tokens)
        return probes


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
