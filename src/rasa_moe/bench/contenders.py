"""The ways of training a few experts that the repair step is measured against; one process each.

Started as `python -m rasa_moe.bench.contenders JSON`, where JSON names the contender and its sizes. It prints
one line of JSON: the seconds of each step and the peak resident memory.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from rasa_moe.bench.models import Dimensions, olmoe, token_ids
from rasa_moe.moe import ExpertId, ExpertSlices, LowRankAttention, discover, logits_at, low_bit_experts
from rasa_moe.moe.quantised import Bits

_RATE = 1e-5


@dataclass(frozen=True)
class Task:
    """Hold what one contender has to do: `share` of the experts of every layer, on `rows` texts."""

    contender: str
    dimensions: Dimensions
    rows: int
    length: int
    steps: int
    share: float = 0.125

    @property
    def chosen(self) -> list[int]:
        """Experts of a layer that are trained."""
        return list(range(max(1, round(self.share * self.dimensions.experts))))


def run(task: Task) -> dict[str, Any]:
    """Take the steps of a task; the first, which allocates, is not counted."""
    seconds = CONTENDERS[task.contender](task)[1:]
    # Kilobytes on Linux.
    return {"seconds": seconds, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _loop(
    task: Task, model: Any, parameters: list[nn.Parameter], after: Callable[[], None] = lambda: None
) -> list[float]:
    """Return the seconds of each step: forward, backward, clipped gradients, fused AdamW."""
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, fused=True)
    ids = token_ids(task.dimensions, rows=task.rows, length=task.length)
    seconds = []
    for _ in range(task.steps + 1):
        start = time.perf_counter()
        learned_half(model, ids).backward()  # type: ignore[no-untyped-call]
        after()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    return seconds


def learned_half(model: Any, ids: Tensor) -> Tensor:
    """Return the loss on the second half of every text: prompts are not learned, for any contender."""
    positions = torch.zeros_like(ids, dtype=torch.bool)
    positions[:, ids.shape[1] // 2 : -1] = True
    with logits_at(model, positions):
        logits = model(input_ids=ids, use_cache=False).logits
    return nn.functional.cross_entropy(logits.float(), ids[:, ids.shape[1] // 2 + 1 :].flatten())


def chosen_slices(task: Task, model: Any, *, rank: int | None = None) -> ExpertSlices:
    """Return the experts that are trained."""
    layers = range(task.dimensions.layers)
    chosen = [ExpertId(row, e) for row in layers for e in task.chosen]
    return ExpertSlices(discover(model), chosen, rank=rank)


def _slices(
    task: Task, dtype: torch.dtype, *, rank: int | None = None, attention_rank: int | None = None
) -> list[float]:
    model = olmoe(task.dimensions, dtype=dtype)
    owners: list[ExpertSlices | LowRankAttention] = [chosen_slices(task, model, rank=rank)]
    if attention_rank is not None:
        owners.append(LowRankAttention(discover(model), rank=attention_rank))
    with ExitStack() as stack:
        for owner in owners:
            stack.enter_context(owner)
        return _loop(task, model, [parameter for owner in owners for parameter in owner.parameters()])


def _slices_low_bit(task: Task, bits: Bits) -> list[float]:
    model = olmoe(task.dimensions, dtype=torch.bfloat16)
    with low_bit_experts(discover(model), bits=bits), chosen_slices(task, model) as slices:
        return _loop(task, model, slices.parameters())


def _trainer(task: Task, *, bf16: bool) -> list[float]:
    """Train every weight with transformers' Trainer: fp32 weights, and bf16 autocast where asked for."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self._start)

    rows = task.rows * (task.steps + 1)
    ids = token_ids(task.dimensions, rows=rows, length=task.length)
    labels = ids.clone()
    labels[:, : task.length // 2 + 1] = -100
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=task.rows,
            max_steps=task.steps + 1,
            optim="adamw_torch_fused",
            learning_rate=_RATE,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            bf16=bf16,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        data = [{"input_ids": text, "labels": label} for text, label in zip(ids, labels, strict=True)]
        model = olmoe(task.dimensions)
        Trainer(model=model, args=arguments, train_dataset=data, callbacks=[Clock()]).train()
    return seconds


def _masked(task: Task) -> list[float]:
    """Train whole fused tensors and set the gradients of all other experts to 0."""
    model = olmoe(task.dimensions)
    model.requires_grad_(False)
    fused = [layer.experts.get_parameter(name) for layer in discover(model).layers for name in _FUSED]
    for parameter in fused:
        parameter.requires_grad_(True)
    others = sorted(set(range(task.dimensions.experts)) - set(task.chosen))

    def mask() -> None:
        for parameter in fused:
            if parameter.grad is not None:
                parameter.grad[others] = 0

    return _loop(task, model, fused, mask)


_FUSED = ("gate_up_proj", "down_proj")


def _lora(task: Task) -> list[float]:
    """Train low-rank changes of the fused tensors; there is no choice of experts."""
    from peft import LoraConfig, get_peft_model

    model = olmoe(task.dimensions)
    names = [f"mlp.experts.{name}" for name in _FUSED]
    settings = LoraConfig(r=8, lora_alpha=16, target_modules=[], target_parameters=names)
    tuned = get_peft_model(model, settings)
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    return _loop(task, model, trained)


class _Expert(nn.Module):
    """One expert as a module of its own."""

    def __init__(self, gate_up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.gate_up, self.down = nn.Parameter(gate_up), nn.Parameter(down)

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = nn.functional.linear(hidden, self.gate_up).chunk(2, dim=-1)
        return nn.functional.linear(nn.functional.silu(gate) * up, self.down)


class _ExpertModules(nn.Module):
    """Experts as modules, called one after the other: what freezing module by module needs."""

    def __init__(self, fused: nn.Module, chosen: list[int]) -> None:
        super().__init__()
        pairs = zip(fused.get_parameter(_FUSED[0]), fused.get_parameter(_FUSED[1]), strict=True)
        self.experts = nn.ModuleList(_Expert(up.detach(), down.detach()) for up, down in pairs)
        self.experts.requires_grad_(False)
        for number in chosen:
            self.experts[number].requires_grad_(True)

    def forward(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        output = torch.zeros_like(hidden)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(ids == number)
            if len(token):
                output = output.index_add(0, token, expert(hidden[token]) * weights[token, place, None])
        return output


def _modules(task: Task) -> list[float]:
    """Freeze modules, as ESFT does."""
    model = olmoe(task.dimensions)
    model.requires_grad_(False)
    for layer in model.model.layers:
        layer.mlp.experts = _ExpertModules(layer.mlp.experts, task.chosen)
    return _loop(task, model, [parameter for parameter in model.parameters() if parameter.requires_grad])


# Name -> seconds of each step.
CONTENDERS: dict[str, Callable[[Task], list[float]]] = {
    "slices": lambda task: _slices(task, torch.float32),
    "slices, bf16 base": lambda task: _slices(task, torch.bfloat16),
    "slices and attention, bf16 base": lambda task: _slices(task, torch.bfloat16, attention_rank=8),
    "slices of rank 8, bf16 base": lambda task: _slices(task, torch.bfloat16, rank=8),
    "slices, 8-bit base": lambda task: _slices_low_bit(task, 8),
    "slices, 4-bit base": lambda task: _slices_low_bit(task, 4),
    "full fine-tuning": lambda task: _trainer(task, bf16=False),
    "full fine-tuning, bf16": lambda task: _trainer(task, bf16=True),
    "gradient masking": _masked,
    "LoRA": _lora,
    "module freezing": _modules,
}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    found = run(Task(**{**given, "dimensions": Dimensions(**given["dimensions"])}))
    sys.stdout.write(json.dumps(found) + "\n")
