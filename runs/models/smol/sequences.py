"""Thoughts as token sequences of SmolLM2, and batches of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlbudget.models.profiles import find_profile
from rlbudget.tasks.reasoning_gym import Item, draw
from runs.models.reasoner.thoughts import Habits, think
from runs.models.smol.ways import problem_of, teachable

HABITS = Habits(
    opening="First: ",
    slip_quick=0.25,
    slip_check=0.08,
    end_after_quick=0.1,
    extra_checks=(0.35, 0.35, 0.2, 0.1),
)
CUT_SHARE = 0.4
"""Thoughts that are cut somewhere and answered from there."""
LONGEST = 448


@dataclass(frozen=True, slots=True)
class Sequence:
    """Token ids, and for each whether it is learned."""

    ids: tuple[int, ...]
    learned: tuple[bool, ...]


def sequences(
    tokenizer: Any, families: Mapping[str, Mapping[str, Any]], n: int, seed: int
) -> list[Sequence]:
    """``n`` sequences on questions that are not reserved; long ones are left out."""
    rng = random.Random(seed)
    found: list[Sequence] = []
    for item in draw(families, n + n // 4, seed, reserved=False):
        if teachable(item):
            sequence = _sequence(tokenizer, item, rng)
            if len(sequence.ids) <= LONGEST:
                found.append(sequence)
    rng.shuffle(found)
    return found[:n]


def _sequence(tokenizer: Any, item: Item, rng: random.Random) -> Sequence:
    profile = find_profile("smollm2")
    thought = think(item, rng, problem_of=problem_of, habits=HABITS)
    text = "".join(piece for piece, _ in thought.pieces)
    spoiled = []
    at = 0
    for piece, trained in thought.pieces:
        if not trained:
            spoiled.append((at, at + len(piece)))
        at += len(piece)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = list(encoded["input_ids"]), encoded["offset_mapping"]
    learned = [not any(a < end and b > start for start, end in spoiled) for a, b in spans]
    if rng.random() < CUT_SHARE:
        kept = rng.randrange(len(ids))
        ids, learned = ids[:kept], learned[:kept]
        # What came before the cut is learned from other thoughts; here it is the answer's.
    prompt = profile.prompt(item.question, tokenizer)
    end = tokenizer(profile.exit_text, add_special_tokens=False)["input_ids"]
    answer = tokenizer(" " + thought.answer, add_special_tokens=False)["input_ids"]
    cut = len(ids) < len(spans)
    return Sequence(
        (*prompt, *ids, *end, *answer, tokenizer.eos_token_id),
        (
            *[False] * len(prompt),
            *learned,
            *[not cut] * len(end),
            *[True] * (len(answer) + 1),
        ),
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs (rows, width), and what is learned: where, and which token comes next."""

    inputs: torch.Tensor
    learned: torch.Tensor
    targets: torch.Tensor


def batches(data: list[Sequence], tokens: int, seed: int, pad: int) -> Iterator[Batch]:
    """Batches of about ``tokens`` without end; sequences of like length together."""
    epoch = 0
    while True:
        rng = np.random.default_rng([seed, epoch])
        noisy = [len(sequence.ids) + rng.uniform(0, 24) for sequence in data]
        order = np.argsort(noisy)
        groups: list[list[int]] = [[]]
        widest = 0
        for i in order.tolist():
            widest = max(widest, len(data[i].ids))
            if groups[-1] and widest * (len(groups[-1]) + 1) > tokens:
                groups.append([])
                widest = len(data[i].ids)
            groups[-1].append(i)
        for g in rng.permutation(len(groups)).tolist():
            yield _batch([data[i] for i in groups[g]], pad)
        epoch += 1


def _batch(rows: list[Sequence], pad: int) -> Batch:
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad)
    learned = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        learned[i, : len(row.ids)] = torch.tensor(row.learned)
    # Padding is on the right: no token sees it.
    return Batch(ids[:, :-1], learned[:, 1:], ids[:, 1:][learned[:, 1:]])
