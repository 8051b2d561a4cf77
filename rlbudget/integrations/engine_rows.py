"""Requests inside an engine that shows the logits of its whole batch, in any order, at each step.

vLLM's V1 runner and SGLang are such engines: what they share is here. All rows that think are
measured in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlbudget.arrays import Floats
from rlbudget.decoding.core import Core
from rlbudget.decoding.request import Request
from rlbudget.models.sampling import Distribution


@dataclass(eq=False, slots=True)
class Row:
    """One request between two steps."""

    request: Request | None
    """None where it is left alone"""
    ends: tuple[int, ...] = ()
    """tokens that end this request, beside those that end every sequence"""
    source: Distribution | None = None
    """what was measured of the logits that its next token is chosen from"""
    at: int = 0
    """its row there"""
    gave_up: bool = False
    """whether the first choice was to end it all while it thought"""

    def leave(self, core: Core, why: str) -> None:
        """Leave it alone from here on; counted."""
        core.failures.add(why)
        if self.request is not None:
            self.request.problem = why
            self.request.finish()
        self.request = self.source = None


class EngineRows:
    """The rows of one core: ``take`` what was sampled, then ``constrain`` what comes next."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._eos = sorted(core.eos)
        self._shared: Distribution | None = None
        self._measured: Sequence[Row] = ()

    def take(self, told: Sequence[tuple[Row, int]]) -> None:
        """Tell the requests of the token that each got."""
        groups: dict[Distribution, list[tuple[Row, int]]] = {}
        for row, token in told:
            if row.source is not None:
                groups.setdefault(row.source, []).append((row, token))
        signals: dict[Row, Floats] = {}
        for source, group in groups.items():
            tokens, places = zip(*((token, row.at) for row, token in group), strict=True)
            device = source.highest.device
            values = source.signals(
                torch.tensor(tokens, device=device), torch.tensor(places, device=device)
            )
            signals.update(
                zip((r for r, _ in group), values.double().numpy(force=True), strict=True)
            )
        for row, token in told:
            row.source = None
            if row.request is not None:
                if row.gave_up:
                    row.request.forced(self._eos[0])
                    row.gave_up = False
                row.request.push(token, signals.get(row))

    def constrain(self, logits: torch.Tensor, shown: Sequence[tuple[int, Row]]) -> None:
        """Let nothing but what may come next be possible, in place.

        ``logits`` (n, vocabulary) are raw; ``shown`` are rows of them, by number. A row may be
        shown again before its token comes: only the last time counts.
        """
        thinking = [(i, r) for i, r in shown if r.request is not None and r.request.thinking]
        self._keep_others({row for _, row in thinking})
        if thinking:
            self._measure(logits, thinking)
        forced: list[tuple[int, int]] = []
        for i, row in shown:
            if row.request is None:
                continue
            token = self._core.vocabulary.exit_ids[0] if row.gave_up else row.request.forced()
            if token is None:
                continue
            if float(logits[i, token]) == -torch.inf:  # whoever ruled it out has more say
                row.leave(self._core, "another processor forbids the exit text")
            else:
                forced.append((i, token))
        free = [(i, r) for i, r in thinking if r.request is not None and not r.gave_up]
        if free:
            places = torch.tensor([i for i, _ in free], device=logits.device)
            logits[places[:, None], torch.tensor(self._eos, device=logits.device)] = -torch.inf
            for i, row in free:
                logits[i, list(row.ends)] = -torch.inf
        if forced:
            places, tokens = torch.tensor(forced, device=logits.device).unbind(1)
            logits[places] = -torch.inf
            logits[places, tokens] = 0.0

    def _keep_others(self, shown: set[Row]) -> None:
        """What was measured of rows that are not shown now would be lost."""
        for row in self._measured:
            if row.source is self._shared is not None and row not in shown:
                row.source, row.at = self._shared.alone(row.at), 0

    def _measure(self, logits: torch.Tensor, thinking: Sequence[tuple[int, Row]]) -> None:
        device = logits.device
        if self._shared is None:
            ends = torch.from_numpy(self._core.vocabulary.end_first_ids)
            self._shared = Distribution(ends.to(device))
        index = [i for i, _ in thinking]
        every = index == list(range(len(logits)))
        part = (logits if every else logits[torch.tensor(index, device=device)]).float()
        self._shared.measure(part)
        highest = self._shared.highest
        gave_up = (part[:, self._eos].amax(dim=-1) >= highest).tolist()
        for at, ((_, row), ends_it) in enumerate(zip(thinking, gave_up, strict=True)):
            row.source, row.at = self._shared, at
            own = bool(row.ends) and float(part[at, list(row.ends)].max()) >= float(highest[at])
            row.gave_up = ends_it or own
        self._measured = [row for _, row in thinking]
