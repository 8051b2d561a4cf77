"""Attention of a few new tokens to long caches whose rows begin in different columns.

The same numbers as transformers' own ``sdpa``, with less memory read: heads that share keys and
values are not given a copy each, and a group of rows reads no column before its own first token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "rlbudget"
_FEW_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring rows, and the column of the cache before which none of them has a token."""

    rows: slice
    first: int


_groups: ContextVar[Sequence[Group]] = ContextVar("groups", default=())


@contextmanager
def groups_of_rows(groups: Sequence[Group]) -> Iterator[None]:
    """Forward passes inside know these groups, which together are all rows."""
    token = _groups.set(groups)
    try:
        yield
    finally:
        _groups.reset(token)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: (n, heads, k, dim) -> (n, k, heads, dim)."""
    n, heads, k, width = query.shape
    groups = _groups.get()
    ordinary = not groups or groups[-1].rows.stop != n or k > _FEW_TOKENS
    # Without a mask, more than one new token would be masked among themselves.
    shaped = k == 1 if attention_mask is None else attention_mask.shape[:2] == (n, 1)
    if ordinary or not shaped or rest.get("position_bias") is not None:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **rest
        )
        return found
    sharing = heads // key.shape[1]
    # The heads that share keys stand side by side: they are one head with more new tokens.
    query = query.reshape(n, key.shape[1], sharing * k, width)
    if attention_mask is not None and k > 1:
        attention_mask = attention_mask.repeat(1, 1, sharing, 1)
    output = query.new_empty((*query.shape[:3], value.shape[3]))
    for group in groups:
        mask = None if attention_mask is None else attention_mask[group.rows, :, :, group.first :]
        output[group.rows] = torch.nn.functional.scaled_dot_product_attention(
            query[group.rows],
            key[group.rows, :, group.first :],
            value[group.rows, :, group.first :],
            attn_mask=mask,
            scale=scaling,
        )
    return output.view(n, heads, k, -1).transpose(1, 2).contiguous(), None


def install(network: Any) -> None:
    """Let a model that uses transformers' ``sdpa`` attend this way."""
    if network.config._attn_implementation == "sdpa":
        network.set_attn_implementation(NAME)


def uninstall(network: Any) -> None:
    """Let a model attend as transformers has it."""
    if network.config._attn_implementation == NAME:
        network.set_attn_implementation("sdpa")


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
