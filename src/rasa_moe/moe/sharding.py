"""Weights of which every process holds a part: read them whole, write rows, train parts of rows.

Ordinary tensors pass through unchanged, so that callers need not know whether a model is sharded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from transformers.distributed.fsdp import is_fsdp_managed_module


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor without its graph, with the rows of all processes; all of them must call this."""
    values: Tensor = tensor.detach()
    if not isinstance(values, DTensor):
        return values
    if values.device_mesh.ndim > 1:  # one gathering instead of one for each dimension
        values = DTensor.from_local(
            values.to_local(), _mesh(values), [Shard(0)], shape=values.shape, stride=values.stride()
        )
    full: Tensor = values.full_tensor()
    return full


def stored_like(full: Tensor, example: Tensor) -> Tensor:
    """Return a whole tensor the way `example` is stored: as it is, or this process' share of its rows."""
    if not isinstance(example, DTensor):
        return full
    if is_gathered(example):
        return distribute_tensor(full.to(example.device), _mesh(example), [Shard(0)], src_data_rank=None)
    share, mesh = _share(full.to(example.device), example), example.device_mesh
    return DTensor.from_local(share, mesh, example.placements, shape=full.shape, stride=full.stride())


@torch.no_grad()
def write_rows(tensor: Tensor, rows: list[int] | None, values: Tensor) -> None:
    """Write whole `values` into some rows of a tensor, or into all of it when `rows` is None."""
    if isinstance(tensor, DTensor) and not is_gathered(tensor):
        local = tensor.to_local()
        local[slice(None) if rows is None else rows] = _share(values, tensor).to(local.device, local.dtype)
    elif isinstance(tensor, DTensor):
        local, start = tensor.to_local(), _first_row(tensor)
        inside = range(start, start + len(local))
        wanted = range(tensor.shape[0]) if rows is None else rows
        places = [place for place, row in enumerate(wanted) if row in inside]
        local[[wanted[place] - start for place in places]] = values[places].to(local.device, local.dtype)
    elif rows is None:
        tensor.copy_(values)
    else:
        tensor[rows] = values.to(tensor.device, tensor.dtype)


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether this process holds a part of a tensor only."""
    return isinstance(tensor, DTensor)


def is_gathered(tensor: Tensor) -> bool:
    """Tell whether a tensor is held in shares of rows, which are gathered to be used.

    With tensor parallelism each process holds, and uses, a piece of every row instead.
    """
    return isinstance(tensor, DTensor) and any(placement.is_shard(0) for placement in tensor.placements)


def usable(parameter: nn.Parameter) -> Tensor:
    """Return a parameter's whole rows; gradient reaches every process' share as the mean over processes."""
    if not isinstance(parameter, DTensor):
        return parameter
    if not is_gathered(parameter):
        part: Tensor = parameter.to_local()
        return part
    gathered: Any = parameter.redistribute(placements=[Replicate()])
    full: Tensor = gathered.to_local(grad_placements=[Partial("sum")])
    num_processes = parameter.device_mesh.size()
    # gloo cannot average, so every process adds its part of the mean.
    if full.requires_grad:
        full.register_hook(lambda gradient: gradient / num_processes)  # type: ignore[no-untyped-call]
    return full


def through_output(inner: Tensor, model: nn.Module, output: Any) -> Tensor:
    """Return what was read inside a model so that its gradient passes the model's output as well.

    FSDP gathers a layer's weights for backward when gradient reaches the output of the layer. Gradient that
    enters at a router, inside of it, would find the weights gone.

    Args:
        inner: Computed from the router logits of a call.
        model: The model that was called.
        output: What it returned.
    """
    return inner + 0.0 * output.logits.sum() if is_fsdp_managed_module(model) else inner


@contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Let a module whose weights are shares be called on its own, outside the forward of its model."""
    # An entry in a module's own dictionary is found before the registered parameter.
    shadows = [
        (owner, name, whole(parameter))
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if is_sharded(parameter)
    ]
    for owner, name, tensor in shadows:
        vars(owner)[name] = tensor
    try:
        yield
    finally:
        for owner, name, _ in shadows:
            del vars(owner)[name]


def owned_experts(experts: Any, num_experts: int) -> tuple[int, int]:
    """Return the first expert that runs in this process, and how many do: all but with expert parallelism."""
    if not experts._is_expert_parallel:
        return 0, num_experts
    return _first_row(experts.down_proj), len(experts.down_proj.to_local())


def _share(full: Tensor, like: DTensor) -> Tensor:
    """Return the piece of every row that this process holds of a tensor like `like`."""
    mesh, (placement,) = like.device_mesh, like.placements
    dim = int(placement.dim)  # type: ignore[attr-defined]
    # gate and up stand one after the other in one tensor; each is cut.
    packed = int(getattr(placement, "split_factor", 1))
    shape = (*full.shape[:dim], packed, -1, *full.shape[dim + 1 :])
    parts = full.reshape(shape).chunk(mesh.size(), dim + 1)
    return parts[mesh.get_local_rank()].flatten(dim, dim + 1).contiguous()


def _mesh(tensor: DTensor) -> DeviceMesh:
    """Return the processes among which the rows are dealt out, as one line.

    With expert parallelism transformers adds a dimension of size 1.
    """
    mesh = tensor.device_mesh
    cut = [dim for dim in range(mesh.ndim) if mesh.size(dim) > 1]
    assert len(cut) == 1 and tensor.placements[cut[0]].is_shard(0), f"unknown sharding {tensor.placements}"
    return mesh if mesh.ndim == 1 else mesh[(mesh.mesh_dim_names or ())[cut[0]]]


def _first_row(tensor: DTensor) -> int:
    """Return the number of the first row that this process holds; shares are cut as by `torch.chunk`."""
    mesh = _mesh(tensor)
    return min(mesh.get_local_rank() * -(-tensor.shape[0] // mesh.size()), tensor.shape[0])
