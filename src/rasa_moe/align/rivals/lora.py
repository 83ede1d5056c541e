"""Low-rank adapters (peft) on attention and on all routed experts, merged into plain tensors at the end."""

from __future__ import annotations

import warnings
from typing import Any, Self

import torch
from torch import Tensor, nn

from rasa_moe.align.rivals.base import Job, Rival, Tuned, require_float32
from rasa_moe.align.rivals.training import learn, supervised
from rasa_moe.moe import MoeMap, attention_projections, attention_weights, copies, put_back_after
from rasa_moe.moe.layers import expert_tensor_names

_METHOD = "lora"


class Adapters:
    """Low-rank adapters inside a model, until `merge` takes them out.

    Raises:
        ModelError: The model has no attention.
    """

    def __init__(self, model: Any, moe: MoeMap, *, rank: int, alpha: float, seed: int) -> None:
        from peft import LoraConfig, get_peft_model

        self._model = model
        self._required_grad = {name: p.requires_grad for name, p in model.named_parameters()}
        attention = list(attention_projections(moe))
        settings = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=0.0,
            bias="none",
            target_modules=attention,
            target_parameters=_expert_weights(moe),
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # peft asks transformers by a name that will go with transformers 6: nothing a user can mend.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", category=FutureWarning)
            torch.manual_seed(seed)
            self._adapted = get_peft_model(model, settings)
        self._parameters = {
            name: parameter for name, parameter in self._adapted.named_parameters() if parameter.requires_grad
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def parameters(self) -> list[nn.Parameter]:
        """Return the adapters, fp32."""
        return list(self._parameters.values())

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the adapters."""
        return {name: adapter.detach().clone() for name, adapter in self._parameters.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over adapters saved by `state_dict`."""
        for name, adapter in self._parameters.items():
            adapter.copy_(state[name])

    def merge(self) -> None:
        """Add the adapters to the weights and take them out; the model has its own modules again."""
        self._adapted.merge_and_unload()
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(self._required_grad[name])


def targets(moe: MoeMap) -> list[str]:
    """Return the names of the parameters that adapters stand beside.

    Raises:
        ModelError: The model has no attention.
    """
    return [*attention_weights(moe), *_expert_weights(moe)]


def _expert_weights(moe: MoeMap) -> list[str]:
    return [
        f"{layer.experts_name}.{name}"
        for layer in moe.layers
        for name in expert_tensor_names(layer.experts)
        if not name.endswith("_bias")
    ]


def _train(job: Job) -> Tuned:
    LORA.require_extra()
    require_float32(job.model, method=_METHOD)
    settings = job.config.rivals.lora
    batches, names = job.batches(), targets(job.moe)
    with put_back_after(job.model, names):
        adapters = Adapters(
            job.model, job.moe, rank=settings.rank, alpha=settings.alpha, seed=job.config.seed
        )
        try:
            log = learn(
                job,
                method=_METHOD,
                weights=adapters,
                loss=supervised(job),
                batches=batches,
                epochs=settings.epochs,
                lr=job.rate("rivals.lora.lr"),
            )
        finally:
            adapters.merge()  # the adapters leave the model, also when the training fails
        return Tuned(tensors=copies(job.model, names), log=log)


LORA = Rival(
    _METHOD,
    "low-rank adapters on attention and all experts (peft)",
    _train,
    trains_in_place=True,
    extra="peft",
)
