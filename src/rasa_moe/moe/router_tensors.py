"""Name the tensors that make a router: its own, and a selection bias that the family keeps beside it."""

from __future__ import annotations

from rasa_moe.moe.layers import MoeMap


def router_tensor_names(moe: MoeMap) -> frozenset[str]:
    """Return the full names of all parameters and buffers that decide where tokens go.

    Most families keep the selection bias of each expert in the router, as a buffer; some keep it in the MoE
    block around router and experts. Whatever lies directly in that block with one value an expert, (E,), is
    such a bias: in every family that we handle, the block has no other.

    Args:
        moe: The model's map.
    """
    names: set[str] = set()
    for layer in moe.layers:
        prefix = layer.router_name
        names.update(name for name, _ in layer.router.named_parameters(prefix))
        names.update(name for name, _ in layer.router.named_buffers(prefix))
        prefix = layer.router_name.rpartition(".")[0]
        block = moe.model.get_submodule(prefix)
        beside = (*block.named_parameters(prefix, recurse=False), *block.named_buffers(prefix, recurse=False))
        names.update(name for name, tensor in beside if tensor.shape == (layer.num_experts,))
    return frozenset(names)
