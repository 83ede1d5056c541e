"""Adversarial Activation Discrepancy: which experts a successful jailbreak wakes and a refusal leaves asleep.

Shape letters: N pairs, L MoE layers, E experts a layer, B resamples, G goals.

Layers are counted here by their row among the MoE layers (0 to L-1), not by decoder layer; `MoeMap`
translates. The same functions serve the format control: feed the rates of a harmless goal wrapped and plain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class DiscrepancyInterval:
    """Hold what resampling the goals says about each expert's Delta.

    Attributes:
        low: (L, E) float64, lower end of the percentile interval.
        high: (L, E) float64, upper end.
        selection_probability: (L, E) float64, share of resamples whose selection includes the expert.
    """

    low: Tensor
    high: Tensor
    selection_probability: Tensor


def activation_discrepancy(jailbreak_rates: Tensor, anchor_rates: Tensor) -> Tensor:
    """Compute Delta of every expert.

    Args:
        jailbreak_rates: (N, L, E) floating, share of the span's tokens that activate each expert, by pair.
        anchor_rates: (N, L, E) floating, the same for the plain request of the same pair.

    Returns:
        (L, E) float64 in [-1, 1].

    Raises:
        ValueError: Shapes differ, there are no pairs, or a rate is not a number (an empty span).

    Paper: `Delta_{l,e} = P(activate_{l,e} | B_adv) - P(activate_{l,e} | B_anchor)`, where
        `P(activate_{l,e} | X) = mean over x in X of H_{l,e}(x)`.
    Deviation: H is the share of tokens that activate the expert, not 0 or 1 for the whole text: over a few
        dozen tokens of top-8 routing most experts fire at least once, so a yes-or-no H would hardly vary.
    """
    return _pair_differences(jailbreak_rates, anchor_rates).mean(dim=0)


def selection_score(jailbreak_rates: Tensor, anchor_rates: Tensor, *, anchor_weight: float = 1.0) -> Tensor:
    """Compute what experts are ranked by: `P(activate | B_adv) - anchor_weight * P(activate | B_anchor)`.

    An expert that decides between answering and refusing is active in both contexts: it writes the refusal of
    the plain request and the harmful answer to the jailbreak. Delta is then near 0 and passes it over, though
    a repair that leaves it out does not carry over to jailbreaks that were not trained on. A weight below 1
    lets such experts in.

    Args:
        jailbreak_rates: (N, L, E) floating.
        anchor_rates: (N, L, E) floating.
        anchor_weight: 1 is Delta, the paper's score; 0 ranks by activation on jailbreaks alone.

    Returns:
        (L, E) float64 in [-anchor_weight, 1].

    Deviation: the paper ranks by Delta, `anchor_weight` 1.
    """
    return activation_discrepancy(jailbreak_rates, anchor_weight * anchor_rates)


def bootstrap_interval(
    jailbreak_rates: Tensor,
    anchor_rates: Tensor,
    *,
    budget: int | None = None,
    threshold: float | None = None,
    anchor_weight: float = 1.0,
    goals: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> DiscrepancyInterval:
    """Ask how much Delta and the selection depend on which pairs happened to be collected.

    Pairs are drawn with replacement, jailbreak and anchor always together. Pairs of one goal under several
    attacks are not independent, so with `goals` whole goals are drawn.

    Args:
        jailbreak_rates: (N, L, E) floating.
        anchor_rates: (N, L, E) floating.
        budget: As in `select_experts`; exactly one of budget and threshold.
        threshold: As in `select_experts`.
        anchor_weight: As in `selection_score`, by which the resamples select.
        goals: N labels; pairs with equal labels are drawn together. None treats every pair as its own goal.
        resamples: B.
        confidence: Coverage of the percentile interval.
        seed: Equal seeds give equal results.
    """
    resampled = resample_discrepancy(
        jailbreak_rates, anchor_rates, goals=goals, resamples=resamples, seed=seed
    )
    scores = resampled
    if anchor_weight != 1:
        scores = resample_discrepancy(
            jailbreak_rates, anchor_weight * anchor_rates, goals=goals, resamples=resamples, seed=seed
        )
    tail = (1 - confidence) / 2
    # numpy, because torch.quantile refuses more than 2^24 values, which 48 layers of 128 experts exceed
    low, high = np.quantile(resampled.numpy(), [tail, 1 - tail], axis=0)
    return DiscrepancyInterval(
        low=torch.from_numpy(low),
        high=torch.from_numpy(high),
        selection_probability=selection_probability(scores, budget=budget, threshold=threshold),
    )


def resample_discrepancy(
    jailbreak_rates: Tensor,
    anchor_rates: Tensor,
    *,
    goals: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Tensor:
    """Compute Delta of every resample as two matrix products, (B, L, E) float64.

    A resample says how often each goal was drawn, w_g: `Delta = sum_g w_g S_g / sum_g w_g n_g`, with S_g the
    sum of the differences of goal g's pairs and n_g their number.
    """
    differences = _pair_differences(jailbreak_rates, anchor_rates)  # (N, L, E)
    num_pairs = len(differences)
    labels = range(num_pairs) if goals is None else goals
    if len(labels) != num_pairs:
        raise ValueError(f"{len(labels)} goals for {num_pairs} pairs")
    goal_index = {label: index for index, label in enumerate(dict.fromkeys(labels))}
    num_goals = len(goal_index)
    membership = torch.zeros(num_goals, num_pairs, dtype=torch.float64)  # (G, N)
    membership[[goal_index[label] for label in labels], torch.arange(num_pairs)] = 1.0
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(num_goals, np.full(num_goals, 1 / num_goals), size=resamples)
    pair_weights = torch.from_numpy(draws).double() @ membership  # (B, N)
    totals = pair_weights @ differences.flatten(start_dim=1)  # (B, L*E)
    return (totals / pair_weights.sum(dim=1, keepdim=True)).view(resamples, *differences.shape[1:])


def selection_probability(
    resampled: Tensor, *, budget: int | None = None, threshold: float | None = None
) -> Tensor:
    """Count how often each expert is selected: (B, L, E) -> (L, E) float64 in [0, 1]."""
    return _is_selected(resampled, budget=budget, threshold=threshold).double().mean(dim=0)


def select_experts(
    delta: Tensor, *, budget: int | None = None, threshold: float | None = None
) -> list[tuple[int, int]]:
    """Choose the safety-critical experts, strongest first; ties go to the lower layer, then the lower expert.

    Args:
        delta: (L, E) floating; Delta, or another score of `selection_score`.
        budget: Number of experts over all layers. May reach experts with Delta <= 0 when it is large.
        threshold: tau; exactly one of budget and threshold must be given.

    Returns:
        (row, expert) of each chosen expert.

    Raises:
        ValueError: Both or neither rule given, or a budget outside 1 to L*E.

    Paper: `E_crit = { (l,e) : Delta_{l,e} > tau }`.
    Deviation: one set for the whole run; per-batch sets grow to most of the model once their union is
        trained. A budget is the authors' practice (top-k by Delta) and compares methods at equal size.
    """
    chosen = _is_selected(delta[None], budget=budget, threshold=threshold)[0]
    rows, experts = chosen.nonzero(as_tuple=True)
    strongest_first = torch.argsort(delta[rows, experts], descending=True, stable=True)
    return [(int(rows[index]), int(experts[index])) for index in strongest_first]


def random_like(
    selected: Sequence[tuple[int, int]], shape: tuple[int, int], *, seed: int
) -> list[tuple[int, int]]:
    """Draw a control: as many experts in every layer as `selected` has there, once for the whole run.

    The draw is uniform over all experts of the layer, so that it may share some with `selected`.

    Args:
        selected: (row, expert) of the real selection.
        shape: (L, E).
        seed: Equal seeds give equal controls.

    Returns:
        (row, expert) in ascending order.

    Raises:
        ValueError: A member of `selected` is repeated or lies outside `shape`.
    """
    num_layers, num_experts = shape
    inside = all(0 <= row < num_layers and 0 <= expert < num_experts for row, expert in selected)
    if not inside or len(set(selected)) != len(selected):
        raise ValueError(f"selected experts must be distinct and lie within {num_layers} x {num_experts}")
    count_of_row = Counter(row for row, _ in selected)
    generator = np.random.default_rng(seed)
    return [
        (row, int(expert))
        for row in range(num_layers)
        for expert in sorted(generator.choice(num_experts, size=count_of_row[row], replace=False))
    ]


def _pair_differences(jailbreak_rates: Tensor, anchor_rates: Tensor) -> Tensor:
    """Subtract within pairs: two (N, L, E) -> (N, L, E) float64 on the CPU."""
    if jailbreak_rates.shape != anchor_rates.shape or jailbreak_rates.dim() != 3:
        shapes = f"{tuple(jailbreak_rates.shape)} and {tuple(anchor_rates.shape)}"
        raise ValueError(
            f"rates of jailbreaks and anchors must both be (pairs, layers, experts), got {shapes}"
        )
    if len(jailbreak_rates) == 0:
        raise ValueError("there are no pairs; Delta needs at least one")
    differences = jailbreak_rates.double().cpu() - anchor_rates.double().cpu()
    if not bool(differences.isfinite().all()):
        bad = sorted(set((~differences.isfinite()).nonzero()[:, 0].tolist()))
        raise ValueError(f"rates of pairs {bad[:10]} are not finite; is their span empty?")
    return differences


def _is_selected(delta: Tensor, *, budget: int | None, threshold: float | None) -> Tensor:
    """Apply the selection rule to each of B tables: (B, L, E) -> (B, L, E) bool."""
    if (budget is None) == (threshold is None):
        raise ValueError("give exactly one of budget and threshold")
    if threshold is not None:
        return delta > threshold
    flat = delta.flatten(start_dim=1)  # (B, L*E), ordered by (layer, expert)
    if budget is None or not 1 <= budget <= flat.shape[1]:
        raise ValueError(f"budget must lie in 1 to {flat.shape[1]}, got {budget}")
    # A stable sort keeps equal values in (layer, expert) order; topk promises no order among ties.
    order = torch.argsort(flat, dim=1, descending=True, stable=True)
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen.scatter_(1, order[:, :budget], True)
    return chosen.view(delta.shape)
