"""Writes a Llama folder of transformers as a GGUF file for llama.cpp.

    python -m runs.models.smol_gguf FOLDER FILE.gguf [--type f32|f16]

FOLDER is what ``rlbudget.models.smollm2.smollm2_folder()`` gives, ``embedded``, or another Llama
with a byte-level tokenizer.json. f32 decodes the tokens that transformers decodes; f16 is half as
large. Needs the package gguf (extra ``smollm2``). The chat template of the folder goes along.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import safe_open

from rlbudget.errors import UserError
from runs.common import ROOT

EMBEDDED = ROOT / "rlbudget/models/embedded"
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
ADDED = (gguf.TokenType.USER_DEFINED, gguf.TokenType.CONTROL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="a Llama of transformers, or embedded")
    parser.add_argument("file", type=Path)
    parser.add_argument("--type", choices=("f32", "f16"), default="f32")
    arguments = parser.parse_args()
    folder = EMBEDDED if arguments.folder == "embedded" else Path(arguments.folder)
    try:
        write_gguf(folder, arguments.file, half=arguments.type == "f16")
    except UserError as error:
        sys.exit(f"error: {error}")


def write_gguf(folder: Path, file: Path, *, half: bool = False) -> None:
    """Write ``folder`` to ``file``, whole or not at all; ``UserError`` if it is no such model."""
    config = read(folder, "config.json")
    if config.get("model_type") != "llama" or config.get("attention_bias"):
        raise UserError(f"{folder} holds no Llama that this script knows")
    part = file.with_name(f".{file.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(part, "llama")
    add_shape(writer, config)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
    add_tokenizer(writer, folder, config)
    with safe_open(folder / "model.safetensors", framework="numpy") as weights:
        for name in weights.keys():  # noqa: SIM118
            tensor = permuted(name, weights.get_tensor(name).astype(np.float32), config)
            narrow = half and tensor.ndim == 2
            writer.add_tensor(gguf_name(name), tensor.astype(np.float16) if narrow else tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(file)


def add_shape(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 1e4)}
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"rotary embeddings of type {rope['rope_type']!r} are not supported")
    writer.add_name(config.get("_model_name_or_path") or "Llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def add_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    """A byte-level BPE under the name of the cutting that llama.cpp calls ``smollm``.

    That is SmolLM2's own; the embedded model's lines are cut differently by it, so send that
    model token ids.
    """
    spelled = read(folder, "tokenizer.json")
    model, size = spelled["model"], config["vocab_size"]
    if model["type"] != "BPE" or "ByteLevel" not in json.dumps(spelled["pre_tokenizer"]):
        raise UserError(f"{folder / 'tokenizer.json'} is not a byte-level BPE")
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [int(gguf.TokenType.UNUSED)] * size
    for token, index in model["vocab"].items():
        tokens[index], types[index] = token, int(gguf.TokenType.NORMAL)
    for added in spelled["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = int(ADDED[bool(added["special"])])
    pairs = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(pairs)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    if config.get("pad_token_id") is not None:
        writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text())


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor of transformers."""
    stem, _, kind = name.rpartition(".")
    if stem in WHOLE:
        return f"{WHOLE[stem]}.{kind}"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    if not layer.isdigit() or part not in LAYER:
        raise UserError(f"a Llama has no tensor {name}")
    return f"blk.{layer}.{LAYER[part]}.{kind}"


def permuted(name: str, tensor: Any, config: dict[str, Any]) -> Any:
    """Rows of queries and keys in llama.cpp's order.

    transformers turns the first half of a head against the second, llama.cpp turns neighbours.
    """
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    key = heads.get(name.split(".")[-2])
    if key is None:
        return tensor
    rows, columns = tensor.shape
    halves = tensor.reshape(config[key], 2, rows // config[key] // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def read(folder: Path, name: str) -> Any:
    try:
        return json.loads((folder / name).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {folder / name}: {error}") from None


if __name__ == "__main__":
    main()
