"""The controller inside vLLM.

    RLBUDGET_POLICY=policy \\
        vllm serve MODEL --logits-processors rlbudget.integrations.vllm:BudgetProcessor

vLLM has two model runners with two interfaces for processors, and each refuses the other's. The
one class here is both. V1 (CPU, and older GPU set-ups) asks for a callable a request; V2 asks for
one call a batch. Neither has an answer for a client but an error: a request with wrong arguments
ends with HTTP 400 before it is queued, and after that nothing here may raise, or the engine ends
for everybody. What goes wrong later is counted, and that request decodes as it would have.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from rlbudget.decoding.core import VLLM, Core, bind
from rlbudget.decoding.request import Request
from rlbudget.errors import UserError
from rlbudget.integrations.torch_rows import Rows, Slots
from rlbudget.integrations.vllm_settings import Wish, settings_of, wish_of
from rlbudget.models.logits_row import LogitsRow, RowReader
from rlbudget.models.tokenizer import read_tokenizer

try:
    from vllm.v1.sample.logits_processor import AdapterLogitsProcessor
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor
except ModuleNotFoundError as error:
    raise ImportError(
        f"rlbudget.integrations.vllm works inside vLLM 0.31 or newer, but {error.name} is not"
        " installed here: install rlbudget where vLLM is (docs/vllm.md)"
    ) from error

_NO_TOKEN = -1


class BudgetProcessor(AdapterLogitsProcessor, LogitsProcessor):  # type: ignore[misc]
    """Ends the thinking of every request where its policy finds that worth it."""

    def __init__(self, vllm_config: Any, *rest: Any) -> None:
        """``rest`` is (device, is_pin_memory) in V1, (request states,) in V2.

        Raises ``UserError``, which ends the start-up, for what ``settings_of`` and ``bind``
        refuse, and for speculative decoding.
        """
        v1 = len(rest) > 1
        if v1:
            AdapterLogitsProcessor.__init__(self, vllm_config, *rest)
        if vllm_config.speculative_config is not None:
            raise UserError("rlbudget's processor does not go with speculative decoding yet")
        self._plans = _plans(vllm_config.model_config)
        self._readers = {name: _reader(plan) for name, plan in self._plans.items()}
        self._context = int(vllm_config.model_config.max_model_len)
        self._kept: OrderedDict[int, tuple[Any, Decode]] = OrderedDict()
        self._most = 2 * int(vllm_config.scheduler_config.max_num_seqs)
        self._v2 = None if v1 else Batch(self._plans, self._context, rest[0])

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """``ValueError`` for a request that asks for what is not here: HTTP 400."""
        wish_of(sampling_params, settings_of())

    def is_argmax_invariant(self) -> bool:
        """False: an exit changes greedy decodes too."""
        return False

    def new_req_logits_processor(self, params: Any) -> Decode | None:
        """V1: what is called for every token of a request; None leaves it alone.

        A request that was set aside comes back with the same ``params``, and goes on.
        """
        kept = self._kept.pop(id(params), None)
        if kept is None:
            wish = self._wish(params)
            if wish is None:
                return None
            plan, reader = self._plans[wish.policy], self._readers[wish.policy]
            kept = params, Decode(plan, reader, wish, params.max_tokens, self._context)
        # Holding the object keeps its id from being given to another.
        self._kept[id(params)] = kept
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return kept[1]

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """V2: a request enters a slot; whether this processor has to do with it."""
        assert self._v2 is not None
        wish = self._wish(sampling_params)
        self._v2.add(req_idx, wish, sampling_params.max_tokens)
        return wish is not None

    def apply_staged_writes(self) -> None:
        """V2: bring what ``add_request`` was told to the device, once a step."""
        assert self._v2 is not None
        self._v2.flush()

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Force what is to be forced, in place; ``ctx`` is V2's layout of the batch.

        ``logits`` has shape (rows, vocabulary).
        """
        if self._v2 is None:
            out: torch.Tensor = AdapterLogitsProcessor.apply(self, logits)
            return out
        self._v2.step(logits, ctx)
        return logits

    def _wish(self, params: Any) -> Wish | None:
        try:
            return wish_of(params, settings_of())
        except UserError as error:  # only where vLLM itself lowered max_tokens since the check
            next(iter(self._plans.values())).failures.add(str(error))
            return None


