"""Find the routed experts and routers of a model, and hold their number against the config's promise.

Shape letters: T tokens, E experts, K top-k, D model width.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from rasa_moe.errors import ModelError
from rasa_moe.moe.families import (
    Scoring,
    promised_moe_layers,
    promised_num_experts,
    promised_top_k,
    refuse_unsupported,
)
from rasa_moe.moe.scoring import measure_router
from rasa_moe.moe.sharding import whole_weights

# What transformers' decorator for fused experts sets on every instance; together they identify such a module.
_FUSED_EXPERTS_MARKS = frozenset(
    {"has_gate", "has_bias", "is_transposed", "is_concatenated", "_is_expert_parallel"}
)


@dataclass(frozen=True, order=True)
class ExpertId:
    """Name one routed expert by its decoder layer's own number (dense layers count) and its row there."""

    layer: int
    expert: int

    def __str__(self) -> str:
        return f"L{self.layer}.E{self.expert}"


@dataclass(frozen=True)
class MoeLayer:
    """One decoder layer with routed experts.

    Attributes:
        index: Number of the decoder layer, from the module's name.
        experts_name: Full module name of the fused experts; also the key of this layer in traces and counts.
        router_name: Full module name of the router.
        experts: The fused experts, called as `(x (T,D), top_k_index (T,K), top_k_weights (T,K))`.
        router: The router, returning `(logits (T,E), top_k_weights (T,K), top_k_index (T,K))`.
        num_experts: E.
        top_k: K.
        scoring: How the router turns logits into weights.
        has_shared_experts: Whether experts that see every token stand beside the routed ones.
    """

    index: int
    experts_name: str
    router_name: str
    experts: nn.Module = field(repr=False, compare=False)
    router: nn.Module = field(repr=False, compare=False)
    num_experts: int
    top_k: int
    scoring: Scoring
    has_shared_experts: bool

    @property
    def name(self) -> str:
        """The key of this layer in traces and counts."""
        return self.experts_name

    @property
    def decoder_name(self) -> str:
        """Full module name of the decoder layer, as "model.layers.3"."""
        # Up to the number that `index` is.
        return self.experts_name[: self.experts_name.rindex(f".{self.index}.")] + f".{self.index}"


@dataclass(frozen=True)
class MoeMap:
    """Every MoE layer of one model, in order of depth.

    Attributes:
        layers: The MoE layers.
        dense_layers: Numbers of the decoder layers without routed experts.
        model_type: Family name from the config.
        model: The model itself.
    """

    layers: tuple[MoeLayer, ...]
    dense_layers: tuple[int, ...]
    model_type: str
    model: PreTrainedModel = field(repr=False, compare=False)

    @property
    def num_layers(self) -> int:
        """Number of MoE layers (L in shapes)."""
        return len(self.layers)

    @property
    def num_experts(self) -> int:
        """Number of routed experts in each MoE layer (E in shapes)."""
        return self._same_in_all("num_experts")

    @property
    def top_k(self) -> int:
        """Number of experts each token is sent to (K in shapes)."""
        return self._same_in_all("top_k")

    @property
    def width(self) -> int:
        """Hidden size of the model."""
        return int(self.model.config.get_text_config().hidden_size)

    def _same_in_all(self, name: str) -> int:
        values = {int(getattr(layer, name)) for layer in self.layers}
        if len(values) != 1:
            raise ModelError(
                f"MoE layers of this '{self.model_type}' model differ in {name} ({sorted(values)}); "
                "a model with equal layers is needed."
            )
        return values.pop()

    def expert_ids(self) -> list[ExpertId]:
        """Return every routed expert, ordered by layer then expert."""
        return [ExpertId(layer.index, expert) for layer in self.layers for expert in range(layer.num_experts)]

    def row_of(self, layer_index: int) -> int:
        """Return the position in `layers` (the row of an (L,E) tensor) of a decoder layer number.

        Raises:
            ModelError: That decoder layer has no routed experts.
        """
        for row, layer in enumerate(self.layers):
            if layer.index == layer_index:
                return row
        raise ModelError(
            f"Decoder layer {layer_index} has no routed experts; MoE layers are "
            f"{[layer.index for layer in self.layers]}."
        )

    def by_layer(self, experts: tuple[ExpertId, ...] | list[ExpertId]) -> dict[int, list[int]]:
        """Group expert ids by row in `layers`, sorted; every id is checked.

        Raises:
            ModelError: An id is unknown or given twice.
        """
        rows: dict[int, list[int]] = {}
        for expert in sorted(experts):
            chosen = rows.setdefault(self.row_of(expert.layer), [])
            if not 0 <= expert.expert < self.layers[self.row_of(expert.layer)].num_experts:
                raise ModelError(
                    f"Expert {expert} does not exist; layer {expert.layer} has "
                    f"{self.layers[self.row_of(expert.layer)].num_experts} experts."
                )
            if expert.expert in chosen:
                raise ModelError(f"Expert {expert} is given twice; give every expert once.")
            chosen.append(expert.expert)
        return rows

    def summary(self) -> str:
        """Return one line that states what was matched and what the config promised."""
        matched = sum(layer.num_experts for layer in self.layers)
        config = self.model.config.get_text_config()
        expected = len(promised_moe_layers(config)) * (promised_num_experts(config) or 0)
        return (
            f"Routed experts: {self.num_layers} layers x {self.num_experts} = {matched} matched "
            f"(expected {expected})"
        )


