"""The two losses against slow loops and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from rasa_moe.align.batches import make_batches
from rasa_moe.align.losses import routing_divergence, supervised_losses, weighted_sum
from unit.tiny import tiny_pairs, tiny_retain, tiny_tokenizer

PAIRS, LAYERS, EXPERTS = 5, 3, 7


def slow_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, rows: list[int]) -> float:
    """Add up -log p of every response token, one token at a time, and divide by their number."""
    total, count = 0.0, 0
    for row in rows:
        for position in range(1, labels.shape[1]):
            label = int(labels[row, position])
            if label == -100:
                continue
            scores = [float(score) for score in logits[row, position - 1]]
            largest = max(scores)
            log_sum = largest + math.log(sum(math.exp(score - largest) for score in scores))
            total += log_sum - scores[label]
            count += 1
    return total / count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_supervised_losses_equal_a_loop_over_response_tokens(dtype: torch.dtype) -> None:
    tokenizer = tiny_tokenizer()
    (batch,) = make_batches(tokenizer, pairs=tiny_pairs(), retain=tiny_retain(), batch_size=8, seed=0)
    shape = (*batch.chats.input_ids.shape, len(tokenizer))
    logits = (3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    losses = supervised_losses(logits, batch, *batch.micro_batches(batch_tokens=10_000))
    assert list(losses) == ["jailbreak", "anchor", "retain"]
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        expected = slow_cross_entropy(logits, batch.chats.labels, batch.parts[name].tolist())
        assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_a_part_is_a_mean_over_tokens_not_over_rows() -> None:
    """One token of eleven is uncertain, in a row of three: 1/11 of it counts, not 1/6."""
    tokenizer = tiny_tokenizer()
    (batch,) = make_batches(tokenizer, pairs=tiny_pairs(2), retain=[], batch_size=8, seed=0)
    labels = batch.chats.labels
    rows = batch.parts["jailbreak"]
    num_tokens = sorted(int((labels[row] != -100).sum()) for row in rows)
    assert num_tokens == [3, 8], "two words, or seven words, and the end token"
    logits = torch.full((*labels.shape, len(tokenizer)), -100.0)
    targets = labels.clamp(min=0)
    logits[:, :-1].scatter_(2, targets[:, 1:, None], 0.0)  # every token certain ...
    short = next(row for row in rows.tolist() if int((labels[row] != -100).sum()) == 3)
    first = int((labels[short] != -100).nonzero()[0])
    logits[short, first - 1] = 0.0  # ... but one, which is uniform
    (micro,) = batch.micro_batches(batch_tokens=10_000)
    assert float(supervised_losses(logits, batch, micro)["jailbreak"]) == pytest.approx(
        math.log(len(tokenizer)) / 11, rel=1e-5
    )


def test_weights_multiply_and_a_weight_of_zero_takes_the_part_out() -> None:
    losses = {"jailbreak": torch.tensor(2.0), "anchor": torch.tensor(math.nan), "retain": torch.tensor(3.0)}
    total = weighted_sum(losses, {"jailbreak": 1.0, "anchor": 0.0, "retain": 0.5})
    assert float(total) == 3.5


@pytest.fixture
def routing() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (PAIRS, LAYERS, EXPERTS)
    anchor, jailbreak = (
        (scale * torch.randn(shape, generator=generator)).softmax(dim=-1) for scale in (1, 2)
    )
    return anchor, jailbreak


def scipy_divergence(first: torch.Tensor, second: torch.Tensor) -> float:
    """Average KL(first || second) over pairs and layers with scipy, one distribution at a time."""
    return float(
        np.mean(
            [
                entropy(first[pair, layer].double().numpy(), second[pair, layer].double().numpy())
                for pair in range(PAIRS)
                for layer in range(LAYERS)
            ]
        )
    )


def test_divergences_equal_scipy(routing: tuple[torch.Tensor, torch.Tensor]) -> None:
    anchor, jailbreak = routing
    forward, reverse = scipy_divergence(anchor, jailbreak), scipy_divergence(jailbreak, anchor)
    assert abs(forward - reverse) > 0.01, "the test could not tell the directions apart"
    assert float(routing_divergence(anchor, jailbreak)) == pytest.approx(forward, rel=1e-5)
    assert float(routing_divergence(anchor, jailbreak, kind="reverse")) == pytest.approx(reverse, rel=1e-5)
    assert float(routing_divergence(anchor, jailbreak, kind="symmetric")) == pytest.approx(
        (forward + reverse) / 2, rel=1e-5
    )


def test_an_expert_that_the_anchor_never_uses_costs_nothing_forward() -> None:
    anchor = torch.tensor([[[0.0, 0.25, 0.75]]])
    jailbreak = torch.tensor([[[0.5, 0.25, 0.25]]])
    assert float(routing_divergence(anchor, jailbreak)) == pytest.approx(0.75 * math.log(3), rel=1e-6)


@pytest.mark.parametrize("kind", ["forward", "reverse", "symmetric"])
def test_equal_routing_has_no_divergence(routing: tuple[torch.Tensor, torch.Tensor], kind: str) -> None:
    anchor, _ = routing
    assert float(routing_divergence(anchor, anchor.clone(), kind=kind)) == pytest.approx(0.0, abs=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["forward", "reverse", "symmetric"])
def test_the_gradient_stops_at_the_anchor(routing: tuple[torch.Tensor, torch.Tensor], kind: str) -> None:
    anchor, jailbreak = (side.requires_grad_() for side in routing)
    routing_divergence(anchor, jailbreak, kind=kind).backward()  # type: ignore[arg-type]
    assert anchor.grad is None
    assert jailbreak.grad is not None and float(jailbreak.grad.abs().min()) > 0


def test_following_the_gradient_brings_the_jailbreak_to_the_anchor(
    routing: tuple[torch.Tensor, torch.Tensor],
) -> None:
    anchor, jailbreak = routing
    logits = jailbreak.log().requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=10.0)
    for _ in range(200):
        optimizer.zero_grad()
        routing_divergence(anchor, logits.softmax(dim=-1)).backward()
        optimizer.step()
    torch.testing.assert_close(logits.softmax(dim=-1).detach(), anchor, atol=0.02, rtol=0)
