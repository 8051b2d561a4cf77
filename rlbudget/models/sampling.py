"""Sampling that does not depend on who else is in the batch, and the signals beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rlbudget.arrays import Floats, Ints
from rlbudget.signals.tokens import NO_SENTENCE_END, TOP_K

_BLOCK = 256
_NUMBERS_AT_ONCE = 2**20
_FAR = 1e4


class Uniforms:
    """One uniform number in [0, 1) for each (row, position), from each row's own seed."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [np.random.Generator(np.random.Philox(seed)) for seed in seeds]
        self._drawn = np.empty((len(seeds), 0))

    def at(self, positions: Ints) -> Floats:
        """Each row's number at its position; both of shape (n,)."""
        while len(positions) and positions.max() >= self._drawn.shape[1]:
            block = [generator.random(_BLOCK) for generator in self._generators]
            self._drawn = np.concatenate([self._drawn, np.stack(block)], axis=1)
        return self._drawn[np.arange(len(positions)), positions]

    def keep(self, rows: Ints) -> None:
        """Keep only these rows, in this order."""
        self._generators = [self._generators[row] for row in rows]
        self._drawn = self._drawn[rows]

    def join(self, seeds: Sequence[int]) -> None:
        """Add rows after the last."""
        others = Uniforms(seeds)
        drawn = [generator.random(self._drawn.shape[1]) for generator in others._generators]
        self._generators += others._generators
        self._drawn = np.concatenate([self._drawn, drawn])


def sample(logits: torch.Tensor, temperature: float, uniforms: torch.Tensor) -> torch.Tensor:
    """Token ids, shape (n,): the inverse of the cumulative distribution at ``uniforms``.

    ``logits`` is (n, vocabulary), ``uniforms`` (n,) float64 in [0, 1). Works in float64, so
    that the last bits of a batched matrix product rarely change a token.
    """
    parts = zip(in_parts(logits), torch.split(uniforms, _rows_at_once(logits)), strict=True)
    return torch.cat([_sample(part, temperature, numbers) for part, numbers in parts])


def _sample(logits: torch.Tensor, temperature: float, uniforms: torch.Tensor) -> torch.Tensor:
    # A mean-free exponent instead of softmax: the sum normalises in the comparison below.
    mass = (logits - logits.amax(dim=-1, keepdim=True)).double()
    if temperature != 1:
        mass /= temperature
    mass.exp_().cumsum_(dim=-1)
    target = (uniforms * mass[:, -1])[:, None]
    # right=True never picks a token of zero probability.
    index = torch.searchsorted(mass, target, right=True)[:, 0]
    return index.clamp_(max=logits.shape[-1] - 1)


def token_signals(
    logits: torch.Tensor, tokens: torch.Tensor, end_ids: torch.Tensor
) -> torch.Tensor:
    """The signals of ``rlbudget.signals.tokens.TOKEN_SIGNALS``, shape (n, 6), float32.

    ``logits`` (n, vocabulary) float32 are raw: temperature 1 whatever the sampling was.
    ``tokens`` (n,) were sampled from them; ``end_ids`` are the tokens that begin the end of
    the thinking.
    """
    parts = zip(in_parts(logits), torch.split(tokens, _rows_at_once(logits)), strict=True)
    return torch.cat([_token_signals(part, chosen, end_ids) for part, chosen in parts])


def _token_signals(
    logits: torch.Tensor, tokens: torch.Tensor, end_ids: torch.Tensor
) -> torch.Tensor:
    logprobs, probabilities, entropy = _distribution(logits)
    top = logprobs.topk(min(TOP_K, logprobs.shape[-1]), dim=-1).values
    p_end = probabilities[:, end_ids].sum(dim=-1)
    return torch.stack(
        [
            logprobs.gather(1, tokens[:, None])[:, 0],
            entropy,
            top[:, 0] - top[:, 1],
            p_end,
            top.mean(dim=-1),
            (top[:, 0] - p_end.log()).clamp(max=NO_SENTENCE_END),
        ],
        dim=-1,
    )


