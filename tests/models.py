"""Build tiny random models of several families, small enough that every invariant is checked on each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

VOCABULARY = 64
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


def olmoe(**changes: object) -> PreTrainedModel:
    """Softmax, weights not renormalised."""
    settings = {"num_hidden_layers": 2, "intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2}
    return _random(OlmoeForCausalLM(OlmoeConfig(**{**_COMMON, **settings, **changes})))


def qwen3_moe(**changes: object) -> PreTrainedModel:
    """Softmax, weights renormalised; layer 1 is dense."""
    settings = {
        "num_hidden_layers": 3,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "head_dim": 8,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
    }
    return _random(Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**_COMMON, **settings, **changes})))


def mixtral(**changes: object) -> PreTrainedModel:
    """Softmax, weights renormalised."""
    settings = {
        "num_hidden_layers": 2,
        "intermediate_size": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }
    return _random(MixtralForCausalLM(MixtralConfig(**{**_COMMON, **settings, **changes})))


def deepseek_v3(**changes: object) -> PreTrainedModel:
    """Sigmoid with selection bias and groups, shared experts, dense first layer."""
    settings = {
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": None,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "routed_scaling_factor": 1.5,
    }
    return _random(DeepseekV3ForCausalLM(DeepseekV3Config(**{**_COMMON, **settings, **changes})))


def gpt_oss(**changes: object) -> PreTrainedModel:
    """Top-k before softmax; experts transposed, interleaved and with bias."""
    settings = {
        "num_hidden_layers": 2,
        # A whole number of vectors: PyTorch computes the tail of a contiguous array by another formula, so in
        # a narrower expert the last bit of a sigmoid would depend on how many tokens stand before it.
        "intermediate_size": 32,
        "head_dim": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": 64,
    }
    return _random(GptOssForCausalLM(GptOssConfig(**{**_COMMON, **settings, **changes})))


def nemotron_h(**changes: object) -> PreTrainedModel:
    """Experts without a gate; only slices depend on that, so this family is not among `FAMILIES`."""
    settings = {
        "layers_block_type": ["moe", "full_attention", "moe", "mlp"],
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16,
        "head_dim": 8,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
    }
    return _random(NemotronHForCausalLM(NemotronHConfig(**{**_COMMON, **settings, **changes})))


FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {
    "olmoe": olmoe,
    "qwen3_moe": qwen3_moe,
    "mixtral": mixtral,
    "deepseek_v3": deepseek_v3,
    "gpt_oss": gpt_oss,
}


def padded_batch(*, num_sequences: int = 3, num_positions: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random token ids with left padding of a different length in every sequence."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, VOCABULARY, (num_sequences, num_positions), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    for row in range(num_sequences):
        attention_mask[row, : 2 * row] = 0
    return {"input_ids": input_ids * attention_mask, "attention_mask": attention_mask}


def loss_of(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean cross-entropy over real tokens."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return model(**batch, labels=labels, use_cache=False).loss


def checkpointed(model: PreTrainedModel) -> PreTrainedModel:
    """Switch on non-reentrant gradient checkpointing, in train mode as it needs (there is no dropout)."""
    model.activation_checkpointing_enable({"use_reentrant": False})
    return model.train()


def bits(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Copy every tensor of a model, to compare bits with later."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _random(model: PreTrainedModel) -> PreTrainedModel:
    """Fill parameters and router biases with noise large enough that routing is lively."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("e_score_correction_bias"):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
            elif name in dict(model.named_parameters()):
                scale = 0.3 if tensor.dim() > 1 else 0.1
                centre = 1.0 if "norm" in name else 0.0
                tensor.copy_(centre + scale * torch.randn(tensor.shape, generator=generator))
    return model.float().eval()
