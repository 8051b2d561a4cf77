"""``Request`` for all slots of an engine at once, on the engine's device.

An engine with a GPU never waits for its numbers, so nothing here may look at one on the host:
no loop over requests, no branch on a value. What a request is stands in tensors by slot; a step
gathers the rows of the requests that are in the batch, moves them on, and writes them back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlbudget.decoding.core import Core
from rlbudget.errors import UserError
from rlbudget.integrations.token_tables import token_tables
from rlbudget.integrations.torch_policy import Network, Observers, Windows
from rlbudget.policy.folder import Policy
from rlbudget.signals.tokens import NO_SENTENCE_END, TOP_K

OFF, WAITING, THINKING, EXITING = 0, 1, 2, 3
"""Left alone; not begun; thinking; the exit text is being forced."""


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
    """The requests of one policy; ``context`` is the engine's longest sequence in tokens.

    Raises ``UserError`` for a policy whose features cost tokens.
    """

    def __init__(self, plan: Core, slots: int, context: int, device: torch.device) -> None:
        policy, vocabulary = plan.plan.policy, plan.vocabulary
        if not isinstance(policy, Policy):
            raise UserError(
                "vLLM's V2 runner takes frozen policies only: rlbudget freeze makes one"
            )
        self._plan = plan
        self._context = context
        self._device = device
        self._network = Network(policy, device)
        self._threshold = policy.threshold
        self._windows = Windows(slots, device)
        self._observers = Observers(policy.features, slots, device)
        size = len(vocabulary.markers)
        pieces = vocabulary.tokenizer.convert_ids_to_tokens(
            list(range(min(size, len(vocabulary.tokenizer))))
        )
        pieces = [piece or "" for piece in pieces] + [""] * (size - len(pieces))
        tables = token_tables(pieces, vocabulary.end_text)
        self._end = torch.tensor(tables.end, dtype=torch.uint8, device=device)
        self._character = torch.tensor(tables.character, dtype=torch.uint8, device=device)
        self._markers = torch.tensor(vocabulary.markers, device=device)
        self._end_first = torch.tensor(vocabulary.end_first_ids, device=device)
        self._eos = torch.tensor(vocabulary.eos_ids, device=device)
        self._is_eos = torch.zeros(size, dtype=torch.bool, device=device)
        self._is_eos[self._eos] = True
        self._exit = torch.tensor(vocabulary.exit_ids, device=device)
        self._mode = self._int(slots)
        self._length = self._int(slots)
        self._cap = self._int(slots)
        self._thinking = self._int(slots)
        self._place = self._int(slots)
        self._end_state = self._int(slots)
        self._character_state = self._int(slots)
        self._ends = torch.zeros(slots, dtype=torch.bool, device=device)
        self._failed = torch.zeros(slots, dtype=torch.bool, device=device)
        self._price = torch.zeros(slots, dtype=torch.float32, device=device)
        self._signals = torch.zeros(slots, 6, dtype=torch.float32, device=device)
        self._logits = torch.zeros(slots, size, dtype=torch.float32, device=device)
        self._most = self._int(slots)
        self.failures = torch.zeros((), dtype=torch.int64, device=device)
        """requests that were left alone because something broke down"""

    def _int(self, slots: int) -> torch.Tensor:
        return torch.zeros(slots, dtype=torch.int64, device=self._device)

    def begin(
        self, slots: Sequence[int], token_prices: Sequence[float | None],
        max_tokens: Sequence[int | None],
    ) -> None:  # fmt: skip
        """New requests in these slots; None is the plan's price, and no cap of the request's own.

        The prices must be in the policy's range.
        """
        where = torch.tensor(slots, dtype=torch.int64).to(self._device, non_blocking=True)
        prices = [self._plan.token_price if p is None else p for p in token_prices]
        most = [self._context if m is None else m for m in max_tokens]
        features = [self._network.price_feature(price) for price in prices]
        self._price[where] = torch.tensor(features).to(self._device, non_blocking=True)
        self._most[where] = torch.tensor(most).to(self._device, non_blocking=True)
        for state in (self._thinking, self._place, self._end_state,
                      self._character_state, self._ends, self._failed, self._length):  # fmt: skip
            state[where] = 0
        self._mode[where] = WAITING
        self._windows.forget(where)
        self._observers.forget(where)

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
        """Begin to think after the prompt; give up on what was missed."""
        slots, mode = rows.slots, self._mode[rows.slots]
        room = torch.minimum(self._most[slots], self._context - rows.prompts) - self._plan.reserve
        begins = ready & (mode == WAITING)
        lost = begins & ((rows.lengths != rows.prompts) | (room <= 0))
        missed = rows.lengths - self._length[slots]
        lost |= ready & (mode > WAITING) & ((missed < 0) | (missed > 1))
        mode = torch.where(begins, THINKING, mode).masked_fill(lost, OFF)
        self._cap[slots] = torch.where(begins, room.clamp(max=self._plan.max_thinking),
                                       self._cap[slots])  # fmt: skip
        self._length[slots] = torch.where(begins, rows.lengths, self._length[slots])
        self._mode[slots] = mode
        self.failures += lost.sum()

    def _take(self, rows: Rows, ready: torch.Tensor) -> None:
        slots, tokens = rows.slots, rows.tokens
        mode, place = self._mode[slots], self._place[slots]
        new = ready & (rows.lengths == self._length[slots] + 1) & (mode >= THINKING)
        self._length[slots] += new
        exiting = new & ((mode == EXITING) | self._ends[slots])
        thinks = new & ~exiting

        count = self._thinking[slots] + thinks
        self._thinking[slots] = count
        character = self._moved(self._character, self._character_state, slots, tokens, thinks)
        end = self._moved(self._end, self._end_state, slots, tokens, thinks)
        ended = thinks & (end == len(self._end) - 1)
        cap = self._cap[slots]
        stops = self._decide(rows, thinks & ~ended & (count < cap), count, character == 0)
        exits = stops | (thinks & ~ended & (count >= cap))

        # The exit text: a token that is not the one that was forced means that something with
        # more say took over.
        place = torch.where(exits, 0, place)
        followed = exiting & (tokens == self._exit[place])
        place = place + followed
        done = ended | (exiting & ~followed) | (place >= len(self._exit))
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
        here = works & whole & (count % self._plan.stride == 0)
        observations = self._observers.update(slots, window, count, here)
        self._windows.clear(slots, here)
        probability = self._network.stop_probability(observations, self._price[slots])
        broken |= here & torch.isnan(probability)
        self._failed[slots] = failed | broken
        self.failures += broken.sum()
        return here & (probability > self._threshold)

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