class Distribution:
    """What is measured of logits before a token is chosen from them.

    ``token_signals`` for an engine that shows its logits one step before the token, and may change
    them after it: the same numbers but for rounding, at a third of the time. Buffers are kept from
    step to step.
    """

    __slots__ = ("_buffers", "_end_ids", "_measured", "_normaliser", "highest")

    def __init__(self, end_ids: torch.Tensor) -> None:
        self._end_ids = end_ids
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def measure(self, logits: torch.Tensor) -> None:
        """Take raw ``logits``, (n, vocabulary) float32."""
        below, mass = self._room(logits)
        top = _top(logits)
        self.highest = top[:, 0]
        torch.sub(logits, top[:, :1], out=below)
        # exp() of the bound is 0, and 0 times the bound is 0 too, which 0 times -inf is not.
        below.clamp_(min=-_LOWEST)
        if below.device.type == "cpu" and torch.get_num_threads() < _FEW_THREADS:
            np.exp(below.numpy(), out=mass.numpy())  # half as long as torch's
        else:
            torch.exp(below, out=mass)
        total = mass.sum(dim=-1)
        normaliser = total.log()
        entropy = normaliser - torch.linalg.vecdot(mass, below) / total
        end = below[:, self._end_ids].logsumexp(dim=-1)
        self._normaliser = normaliser
        self._measured = torch.stack(
            [
                entropy,
                top[:, 0] - top[:, 1],
                (end - normaliser).exp(),
                top.mean(dim=-1) - (normaliser + self.highest),
                (-end).clamp(max=NO_SENTENCE_END),
            ],
            dim=-1,
        )

    def signals(self, tokens: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """``TOKEN_SIGNALS`` of the ``tokens`` (n,) chosen since, of all rows or of ``rows`` (n,):
        shape (n, 6), float32."""  # fmt: skip
        assert self._buffers is not None
        if rows is None:
            rows = torch.arange(len(tokens), device=tokens.device)
        chosen = self._buffers[0][rows, tokens] - self._normaliser[rows]
        return torch.cat([chosen[:, None], self._measured[rows]], dim=1)

    def alone(self, row: int) -> Distribution:
        """One row for itself, as it is, whatever is measured next."""
        assert self._buffers is not None
        one = Distribution(self._end_ids)
        below = self._buffers[0][row : row + 1].clone()
        one._buffers = below, below
        one._normaliser, one._measured = self._normaliser[[row]], self._measured[[row]]
        one.highest = self.highest[[row]]
        return one

    def _room(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Fresh pages every step cost more than the arithmetic.
        if self._buffers is None or self._buffers[0].shape != like.shape:
            self._buffers = torch.empty_like(like), torch.empty_like(like)
        return self._buffers


_LOWEST = 200.0
_FEW_THREADS = 4
_GROUP = 192


def _top(logits: torch.Tensor) -> torch.Tensor:
    """The ``TOP_K`` highest of each row, falling."""
    n, size = logits.shape
    groups = size // _GROUP
    if groups < 4 * TOP_K:
        return logits.topk(min(TOP_K, size), dim=-1).values
    # The highest lie in those groups whose own highest are the highest: fewer to sort.
    grouped = logits[:, : groups * _GROUP].view(n, groups, _GROUP)
    best = grouped.amax(dim=-1).topk(TOP_K, dim=-1).indices
    chosen = grouped.gather(1, best[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
    rest = logits[:, groups * _GROUP :]
    return torch.cat([chosen, rest], dim=1).topk(TOP_K, dim=-1).values


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    """Of each row's distribution, in nats: (n, vocabulary) -> (n,)."""
    return torch.cat([_distribution(part)[2] for part in in_parts(logits)])


def in_parts(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rows at a time whose vocabularies fit into a processor's cache: several times faster."""
    return torch.split(logits, _rows_at_once(logits))


def _rows_at_once(logits: torch.Tensor) -> int:
    return max(1, _NUMBERS_AT_ONCE // logits.shape[-1])


def _distribution(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities, probabilities and entropy."""
    logprobs = torch.log_softmax(logits, dim=-1)
    probabilities = logprobs.exp()
    # The product is 0 where a probability is; without a bound 0 times infinity would be NaN.
    entropy = -torch.linalg.vecdot(probabilities, logprobs.clamp(min=-_FAR))
    return logprobs, probabilities, entropy
