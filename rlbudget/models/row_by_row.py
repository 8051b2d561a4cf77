"""Sequences that grow one by one, each driven exactly as transformers' own ``generate`` drives it.

For networks whose state no batch can share: recurrent ones that see the padding, caches of their
own, states under other names. A forward pass a row and token, and a fork is a copy of the state.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlbudget.arrays import Ints

_STATES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")
"""what the networks of transformers call what they remember"""


@dataclass(slots=True)
class _Row:
    ids: torch.Tensor
    """(1, length)"""
    arguments: dict[str, Any]
    """what ``generate`` would hand to the next forward pass, the state among it"""
    logits: torch.Tensor
    """(1, vocabulary) float32, of the token that comes next"""


class RowByRow:
    """``rlbudget.models.sequences.Unfinished``, a row at a time."""

    __slots__ = ("_network", "_rows", "logits")

    logits: torch.Tensor
    """(n, vocabulary) float32, raw"""

    def __init__(self, network: Any, rows: Sequence[_Row]) -> None:
        self._network = network
        self._set(rows)

    @classmethod
    def begin(cls, network: Any, prompts: Sequence[Sequence[int]]) -> RowByRow:
        """Read the prompts (token ids, none empty)."""
        return cls(network, [_begin(network, prompt) for prompt in prompts])

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def takes_more(self) -> bool:
        """Whether ``join`` can be called: always."""
        return True

    @property
    def held(self) -> tuple[int, int]:
        """Zeros: the memory is the network's."""
        return (0, 0)

    def feed(self, tokens: torch.Tensor) -> None:
        """Append ``tokens`` of shape (n, k) and leave the logits that follow the last one."""
        self.read(tokens)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append ``tokens`` of shape (n, k): the logits before each of them and after the last,
        (n, k + 1, vocabulary)."""  # fmt: skip
        seen = [self.logits]
        for column in torch.split(tokens, 1, dim=1):
            for row, token in zip(self._rows, column, strict=True):
                _step(self._network, row, token)
            self._set(self._rows)
            seen.append(self.logits)
        return torch.stack(seen, dim=1)

    def oldest_first(self, n: int) -> Ints:
        """The order in which rows stand best: as they are."""
        return np.arange(len(self._rows))

    def join(self, others: RowByRow) -> None:
        """Take other sequences in, after the last."""
        self._set([*self._rows, *others._rows])

    def keep(self, rows: Ints) -> None:
        """Keep only these rows, in this order."""
        self._set([self._rows[row] for row in rows.tolist()])

    def selected(self, rows: torch.Tensor) -> RowByRow:
        """A copy of some rows; these sequences stay as they are."""
        return RowByRow(self._network, [_copied(self._rows[row]) for row in rows.tolist()])

    @contextmanager
    def fork(self) -> Iterator[RowByRow]:
        """Sequences that may run ahead; on leaving, these stand where they stood."""
        yield RowByRow(self._network, [_copied(row) for row in self._rows])

    def _set(self, rows: Sequence[_Row]) -> None:
        self._rows = list(rows)
        if self._rows:
            self.logits = torch.cat([row.logits for row in self._rows])


def _begin(network: Any, prompt: Sequence[int]) -> _Row:
    ids = torch.tensor([list(prompt)], device=network.device)
    arguments = {"attention_mask": torch.ones_like(ids), "use_cache": True}
    row = _Row(ids, arguments, torch.empty(0))
    inputs = network.prepare_inputs_for_generation(ids, is_first_iteration=True, **arguments)
    _take(network, row, network(**inputs, return_dict=True))
    if not any(row.arguments.get(name) is not None for name in _STATES):
        row.arguments["use_cache"] = False  # it remembers nothing: it reads everything again
    return row


def _step(network: Any, row: _Row, token: torch.Tensor) -> None:
    row.ids = torch.cat([row.ids, token.view(1, 1)], dim=1)
    new = 1 if row.arguments["use_cache"] else None
    inputs = network.prepare_inputs_for_generation(
        row.ids, next_sequence_length=new, **row.arguments
    )
    _take(network, row, network(**inputs, return_dict=True))


def _take(network: Any, row: _Row, outputs: Any) -> None:
    row.arguments = network._update_model_kwargs_for_generation(outputs, row.arguments)
    # Copied, or the row would hold on to the logits of its whole prompt.
    row.logits = outputs.logits[:, -1].to(row.ids.device, torch.float32, copy=True)


def _copied(row: _Row) -> _Row:
    return _Row(row.ids, copy.deepcopy(row.arguments), row.logits)
