"""Tell tensors apart by their bits."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from rasa_moe.moe.sharding import whole, write_rows


def sha256_tensor(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's dtype, shape and bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256(f"{dtype_name(tensor)}{list(tensor.shape)}".encode())
    values = whole(tensor).cpu().contiguous().reshape(-1)
    digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sha256_with(tensor: Tensor, rows: list[int] | None, values: Tensor) -> str:
    """Hash a tensor as it would be with `values` written into it; see `write_rows`."""
    changed = whole(tensor).cpu().clone()
    write_rows(changed, rows, values)
    return sha256_tensor(changed)


def dtype_name(tensor: Tensor) -> str:
    """Return a tensor's dtype without its prefix, e.g. "bfloat16"."""
    return str(tensor.dtype).removeprefix("torch.")
