"""Batched sampling from the model while it trains, exits included.

Small and self-contained, for validation during training only; published numbers come from the
library's own recorder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import DynamicCache, LlamaForCausalLM

from rlbudget.tasks.reasoning_gym import Item, score
from runs.models.reasoner.data import BOS, END, EOS, PAD, prompt_text, token_id

ANSWER_TOKENS = 12


@dataclass(slots=True)
class Decoded:
    """One full decode: ``exits`` holds (thinking tokens, answer, answer tokens) per checkpoint."""

    item: Item
    thinking: list[int] = field(default_factory=list)
    answer: str = ""
    answer_tokens: int = 0
    natural: bool = False
    exits: list[tuple[int, str, int]] = field(default_factory=list)

    @property
    def right(self) -> int:
        """1 if the natural answer is right."""
        return score(self.item.family, self.item.entry, self.answer)


@torch.inference_mode()
def sample(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    *,
    seed: int,
    temperature: float,
    max_tokens: int = 400,
    stride: int = 0,
    batch: int = 128,
) -> list[Decoded]:
    """Decode every item; ``stride`` 0 takes no exits."""
    generator = torch.Generator().manual_seed(seed)
    order = sorted(range(len(items)), key=lambda i: len(items[i].question))
    out: dict[int, Decoded] = {}
    for first in range(0, len(order), batch):
        rows = order[first : first + batch]
        done = _sample_batch(model, tokenizer, [items[i] for i in rows], generator, temperature,
                             max_tokens, stride)  # fmt: skip
        out.update(zip(rows, done, strict=True))
    return [out[i] for i in range(len(items))]


def _sample_batch(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    items: list[Item],
    generator: torch.Generator,
    temperature: float,
    max_tokens: int,
    stride: int,
) -> list[Decoded]:
    pad, end = token_id(tokenizer, PAD), token_id(tokenizer, END)
    decoded = [Decoded(item) for item in items]
    prompts = [
        tokenizer.encode(prompt_text(item.question), add_special_tokens=False).ids for item in items
    ]
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    cache = DynamicCache(config=model.config)
    live = torch.arange(len(items))
    logits = _forward(model, ids, mask, cache)
    banned = [pad, token_id(tokenizer, BOS), token_id(tokenizer, EOS)]
    for step in range(max_tokens + 1):
        if stride and step and step % stride == 0:
            for row, (answer, used) in zip(
                live.tolist(), _answers(model, tokenizer, end, mask, cache), strict=True
            ):
                decoded[row].exits.append((step, answer, used))
        logits[:, banned] = -torch.inf
        chances = torch.softmax(logits / temperature, -1)
        token = torch.multinomial(chances, 1, generator=generator)[:, 0]
        ending = token == end
        if step == max_tokens:
            ending[:] = True
        if ending.any():
            closing = ending.nonzero()[:, 0]
            finals = _answers(model, tokenizer, end, mask[closing], _select(cache, closing))
            for row, natural, (answer, used) in zip(
                live[closing].tolist(), (token[closing] == end).tolist(), finals, strict=True
            ):
                decoded[row].answer, decoded[row].answer_tokens = answer, used
                decoded[row].natural = natural
            stay = (~ending).nonzero()[:, 0]
            if len(stay) == 0:
                break
            cache = _select(cache, stay)
            live, mask, token = live[stay], mask[stay], token[stay]
        for row, one in zip(live.tolist(), token.tolist(), strict=True):
            decoded[row].thinking.append(one)
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], 1)
        logits = _forward(model, token[:, None], mask, cache)
    for one in decoded:
        one.exits = [e for e in one.exits if e[0] < len(one.thinking)]
    return decoded


def _answers(
    model: LlamaForCausalLM, tokenizer: Tokenizer, end: int, mask: torch.Tensor, cache: DynamicCache
) -> list[tuple[str, int]]:
    """Force the end of thinking on a fork of the cache; greedy answers and their token counts."""
    fork = _select(cache, None)
    eos = token_id(tokenizer, EOS)
    token = torch.full((len(mask),), end)
    written: list[list[int]] = [[] for _ in range(len(mask))]
    closed = torch.zeros(len(mask), dtype=torch.bool)
    for _ in range(ANSWER_TOKENS):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        token = _forward(model, token[:, None], mask, fork).argmax(-1)
        for row, one in enumerate(token.tolist()):
            if not closed[row]:
                written[row].append(one)
        closed |= token == eos
        if closed.all():
            break
    # The forced end of thinking and the end of the answer are paid for as well.
    return [(tokenizer.decode([t for t in w if t != eos]).strip(), 1 + len(w)) for w in written]


def _select(cache: DynamicCache, rows: torch.Tensor | None) -> DynamicCache:
    copy = DynamicCache()
    layers: Sequence[Any] = cache.layers
    for index, layer in enumerate(layers):
        keys, values = layer.keys, layer.values
        copy.update(keys if rows is None else keys[rows], values if rows is None else values[rows],
                    index)  # fmt: skip
    return copy


def _forward(
    model: LlamaForCausalLM, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache
) -> torch.Tensor:
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    out = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
        use_cache=True, logits_to_keep=1,
    )  # fmt: skip
    logits: torch.Tensor = out.logits[:, -1].float()
    return logits
