"""Models of real dimensions with random weights, made in moments, and texts of random tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import OlmoeConfig, OlmoeForCausalLM


@dataclass(frozen=True)
class Dimensions:
    """Hold the dimensions of an OLMoE; as OLMoE-1B-7B by default, but for layers and vocabulary."""

    layers: int = 2
    hidden: int = 2048
    experts: int = 64
    width: int = 1024
    top_k: int = 8
    vocabulary: int = 4096
    heads: int = 16

    @property
    def expert_values(self) -> int:
        """Weights of one expert."""
        return 3 * self.hidden * self.width

    @property
    def attention_values(self) -> int:
        """Weights of one layer's attention."""
        return 4 * self.hidden * self.hidden

    @property
    def num_values(self) -> int:
        """All weights, norms left out."""
        layer = self.experts * self.expert_values + self.attention_values + self.hidden * self.experts
        return self.layers * layer + 2 * self.vocabulary * self.hidden

    def __str__(self) -> str:
        """Name the dimensions."""
        return (
            f"OLMoE with {self.layers} layers of {self.experts} experts x {self.width}, "
            f"hidden {self.hidden}, top-{self.top_k}, vocabulary {self.vocabulary}"
        )


SIZES = {
    "real": Dimensions(),
    "quick": Dimensions(hidden=256, width=128, vocabulary=1024, heads=4),
    "tiny": Dimensions(hidden=32, experts=8, width=16, top_k=2, vocabulary=64, heads=2),
}


def olmoe(dimensions: Dimensions, *, dtype: torch.dtype = torch.float32) -> Any:
    """Build an OLMoE in eval mode whose weights are random, the same at every call."""
    config = OlmoeConfig(
        vocab_size=dimensions.vocabulary,
        hidden_size=dimensions.hidden,
        intermediate_size=dimensions.width,
        num_hidden_layers=dimensions.layers,
        num_attention_heads=dimensions.heads,
        num_key_value_heads=dimensions.heads,
        num_experts=dimensions.experts,
        num_experts_per_tok=dimensions.top_k,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        dtype=dtype,
    )
    with torch.device("meta"):
        model = OlmoeForCausalLM(config)
    model = model.to(dtype).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            elif parameter.dim() == 3:
                # One random matrix, rolled for every expert: drawing all would take longer than a step.
                matrix = torch.randn(parameter.shape[1:], generator=generator).mul_(0.02).to(dtype)
                for row in range(len(parameter)):
                    parameter[row] = matrix.roll(row + 1, dims=1)
            else:
                scale = 1.0 if name.endswith("gate.weight") else 0.02
                parameter.copy_(torch.randn(parameter.shape, generator=generator).mul_(scale))
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffers are computed, not stored
    model.set_experts_implementation("grouped_mm")
    return model.eval()


def token_ids(dimensions: Dimensions, *, rows: int, length: int, seed: int = 0) -> Tensor:
    """Return (rows,length) int64 random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, dimensions.vocabulary, (rows, length), generator=generator)
