"""Sharded weights (FSDP2's DTensor): the part of this process, and numbers over all parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from hesstune.errors import LayerError, listed


def is_sharded(tensor: torch.Tensor) -> bool:
    """Return whether this process holds only a part of the tensor."""
    return hasattr(tensor, "full_tensor")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part, sharing its memory; a whole tensor is returned as it is."""
    if not is_sharded(tensor):
        return tensor
    part: torch.Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return part


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor on every process; all of them call this alike."""
    full: torch.Tensor = tensor.detach()
    return full.full_tensor() if is_sharded(tensor) else full  # type: ignore[attr-defined]


def like(part: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return the sharded tensor of this process's part, with the mesh and placements of another one."""
    from torch.distributed.tensor import DTensor

    other: Any = tensor
    return DTensor.from_local(
        part, other.device_mesh, other.placements, shape=other.shape, stride=other.stride()
    )


def pair(weight: torch.Tensor, reference: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return this process's parts of a weight and its reference; LayerError if one alone is sharded."""
    if is_sharded(weight) != is_sharded(reference):
        which = "the weight" if is_sharded(weight) else "the reference"
        raise LayerError(
            f"'{name}': {which} alone is sharded; take Reference.of(model) after fully_shard(model), so "
            "that each process keeps its own part of both"
        )
    return local(weight), local(reference)


def refuse_sharded(weights: Mapping[str, torch.Tensor]) -> None:
    """Raise LayerError, with the names, if any weight is sharded."""
    if sharded := [name for name, weight in weights.items() if is_sharded(weight)]:
        raise LayerError(
            f"the weights {listed(sharded)} are sharded, and many backward passes need them whole: use "
            "hesstune.measure, which gathers them, or hesstune.runtime.sharding.gathered(model)"
        )


def over_parts(
    values: torch.Tensor, tensors: Sequence[torch.Tensor], op: Literal["sum", "max"] = "sum"
) -> torch.Tensor:
    """Combine one number a tensor, (L,), of each process's own parts, into that of the L whole tensors."""
    sharded = [t for t in tensors if is_sharded(t)]
    if not sharded:
        return values
    from torch import distributed

    group = sharded[0].device_mesh.get_group()  # type: ignore[attr-defined]
    combined = values.clone()
    kind = distributed.ReduceOp.SUM if op == "sum" else distributed.ReduceOp.MAX
    distributed.all_reduce(combined, op=kind, group=group)
    mask = torch.tensor([is_sharded(t) for t in tensors], device=values.device)
    return torch.where(mask, combined, values)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Hold whole weights on every process within the block; all processes call this.

    FSDP frees gathered weights after a backward pass, and measuring takes many backward passes of one graph.
    """
    owners = [
        (module._parameters, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and is_sharded(parameter)
    ]
    if not owners:
        yield
        return
    hooks = [
        (hooks, key, hook)
        for module in model.modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
        for key, hook in hooks.items()
        if type(getattr(hook, "__self__", None)).__name__ == "FSDPState"
    ]
    kept = [(place, dict(place)) for place, _, _ in hooks]  # with their order
    full = {
        id(parameter): nn.Parameter(whole(parameter), parameter.requires_grad) for *_, parameter in owners
    }
    try:
        for place, key, _ in hooks:
            del place[key]
        for parameters, name, parameter in owners:
            parameters[name] = full[id(parameter)]
        yield
    finally:
        for parameters, name, parameter in owners:
            parameters[name] = parameter
        for place, before in kept:
            place.clear()
            place.update(before)
