"""Build a tiny random model of every MoE family from its own config class.

`SIZES` is applied to whatever fields a config class has; `FAMILIES` says what a family needs beyond that, and
its keys are the families that this project claims to handle by one adapter.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 64
_LARGEST = 400_000

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "moe_num_experts": 8,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "shared_expert_intermediate_size": 16,
    "shared_experts_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "n_group": 2,
    "topk_group": 1,
    "num_expert_group": 2,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "index_topk": 16,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "sliding_window": 64,
}
_LINEAR_FIRST = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
_INKLING = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "d_rel": 4}

FAMILIES: dict[str, dict[str, Any]] = {
    "afmoe": {},
    "aria_text": {},
    "axk1": {},
    "axk2": {},
    "bailing_hybrid": {
        **_LINEAR_FIRST,
        "mlp_layer_types": ["dense", "sparse"],
    },
    "beam": {"num_hidden_layers": 5},
    "cohere2_moe": {},
    "deepseek_v2": {},
    "deepseek_v3": {},
    "deepseek_v32": {},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2},
    "dots3_note_text": {"layer_types": ["indexed_attention"] * 3},
    "ernie4_5_moe": {},
    "exaone_moe": {},
    "flex_olmo": {},
    "flint": {},
    "gemma4_text": {
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "enable_moe_block": True,
        "global_head_dim": 8,
    },
    "glm4_moe": {},
    "glm4_moe_lite": {},
    "glm_moe_dsa": {},
    "gpt_oss": {},
    "granitemoe": {},
    "granitemoe_swa": {},
    "granitemoehybrid": {
        "num_hidden_layers": 2,
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 8,
    },
    "granitemoeshared": {},
    "hunyuan_v1_moe": {},
    "hy_v3": {},
    "hy_v4": {},
    "inkling2_text": _INKLING,
    "inkling_text": _INKLING,
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 0,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 4,
        "use_mamba_kernels": False,
    },
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "kolibri1": {},
    "laguna": {},
    "lfm2_moe": {"layer_types": ["full_attention", "conv", "full_attention"]},
    "mellum": {},
    "mimo_v2_flash": {},
    "minimax": {"layer_types": ["full_attention", "linear_attention", "full_attention"], "block_size": 8},
    "minimax_m2": {},
    "minimax_m3_vl_text": {},
    "mixtral": {},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "chunk_size": 8,
        "use_mamba_kernels": False,
    },
    "olmoe": {},
    "phimoe": {},
    "qwen2_moe": {},
    "qwen3_5_moe_text": _LINEAR_FIRST,
    "qwen3_moe": {"mlp_only_layers": [1]},
    "qwen3_next": _LINEAR_FIRST,
    "qwen4_exp_text": {
        **_LINEAR_FIRST,
        "hc_lowrank": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "solar_open": {},
}


def config_of(model_type: str, **changes: Any) -> Any:
    """Return the config of a tiny model; only fields that the family's config class has are set."""
    config_class = CONFIG_MAPPING[model_type]
    fields = {field.name for field in dataclasses.fields(config_class)}
    aliases = getattr(config_class, "attribute_map", {})
    settings = {name: size for name, size in SIZES.items() if name in fields}
    settings |= {
        real: SIZES[alias] for alias, real in aliases.items() if alias in SIZES and real not in SIZES
    }
    if "qk_nope_head_dim" in fields:  # latent attention has one key for every query head
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    return config_class(**{**settings, **FAMILIES.get(model_type, {}), **changes})


def build(model_type: str, **changes: Any) -> PreTrainedModel:
    """Return a tiny model with lively random weights, fp32, in eval mode; `changes` go to its config."""
    config = config_of(model_type, **changes)
    model_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class(config).parameters())
    assert size < _LARGEST, f"{model_type} would have {size} parameters: a size is missing here"
    torch.manual_seed(0)
    return randomised(model_class(config).float()).eval()


@torch.no_grad()
def randomised(model: PreTrainedModel) -> PreTrainedModel:
    """Fill matrices with noise wide enough that routing is lively, and biases that steer the choice."""
    generator = torch.Generator().manual_seed(1)

    def noise(tensor: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * torch.randn(tensor.shape, generator=generator)

    for name, tensor in model.named_parameters():
        if tensor.dim() > 1:
            tensor.copy_(noise(tensor, 0.3))
        elif name.endswith("bias"):
            tensor.copy_(noise(tensor, 0.1))
        else:  # norms, decays and scales: around what the family starts them with
            tensor.mul_(1 + noise(tensor, 0.1))
    for name, tensor in model.named_buffers():
        if name.endswith(("e_score_correction_bias", "expert_bias")):
            tensor.copy_(noise(tensor, 0.1))
    return model


def build_meta(model_type: str) -> PreTrainedModel:
    """Return the same model without any weights, as `doctor` looks at it."""
    model_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
    with torch.device("meta"):
        model: PreTrainedModel = model_class(config_of(model_type)).eval()
    return model
