"""Tell how a router scores experts, and turn its logits into the distribution it stands for.

Shape letters: T tokens, E experts, K top-k, D model width.
"""

from __future__ import annotations

import inspect
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from rasa_moe.errors import ModelError
from rasa_moe.moe.families import NOT_MEASURABLE, SCORING, Scoring, declared_scoring, promised_top_k

_PROBE_TOKENS = 8
# Louder and louder vectors: logits close to each other look the same under any formula.
_PROBE_LOUDNESS = (1.0, 8.0, 64.0)
# Largest spread of log(weight / score) within a token that still counts as proportional; covers bf16
# rounding.
_PROBE_TOLERANCE = 0.05
# Weights this far below the token's largest are lost in rounding and say nothing.
_PROBE_FLOOR = 1e-4


def routing_distribution(logits: Tensor, scoring: Scoring) -> Tensor:
    """Turn router logits into the distribution over experts that the router stands for.

    Args:
        logits: (...,E), any float dtype.
        scoring: "softmax" and "topk_softmax": softmax over all logits; "sigmoid": scores normalised to sum 1;
            "probabilities": they are a distribution already.

    Returns:
        (...,E) fp32.
    """
    if scoring == "sigmoid":
        scores = logits.float().sigmoid()
        return scores / scores.sum(dim=-1, keepdim=True)
    return logits.float() if scoring == "probabilities" else logits.float().softmax(dim=-1)


def _probe(router: nn.Module, *, name: str, tokens_TD: Tensor, num_experts: int) -> tuple[Tensor, ...]:
    """Return a router's (logits (T,E), weights (T,K), ids (T,K)) for some vectors."""
    # Some families hand their router the selection bias of each expert; it does not enter the weights.
    accepted = [
        p
        for p in list(inspect.signature(router.forward).parameters.values())[1:]
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    num_needed = sum(p.default is p.empty for p in accepted)
    bias_E = torch.zeros(num_experts, device=tokens_TD.device)
    problem = ""
    # Most routers take flat tokens, a few insist on (sequences, positions, width).
    for tokens, num_biases in product((tokens_TD, tokens_TD[None]), sorted({num_needed, len(accepted)})):
        try:
            output = router(tokens, *[bias_E] * num_biases)
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            problem = f"could not be run on its own ({error})"
            continue
        # A fourth entry (weights of the shared experts) concerns nobody here.
        if isinstance(output, tuple) and len(output) in {3, 4} and output[0].shape[-1:] == (num_experts,):
            return output[:3]
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
    generator = torch.Generator().manual_seed(0)
    quiet_TD = torch.randn(_PROBE_TOKENS, int(config.hidden_size), generator=generator)
    top_k = 0
    for loudness in _PROBE_LOUDNESS:
        tokens_TD = (loudness * quiet_TD).to(weight.device, weight.dtype)
        logits_TE, weights_TK, ids_TK = _probe(
            router, name=name, tokens_TD=tokens_TD, num_experts=num_experts
        )
        top_k = int(ids_TK.shape[1])
        if config.model_type in NOT_MEASURABLE:
            break
        chosen_TK = logits_TE.float().gather(1, ids_TK)
        fitting = _fitting(chosen_TK, weights_TK.float())
        if not fitting and loudness > 1 and config.model_type in SCORING:
            break  # rounding has the last word in a loud router of low precision
        if not fitting:
            raise ModelError(
                f"Router '{name}' weighs experts by neither softmax nor sigmoid of its logits; "
                "this family needs code of its own."
            )
        if len(fitting) == 1:
            return top_k, "topk_softmax" if (declared, *fitting) == ("topk_softmax", "softmax") else fitting[
                0
            ]
    return top_k, declared


def _fitting(chosen_TK: Tensor, weights_TK: Tensor) -> list[Scoring]:
    """Return the formulas by which the weights of the chosen experts may have come from their logits."""
    heard = weights_TK.amin(1) > _PROBE_FLOOR * weights_TK.amax(1)
    if not bool(heard.any()):
        return ["softmax", "sigmoid"]
    log_scores: dict[Scoring, Tensor] = {
        "softmax": chosen_TK[heard],
        "sigmoid": nn.functional.logsigmoid(chosen_TK[heard]),
    }
    log_weights_TK = weights_TK[heard].log()

    def spread(log_scores_TK: Tensor) -> float:
        ratio_TK = log_weights_TK - log_scores_TK
        return float((ratio_TK.amax(1) - ratio_TK.amin(1)).max())

    return [scoring for scoring, scores in log_scores.items() if spread(scores) < _PROBE_TOLERANCE]
