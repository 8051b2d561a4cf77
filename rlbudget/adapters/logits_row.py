"""The signals of one row of logits, in as few passes as they need.

``rlbudget.models.sampling.token_signals`` takes whole batches and the sampled tokens with them.
An engine shows a row before it samples, one request at a time, and every microsecond there is a
microsecond of the decode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from rlbudget.signals import NO_SENTENCE_END, TOP_K

_BLOCK = 64


@dataclass(frozen=True, slots=True)
class LogitsRow:
    """What is known of the next token before it is sampled."""

    likeliest: int
    """the first choice"""
    logits: torch.Tensor
    """(vocabulary,) float32, a copy: engines change theirs"""
    normaliser: float
    """the logarithm of the sum of the exponentials"""
    entropy: float
    margin: float
    p_end: float
    topk: float
    end_gap: float

    def signals(self, token: int) -> list[float]:
        """The six numbers of ``rlbudget.signals.TOKEN_SIGNALS`` of the token that was sampled."""
        logprob = float(self.logits[token]) - self.normaliser
        return [logprob, self.entropy, self.margin, self.p_end, self.topk, self.end_gap]


def read_row(logits: torch.Tensor, end_ids: torch.Tensor) -> LogitsRow:
    """Read raw logits, shape (vocabulary,); tokens ruled out are −infinity.

    ``end_ids`` are the tokens with which the end of the thinking can begin.
    """
    kept = logits.to(torch.float32, copy=True)
    size = len(kept)
    whole = size // _BLOCK * _BLOCK
    # The k largest numbers lie in the k blocks with the largest maxima.
    blocks = kept[:whole].view(-1, _BLOCK)
    chosen = blocks.amax(dim=1).topk(min(TOP_K, len(blocks))).indices
    candidates = blocks[chosen].flatten()
    if whole < size:
        candidates = torch.cat((candidates, kept[whole:]))
    top, where = candidates.topk(min(TOP_K, len(candidates)))
    block, place = divmod(int(where[0]), _BLOCK)
    likeliest = int(chosen[block]) * _BLOCK if block < len(chosen) else whole
    likeliest += place if block < len(chosen) else int(where[0]) - len(chosen) * _BLOCK
    first, second = top[:2].tolist()
    mass = (kept - first).exp_()
    total = float(mass.sum())
    energy = float(torch.dot(mass, kept))
    if not math.isfinite(energy):  # 0 times −infinity: a token that was ruled out
        energy = float(torch.dot(mass, kept.clamp(min=torch.finfo(kept.dtype).min)))
    normaliser = first + math.log(total)
    p_end = float(mass[end_ids].sum()) / total
    gap = first - normaliser - math.log(p_end) if p_end > 0 else math.inf
    return LogitsRow(
        likeliest=likeliest,
        logits=kept,
        normaliser=normaliser,
        entropy=normaliser - energy / total,
        margin=first - second,
        p_end=p_end,
        topk=float(top.mean()) - normaliser,
        end_gap=min(gap, NO_SENTENCE_END),
    )
