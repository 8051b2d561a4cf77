"""The weights of SmolLM2 out of their GGUF file, the adapter merged into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlbudget.errors import missing_extra

try:
    import accelerate  # noqa: F401
    import gguf  # noqa: F401
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
except ModuleNotFoundError as error:
    raise missing_extra("smollm2", str(error.name)) from error


def convert(source: Path, adapter: Path | None, folder: Path, *, chat_template: str) -> None:
    """Write the model of the file ``source`` and its tokenizer to ``folder`` as safetensors."""
    place, name = str(source.parent), source.name
    tokenizer: Any = AutoTokenizer.from_pretrained(place, gguf_file=name, trust_remote_code=False)
    read: Any = AutoModelForCausalLM.from_pretrained(
        place, gguf_file=name, dtype=torch.float32, trust_remote_code=False
    )
    # A model read from GGUF cannot be saved: build it anew without the mark of its origin.
    config = read.config
    del config.quantization_config
    config._name_or_path = "SmolLM2-135M-Instruct"
    network: Any = LlamaForCausalLM(config)
    network.load_state_dict(read.state_dict())
    if adapter is not None:
        network = PeftModel.from_pretrained(network, str(adapter)).merge_and_unload()
    network.save_pretrained(folder)
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