def expert_tensor_names(experts: nn.Module) -> tuple[str, ...]:
    """Return the parameter names of a fused experts module that hold one row per expert."""
    weights = ("gate_up_proj" if experts.has_gate else "up_proj", "down_proj")
    return weights + tuple(f"{name}_bias" for name in weights) if experts.has_bias else weights


def discover(model: PreTrainedModel) -> MoeMap:
    """Find all MoE layers of a model and hold them against its config.

    Args:
        model: A causal language model with its weights loaded. A few random vectors are sent through every
            router to measure how it scores experts; no weight and no random state changes.

    Raises:
        ModelError: The model is dense, of a refused family, or differs from its config in any count.
    """
    config = model.config.get_text_config()
    refuse_unsupported(config.model_type)
    if promised_num_experts(config) is None:
        raise ModelError(
            f"This '{config.model_type}' model is dense: its config names no routed experts; "
            "choose a mixture-of-experts model."
        )
    router_classes = _router_classes(model)
    layers = [
        _read_layer(model, name=name, experts=module, router_classes=router_classes, config=config)
        for name, module in model.named_modules()
        if vars(module).keys() >= _FUSED_EXPERTS_MARKS
    ]
    layers.sort(key=lambda layer: layer.index)
    _check_counts(layers, config)
    moe_indices = {layer.index for layer in layers}
    dense = tuple(index for index in range(int(config.num_hidden_layers)) if index not in moe_indices)
    return MoeMap(layers=tuple(layers), dense_layers=dense, model_type=config.model_type, model=model)


def _router_classes(model: PreTrainedModel) -> tuple[type[nn.Module], ...]:
    """Return the classes the model itself declares as the source of its router logits."""
    classes: list[type[nn.Module]] = []
    for module in model.modules():
        if not isinstance(module, PreTrainedModel):
            continue
        declared: Any = (module._can_record_outputs or {}).get("router_logits", [])
        for recorder in declared if isinstance(declared, list | tuple) else [declared]:
            target: Any = getattr(recorder, "target_class", recorder)
            classes.append(target)
    if not classes:
        raise ModelError(
            f"This '{model.config.model_type}' model does not declare its routers to transformers, "
            "so its routing cannot be read; choose a family listed in the documentation."
        )
    return tuple(dict.fromkeys(classes))


def _read_layer(
    model: nn.Module,
    *,
    name: str,
    experts: nn.Module,
    router_classes: tuple[type[nn.Module], ...],
    config: Any,
) -> MoeLayer:
    """Describe one fused experts module and the router beside it."""
    numbers = re.findall(r"\.(\d+)(?=\.)", name)
    if not numbers:
        raise ModelError(
            f"Experts module '{name}' carries no layer number in its name; this family needs code of its own."
        )
    parent_name = name.rpartition(".")[0]
    siblings = dict(model.get_submodule(parent_name).named_children())
    routers = [child for child, module in siblings.items() if isinstance(module, router_classes)]
    if len(routers) != 1:
        raise ModelError(
            f"Expected one router beside '{name}', found {len(routers)}; this family needs code of its own."
        )
    router = siblings[routers[0]]
    num_experts = _count_expert_rows(experts, name)
    with whole_weights(router):
        top_k, scoring = measure_router(
            router, name=f"{parent_name}.{routers[0]}", config=config, num_experts=num_experts
        )
    return MoeLayer(
        index=int(numbers[-1]),
        experts_name=name,
        router_name=f"{parent_name}.{routers[0]}",
        experts=experts,
        router=router,
        num_experts=num_experts,
        top_k=top_k,
        scoring=scoring,
        has_shared_experts=any("shared" in child for child in siblings),
    )


def _count_expert_rows(experts: nn.Module, name: str) -> int:
    """Return E, the same first dimension in every tensor of a fused experts module."""
    sizes = {tensor: experts.get_parameter(tensor).shape[0] for tensor in expert_tensor_names(experts)}
    if len(set(sizes.values())) != 1:
        raise ModelError(f"Tensors of '{name}' disagree on the number of experts: {sizes}.")
    return next(iter(sizes.values()))


def _check_counts(layers: list[MoeLayer], config: Any) -> None:
    """Raise unless layers, experts and top-k are what the config promises."""
    found = [layer.index for layer in layers]
    promised = list(promised_moe_layers(config))
    kind = config.model_type
    if not layers:
        raise ModelError(
            f"No routed experts matched in this '{kind}' model, but its config promises "
            f"{len(promised)} MoE layers; its experts are not in the fused layout of transformers 5."
        )
    if found != promised:
        raise ModelError(
            f"MoE layers found in this '{kind}' model ({found}) differ from those its config promises "
            f"({promised}); do not train it before this is understood."
        )
    for layer in layers:
        stated = {
            "experts": (layer.num_experts, promised_num_experts(config)),
            "top-k": (layer.top_k, promised_top_k(config)),
        }
        for what, (real, expected) in stated.items():
            if expected is not None and real != expected:
                raise ModelError(
                    f"'{layer.experts_name}' has {what} {real} where the config promises {expected}."
                )
