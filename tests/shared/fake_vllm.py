"""The few objects of vLLM that the adapter touches, as vLLM 0.32 has them."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch


class V1LogitsProcessor:
    """V1's base class. ``new_req_logits_processor`` is no part of it: it drives the batch interface
    for scripts that show one row at a time."""  # fmt: skip

    def new_req_logits_processor(self, params: Any) -> Any:
        """A callable of (prompt, output, row) for a request in a slot of its own."""
        mine: Any = self
        rows: list[torch.Tensor | None] = vars(self).setdefault("_rows", [])
        slot, output = len(rows), list[int]()
        rows.append(None)

        def call(prompt: list[int], tokens: list[int], row: torch.Tensor) -> torch.Tensor:
            if rows[slot] is None:
                mine.update_state(update(added=[(slot, params, list(prompt), output)]))
            output[:] = tokens
            rows[slot] = row.clone()
            logits = torch.stack([torch.zeros_like(row) if r is None else r for r in rows])
            return row.copy_(mine.apply(logits)[slot])

        return call


class LogitsProcessor:
    """V2."""


class Move(Enum):
    """MoveDirectionality."""

    UNIDIRECTIONAL = 0
    SWAP = 1


def update(*, added: Any = (), removed: Any = (), moved: Any = (), size: int = 0) -> Any:
    """BatchUpdate."""
    return SimpleNamespace(batch_size=size, added=added, removed=removed, moved=moved)


@dataclass
class Params:
    """SamplingParams."""

    max_tokens: int | None = None
    extra_args: dict[str, Any] | None = None
    stop_token_ids: list[int] | None = None


@dataclass
class ModelConfig:
    """Of a model whose tokenizer lies in a folder."""

    tokenizer: str
    size: int
    max_model_len: int = 1024
    tokenizer_revision: str | None = None
    trust_remote_code: bool = False
    generation: dict[str, Any] = field(default_factory=dict)

    def get_vocab_size(self) -> int:
        return self.size

    def try_get_generation_config(self) -> dict[str, Any]:
        return self.generation


def config(model: ModelConfig, *, seqs: int = 8, speculative: Any = None) -> Any:
    """VllmConfig."""
    return SimpleNamespace(
        model_config=model,
        speculative_config=speculative,
        scheduler_config=SimpleNamespace(max_num_seqs=seqs),
    )


def request_states(slots: int, length: int, vocabulary: int) -> Any:
    """LogitsProcRequestState of an engine without a GPU."""
    return SimpleNamespace(
        device=torch.device("cpu"),
        max_num_reqs=slots,
        vocab_size=vocabulary,
        prompt_len=SimpleNamespace(gpu=torch.zeros(slots, dtype=torch.int32)),
        prefill_len=SimpleNamespace(gpu=torch.zeros(slots, dtype=torch.int32)),
        total_len=SimpleNamespace(gpu=torch.zeros(slots, dtype=torch.int32)),
        all_token_ids=SimpleNamespace(gpu=torch.zeros(slots, length, dtype=torch.int32)),
    )


def context(slots: list[int], tokens: list[int], position: int) -> Any:
    """LogitsContext of a step without drafts."""
    return SimpleNamespace(
        expanded_idx_mapping=torch.tensor(slots, dtype=torch.int32),
        idx_mapping=torch.tensor(slots, dtype=torch.int32),
        idx_mapping_np=np.array(slots, dtype=np.int32),
        expanded_local_pos=torch.zeros(len(slots), dtype=torch.int32),
        input_ids=torch.tensor(tokens, dtype=torch.int32),
        pos=torch.full((len(slots),), position, dtype=torch.int64),
        seq_lens_upper_bound_np=np.full(len(slots), position + 1),
    )


def adapter() -> Any:
    """``integrations.vllm``, imported as if vLLM were there; the fakes are gone after it."""
    names = {
        "vllm.v1.sample.logits_processor": {"LogitsProcessor": V1LogitsProcessor},
        "vllm.v1.worker.gpu.sample.logits_processor": {"LogitsProcessor": LogitsProcessor},
    }
    made: dict[str, ModuleType] = {}
    for name, members in names.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            made.setdefault(".".join(parts[:end]), ModuleType(".".join(parts[:end])))
        vars(made[name]).update(members)
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        return importlib.import_module("rlbudget.integrations.vllm")
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
