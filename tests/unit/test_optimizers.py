"""State on the CPU changes where AdamW's moments are and no bit of what it computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from rasa_moe.align.optimizers import VisitingAdamW, adamw, set_rate
from rasa_moe.config import AlignConfig


def trained(on_cpu: bool, *, steps: int, resume_after: int | None = None) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 3), (5,), (2, 2))]
    config = AlignConfig(optimizer_on_cpu=on_cpu, weight_decay=0.1)
    optimizer = adamw([(parameters, 1.0)], lr=1e-2, config=config)
    assert isinstance(optimizer, VisitingAdamW) == on_cpu
    for step in range(steps):
        if step == resume_after:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = adamw([(parameters, 1.0)], lr=1e-2, config=config)
            optimizer.load_state_dict(state)
        for parameter in parameters[: 2 + step % 2]:  # the last has no gradient every other step
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("resume_after", [None, 2])
def test_state_on_the_cpu_gives_the_same_bits(resume_after: int | None) -> None:
    expected = trained(False, steps=5)
    found = trained(True, steps=5, resume_after=resume_after)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_each_tensor_visits_its_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    optimizer = adamw([(parameters, 1.0)], lr=1e-2, config=AlignConfig(optimizer_on_cpu=True))
    visits: list[tuple[int, str]] = []
    places = {id(parameter): place for place, parameter in enumerate(parameters)}
    move = VisitingAdamW._move

    def noted(self: VisitingAdamW, parameter: torch.Tensor, device: torch.device | str) -> None:
        visits.append((places[id(parameter)], "in" if isinstance(device, torch.device) else "out"))
        move(self, parameter, device)

    monkeypatch.setattr(VisitingAdamW, "_move", noted)
    for parameter in parameters:
        parameter.grad = torch.ones(3)
    optimizer.step()
    assert visits == [(place, way) for place in range(3) for way in ("in", "out")]
    assert len(optimizer.param_groups[0]["params"]) == 3


@pytest.mark.parametrize("on_cpu", [False, True])
def test_each_group_learns_at_its_share_of_the_rate(on_cpu: bool) -> None:
    fast, slow = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    optimizer = adamw(
        [([slow], 1.0), ([fast], 4.0)], lr=0.1, config=AlignConfig(optimizer_on_cpu=on_cpu, weight_decay=0.0)
    )
    for rate in (0.1, 0.05):
        set_rate(optimizer, rate)
        before = fast.detach().clone(), slow.detach().clone()
        for parameter in (fast, slow):
            parameter.grad = torch.ones(3)
        optimizer.step()
        # Equal gradients make AdamW's steps as long as the rate.
        torch.testing.assert_close(before[0] - fast, torch.full((3,), 4 * rate))
        torch.testing.assert_close(before[1] - slow, torch.full((3,), rate))


def test_moments_of_a_resumed_training_never_go_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch moves what it loads to where the parameters are, all of it at once."""
    (parameter,) = parameters = [nn.Parameter(torch.ones(3))]
    optimizer = adamw([(parameters, 1.0)], lr=1e-2, config=AlignConfig(optimizer_on_cpu=True))
    parameter.grad = torch.ones(3)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    given: list[set[str]] = []
    load = torch.optim.AdamW.load_state_dict

    def noted(self: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        given.extend(set(fields) for fields in state_dict["state"].values())
        load(self, state_dict)

    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", noted)
    optimizer.load_state_dict(state)
    assert given == [{"step"}]
    assert all(
        torch.equal(optimizer.state[parameter][name], state["state"][0][name]) for name in state["state"][0]
    )
