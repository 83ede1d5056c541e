"""Tell how a router scores experts, and turn its logits into the distribution it stands for.

Shape letters: T tokens, E experts, K top-k, D model width.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from rasa_moe.errors import ModelError
from rasa_moe.moe.families import Scoring, declared_scoring, promised_top_k

_PROBE_TOKENS = 8
# Largest spread of log(weight / score) within a token that still counts as proportional; covers bf16
# rounding.
_PROBE_TOLERANCE = 0.05


def routing_distribution(logits: Tensor, scoring: Scoring) -> Tensor:
    """Turn router logits into the distribution over experts that the router stands for.

    Args:
        logits: (...,E), any float dtype.
        scoring: "softmax" and "topk_softmax": softmax over all logits; "sigmoid": scores normalised to sum 1.

    Returns:
        (...,E) fp32.
    """
    if scoring == "sigmoid":
        scores = logits.float().sigmoid()
        return scores / scores.sum(dim=-1, keepdim=True)
    return logits.float().softmax(dim=-1)


def _probe(router: nn.Module, *, name: str, width: int, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a router's (logits (T,E), weights (T,K), ids (T,K)) for random vectors."""
    weight = next(router.parameters())
    generator = torch.Generator().manual_seed(0)
    tokens_TD = torch.randn(_PROBE_TOKENS, width, generator=generator).to(weight.device, weight.dtype)
    # Some families hand their router the selection bias of each expert; it does not enter the weights.
    needed = [p for p in inspect.signature(router.forward).parameters.values() if p.default is p.empty]
    biases = [
        torch.zeros(num_experts, device=weight.device)
        for p in needed[1:]
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    problem = ""
    # Most routers take flat tokens, a few insist on (sequences, positions, width).
    for tokens in (tokens_TD, tokens_TD[None]):
        try:
            output = router(tokens, *biases)
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            problem = f"could not be run on its own ({error})"
            continue
        if isinstance(output, tuple) and len(output) == 3 and output[0].shape == (_PROBE_TOKENS, num_experts):
            return output
        problem = f"does not return (logits, weights, ids) for {num_experts} experts"
    raise ModelError(f"Router '{name}' {problem}; this family needs code of its own.")


@torch.no_grad()
def measure_router(router: nn.Module, *, name: str, config: Any, num_experts: int) -> tuple[int, Scoring]:
    """Send random vectors through a router to see how many experts it picks and how it weighs them.

    Within one token, softmax weights are proportional to exp(logit) and sigmoid weights to sigmoid(logit),
    whatever normalisation or scaling follows. The formula is measured because the family's name does not
    settle it.
    """
    weight = next(router.parameters())
    declared = declared_scoring(config.model_type)
    if weight.is_meta:
        return promised_top_k(config) or 0, declared
    logits_TE, weights_TK, ids_TK = _probe(
        router, name=name, width=int(config.hidden_size), num_experts=num_experts
    )
    chosen_TK = logits_TE.float().gather(1, ids_TK)
    log_weights_TK = weights_TK.float().log()

    def spread(log_scores_TK: torch.Tensor) -> float:
        ratio_TK = log_weights_TK - log_scores_TK
        return float((ratio_TK.amax(1) - ratio_TK.amin(1)).max())

    if float((chosen_TK.amax(1) - chosen_TK.amin(1)).max()) < _PROBE_TOLERANCE:
        return int(ids_TK.shape[1]), declared
    errors: dict[Scoring, float] = {
        "softmax": spread(chosen_TK),
        "sigmoid": spread(nn.functional.logsigmoid(chosen_TK)),
    }
    best = min(errors, key=lambda scoring: errors[scoring])
    if not errors[best] < _PROBE_TOLERANCE:
        raise ModelError(
            f"Router '{name}' weighs experts by neither softmax nor sigmoid of its logits; "
            "this family needs code of its own."
        )
    return int(ids_TK.shape[1]), declared if declared == "topk_softmax" and best == "softmax" else best
