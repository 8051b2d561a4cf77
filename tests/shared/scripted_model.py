"""A model that writes what it is told to: each token decides the next one.

A Llama whose layers add nothing: the last token's one-hot embedding goes straight to an output
matrix in which its successor wins. A piece of text is a token of its own.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from tiny_model import tiny_network, tiny_tokenizer


def save_scripted(folder: Path, thinking: str, answer: str, *, endless: bool = False) -> Path:
    """Save a model that thinks ``thinking``, ends it, answers ``answer`` and ends.

    An ``endless`` one thinks the same again and again.
    """
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([thinking, answer])
    script = tokenizer.convert_tokens_to_ids(["<think>", thinking, "</think>", answer, "<eos>"])
    after = dict(pairwise(script)) | ({script[1]: script[1]} if endless else {})
    size = len(tokenizer)
    network = tiny_network(size, hidden=-(-size // 8) * 8, layers=1)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        width = network.lm_head.weight.shape[1]
        network.model.embed_tokens.weight.copy_(torch.eye(size, width))
        network.lm_head.weight.zero_()
        for token, following in after.items():
            network.lm_head.weight[following, token] = 10.0
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
