"""The twin in torch of ``rlbudget.signals.loops``, for many requests at once.

It follows every period where the original follows one match: no branch looks at a number.
"""

from __future__ import annotations

import torch

from rlbudget.signals.loops import LONGEST, tokens_needed


class Repetitions:
    """Which slots repeat themselves exactly."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self._history = torch.zeros(slots, LONGEST, dtype=torch.int32, device=device)  # a ring
        self._count = torch.zeros(slots, dtype=torch.int64, device=device)
        # By period less 1: how many of the last tokens equal those one period before them.
        self._runs = torch.zeros(slots, LONGEST, dtype=torch.int32, device=device)
        self._periods = torch.arange(1, LONGEST + 1, device=device)
        self._needed = torch.tensor(
            [tokens_needed(p) - p for p in range(1, LONGEST + 1)], dtype=torch.int32, device=device
        )

    def forget(self, slots: torch.Tensor) -> None:
        """As new."""
        self._count[slots] = 0

    def push(self, slots: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Add a token where ``mask`` (n,): where a loop stands after it, (n,) bool."""
        count, history, runs = self._count[slots], self._history[slots], self._runs[slots]
        before = history.gather(1, (count[:, None] - self._periods) % LONGEST)
        same = (before == tokens[:, None]) & (self._periods <= count[:, None])
        after = torch.where(same, runs + 1, 0)
        self._runs[slots] = torch.where(mask[:, None], after, runs)
        place = (count % LONGEST)[:, None]
        kept = torch.where(mask[:, None], tokens[:, None].int(), history.gather(1, place))
        self._history[slots] = history.scatter(1, place, kept)
        self._count[slots] = count + mask
        return mask & (after >= self._needed).any(dim=1)
