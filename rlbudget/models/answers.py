"""Answers: greedy continuations after a cue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rlbudget.arrays import Bools
from rlbudget.models.reading import Continuation, ends_answer
from rlbudget.models.sampling import entropy_of
from rlbudget.models.sequences import Unfinished
from rlbudget.models.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class OptionsResult:
    """How likely each of a question's answer options is as the answer here."""

    logprobs: tuple[float, ...]
    """of each option and the end of the answer after it, in nats; not normalised"""
    tokens: int
    """what the look costs: like a trial answer, one token for the distribution after the cue and
    one for every token read after it, here all those of the options"""

    @property
    def entropy(self) -> float:
        """Of the distribution over the options, in nats: at most the logarithm of their number."""
        scores = torch.tensor(self.logprobs, dtype=torch.float64)
        return float(torch.special.entr(scores.softmax(0)).sum())


def continue_greedily(
    rows: Unfinished,
    cue: Sequence[int],
    wanted: Bools,
    *,
    cap: int,
    vocabulary: Vocabulary,
    stops: Sequence[str],
) -> dict[int, Continuation]:
    """Feed ``cue`` to all rows, then decode greedily until each wanted row has ended.

    A row ends with an end-of-sequence token (kept), a stop text or ``cap`` tokens. Returns
    row -> continuation. The sequences run ahead: call it on a fork.
    """
    n = len(rows)
    device = rows.logits.device
    rows.feed(torch.tensor([list(cue)], device=device).expand(n, -1))
    ids = np.zeros((n, cap), dtype=np.int64)
    logprobs = np.zeros((n, cap))
    counts = np.zeros(n, dtype=np.int64)
    entropy = entropy_of(rows.logits).double().numpy(force=True)
    active = wanted.copy()
    place = np.arange(n)  # the row each sequence belongs to
    for step in range(cap):
        logits = rows.logits
        best = logits.max(dim=-1)
        ids[place, step] = best.indices.numpy(force=True)
        logprobs[place, step] = (best.values - logits.logsumexp(dim=-1)).numpy(force=True)
        counts[active] += 1
        active &= ~np.isin(ids[:, step], vocabulary.eos_ids)
        if stops:
            for row in np.flatnonzero(active):
                active[row] = not ends_answer(ids[row, : step + 1].tolist(), vocabulary, stops)
        if step + 1 == cap or not active.any():
            break
        tokens = best.indices
        if 4 * active.sum() <= len(place) and len(place) >= 8:
            # A few long answers: go on with a small copy instead of the whole batch.
            kept = np.flatnonzero(active[place])
            index = torch.from_numpy(kept).to(device)
            rows, tokens, place = rows.selected(index), tokens[index], place[kept]
        rows.feed(tokens[:, None])
    return {
        int(row): Continuation(
            tuple(ids[row, : counts[row]].tolist()),
            tuple(logprobs[row, : counts[row]].tolist()),
            float(entropy[row]),
        )
        for row in np.flatnonzero(wanted)
    }


def read_options(
    rows: Unfinished, options: Sequence[Sequence[Sequence[int]]], vocabulary: Vocabulary
) -> list[OptionsResult]:
    """Read every option (token ids, none empty) of every row that has some, teacher-forced.

    ``options`` has one list a row; the logits of ``rows`` are those after the cue. A forward pass
    takes as many options at a time as there are rows, so that the cache at most doubles.
    """
    pairs = [(row, ids) for row, given in enumerate(options) for ids in given]
    scores: list[float] = []
    for start in range(0, len(pairs), len(rows)):
        scores += _score(rows, pairs[start : start + len(rows)], vocabulary)
    found = iter(scores)
    return [
        OptionsResult(tuple(next(found) for _ in given), 1 + sum(map(len, given)))
        for given in options
    ]


def _score(
    rows: Unfinished, pairs: Sequence[tuple[int, Sequence[int]]], vocabulary: Vocabulary
) -> list[float]:
    """The log-probability of each (row, option) and of the answer's end after it."""
    device = rows.logits.device
    lengths = torch.tensor([len(ids) for _, ids in pairs], device=device)
    width = int(lengths.max())
    # Padded on the right: no token sees what comes after it.
    padded = torch.tensor([[*ids, *[0] * (width - len(ids))] for _, ids in pairs], device=device)
    ahead = rows.selected(torch.tensor([row for row, _ in pairs], device=device))
    logprobs = ahead.read(padded).log_softmax(dim=-1)
    each = logprobs[:, :-1].gather(2, padded[:, :, None])[:, :, 0].double()
    written = torch.arange(width, device=device) < lengths[:, None]
    after = logprobs[torch.arange(len(pairs), device=device), lengths]
    ends = torch.from_numpy(vocabulary.answer_end_ids).to(device)
    total = (each * written).sum(dim=1) + after[:, ends].double().logsumexp(dim=1)
    scores: list[float] = total.tolist()
    return scores
