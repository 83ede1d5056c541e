"""Declare what is known about model families: which are refused, how routers score, which layers are dense.

Everything here is a statement about a config, read before any weight is touched. `layers.discover` compares
these statements with what the model really contains and raises where they differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from rasa_moe.errors import ModelError

Scoring = Literal["softmax", "topk_softmax", "sigmoid", "probabilities"]

REFUSED: dict[str, str] = {
    "llama4": "it runs every expert on every token, so no expert is ever chosen or left out",
    "llama4_text": "it runs every expert on every token, so no expert is ever chosen or left out",
    "jetmoe": "it routes attention as well, which one routing per layer cannot describe",
    "doge": "its experts are rows of an embedding, not feed-forward experts",
    "dbrx": "its experts are one tensor without a row per expert, so chosen experts cannot be trained alone",
    "longcat_flash": "some of its experts have no weights, and its layers run them by a loop of their own",
    "zaya": "its router may skip the experts, which it reports as expert 0 with weight 0",
    "deepseek_v4": "its first layers choose experts by the number of the token, not by a router",
}

# Every family whose tiny models pass tests/architectures, and how its routers score experts. "topk_softmax":
# the softmax comes after the top-k; its routing *distribution* is still the softmax over all logits (both
# give the chosen experts the same proportions), so that is a name, not another formula. "probabilities": what
# the router returns as logits is already a distribution.
SCORING: dict[str, Scoring] = {
    "afmoe": "sigmoid",
    "aria_text": "softmax",
    "axk1": "sigmoid",
    "axk2": "sigmoid",
    "bailing_hybrid": "sigmoid",
    "beam": "sigmoid",
    "cohere2_moe": "softmax",
    "deepseek_v2": "softmax",
    "deepseek_v3": "sigmoid",
    "deepseek_v32": "sigmoid",
    "dots1": "sigmoid",
    "dots3_note_text": "sigmoid",
    "ernie4_5_moe": "softmax",
    "exaone_moe": "sigmoid",
    "flex_olmo": "softmax",
    "flint": "sigmoid",
    "gemma4_text": "probabilities",
    "glm4_moe": "sigmoid",
    "glm4_moe_lite": "sigmoid",
    "glm_moe_dsa": "sigmoid",
    "gpt_oss": "topk_softmax",
    "granitemoe": "topk_softmax",
    "granitemoe_swa": "topk_softmax",
    "granitemoehybrid": "topk_softmax",
    "granitemoeshared": "topk_softmax",
    "hunyuan_v1_moe": "softmax",
    "hy_v3": "sigmoid",
    "hy_v4": "sigmoid",
    "inkling2_text": "sigmoid",
    "inkling_text": "sigmoid",
    "jamba": "softmax",
    "kimi_linear": "sigmoid",
    "kolibri1": "sigmoid",
    "laguna": "sigmoid",
    "lfm2_moe": "sigmoid",
    "mellum": "softmax",
    "mimo_v2_flash": "sigmoid",
    "minimax": "softmax",
    "minimax_m2": "sigmoid",
    "minimax_m3_vl_text": "sigmoid",
    "mixtral": "softmax",
    "nemotron_h": "sigmoid",
    "olmoe": "softmax",
    "phimoe": "softmax",
    "qwen2_moe": "softmax",
    "qwen3_5_moe_text": "softmax",
    "qwen3_moe": "softmax",
    "qwen3_next": "softmax",
    "qwen4_exp_text": "softmax",
    "solar_open": "sigmoid",
}

# Routers whose weights do not follow from their scores by proportion alone; the declaration stands.
NOT_MEASURABLE: dict[str, str] = {
    "gemma4_text": "every expert has a scale of its own",
    "phimoe": "each slot has a softmax of its own, over the experts near its best one",
}

# What single families cannot do; tests/architectures holds each statement against the family.
NO_LIVE_REPLAY: dict[str, str] = {
    "phimoe": "it picks each slot by a maximum of its own instead of one top-k",
}
NO_SILENCE: dict[str, str] = {
    "inkling_text": "its router scores the shared experts in the same linear map",
}
ROUTER_WEIGHS_MORE: dict[str, str] = {
    "inkling_text": "its router also weighs the shared experts, which are not replayed",
}

_NUM_EXPERTS_FIELDS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_TOP_K_FIELDS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")

# Each rule reads one config field: (config, layer number, value of the field) -> is that layer dense? Fields
# that a config lacks say nothing; a layer is dense if any present field says so.
_Rule = Callable[[Any, int, Any], bool]
_COMMON_RULES: dict[str, _Rule] = {
    "first_k_dense_replace": lambda config, layer, value: layer < value,
    "num_dense_layers": lambda config, layer, value: layer < value,
    "mlp_only_layers": lambda config, layer, value: layer in value,
    "decoder_sparse_step": lambda config, layer, value: (layer + 1) % value != 0,
    "moe_layer_interval": lambda config, layer, value: (layer + 1) % value != 0,
    "moe_layer_start_index": lambda config, layer, value: layer < value,
    "moe_layer_end_index": lambda config, layer, value: 0 <= value < layer,
}
# A list with one word for each layer settles the matter; the fields above are then only how it was made.
_LISTED_RULES: dict[str, _Rule] = {
    "mlp_layer_types": lambda config, layer, value: value[layer] == "dense",
}
_RULES_OF_FAMILY: dict[str, dict[str, _Rule]] = {
    "jamba": {"layers_num_experts": lambda config, layer, value: value[layer] <= 1},
    "nemotron_h": {"layers_block_type": lambda config, layer, value: value[layer] != "moe"},
}


def refuse_unsupported(model_type: str) -> None:
    """Raise for a family this project does not handle, with the reason.

    Raises:
        ModelError: `model_type` is one of `REFUSED`.
    """
    if model_type in REFUSED:
        raise ModelError(
            f"Models of type '{model_type}' are not supported: {REFUSED[model_type]}; choose another model."
        )


def config_field(config: Any, names: tuple[str, ...]) -> int | None:
    """Return the first of several config fields that holds a positive integer, or None."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def promised_num_experts(config: Any) -> int | None:
    """Return the number of routed experts per MoE layer the config states, None for a dense config."""
    return config_field(config, _NUM_EXPERTS_FIELDS)


def promised_top_k(config: Any) -> int | None:
    """Return the number of experts per token the config states, None where it does not."""
    return config_field(config, _TOP_K_FIELDS)


def promised_groups(config: Any) -> tuple[int, int]:
    """Return into how many groups routers part their experts, and how many of these a token may use.

    (1, 1) where the config states none: all experts are one group.
    """
    groups, used = getattr(config, "n_group", None), getattr(config, "topk_group", None)
    return (int(groups), int(used)) if groups and used else (1, 1)


def promised_moe_layers(config: Any) -> tuple[int, ...]:
    """Return the numbers of the decoder layers that the config says hold routed experts."""
    rules = _RULES_OF_FAMILY.get(config.model_type, _COMMON_RULES)
    if getattr(config, "mlp_layer_types", None) is not None:
        rules = _LISTED_RULES
    stated = [(rule, getattr(config, name, None)) for name, rule in rules.items()]
    present = [(rule, value) for rule, value in stated if value is not None]
    layers = range(int(config.num_hidden_layers))
    return tuple(layer for layer in layers if not any(rule(config, layer, value) for rule, value in present))


def declared_scoring(model_type: str) -> Scoring:
    """Return how routers of this family score experts, as declared (see `scoring` for how it is measured)."""
    return SCORING.get(model_type, "softmax")
