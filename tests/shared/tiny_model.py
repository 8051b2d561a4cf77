"""A tiny random reasoner, made on the spot: an untrained Llama and a byte-level tokenizer.

It writes nonsense, but it samples, ends its thinking now and then, and answers: all that
the laws of recording and decoding need.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlbudget.tasks.task import Question, Task

SPECIAL = ["<pad>", "<bos>", "<eos>", "<think>", "</think>"]
TEXT = [
    "What is 3 + 4 - 5? so the answer is 2. wait, let me check: 4 - 5 is -1, 3 - 1 is 2.",
    "Sort 12, 7, 30. maybe 7 comes first, then 12, then 30. but hold on, yes, same again.",
    "Question: how many legs do 2 cows have? The answer is 8.",
]


def tiny_tokenizer(vocabulary: int = 320) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits; every string can be spelled."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def tiny_network(
    vocabulary: int = 320,
    *,
    seed: int = 0,
    hidden: int = 32,
    layers: int = 2,
    loudness: float = 1.5,
    **config: object,
) -> LlamaForCausalLM:
    """A random Llama whose distribution is uneven and is now and then fond of the end tokens."""
    torch.manual_seed(seed)
    settings: dict[str, object] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    }
    network = LlamaForCausalLM(LlamaConfig(**{**settings, **config}))
    with torch.no_grad():
        # Louder rows of the output matrix: in some contexts the end tokens win by far, in most
        # they are out of the question, so thinking ends at random and greedy answers end too.
        network.lm_head.weight[[2, 4]] *= loudness
    return network.eval()


def save_tiny_model(folder: Path, *, vocabulary: int = 320, **network: object) -> Path:
    """Save model and tokenizer as a folder that ``load_model`` reads; returns the folder."""
    tokenizer = tiny_tokenizer(vocabulary)
    tiny_network(len(tokenizer), **network).save_pretrained(folder)  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder)
    return folder


def tiny_questions(n: int) -> Sequence[str]:
    """``n`` distinct questions of different lengths."""
    return [f"What is {i} + {i * 7 % 13}{' - 2' * (i % 4)}?" for i in range(n)]


def score_parity(question: Question, answer: str) -> int:
    """A scorer that finds about half of all nonsense right: an even number of characters."""
    return int(len(answer) % 2 == 0)


def tiny_task(n: int) -> Task:
    """The questions of ``tiny_questions`` as a task."""
    questions = [Question(f"q{i}", text, "2") for i, text in enumerate(tiny_questions(n))]
    return Task("tiny", tuple(questions), score_parity)
