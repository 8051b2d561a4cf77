"""``Request`` for all slots of an engine at once, on the engine's device.

An engine with a GPU never waits for its numbers, so nothing here may look at one on the host:
no loop over requests, no branch on a value. What a request is stands in tensors by slot; a step
gathers the rows of the requests that are in the batch, moves them on, and writes them back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlbudget.decoding.core import Core
from rlbudget.decoding.device.network import Network, Observers, Windows
from rlbudget.decoding.device.repetition import Repetitions
from rlbudget.decoding.device.token_tables import token_tables
from rlbudget.decoding.tags import LOOK_BACK
from rlbudget.decoding.wanted import Wanted
from rlbudget.errors import UserError
from rlbudget.policy.dial import Dial, Spot
from rlbudget.policy.folder import Policy
from rlbudget.policy.own_memory import is_own
from rlbudget.signals.repeats import TOKEN_REPEATS
from rlbudget.signals.tokens import NO_SENTENCE_END, TOP_K

OFF, WAITING, UNOPENED, OPENING, THINKING, EXITING = range(6)
"""Left alone; the prompt is being read, and leaves thinking open, or leaves opening it to the
model; the model may open it now; thinking; the exit text is being forced."""
_PATIENCE = 16
"""tokens after which a model that has not opened its thinking is taken not to think"""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one step; every tensor has shape (n,) beside ``logits``."""

    logits: torch.Tensor
    """(n, vocabulary) float32, changed in place"""
    slots: torch.Tensor
    """int64, each slot once"""
    tokens: torch.Tensor
    """int64: the newest token of each, of the prompt or sampled"""
    lengths: torch.Tensor
    """int64: tokens so far, those of the prompt included"""
    prompts: torch.Tensor
    """int64: tokens of the prompt"""
    filled: torch.Tensor
    """int64: tokens to read before anything is sampled: the prompt, and after a pause what was
    decoded before it; a row of fewer tokens is of a prompt in parts and counts for nothing"""


