"""Settings of tiny networks of many kinds, for ``runs.integrations.architectures``."""

from __future__ import annotations

from typing import Any

_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LOCAL_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
_LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4, "v_head_dim": 6,
}  # fmt: skip
_LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_SLIDING = {"head_dim": 8, "sliding_window": 6}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
_EIGHT = {"head_dim": 8}
_ENCODER = {"is_decoder": True}
_VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
_QWEN_VISION = {
    "depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32,
    "deepstack_visual_indexes": [],
}  # fmt: skip
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                             "mrope_section": [2, 1, 1]}}  # fmt: skip


def _wrapped(text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    return {"text_config": text, "vision_config": vision}


KINDS: dict[str, dict[str, Any]] = {
    "afmoe": {**_MOE, **_SLIDING, "num_dense_layers": 1, "num_local_experts": 4},
    "apertus": {},
    "arcee": {},
    "aria_text": {},
    "bailing_hybrid": {},
    "bamba": {**_MAMBA, "attn_layer_indices": [1], "mamba_expand": 2},
    "bart": {"decoder_layers": 2, "decoder_ffn_dim": 64, "decoder_attention_heads": 4,
             "d_model": 32, "tie_word_embeddings": True},
    "bert": _ENCODER,
    "bert-generation": _ENCODER,
    "big_bird": {**_ENCODER, "attention_type": "original_full"},
    "biogpt": {},
    "bitnet": {},
    "bloom": {"n_head": 4, "n_layer": 2},
    "camembert": _ENCODER,
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "cohere": {},
    "cohere2": {"sliding_window": 6, "sliding_window_pattern": 2},
    "cohere2_moe": {"sliding_window": 6, "sliding_window_pattern": 2},
    "cpmant": {},
    "ctrl": {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 64, "n_positions": 512},
    "cwm": {"sliding_window": 6},
    "data2vec-text": _ENCODER,
    "deepseek_v2": {**_LATENT, **_ROUTED},
    "deepseek_v3": {**_LATENT, **_ROUTED},
    "diffllama": {},
    "doge": {},
    "electra": _ENCODER,
    "ernie": _ENCODER,
    "ernie4_5": _EIGHT,
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16},
    "exaone4": {"sliding_window": 6, "sliding_window_pattern": 2,
                "layer_types": ["sliding_attention", "full_attention"]},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "falcon_mamba": {"state_size": 8},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "flint": {},
    "gemma": _EIGHT,
    "gemma2": _SLIDING,
    "gemma3": _wrapped({**_SLIDING, "model_type": "gemma3_text"}, _VISION),
    "gemma3_text": _SLIDING,
    "gemma4_text": _SLIDING,
    "gemma4_unified_text": _SLIDING,
    "glm": _EIGHT,
    "glm4": _EIGHT,
    "glm4_moe": {**_ROUTED, **_EIGHT},
    "glm4_moe_lite": {**_LATENT, **_ROUTED},
    "gpt-sw3": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
                "window_size": 6},
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gpt_oss": {**_SLIDING, **_LOCAL_MOE},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "granite": {},
    "granite_swa": {"sliding_window": 6},
    "granitemoe": _LOCAL_MOE,
    "granitemoe_swa": {**_LOCAL_MOE, "sliding_window": 6},
    "granitemoehybrid": {**_MAMBA, **_LOCAL_MOE, "layer_types": ["mamba", "attention"],
                         "mamba_expand": 2, "shared_intermediate_size": 32},
    "granitemoeshared": {**_LOCAL_MOE, "shared_intermediate_size": 32},
    "helium": _EIGHT,
    "hrm_text": {},
    "hunyuan_v1_dense": _EIGHT,
    "hyperclovax": {},
    "internlm3": _EIGHT,
    "iquestcoder": _EIGHT,
    "jais2": {},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
              "mamba_d_state": 8, "use_mamba_kernels": False},
    "jetmoe": {"kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "kimi_linear": {},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "lfm2_moe": {**_MOE, "layer_types": ["conv", "full_attention"]},
    "lfm3": {},
    "llama": {},
    "llama4_text": {**_EIGHT, "num_local_experts": 2, "num_experts_per_tok": 1,
                    "attention_chunk_size": 8, "intermediate_size_mlp": 64},
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "expand": 2, "n_groups": 1,
               "chunk_size": 8},
    "megatron-bert": _ENCODER,
    "mellum": {},
    "minicpm3": _LATENT,
    "minimax": {**_EIGHT, **_LOCAL_MOE, "block_size": 8,
                "layer_types": ["linear_attention", "full_attention"]},
    "minimax_m2": {**_EIGHT, **_LOCAL_MOE},
    "minimax_m3_vl_text": _EIGHT,
    "ministral3": _EIGHT,
    "mistral": {"sliding_window": 6},
    "mistral3": _wrapped({**_EIGHT, "model_type": "mistral"},
                         {**_VISION, "model_type": "pixtral"}),
    "mixtral": {**_LOCAL_MOE, "sliding_window": 6},
    "modernbert-decoder": {"local_attention": 6},
    "moshi": {},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {"hybrid_override_pattern": "M*", "mamba_num_heads": 4, "mamba_head_dim": 16,
                   "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8, "head_dim": 8},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 6},
    "olmo_hybrid": _LINEAR,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "persimmon": {},
    "phi": {},
    "phi3": {"sliding_window": 6},
    "phimoe": _LOCAL_MOE,
    "qwen2": {},
    "qwen2_moe": {**_MOE, "shared_expert_intermediate_size": 16},
    "qwen2_vl": _wrapped({**_ROPE, "model_type": "qwen2_vl_text"}, {
        "depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}),
    "qwen3": _EIGHT,
    "qwen3_5": _wrapped({**_EIGHT, **_LINEAR, "model_type": "qwen3_5_text"}, _QWEN_VISION),
    "qwen3_5_text": {**_EIGHT, **_LINEAR},
    "qwen3_moe": {**_EIGHT, **_MOE},
    "qwen3_next": {**_EIGHT, **_LINEAR, **_MOE, "shared_expert_intermediate_size": 16},
    "qwen3_vl": _wrapped({**_EIGHT, **_ROPE, "model_type": "qwen3_vl_text"}, _QWEN_VISION),
    "recurrent_gemma": {**_EIGHT, "lru_width": 32, "attention_window_size": 16,
                        "block_types": ["recurrent", "attention"], "num_hidden_layers": 3},
    "rembert": {**_ENCODER, "input_embedding_size": 32, "output_embedding_size": 32},
    "roberta": _ENCODER,
    "roberta-prelayernorm": _ENCODER,
    "roformer": _ENCODER,
    "rwkv": {"attention_hidden_size": 32, "context_length": 512},
    "seed_oss": _EIGHT,
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": 6},
    "trocr": {"decoder_layers": 2, "decoder_ffn_dim": 64, "decoder_attention_heads": 4,
              "d_model": 32},
    "vaultgemma": _SLIDING,
    "xglm": {"num_layers": 2, "attention_heads": 4, "d_model": 32, "ffn_dim": 64},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "causal": True},
    "xlm-roberta": _ENCODER,
    "xlm-roberta-xl": _ENCODER,
    "xlstm": {"num_heads": 4, "head_dim": 8, "num_blocks": 2},
    "xmod": {**_ENCODER, "default_language": "en_XX"},
    "youtu": _LATENT,
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "mamba_d_state": 8, "mamba_headdim": 16,
               "n_mamba_heads": 4, "mamba_ngroups": 1, "num_mem_blocks": 1, "chunk_size": 8,
               "use_mem_rope": False, "attention_hidden_size": 64, "attention_head_dim": 16},
}  # fmt: skip
"""kind -> what differs from a common tiny network; a wrapped one has its parts"""


def settings_of(settings: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """All settings of one kind, for a vocabulary a little larger than the tokenizer's."""
    ends = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": False,
    }
    common = {
        **ends,
        "vocab_size": len(tokenizer) + 15,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
    }
    if "text_config" in settings:
        return {**ends, **settings, "text_config": {**common, **settings["text_config"]}}
    return {**common, **settings}
