"""Train a testbed model from scratch: helpful only, then safety on plain requests."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

from rasa_moe.progress import Progress, no_progress
from rasa_moe.testbed.lessons import Lesson, Teacher, World

IGNORED = -100
BUCKETS = 4  # batches drawn at once and sorted by length, so that little of a batch is padding


@dataclass(frozen=True)
class Recipe:
    """How a testbed model is trained; `RECIPES` has those of the shipped models."""

    helpful_steps: int = 3000
    helpful_lr: float = 2.5e-3
    safety_steps: int = 350
    safety_lr: float = 2e-4
    batch_size: int = 64
    balance_weight: float = 0.02
    seed: int = 0


# Qwen3-MoE learns sums and long conversations later.
RECIPES = {"olmoe": Recipe(), "qwen3": Recipe(helpful_steps=4200)}


def build_model(family: str, vocab_size: int, *, seed: int) -> Any:
    """Return a randomly initialised OLMoE or Qwen3-MoE of about 3 M parameters in float32."""
    torch.manual_seed(seed)
    shared = {
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 5,
    }
    if family == "olmoe":
        return OlmoeForCausalLM(
            OlmoeConfig(**shared, num_hidden_layers=4, num_key_value_heads=4, intermediate_size=64)
        ).eval()
    # One dense layer among the MoE layers, grouped-query attention: what Qwen3-MoE can do and OLMoE does not.
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **shared,
            num_hidden_layers=5,
            num_key_value_heads=2,
            head_dim=32,
            moe_intermediate_size=64,
            intermediate_size=128,
            mlp_only_layers=[0],
            norm_topk_prob=True,
        )
    ).eval()


def train(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    *,
    world: World,
    recipe: Recipe,
    progress: Progress = no_progress,
    after_helpful: Callable[[], None] | None = None,
) -> None:
    """Run both stages in place.

    Args:
        model: Freshly initialised model; ends trained, float32, in eval mode.
        tokenizer: The testbed's tokenizer.
        world: Modelling choices of the lessons.
        recipe: Steps, rates and seed.
        progress: Called once a step.
        after_helpful: Called between the stages, for tables of the helpful-only model.
    """
    teacher = Teacher(world, seed=recipe.seed)
    stages = (
        ("helpful only", teacher.helpful, recipe.helpful_steps, recipe.helpful_lr),
        ("safety", teacher.safety, recipe.safety_steps, recipe.safety_lr),
    )
    for label, draw, steps, rate in stages:
        batches = _batches(tokenizer, draw, batch_size=recipe.batch_size, seed=recipe.seed)
        _train_stage(model, batches, steps=steps, lr=rate, recipe=recipe, progress=progress, label=label)
        if label == "helpful only" and after_helpful is not None:
            after_helpful()


def _train_stage(
    model: Any,
    batches: Iterator[tuple[Tensor, Tensor, Tensor]],
    *,
    steps: int,
    lr: float,
    recipe: Recipe,
    progress: Progress,
    label: str,
) -> None:
    """Minimise response-only cross-entropy plus load balancing, with warm-up and cosine decay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        warm_up = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = lr * warm_up * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        input_ids, attention_mask, labels = next(batches)
        loss = _loss(model, input_ids, attention_mask, labels, balance_weight=recipe.balance_weight)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress(label, step + 1, steps)


def _loss(
    model: Any, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, *, balance_weight: float
) -> Tensor:
    """Cross-entropy over response tokens only; logits are computed for those positions alone."""
    output = model.model(input_ids=input_ids, attention_mask=attention_mask, output_router_logits=True)
    targets = labels[:, 1:]
    wanted = targets != IGNORED
    logits = model.lm_head(output.last_hidden_state[:, :-1][wanted])
    balance = load_balancing_loss_func(
        output.router_logits, model.config.num_experts, model.config.num_experts_per_tok, attention_mask
    )
    loss: Tensor = functional.cross_entropy(logits, targets[wanted]) + balance_weight * balance
    return loss


def _batches(
    tokenizer: PreTrainedTokenizerFast, draw: Callable[[int], list[Lesson]], *, batch_size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (input_ids, attention_mask, labels), each (B, S) int64, right-padded, without end."""
    order = random.Random(seed)
    while True:
        rows = sorted(
            (_encode(tokenizer, lesson) for lesson in draw(BUCKETS * batch_size)), key=lambda r: len(r[0])
        )
        chunks = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        order.shuffle(chunks)
        for chunk in chunks:
            width = max(len(ids) for ids, _ in chunk)
            pad = tokenizer.pad_token_id
            yield (
                torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in chunk]),
                torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in chunk]),
                torch.tensor([labels + [IGNORED] * (width - len(ids)) for ids, labels in chunk]),
            )


def _encode(tokenizer: PreTrainedTokenizerFast, lesson: Lesson) -> tuple[list[int], list[int]]:
    """Return token ids and labels of one conversation; every answer in it and its end token are learned."""
    ids: list[int] = []
    labels: list[int] = []
    for role, text in (*lesson.messages, ("assistant", lesson.answer)):
        head = tokenizer(f"<|{role}|>", add_special_tokens=False)["input_ids"]
        body = tokenizer(f"{text}<|end|>", add_special_tokens=False)["input_ids"]
        ids += head + body
        labels += [IGNORED] * len(head) + (body if role == "assistant" else [IGNORED] * len(body))
    return ids, labels