class Slots:
    """The requests of one plan; ``context`` is the engine's longest sequence in tokens.

    Raises ``UserError`` for a plan that is more than a frozen policy, and for a policy whose
    features cost tokens.
    """

    def __init__(self, core: Core, slots: int, context: int, device: torch.device) -> None:
        policy, vocabulary, tags = core.plan.policy, core.vocabulary, core.tags
        more = not core.plan.plain or core.plan.correction is not None or core.log is not None
        if more or not isinstance(policy, Policy):
            raise UserError(
                "vLLM's V2 runner serves one frozen policy: leave combine, [guard], [rules],"
                " [correction] and [audit] out of the plan, or start vLLM with"
                " VLLM_USE_V2_MODEL_RUNNER=0"
            )
        if any(feature.startswith("text_") for feature in policy.features):
            raise UserError(
                "vLLM's V2 runner reads no text, which the policy looks at: start vLLM with"
                " VLLM_USE_V2_MODEL_RUNNER=0, or train with --signals all"
            )
        if any(feature.startswith(TOKEN_REPEATS) for feature in policy.features):
            raise UserError(
                "vLLM's V2 runner does not follow repetition, which the policy looks at: start vLLM"
                " with VLLM_USE_V2_MODEL_RUNNER=0, or train without --repeats"
            )
        if own := [feature for feature in policy.features if is_own(feature)]:
            raise UserError(
                f"vLLM's V2 runner does not follow {own[0]}, which the frozen rule looks at: start"
                " vLLM with VLLM_USE_V2_MODEL_RUNNER=0, or freeze the policy itself"
            )
        self._core, self._context, self._device = core, context, device
        self._network = Network(policy, device)
        self._threshold = policy.threshold
        self._windows = Windows(slots, device)
        self._observers = Observers(policy.features, slots, device)
        self._repetitions = Repetitions(slots, device) if core.plan.loops else None
        size = len(vocabulary.markers)
        tables = token_tables([*vocabulary.pieces, *[""] * size][:size], vocabulary.end_text)

        def known(ids: Any) -> torch.Tensor:
            """(vocabulary,) bool: which tokens are among these."""
            table = torch.zeros(size, dtype=torch.bool, device=device)
            table[torch.tensor(sorted(map(int, ids)), dtype=torch.int64, device=device)] = True
            return table

        self._end = torch.tensor(tables.end, dtype=torch.uint8, device=device)
        self._character = torch.tensor(tables.character, dtype=torch.uint8, device=device)
        self._blank = torch.tensor(tables.blank, device=device)
        self._markers = torch.tensor(vocabulary.markers, device=device)
        self._end_first = torch.tensor(vocabulary.end_first_ids, device=device)
        self._eos = torch.tensor(vocabulary.eos_ids, device=device)
        self._is_eos, self._is_tool = known(vocabulary.eos_ids), known(tags.tool_ids)
        self._is_control = known(i for i in tags.control if i < size)
        # Where a tag is spelled in several tokens, prompts are taken to leave thinking open.
        single = tags.start_id is not None and vocabulary.end_id is not None
        self._tags = (tags.start_id, vocabulary.end_id) if single else None
        self._exit = torch.tensor(vocabulary.exit_ids, device=device)

        def ints() -> torch.Tensor:
            return torch.zeros(slots, dtype=torch.int64, device=device)

        self._mode, self._length, self._cap, self._most, self._budget = (ints() for _ in range(5))
        self._thinking, self._place, self._end_state = ints(), ints(), ints()
        self._character_state = ints()
        self._ends, self._failed, self._fresh, self._quiet = (ints().bool() for _ in range(4))
        self._price = torch.zeros(slots, dtype=torch.float32, device=device)
        self._signals = torch.zeros(slots, 6, dtype=torch.float32, device=device)
        self._logits = torch.zeros(slots, size, dtype=torch.float32, device=device)
        self.failures = torch.zeros((), dtype=torch.int64, device=device)
        """requests that were left alone because something broke down"""

    def begin(
        self, slots: Sequence[int], spots: Sequence[Spot | None] | None = None,
        max_tokens: Sequence[int | None] | None = None,
        budgets: Sequence[int | None] | None = None,
        ids: torch.Tensor | None = None, lengths: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        """New requests in these slots; None is the plan's spot, and no cap of the request's own.

        ``ids`` (n, longest) and ``lengths`` (n,) are the prompts, without which thinking is taken
        to be open.
        """
        none = [None] * len(slots)
        dialed = [spot or self._core.spot() for spot in spots or none]
        most = [self._context if m is None else m for m in max_tokens or none]
        caps = [self._core.max_thinking if b is None else b for b in budgets or none]
        caps = [0 if s.stops == "at once" else b for s, b in zip(dialed, caps, strict=True)]

        def there(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values).to(self._device, non_blocking=True)

        where = there(slots)
        self._price[where] = there([self._network.price_feature(s.token_price) for s in dialed])
        self._most[where], self._budget[where] = there(most), there(caps)
        self._quiet[where] = there([s.stops == "never" for s in dialed])
        for state in (self._thinking, self._place, self._end_state, self._length,
                      self._character_state, self._ends, self._failed, self._fresh):  # fmt: skip
            state[where] = 0
        self._mode[where] = (
            WAITING if ids is None or lengths is None else self._opened(ids, lengths)
        )
        self._windows.forget(where)
        self._observers.forget(where)
        if self._repetitions is not None:
            self._repetitions.forget(where)

    def _opened(self, ids: torch.Tensor, lengths: torch.Tensor) -> Any:
        """``Tags.opened`` of prompts, as modes (n,)."""
        if self._tags is None:
            return WAITING
        places = torch.arange(ids.shape[1], device=self._device)[None]
        there = (places < lengths[:, None]) & (places >= lengths[:, None] - LOOK_BACK)
        last = places.masked_fill(~(there & self._is_control[ids]), -1).amax(1, keepdim=True)
        start, end = (
            places.masked_fill(~(there & (places > last) & (ids == token)), -1).amax(1)
            for token in self._tags
        )
        return torch.where(start > end, WAITING, torch.where(end >= 0, OFF, UNOPENED))

    def end(self, slots: Sequence[int]) -> None:
        """Leave these slots alone."""
        where = torch.tensor(slots, dtype=torch.int64).to(self._device, non_blocking=True)
        self._mode[where] = OFF

    @torch.inference_mode()
    def step(self, rows: Rows) -> None:
        """Take the newest tokens, and force the next ones in the logits."""
        ready = rows.lengths >= rows.filled
        self._meet(rows, ready)
        self._take(rows, ready)
        self._choose(rows, ready)

    def _meet(self, rows: Rows, ready: torch.Tensor) -> None:
        """Begin after the prompt; give up on what was missed."""
        slots, mode = rows.slots, self._mode[rows.slots]
        room = torch.minimum(self._most[slots], self._context - rows.prompts) - self._core.reserve
        begins = ready & ((mode == WAITING) | (mode == UNOPENED))
        lost = begins & ((rows.lengths != rows.prompts) | (room <= 0))
        missed = rows.lengths - self._length[slots]
        lost |= ready & (mode > UNOPENED) & ((missed < 0) | (missed > 1))
        first = torch.where(self._budget[slots] > 0, THINKING, EXITING)
        mode = torch.where(begins, torch.where(mode == WAITING, first, OPENING), mode)
        cap = torch.minimum(room, self._budget[slots]).clamp(max=self._core.max_thinking)
        self._cap[slots] = torch.where(begins, cap, self._cap[slots])
        self._length[slots] = torch.where(begins, rows.lengths, self._length[slots])
        self._mode[slots] = mode.masked_fill(lost, OFF)
        self.failures += lost.sum()

    def _take(self, rows: Rows, ready: torch.Tensor) -> None:
        slots, tokens = rows.slots, rows.tokens
        mode, place = self._mode[slots], self._place[slots]
        new = ready & (rows.lengths == self._length[slots] + 1) & (mode >= OPENING)
        self._length[slots] += new
        exiting = new & ((mode == EXITING) | self._ends[slots])
        # The line break after the start of the thinking is in prompts, and no thought.
        fresh = new & self._fresh[slots]
        self._fresh[slots] &= ~new
        thinks = new & (mode == THINKING) & ~exiting & ~(fresh & self._blank[tokens])

        count = self._thinking[slots] + thinks
        self._thinking[slots] = count
        character = self._moved(self._character, self._character_state, slots, tokens, thinks)
        end = self._moved(self._end, self._end_state, slots, tokens, thinks)
        ended = thinks & ((end == len(self._end) - 1) | self._is_tool[tokens])
        cap = self._cap[slots]
        stops = self._decide(rows, thinks & ~ended & (count < cap), count, character == 0)
        exits = stops | (thinks & ~ended & (count >= cap))
        if self._repetitions is not None:
            exits |= self._repetitions.push(slots, tokens, thinks & ~ended)

        # The exit text: a token that is not the one that was forced means that something with
        # more say took over.
        place = torch.where(exits, 0, place)
        followed = exiting & (tokens == self._exit[place])
        place = place + followed
        done = ended | (exiting & ~followed) | (place >= len(self._exit))
        if self._tags is not None:
            opening = new & (mode == OPENING)
            opens = opening & (tokens == self._tags[0])
            waits = self._blank[tokens] & (rows.lengths - rows.prompts <= _PATIENCE)
            self._fresh[slots] |= opens
            done |= opening & ~opens & ~waits
            first = torch.where(self._budget[slots] > 0, THINKING, EXITING)
            mode = torch.where(opens, first, mode)
        mode = torch.where(exits | exiting, EXITING, mode).masked_fill(done, OFF)
        self._place[slots] = place.clamp(max=len(self._exit) - 1)
        self._mode[slots] = mode
        self._ends[slots] &= ~new

    def _moved(
        self, table: torch.Tensor, state: torch.Tensor, slots: torch.Tensor, tokens: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """The automaton's new state, written back."""
        before = state[slots]
        after = torch.where(mask, table[before, tokens].long(), before)
        state[slots] = after
        return after

    def _decide(
        self, rows: Rows, free: torch.Tensor, count: torch.Tensor, whole: torch.Tensor
    ) -> torch.Tensor:
        """Where the policy stops; ``whole`` where no character lacks a byte."""
        slots, tokens = rows.slots, rows.tokens
        signals = self._signals[slots].double()
        signals[:, 0] += self._logits[slots, tokens]
        failed = self._failed[slots]
        works = free & ~failed
        broken = works & ~torch.isfinite(signals).all(dim=1)
        works &= ~broken
        window = self._windows.push(slots, signals, self._markers[tokens], works)
        here = works & whole & (count % self._core.stride == 0)
        observations = self._observers.update(slots, window, count, here)
        self._windows.clear(slots, here)
        probability = self._network.stop_probability(observations, self._price[slots])
        broken |= here & torch.isnan(probability)
        self._failed[slots] = failed | broken
        self.failures += broken.sum()
        return here & (probability > self._threshold) & ~self._quiet[slots]

    def _choose(self, rows: Rows, ready: torch.Tensor) -> None:
        slots, logits = rows.slots, rows.logits
        mode = self._mode[slots]
        thinks, exiting = mode == THINKING, mode == EXITING
        self._ends[slots] = thinks & self._read(rows, thinks & ready)
        forces = ready & (exiting | self._ends[slots])
        forced = self._exit[self._place[slots]]
        chosen = logits.gather(1, forced[:, None])
        # Whoever ruled a token out before us has more say.
        allowed = chosen[:, 0] > -math.inf
        self._mode[slots] = mode.masked_fill(forces & ~allowed, OFF)
        self.failures += (forces & ~allowed).sum()
        quiet = (thinks & (allowed | ~forces))[:, None]
        forces &= allowed
        logits[:, self._eos] = logits[:, self._eos].masked_fill(quiet, -math.inf)
        logits.masked_fill_(forces[:, None], -math.inf)
        logits.scatter_(1, forced[:, None], torch.where(forces[:, None], 0.0, chosen))

    def _read(self, rows: Rows, mask: torch.Tensor) -> torch.Tensor:
        """Keep the rows for the tokens sampled from them; where the first choice ends it all."""
        slots, logits = rows.slots, rows.logits
        logprobs = torch.log_softmax(logits, dim=1)
        top, first = logprobs.topk(min(TOP_K, logits.shape[1]), dim=1)
        probabilities = logprobs.exp()
        p_end = probabilities[:, self._end_first].sum(dim=1)
        values = torch.stack(
            [
                (logprobs - logits).gather(1, first[:, :1])[:, 0],
                torch.special.entr(probabilities).sum(dim=1),
                top[:, 0] - top[:, 1],
                p_end,
                top.mean(dim=1),
                (top[:, 0] - p_end.log()).clamp(max=NO_SENTENCE_END),
            ],
            dim=1,
        )
        self._signals[slots] = torch.where(mask[:, None], values, self._signals[slots])
        self._logits[slots] = torch.where(mask[:, None], logits, self._logits[slots])
        return self._is_eos[first[:, 0]]


class Batch:
    """V2's view of all requests, by slot; the plans by name."""

    def __init__(self, cores: dict[str, Core], context: int, states: Any) -> None:
        slots, device = int(states.max_num_reqs), states.device
        self._cores, self._names, self._states = cores, list(cores), states
        self._slots = {name: Slots(core, slots, context, device) for name, core in cores.items()}
        self._plan_of = np.full(slots, -1)
        self._new: dict[int, tuple[Wanted | None, int | None]] = {}
        self._counts = torch.zeros(len(cores), dtype=torch.int64, pin_memory=device.type == "cuda")
        self._counted = [0] * len(cores)
        self._broken = False

    def add(self, slot: int, wish: Wanted | None, max_tokens: int | None) -> None:
        """Note a request; None leaves it alone."""
        wish = None if wish is None or wish.off else wish
        self._new[slot] = wish, max_tokens
        self._plan_of[slot] = -1 if wish is None else self._names.index(wish.name)

    def flush(self) -> None:
        """Bring the noted ones to the device, and fetch the number of failures, without waiting."""
        for place, (name, slots) in enumerate(self._slots.items()):
            new = int(self._counts[place]) - self._counted[place]
            if new > 0:
                self._counted[place] += new
                self._cores[name].failures.add(
                    "on the device; rlbudget.decoding.device.slots says what can", new
                )
            self._counts[place].copy_(slots.failures, non_blocking=True)
            if self._new:
                slots.end(list(self._new))
            mine = [(slot, w, most) for slot, (w, most) in self._new.items()
                    if w is not None and w.name == name]  # fmt: skip
            if not mine:
                continue
            where = [slot for slot, *_ in mine]
            there = torch.tensor(where).to(self._states.device, non_blocking=True)
            slots.begin(
                where,
                [self._spot(self._cores[name], w.dial) for _, w, _ in mine],
                [most for *_, most in mine],
                [w.thinking_budget for _, w, _ in mine],
                self._states.all_token_ids.gpu[there].long(),
                self._states.prompt_len.gpu[there].long(),
            )
        self._new.clear()

    @staticmethod
    def _spot(core: Core, dial: Dial) -> Spot:
        spot = core.spot(dial)
        core.beyond(spot)
        return spot

    def step(self, logits: torch.Tensor, ctx: Any) -> None:
        """One pass over the batch for each plan that is in it; none after a fault."""
        if self._broken:
            return
        try:
            self._step(logits, ctx)
        except Exception as error:  # whatever it is, the engine must go on
            self._broken = True
            next(iter(self._cores.values())).failures.add(f"{type(error).__name__}: {error}")

    def _step(self, logits: torch.Tensor, ctx: Any) -> None:
        used = set(self._plan_of[ctx.idx_mapping_np].tolist()) - {-1}
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
        for plan in sorted(used):
            self._slots[self._names[plan]].step(rows)
