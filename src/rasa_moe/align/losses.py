"""The losses of the method: supervised refusal, drift of scores, routing consistency.

Shape letters: B sequences (b of them in a micro-batch), S positions, N positions that predict a response
token (M where all are in harmless conversations), L MoE layers, E experts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from rasa_moe.align.batches import MicroBatch, TrainingBatch
from rasa_moe.data.chats import IGNORED_LABEL, Batch
from rasa_moe.distributed import current

Divergence = Literal["forward", "reverse", "symmetric"]
RETAINED = "retain"


def supervised_losses(logits: Tensor, batch: TrainingBatch, micro: MicroBatch) -> dict[str, Tensor]:
    """Return what some rows add to the cross-entropy of each of their parts, a mean over response tokens.

    Args:
        logits: (N,V) floating, at the positions of `predicting`; or (b,S,V), of this process' rows, where
            position s predicts token s + 1.
        batch: Decides which rows are a part, and over how many tokens its mean goes.
        micro: The rows that were forwarded. Labels are -100 outside the response, so neither prompt nor
            padding is learned.

    Returns:
        Part name -> scalar fp32; over all micro-batches they add up to the means.

    Paper: `L_SFT(x, y_ref)` over B_adv is the part "jailbreak".
    """
    own_targets = current().own_rows(micro.chats.labels[:, 1:])
    is_learned = own_targets != IGNORED_LABEL
    if logits.dim() == 3:
        logits = logits[:, :-1][is_learned]
    losses_N = functional.cross_entropy(logits.float(), own_targets[is_learned], reduction="none")
    return _means(losses_N, batch, micro)


def score_drift(logits: Tensor, base: Tensor, batch: TrainingBatch, micro: MicroBatch) -> Tensor:
    """Return what some rows add to the mean drift of scores over the response tokens of what is retained.

    The drift at a token is the variance, over the vocabulary, of what each score has gained: adding the same
    to all scores changes nothing. Where cross-entropy says no more once the right token is likely enough, it
    goes on counting how far a refusal has come up; see Buzzega et al., "Dark experience for general continual
    learning" (2020).

    Args:
        logits: (M,V) floating, at the positions of `predicting`.
        base: (M,V) floating, the base model's.
        batch: Decides over how many tokens the mean goes.
        micro: The rows that were forwarded, all of them retained.

    Returns:
        Scalar fp32, squared nats; over all micro-batches it adds up to the mean.
    """
    gained = logits.float() - base.float()
    drift_M = (gained - gained.mean(dim=-1, keepdim=True)).square().mean(dim=-1)
    return _means(drift_M, batch, micro)[RETAINED]


def _means(values_N: Tensor, batch: TrainingBatch, micro: MicroBatch) -> dict[str, Tensor]:
    """Return what the rows of a micro-batch add to the mean of each of its parts over response tokens.

    Args:
        values_N: (N,) fp32, at the positions of `predicting`.
        batch: Decides which rows are a part, and how many tokens it has.
        micro: The rows that were forwarded.
    """
    world = current()
    is_learned = world.own_rows(micro.chats.labels[:, 1:]) != IGNORED_LABEL
    # (b,S-1), 0 where ignored
    values = values_N.new_zeros(is_learned.shape).masked_scatter(is_learned, values_N)
    values = world.whole_rows(values, total=len(micro.rows))
    counted = batch.chats.labels[:, 1:] != IGNORED_LABEL
    return {
        name: values[torch.isin(micro.rows, batch.parts[name])].sum() / counted[batch.parts[name]].sum()
        for name in micro.parts
    }


def predicting(chats: Batch) -> Tensor:
    """Return (b,S) bool, the positions of this process' rows that predict a response token."""
    is_learned = chats.labels[:, 1:] != IGNORED_LABEL
    return functional.pad(current().own_rows(is_learned), (0, 1))


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Add up parts by weight; a part of weight 0 takes no part at all."""
    terms = [weights[name] * loss for name, loss in losses.items() if weights[name] > 0]
    return torch.stack(terms).sum()


def routing_divergence(
    anchor: Tensor, jailbreak: Tensor, *, kind: Divergence = "forward", pairs: int | None = None
) -> Tensor:
    """Compare the routing of jailbreaks with that of their anchors.

    Args:
        anchor: (B,L,E) fp32, mean routing distribution of each plain request; the fixed target.
        jailbreak: (B,L,E) fp32, the same of each jailbreak; gradient flows through it.
        kind: "forward" is KL(anchor || jailbreak), "reverse" the other way round, "symmetric" their mean.
        pairs: Over how many pairs the mean goes, where these are some of them.

    Returns:
        Scalar fp32 in nats: mean over pairs and layers.

    Paper: `L_router = mean over layers of KL( P_anchor,l || P_adv,l )`.
    Deviation: P is a mean over the tokens of one sequence and the divergence is taken pair by pair, not
        between the means of two batches: each jailbreak is compared with its own plain request.
    """
    target = anchor.detach()
    forward = functional.kl_div(jailbreak.log(), target, reduction="none").sum(dim=-1)  # (B,L)
    divergence = forward
    if kind != "forward":
        reverse = (jailbreak * (jailbreak.log() - target.log())).sum(dim=-1)
        divergence = reverse if kind == "reverse" else (forward + reverse) / 2
    return divergence.sum() / ((pairs or len(target)) * target.shape[1])
