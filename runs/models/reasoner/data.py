"""Generated questions and thoughts as token arrays, and the tokenizer they are written in."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from rlbudget.arrays import Ints
from rlbudget.tasks.reasoning_gym import EMBEDDED_FAMILIES, draw
from runs.models.reasoner.thoughts import Thought, think

PAD, BOS, EOS, THINK, END = "<pad>", "<bos>", "<eos>", "<think>", "</think>"
SPECIAL = [PAD, BOS, EOS, THINK, END]
VOCABULARY = 768
CHUNK = 2000
CUT_SHARE = 0.35

EASY: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 3, "max_terms": 7, "min_digits": 1, "max_digits": 1},
    "gcd": {"min_value": 2, "max_value": 72},
    "leg_counting": {"min_animals": 2, "max_animals": 4, "min_instances": 1, "max_instances": 7},
    "simple_equations": {**EMBEDDED_FAMILIES["simple_equations"], "max_value": 12},
}
"""The first stage's questions: the same families, smaller."""

STAGES = {"easy": EASY, "full": EMBEDDED_FAMILIES}

Rows = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Sequences:
    """Whole sequences end to end: ``start[i]:start[i + 1]`` is sequence ``i``.

    ``opens[i]`` and ``closes[i]`` are the positions, within the sequence, of the first thinking
    token and of the end-of-thinking token. ``trained`` is 0 where a token is not learned from.
    """

    tokens: Rows
    trained: npt.NDArray[np.uint8]
    start: Ints
    opens: Ints
    closes: Ints


def prompt_text(question: str) -> str:
    """What stands before the thinking, as the ``embedded`` profile writes it."""
    return f"{BOS}{question}\n{THINK}"


def train_tokenizer(seed: int) -> Tokenizer:
    """Byte-level BPE over generated text.

    Digits stand alone, so do the words that mark a turn of thought; everything else may merge,
    whole phrases too, which keeps prompts short.
    """
    texts = []
    rng = random.Random(seed)
    for item in draw(EASY, 8000, seed, reserved=False):
        thought = think(item, rng)
        texts += [item.question + "\n", "".join(text for text, _ in thought.pieces), thought.answer]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r" Wait,| Hmm,| Same | so | Before | Done\.|\n"), "isolated"
            ),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=48,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of one of ``SPECIAL``. Raises ValueError where the tokenizer lacks it."""
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token {token!r}")
    return found


def encode(
    tokenizer: Tokenizer, question: str, thought: Thought
) -> tuple[list[int], list[int], int, int]:
    """Token ids, trained flags, position of the first thinking and of the end-of-thinking token."""
    prompt = tokenizer.encode(prompt_text(question), add_special_tokens=False).ids
    body = "".join(text for text, _ in thought.pieces)
    untrained: set[int] = set()
    at = 0
    for text, trained in thought.pieces:
        if not trained:
            untrained.update(range(at, at + len(text)))
        at += len(text)
    thinking = tokenizer.encode(body, add_special_tokens=False)
    # A merged token may hold a wrong value's sign beside innocent text: leave it out as well.
    flags = [int(not untrained.intersection(range(*span))) for span in thinking.offsets]
    answer = tokenizer.encode(thought.answer, add_special_tokens=False).ids
    end, eos = token_id(tokenizer, END), token_id(tokenizer, EOS)
    ids = [*prompt, *thinking.ids, end, *answer, eos]
    trained_flags = [0] * len(prompt) + flags + [1] * (len(answer) + 2)
    return ids, trained_flags, len(prompt), len(prompt) + len(thinking.ids)


def _chunk(
    job: tuple[str, str, int, int],
) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    path, stage, seed, size = job
    tokenizer = Tokenizer.from_file(path)
    rng = random.Random(seed)
    tokens: list[int] = []
    flags: list[int] = []
    lengths: list[int] = []
    opens: list[int] = []
    closes: list[int] = []
    for item in draw(STAGES[stage], size, seed, reserved=False):
        ids, trained, opened, closed = encode(tokenizer, item.question, think(item, rng))
        tokens += ids
        flags += trained
        lengths.append(len(ids))
        opens.append(opened)
        closes.append(closed)
    return tokens, flags, lengths, opens, closes


def generate(
    tokenizer_file: Path, n: int, seed: int, *, stage: str = "full", workers: int = 2
) -> Sequences:
    """``n`` sequences about questions that are not reserved; the same seed, the same sequences."""
    jobs = [
        (str(tokenizer_file), stage, seed * 1_000_003 + 1 + i, min(CHUNK, n - i * CHUNK))
        for i in range((n + CHUNK - 1) // CHUNK)
    ]
    parts: list[list[Ints]] = [[] for _ in range(5)]
    with ProcessPoolExecutor(workers) as pool:
        for result in pool.map(_chunk, jobs):
            for part, values in zip(parts, result, strict=True):
                part.append(np.asarray(values, dtype=np.int64))
    tokens, flags, lengths, opens, closes = (np.concatenate(part) for part in parts)
    start = np.concatenate([[0], np.cumsum(lengths)])
    return Sequences(tokens.astype(np.uint16), flags.astype(np.uint8), start, opens, closes)


def batches(
    data: Sequences, *, tokens: int, widths: tuple[int, ...], seed: int
) -> Iterator[tuple[Ints, Ints]]:
    """Endless (inputs, targets), int64 of shape (tokens // width, width); target -100 = no loss.

    In each pass a share of the sequences is cut: the thinking ends at a random token, the
    end-of-thinking token is forced there (no loss on it) and the right answer follows.
    """
    rng = np.random.default_rng(seed)
    n = len(data.opens)
    waiting: dict[int, list[tuple[Ints, Ints]]] = {width: [] for width in widths}
    while True:
        for index in rng.permutation(n):
            row = _row(data, int(index), rng)
            width = next((w for w in widths if w >= len(row[0])), None)
            if width is None:
                continue
            held = waiting[width]
            held.append(row)
            if len(held) == tokens // width:
                inputs = np.zeros((len(held), width), dtype=np.int64)
                targets = np.full((len(held), width), -100, dtype=np.int64)
                for i, (ids, wanted) in enumerate(held):
                    inputs[i, : len(ids)] = ids
                    targets[i, : len(ids)] = wanted
                held.clear()
                yield inputs, targets


def _row(data: Sequences, index: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    span = slice(data.start[index], data.start[index + 1])
    ids = data.tokens[span].astype(np.int64)
    flags = data.trained[span].astype(bool)
    opened, closed = int(data.opens[index]), int(data.closes[index])
    if rng.random() < CUT_SHARE:
        cut = int(rng.integers(opened, closed + 1))
        ids = np.concatenate([ids[:cut], ids[closed:]])
        flags = np.concatenate([flags[:cut], flags[closed:]])
        flags[cut] = False
    return ids[:-1], np.where(flags[1:], ids[1:], -100)
