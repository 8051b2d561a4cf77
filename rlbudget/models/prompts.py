"""Reading prompts, and what the model makes of the questions meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rlbudget.models.sampling import of_given_tokens
from rlbudget.models.sequences import Sequences

Floats = npt.NDArray[np.float64]


def own_tokens(prompt: Sequence[int], empty: Sequence[int]) -> range:
    """The places of a question's own tokens in its prompt.

    ``empty`` is the prompt of the empty question: what both begin and end with is the profile's.
    """
    shorter = min(len(prompt), len(empty))
    before = _shared(prompt, empty, shorter)
    after = _shared(prompt[::-1], empty[::-1], shorter - before)
    return range(before, len(prompt) - after)


def read_prompts(
    network: Any, prompts: Sequence[Sequence[int]], own: Sequence[range]
) -> tuple[Sequences, Floats]:
    """The prompts as sequences that stand after their last token, and ``PROMPT_SIGNALS``, (n, 3).

    ``own`` are the places of the signals' tokens in each prompt. A token without one before it is
    counted, but not predicted; without a predicted token entropy and log-probability are 0.
    """
    width = max(map(len, prompts))
    # By the column after which the token comes; -1 where none is asked about.
    following = torch.full((len(prompts), width), -1, dtype=torch.long)
    for row, (prompt, places) in enumerate(zip(prompts, own, strict=True)):
        asked = range(max(places.start, 1), places.stop)
        column = width - len(prompt) + asked.start - 1
        ids = torch.tensor(prompt[asked.start : asked.stop], dtype=torch.long)
        following[row, column : column + len(ids)] = ids
    predicted = (following >= 0).sum(dim=1)
    following = following.to(network.device)
    sums = torch.zeros((len(prompts), 2), dtype=torch.float64, device=network.device)

    def watch(first: int, logits: torch.Tensor) -> None:
        for column, after in enumerate(logits.unbind(dim=1), start=first):
            rows = torch.nonzero(following[:, column] >= 0)[:, 0]
            if len(rows):
                sums[rows] += of_given_tokens(after[rows], following[rows, column]).double()

    sequences = Sequences.begin(network, prompts, watch)
    means = sums.numpy(force=True) / predicted.clamp(min=1).numpy()[:, None]
    counts = np.array([[len(places)] for places in own], dtype=np.float64)
    return sequences, np.concatenate([counts, means], axis=1)


def _shared(one: Sequence[int], other: Sequence[int], most: int) -> int:
    """How many first tokens two prompts share, ``most`` at the most."""
    return next((place for place in range(most) if one[place] != other[place]), most)
