"""A step in several passes has the gradient of one pass, wastes less on padding and keeps to its budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rasa_moe.align import batches as rooms
from rasa_moe.align.batches import TrainingBatch, make_batches
from rasa_moe.align.consistency import RoutingConsistency
from rasa_moe.align.loop import Compute, TrainingLog, run_epoch
from rasa_moe.align.repair import ExpertRepair
from rasa_moe.align.rivals import Job
from rasa_moe.align.rivals.rerouting import _Rerouting
from rasa_moe.align.rivals.router_kl import _HeldRouting
from rasa_moe.align.rivals.training import AllWeights, supervised
from rasa_moe.config import load_config
from rasa_moe.distributed import World
from rasa_moe.moe import ExpertId, ExpertSlices, TrainableRouters, checkpointed, discover
from unit.tiny import tiny_model, tiny_pairs, tiny_retain, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EXPERTS = (ExpertId(0, 1), ExpertId(0, 5), ExpertId(1, 2))
ONE_PASS, SOME, ROW_BY_ROW = 10_000, 50, 1


def batch_of() -> TrainingBatch:
    (batch,) = make_batches(
        TOKENIZER, pairs=tiny_pairs(), retain=tiny_retain(), batch_size=8, seed=0, recovery_depth=0.5
    )
    return batch


def job_of(model: Any, batch_tokens: int, *, routing: str = "frozen") -> Job:
    settings = [f"align.batch_tokens={batch_tokens}", f"align.fixed_routing={routing}", "align.batch_size=8"]
    config = load_config(None, settings)
    return Job(
        model=model,
        tokenizer=TOKENIZER,
        moe=discover(model),
        pairs=tiny_pairs(),
        retain=tiny_retain(),
        config=config,
    )


def repair(job: Job) -> tuple[Any, Callable[[], Compute]]:
    compute = ExpertRepair(job.model, job.moe, [batch_of()], config=job.config.align)
    with torch.no_grad():
        job.moe.layers[0].experts.down_proj.mul_(-3.0)  # frozen and replayed routing differ
    return ExpertSlices(job.moe, EXPERTS), lambda: compute


def router(job: Job) -> tuple[Any, Callable[[], Compute]]:
    def begun() -> Compute:
        consistency = RoutingConsistency(job.model, job.moe, [batch_of()], config=job.config.align)
        with torch.no_grad():
            for master in owner.parameters():
                master += 0.1 * torch.randn(master.shape, generator=torch.Generator().manual_seed(0))
        return consistency

    owner = TrainableRouters(job.moe)
    return owner, begun


def rival(make: Callable[[Job], Compute]) -> Callable[[Job], tuple[Any, Callable[[], Compute]]]:
    def of(job: Job) -> tuple[Any, Callable[[], Compute]]:
        compute = make(job)
        with torch.no_grad():
            for parameter in job.model.parameters():
                parameter *= 1.1  # away from the base model, where rerouting has no gradient
        return AllWeights(job.model, method="full"), lambda: compute

    return of


TRAININGS: dict[str, Callable[[Job], tuple[Any, Callable[[], Compute]]]] = {
    "repair": repair,
    "router": router,
    "full": rival(supervised),
    "router_kl": rival(lambda job: _HeldRouting(job, [batch_of()], kl_weight=1.0)),
    "rerouting": rival(lambda job: begun_rerouting(job)),
}


def begun_rerouting(job: Job) -> Compute:
    loss = _Rerouting(job, [batch_of()], weight=1.0, steps=2)
    loss.begin_epoch(1)  # half way, where both losses count
    return loss


def gradients(
    name: str, batch_tokens: int, *, checkpointing: bool = False, **options: Any
) -> tuple[list[torch.Tensor | None], dict[str, float], int]:
    """Return the gradients of one step, what it logs, and its number of passes."""
    job = job_of(tiny_model(), batch_tokens, **options)
    owner, begun = TRAININGS[name](job)
    logged: dict[str, float] = {}
    passes = 0
    with owner:
        compute = begun()
        if checkpointing:
            with checkpointed(job.model):
                passes = backward(compute, logged)
        else:
            passes = backward(compute, logged)
    return [parameter.grad for parameter in owner.parameters()], logged, passes


def backward(compute: Compute, logged: dict[str, float]) -> int:
    passes = 0
    for loss, named in compute(batch_of(), 0):
        loss.backward()
        passes += 1
        for key, scalar in {"loss": loss, **named}.items():
            logged[key] = logged.get(key, 0.0) + float(scalar.detach())
    return passes


@pytest.mark.parametrize("batch_tokens", [SOME, ROW_BY_ROW])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("repair", {}),
        ("repair", {"routing": "replay"}),
        ("repair", {"routing": "replay", "checkpointing": True}),
        ("router", {}),
        ("router", {"checkpointing": True}),
        ("full", {}),
        ("router_kl", {}),
        ("rerouting", {}),
    ],
)
def test_the_gradient_is_that_of_one_pass(name: str, options: dict[str, Any], batch_tokens: int) -> None:
    once, logged_once, _ = gradients(name, ONE_PASS, **options)
    parts, logged, passes = gradients(name, batch_tokens, **options)
    assert passes > 2
    assert logged == pytest.approx(logged_once, rel=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in once if gradient is not None)
    assert largest > 1e-4, "without a gradient there is nothing to compare"
    for one, other in zip(once, parts, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6 * max(largest, 1.0))


def step_norm(expert: ExpertId, batch_tokens: int) -> tuple[float, set[bool]]:
    """Return the gradient's norm of one step on one expert, and whether its passes reach that expert."""
    job, batch = job_of(tiny_model(), batch_tokens), batch_of()
    repair_loss = ExpertRepair(job.model, job.moe, [batch], config=job.config.align)
    log = TrainingLog("rasa")
    with ExpertSlices(job.moe, (expert,)) as slices:
        reached = {loss.requires_grad for loss, _ in repair_loss(batch, 0)}
        run_epoch(
            [batch],
            [0],
            repair_loss,
            optimizer=torch.optim.AdamW(slices.parameters()),
            max_grad_norm=1.0,
            log=log,
            phase="repair",
            round_number=1,
            on_step=lambda: None,
        )
    return log.lines[0]["grad_norm"], reached


