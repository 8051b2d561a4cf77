"""Whatever a network remembers: its greedy decode is that of generate, or it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlbudget.errors import UserError
from rlbudget.models import load_model
from runs.integrations.architecture_kinds import KINDS
from runs.integrations.architectures import examine, make

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("kind", "driving"),
    [
        ("mistral", "batch"),  # a window
        ("doge", "batch"),  # a mask a head
        ("qwen3_5", "batch"),  # a vision tower and linear attention
        ("mistral3", "batch"),  # known to the classes with images only
        ("nemotron_h", "steps"),  # a state that goes on by one token at a time
        ("mamba", "rows"),  # a cache under another name
        ("rwkv", "rows"),  # no cache but a state
        ("openai-gpt", "rows"),  # nothing at all
        ("recurrent_gemma", "rows"),  # a state that sees the padding
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_kind_is_decoded_as_generate_decodes_it(tmp_path: Path, kind: str, driving: str) -> None:
    verdict = examine(kind, KINDS[kind], tmp_path)
    assert (verdict.outcome, verdict.driving) == ("equal", driving), verdict.note


@pytest.mark.parametrize("kind", ["minimax", "xlstm"])
@pytest.mark.filterwarnings("ignore")
def test_a_kind_that_no_way_drives_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    make(kind, KINDS[kind], tmp_path)
    with pytest.raises(UserError, match="cannot be decoded here as transformers' generate") as said:
        load_model(str(tmp_path), profile="embedded")
    assert "\n" not in str(said.value)
