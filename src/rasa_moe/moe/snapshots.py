"""Copy what an alignment may change, and put it back whatever has happened meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from rasa_moe.moe.layers import ExpertId, MoeMap, expert_tensor_names
from rasa_moe.moe.sharding import whole, write_rows


def snapshot(
    moe: MoeMap, model: nn.Module, experts: Sequence[ExpertId], *, also: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Copy to the CPU what an alignment may change: the rows of the given experts and all router weights.

    Args:
        moe: The model's map.
        model: The model the map describes.
        experts: The experts that may be trained.
        also: Names of other parameters that may be trained, as wholes.

    Returns:
        Parameter name -> rows (k_sel,...) in order of expert, or a whole tensor; dtype of the model.
    """
    parameters = dict(model.named_parameters())
    return {
        name: (whole(parameters[name]) if rows is None else whole(parameters[name])[rows]).cpu().clone()
        for name, rows in touched(moe, experts, also=also).items()
    }


def put_back(
    moe: MoeMap,
    model: nn.Module,
    experts: Sequence[ExpertId],
    *,
    before: Mapping[str, Tensor],
    also: Sequence[str] = (),
) -> None:
    """Write a snapshot back, whatever training has made of the model; bit for bit.

    Args:
        moe: The model's map.
        model: The model.
        experts: The experts given to `snapshot`.
        before: What `snapshot` returned.
        also: The other parameters given to `snapshot`.
    """
    parameters = dict(model.named_parameters())
    for name, rows in touched(moe, experts, also=also).items():
        write_rows(parameters[name], rows, before[name])


def touched(
    moe: MoeMap, experts: Sequence[ExpertId], *, also: Sequence[str] = ()
) -> dict[str, list[int] | None]:
    """Return parameter name -> expert rows for chosen experts, and -> None for routers and `also`."""
    found: dict[str, list[int] | None] = dict.fromkeys(also)
    for row, chosen in sorted(moe.by_layer(list(experts)).items()):
        layer = moe.layers[row]
        for name in expert_tensor_names(layer.experts):
            found[f"{layer.experts_name}.{name}"] = chosen
    for layer in moe.layers:
        for name, _ in layer.router.named_parameters():
            found[f"{layer.router_name}.{name}"] = None
    return found
