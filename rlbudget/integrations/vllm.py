"""The controller inside vLLM.

    RLBUDGET_PLAN=plan.toml \\
        vllm serve MODEL --logits-processors rlbudget.integrations.vllm:BudgetProcessor

vLLM has two model runners with two interfaces for processors, and each refuses the other's. The
one class here is both: V1 (CPU, and older GPU set-ups) and V2. Neither has an answer for a client
but an error: a request with wrong arguments ends with HTTP 400 before it is queued, and after that
nothing here may raise, or the engine ends for everybody. What goes wrong later is counted, and
that request decodes as it would have.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from rlbudget.decoding.core import VLLM, Core
from rlbudget.decoding.device.slots import Batch
from rlbudget.decoding.wanted import Wanted
from rlbudget.errors import UserError
from rlbudget.integrations.engine_rows import EngineRows, Row
from rlbudget.integrations.engine_settings import PREFIX, check_room, settings_of, wish_of, xargs_of
from rlbudget.models.tokenizer import read_tokenizer

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor as BatchProcessor
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SlotProcessor
except ModuleNotFoundError as error:
    raise ImportError(
        f"rlbudget.integrations.vllm works inside vLLM 0.31 or newer, but {error.name} is not"
        " installed here: install rlbudget where vLLM is (docs/vllm.md)"
    ) from error


class BudgetProcessor(BatchProcessor, SlotProcessor):  # type: ignore[misc]
    """Ends the thinking of every request where its plan finds that worth it."""

    def __init__(self, vllm_config: Any, *rest: Any) -> None:
        """``rest`` is (device, is_pin_memory) in V1, (request states,) in V2.

        Raises ``UserError``, which ends the start-up, for what ``settings_of`` and ``bind``
        refuse, for speculative decoding, and in V2 for a plan that is more than a policy.
        """
        if vllm_config.speculative_config is not None:
            raise UserError("rlbudget's processor does not go with speculative decoding yet")
        model = vllm_config.model_config
        self._plans = _plans(model)
        context = int(model.max_model_len)
        self._v1: Slots | None = None
        self._v2: Batch | None = None
        if len(rest) > 1:
            self._v1 = Slots(self._plans, context, int(vllm_config.scheduler_config.max_num_seqs))
        else:
            self._v2 = Batch(self._plans, context, rest[0])

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """``ValueError`` for a request that asks for what is not here: HTTP 400."""
        settings = settings_of()
        check_room(_wish(sampling_params), settings, sampling_params.max_tokens)

    def is_argmax_invariant(self) -> bool:
        """False: an exit changes greedy decodes too."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """V1: which requests are in the batch, and where; None where nothing changed."""
        assert self._v1 is not None
        if batch_update is not None:
            self._v1.update(batch_update)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """V2: a request enters a slot; whether this processor has to do with it."""
        assert self._v2 is not None
        wish = None
        try:
            wish = _wish(sampling_params)
        except UserError as error:  # nothing that ``validate_params`` let through
            next(iter(self._plans.values())).failures.add(str(error))
        self._v2.add(req_idx, wish, sampling_params.max_tokens)
        return wish is not None and not wish.off

    def apply_staged_writes(self) -> None:
        """V2: bring what ``add_request`` was told to the device, once a step."""
        assert self._v2 is not None
        self._v2.flush()

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Force what is to be forced, in place; ``ctx`` is V2's layout of the batch.

        ``logits`` has shape (rows, vocabulary).
        """
        if self._v1 is not None:
            self._v1.step(logits)
        elif self._v2 is not None:
            self._v2.step(logits, ctx)
        return logits


@dataclass(eq=False, slots=True)
class Live:
    """A request of V1."""

    name: str
    """of its plan"""
    params: Any
    prompt: list[int]
    output: list[int]
    """vLLM's own list of the tokens so far; −1 stands for one that it does not know yet"""
    row: Row
    most: int
    """tokens after which vLLM ends it"""
    seen: int = 0
    """tokens that the request was told"""

    def newest(self) -> list[int]:
        """The token that is new, if there is one; ``UserError`` where more were missed."""
        new = self.output[self.seen :]
        while new and new[-1] < 0:
            new.pop()
        if len(new) > 1 or len(self.output) < self.seen:
            raise UserError("vLLM set the request aside for so long that its signals were lost")
        self.seen += len(new)
        return new


