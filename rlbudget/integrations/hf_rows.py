"""The requests of one batch, and what they ask of the batch's scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from rlbudget.arrays import Floats
from rlbudget.decoding.aside import Wish
from rlbudget.decoding.core import Core
from rlbudget.decoding.decoded import Ending
from rlbudget.decoding.request import Request
from rlbudget.models.row_signals import RowSignals
from rlbudget.models.sampling import Distribution


class Rows:
    """One request a row, in lockstep: ``constrain``, then ``take``, and so on."""

    def __init__(self, core: Core, requests: Sequence[Request], device: torch.device) -> None:
        self.requests = list(requests)
        self._device = device
        self._eos = torch.tensor(sorted(core.eos), device=device)
        self._eos_set = core.eos
        self._distribution = Distribution(
            torch.from_numpy(core.vocabulary.end_first_ids).to(device)
        )
        alone = len(self.requests) == 1 and device.type == "cpu"
        self._one = RowSignals(core.vocabulary.end_first_ids.tolist()) if alone else None
        self._eos_array = core.vocabulary.eos_ids
        self._done = [False] * len(self.requests)
        self._measured: list[int] = []  # rows whose next token gets signals
        self._forced: dict[int, int] = {}

    @property
    def endings(self) -> list[Ending]:
        """Where every row stands."""
        return [request.ending for request in self.requests]

    @property
    def thinking(self) -> list[int]:
        """The rows that still think."""
        return [
            row
            for row, request in enumerate(self.requests)
            if request.thinking and not self._done[row]
        ]

    def constrain(self, raw: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores of the next token, in which nothing but what may come next is possible.

        ``raw`` are the model's logits, which are measured, ``scores`` what was made of them:
        (n, vocabulary) float32 each, neither of them changed.
        """
        thinking = self._measured = self.thinking
        every = len(thinking) == len(self.requests)
        part = thinking and not every
        index = torch.tensor(thinking, device=self._device) if part else None
        ends = set(self._measure(raw, scores, index)) if thinking else set()
        an_end = next(iter(self._eos_set))
        self._forced = {}
        for row, request in enumerate(self.requests):
            if not self._done[row]:
                token = request.forced(an_end if row in ends else -1)
                if token is not None:
                    self._forced[row] = token
        if not thinking and not self._forced:
            return scores
        if every:
            out = scores.index_fill(1, self._eos, -torch.inf)
        else:
            out = scores.clone()
            if index is not None:
                out[index[:, None], self._eos] = -torch.inf
        if self._forced:
            rows = torch.tensor(list(self._forced), device=self._device)
            out[rows] = -torch.inf
            out[rows, torch.tensor(list(self._forced.values()), device=self._device)] = 0.0
        return out

    def _measure(
        self, raw: torch.Tensor, scores: torch.Tensor, index: torch.Tensor | None
    ) -> list[int]:
        """Measure the rows that think, all or those of ``index``: those that would end it all."""
        if self._one is not None:
            self._one.measure(raw[0].float().numpy(force=True))
            row = scores[0].float().numpy(force=True)
            highest = self._one.highest if scores is raw else row.max()
            return [0] if row[self._eos_array].max() >= highest else []
        self._distribution.measure(raw if index is None else raw[index])
        part = scores if index is None else scores[index]
        highest = self._distribution.highest if scores is raw else part.amax(dim=-1)
        gave_up = (part[:, self._eos].amax(dim=-1) >= highest).tolist()
        return [row for row, yes in zip(self._measured, gave_up, strict=True) if yes]

    def take(
        self,
        tokens: torch.Tensor,
        settle: Callable[[dict[int, Wish]], dict[int, Wish]] | None = None,
    ) -> None:
        """Take the token (n,) that every row got; rows that ended may get anything.

        ``settle`` does what rows want done aside after this token and returns what they want next.
        """
        signals: dict[int, Floats | tuple[float, ...]] = {}
        if self._measured and self._one is not None:
            signals[0] = self._one.signals(int(tokens[0]))
        elif self._measured:
            every = len(self._measured) == len(self.requests)
            chosen = tokens if every else tokens[torch.tensor(self._measured, device=self._device)]
            values = self._distribution.signals(chosen).double().numpy(force=True)
            signals = dict(zip(self._measured, values, strict=True))
        wishes: dict[int, Wish] = {}
        for row, (request, token) in enumerate(zip(self.requests, tokens.tolist(), strict=True)):
            if self._done[row]:
                continue
            ended = token in self._eos_set
            forced = self._forced.get(row)
            if (ended and request.thinking) or (forced is not None and token != forced):
                # Impossible, so the engine has ended the row by a rule of its own.
                self._done[row] = True
                continue
            self._done[row] = ended and forced is None
            wish = request.push(token, signals.get(row))
            if wish is not None:
                wishes[row] = wish
        while wishes and settle is not None:
            wishes = settle(wishes)