def test_a_pass_that_no_trained_expert_serves_adds_nothing() -> None:
    rarely = ExpertId(1, 5)
    norm, reached = step_norm(rarely, ROW_BY_ROW)
    assert reached == {True, False}
    assert norm == pytest.approx(step_norm(rarely, ONE_PASS)[0], rel=1e-4)
    assert norm > 0


def test_replayed_routing_is_that_of_each_pass() -> None:
    frozen, replayed = (gradients("repair", SOME, routing=kind)[0] for kind in ("frozen", "replay"))
    assert not all(torch.equal(one, other) for one, other in zip(frozen, replayed, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_passes_hold_every_row_once_within_the_budget(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "current", lambda: World(rank=0, size=size))
    batch = batch_of()
    longest = int(batch.chats.attention_mask.sum(dim=1).max())
    found = batch.micro_batches(batch_tokens=3 * longest)
    assert len(found) > 1
    assert sorted(row for micro in found for row in micro.rows.tolist()) == list(
        range(len(batch.chats.labels))
    )
    for micro in found:
        num_rows, length = micro.chats.input_ids.shape
        assert -(-num_rows // size) * length <= 3 * longest
        assert int(micro.chats.attention_mask.sum(dim=1).max()) == length
        assert torch.equal(micro.chats.labels, batch.chats.labels[micro.rows, :length])


def test_less_is_spent_on_padding() -> None:
    batch = batch_of()
    real = int(batch.chats.attention_mask.sum())
    padded = {
        budget: sum(m.chats.input_ids.numel() for m in batch.micro_batches(batch_tokens=budget))
        for budget in (ONE_PASS, SOME, ROW_BY_ROW)
    }
    assert padded[ONE_PASS] > padded[SOME] > padded[ROW_BY_ROW] == real


def test_only_rows_of_the_named_parts_are_taken() -> None:
    batch = batch_of()
    found = batch.micro_batches("jailbreak", "retain", batch_tokens=SOME)
    rows = torch.cat([micro.rows for micro in found]).sort().values
    assert torch.equal(rows, torch.cat([batch.parts["jailbreak"], batch.parts["retain"]]).sort().values)