class Slots:
    """V1's requests, by their place in vLLM's batch.

    A request that is set aside leaves the batch as one that has ended does. What does not look
    ended is kept for a while, and known again by what it was asked and what it wrote.
    """

    def __init__(self, cores: dict[str, Core], context: int, most: int) -> None:
        self._cores, self._context, self._most = cores, context, most
        self._rows = {name: EngineRows(core) for name, core in cores.items()}
        self._live: dict[int, Live] = {}
        self._aside: deque[Live] = deque()
        self._logs = any(core.log is not None for core in cores.values())

    def update(self, change: Any) -> None:
        """Take vLLM's ``BatchUpdate``."""
        gone = [*change.removed, *(index for index, *_ in change.added)]
        for left in [self._live.pop(index) for index in gone if index in self._live]:
            self._left(left)
        for index, params, prompt, output in change.added:
            live = self._back(params, prompt or [], output) or self._new(
                params, prompt or [], output
            )
            if live is not None:
                self._live[index] = live
        for a, b, how in change.moved:
            moved, other = self._live.pop(a, None), self._live.pop(b, None)
            if moved is not None:
                self._live[b] = moved
            if other is not None and how.name == "SWAP":
                self._live[a] = other
            elif other is not None:  # replaced, and named nowhere else
                self._left(other)

    def step(self, logits: torch.Tensor) -> None:
        """Force the next tokens in ``logits`` (rows, vocabulary), one pass for each plan."""
        for name, rows in self._rows.items():
            mine = [(i, live) for i, live in sorted(self._live.items()) if live.name == name]
            if not mine:
                continue
            try:
                rows.take([told for _, live in mine for told in self._told(live)])
                rows.constrain(logits, [(i, live.row) for i, live in mine])
            except Exception as error:  # whatever it is, the engine must go on
                for _, live in mine:
                    live.row.leave(self._cores[name], f"{type(error).__name__}: {error}")

    def _told(self, live: Live) -> list[tuple[Row, int]]:
        request = live.row.request
        if request is None or request.done or (request.idle and not self._logs):
            return []
        try:
            return [(live.row, token) for token in live.newest()]
        except UserError as error:
            live.row.leave(self._cores[live.name], str(error))
            return []

    def _new(self, params: Any, prompt: list[int], output: list[int]) -> Live | None:
        core = next(iter(self._cores.values()))
        try:
            wish = _wish(params)
            core = self._cores[wish.name]
            room = self._context - len(prompt)
            most = room if params.max_tokens is None else min(room, params.max_tokens)
            request = wish.request(core, prompt, most)
            if output and not request.idle:
                raise UserError("vLLM set a request aside and its signals were lost")
        except Exception as error:  # whatever it is, the engine must go on
            core.failures.add(str(error) or type(error).__name__)
            return None
        if output or (request.idle and core.log is None):
            return None
        ends = tuple(set(getattr(params, "stop_token_ids", None) or ()) - core.eos)
        return Live(wish.name, params, prompt, output, Row(request, ends), most)

    def _back(self, params: Any, prompt: list[int], output: list[int]) -> Live | None:
        same = [
            live
            for live in self._aside
            if output and live.params is params and live.prompt == prompt
            and live.output == output[: live.seen]
        ]  # fmt: skip
        if not same:
            return None
        live = max(same, key=lambda live: live.seen)
        self._aside.remove(live)
        live.output = output
        return live

    def _left(self, live: Live) -> None:
        """A request left the batch: ended, given up by its client, or set aside."""
        core = self._cores[live.name]
        try:
            self._rows[live.name].take(self._told(live))
            request = live.row.request
            if request is None:
                return
            last = live.output[live.seen - 1] if live.seen else None
            ended = live.seen >= live.most or last in {*core.eos, *live.row.ends}
            if request.idle or ended:
                request.finish()
            if ended or (last is None and live.row.source is None):
                return
            live.output = live.output[: live.seen]
            self._aside.append(live)
            if len(self._aside) > self._most:
                oldest = self._aside.popleft().row.request
                if oldest is not None:
                    oldest.finish()
        except Exception as error:  # whatever it is, the engine must go on
            live.row.leave(core, f"{type(error).__name__}: {error}")


def _wish(params: Any) -> Wanted:
    return wish_of(xargs_of(params), settings_of(), PREFIX)


def _plans(model: Any) -> dict[str, Core]:
    settings = settings_of()
    tokenizer = read_tokenizer(
        model.tokenizer,
        revision=model.tokenizer_revision,
        trust_remote_code=model.trust_remote_code,
    )
    ends: set[int] = set()
    for value in (tokenizer.eos_token_id, model.try_get_generation_config().get("eos_token_id")):
        ends.update(value if isinstance(value, Iterable) else () if value is None else (value,))
    return settings.bind(tokenizer, VLLM, int(model.get_vocab_size()), sorted(ends))
