"""Tell tensors apart by their bits."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def sha256_tensor(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's dtype, shape and bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256(f"{dtype_name(tensor)}{list(tensor.shape)}".encode())
    values = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sha256_with(tensor: Tensor, rows: list[int] | None, values: Tensor) -> str:
    """Hash a tensor as it would be with `values` written into it; see `write_rows`."""
    changed = tensor.detach().cpu().clone()
    write_rows(changed, rows, values)
    return sha256_tensor(changed)


@torch.no_grad()
def write_rows(tensor: Tensor, rows: list[int] | None, values: Tensor) -> None:
    """Write `values` into some rows of a tensor, or into all of it when `rows` is None."""
    if rows is None:
        tensor.copy_(values)
    else:
        tensor[rows] = values.to(tensor.device, tensor.dtype)


def dtype_name(tensor: Tensor) -> str:
    """Return a tensor's dtype without its prefix, e.g. "bfloat16"."""
    return str(tensor.dtype).removeprefix("torch.")