class Decode:
    """V1's view of one request: called with each row of logits, before its token is sampled."""

    __slots__ = ("_context", "_eos_ids", "_max_tokens", "_memory", "_off", "_plan",
                 "_reader", "_request", "_row", "_seen", "_wish")  # fmt: skip

    def __init__(
        self, plan: Core, reader: RowReader, wish: Wish, max_tokens: int | None, context: int
    ) -> None:
        self._plan = plan
        self._reader = reader
        self._memory: Any = None
        self._wish = wish
        self._max_tokens = max_tokens
        self._context = context
        self._request: Request | None = None
        self._row: LogitsRow | None = None
        self._seen = 0
        self._off = False
        self._eos_ids = frozenset(plan.vocabulary.eos_ids.tolist())

    def __call__(
        self, prompt_ids: list[int], output_ids: list[int], logits: torch.Tensor
    ) -> torch.Tensor:
        """Take the newest of ``output_ids`` and force the next token in ``logits``, in place.

        ``logits`` has shape (vocabulary,). vLLM looks at the number of parameters.
        """
        if not self._off:
            try:
                self._take(prompt_ids, output_ids)
                self._choose(logits)
            except Exception as error:  # whatever it is, the engine must go on
                self._off = True
                self._row = self._memory = None
                self._plan.failures.add(str(error) or type(error).__name__)
        return logits

    def _take(self, prompt_ids: list[int], output_ids: list[int]) -> None:
        if self._request is None:
            room = self._context - len(prompt_ids)
            if self._max_tokens is not None:
                room = min(room, self._max_tokens)
            self._memory = self._reader.memory()
            self._request = Request(
                self._plan, token_price=self._wish.token_price, max_new_tokens=room
            )
        # A long prompt is read in parts and shows a row after each: only the last one counts,
        # the one after which a token came.
        if len(output_ids) == self._seen:
            return
        if len(output_ids) != self._seen + 1 or output_ids[-1] < 0:
            raise UserError("vLLM set the request aside for so long that its signals were lost")
        self._seen += 1
        token, row = output_ids[-1], self._row
        if row is not None:
            self._request.forced(row.likeliest)
        self._request.push(token, None if row is None else row.signals(token))

    def _choose(self, logits: torch.Tensor) -> None:
        request, vocabulary = self._request, self._plan.vocabulary
        assert request is not None
        if request.thinking:
            self._row = self._reader.read(logits, self._memory)
            ends = self._row.likeliest in self._eos_ids
            forced = vocabulary.exit_ids[0] if ends else None
            if forced is None:
                for token in self._eos_ids:
                    logits[token] = -torch.inf
        else:
            self._row = self._memory = None
            forced = request.forced(_NO_TOKEN)
            self._off = forced is None  # the answer is the model's own
        if forced is not None:
            if float(logits[forced]) == -torch.inf:  # whoever ruled it out has more say
                raise UserError("another processor forbids the exit text")
            logits.fill_(-torch.inf)
            logits[forced] = 0.0


def _reader(plan: Core) -> RowReader:
    return RowReader(len(plan.vocabulary.markers), plan.vocabulary.end_first_ids)


class Batch:
    """V2's view of all requests, by slot."""

    def __init__(self, plans: dict[str, Core], context: int, states: Any) -> None:
        slots, device = int(states.max_num_reqs), states.device
        self._states = states
        self._broken = False
        self._plans = plans
        self._slots = {name: Slots(plan, slots, context, device) for name, plan in plans.items()}
        self._names = list(plans)
        self._policy_of = np.full(slots, -1)
        self._new: dict[int, tuple[Wish | None, int | None]] = {}
        self._counts = torch.zeros(len(plans), dtype=torch.int64, pin_memory=device.type == "cuda")

    def add(self, slot: int, wish: Wish | None, max_tokens: int | None) -> None:
        """Note a request."""
        self._new[slot] = wish, max_tokens
        self._policy_of[slot] = -1 if wish is None else self._names.index(wish.policy)

    def flush(self) -> None:
        """Bring the noted ones to the device, and fetch the number of failures, without waiting."""
        for place, (name, slots) in enumerate(self._slots.items()):
            failures = self._plans[name].failures
            if int(self._counts[place]) > failures.count:
                failures.add("on the device; rlbudget.integrations.torch_rows says what can")
                failures.count = int(self._counts[place])
            self._counts[place].copy_(slots.failures, non_blocking=True)
            if self._new:
                slots.end(list(self._new))
            mine = [
                (slot, wish.token_price, most)
                for slot, (wish, most) in self._new.items()
                if wish is not None and wish.policy == name
            ]
            if mine:
                slots.begin(*zip(*mine, strict=True))
        self._new.clear()

    def step(self, logits: torch.Tensor, ctx: Any) -> None:
        """One pass over the batch for each policy that is in it; none after a fault."""
        if self._broken:
            return
        try:
            self._step(logits, ctx)
        except Exception as error:  # whatever it is, the engine must go on
            self._broken = True
            next(iter(self._plans.values())).failures.add(f"{type(error).__name__}: {error}")

    def _step(self, logits: torch.Tensor, ctx: Any) -> None:
        used = set(self._policy_of[ctx.idx_mapping_np].tolist()) - {-1}
        if not used:
            return
        slots = ctx.expanded_idx_mapping.long()
        rows = Rows(
            logits=logits,
            slots=slots,
            tokens=ctx.input_ids.long(),
            lengths=ctx.pos.long() + 1,
            prompts=self._states.prompt_len.gpu[slots].long(),
            filled=self._states.prefill_len.gpu[slots].long(),
        )
        for policy in sorted(used):
            self._slots[self._names[policy]].step(rows)


def _plans(model_config: Any) -> dict[str, Core]:
    settings = settings_of()
    tokenizer = read_tokenizer(
        model_config.tokenizer,
        revision=model_config.tokenizer_revision,
        trust_remote_code=model_config.trust_remote_code,
    )
    return {
        name: bind(
            policy,
            tokenizer,
            VLLM,
            vocabulary_size=int(model_config.get_vocab_size()),
            eos_ids=_eos_ids(model_config, tokenizer),
            profile=settings.profile,
            token_price=settings.token_price,
        )
        for name, policy in settings.policies.items()
    }


def _eos_ids(model_config: Any, tokenizer: Any) -> list[int]:
    """What vLLM ends a sequence at."""
    found: set[int] = set()
    generation: dict[str, Any] = model_config.try_get_generation_config()
    for value in (tokenizer.eos_token_id, generation.get("eos_token_id")):
        found.update(value if isinstance(value, Iterable) else () if value is None else (value,))
    return sorted(found)
