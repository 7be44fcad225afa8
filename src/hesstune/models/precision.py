"""The floating-point type that a network's weights are stored in, and the one they are used in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from hesstune.errors import ModelError
from hesstune.storage.reading import one_line

__all__ = ["DTYPES", "cast", "checkpoint_dtype", "main_dtype", "precision_notes"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def main_dtype(tensors: Iterable[torch.Tensor]) -> str:
    """Return the floating-point type of most numbers, such as `float16`; "" if there are none.

    Example:
        >>> main_dtype([torch.zeros(2), torch.zeros(3, dtype=torch.float16)])
        'float16'
    """
    counts: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.is_floating_point():
            counts[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return counts.most_common(1)[0][0] if counts else ""


def checkpoint_dtype(name: str) -> str:
    """Return the floating-point type that a transformers checkpoint is stored in; "" if unknown.

    It is read from the header of the (first) safetensors file.

    Args:
        name: A name on the hub, or a folder.
    """
    from safetensors import safe_open
    from transformers.utils.hub import cached_file

    how: dict[str, Any] = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
        "_raise_exceptions_for_gated_repo": False,
    }
    try:
        path = cached_file(name, "model.safetensors", **how)
        if path is None:
            index = cached_file(name, "model.safetensors.index.json", **how)
            if index is None:
                return ""
            with open(index, encoding="utf-8") as file:
                shards = sorted(set(json.load(file)["weight_map"].values()))
            path = cached_file(name, shards[0], **how)
        if path is None:
            return ""
        counts: Counter[str] = Counter()
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (no mapping)
                part = tensors.get_slice(key)
                size = 1
                for side in part.get_shape():
                    size *= side
                counts[str(part.get_dtype())] += size
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    known = [(kind, size) for kind, size in counts.most_common() if kind in _SAFETENSORS]
    return _SAFETENSORS[known[0][0]] if known else ""


def cast(model: nn.Module, dtype: str) -> nn.Module:
    """Bring a network's floating-point weights and buffers to a type, in place.

    Raises:
        ModelError: If the network refuses, as quantised ones do.
    """
    wanted = DTYPES[dtype]
    if all(t.dtype == wanted for t in [*model.parameters(), *model.buffers()] if t.is_floating_point()):
        return model
    try:
        return model.to(wanted)
    except Exception as error:  # libraries of quantised weights raise their own kinds
        raise ModelError(
            f"the model's weights cannot be brought to {dtype} ({one_line(error)}); quantised weights cannot "
            "be fine-tuned: give an unquantised checkpoint"
        ) from error


def precision_notes(stored: str, dtype: str, source: str = "the model's weights") -> list[str]:
    """Return what the user should know of the types that weights are stored and used in."""
    notes = []
    if stored and stored != dtype:
        notes.append(f"{source} are stored in {stored} and used in {dtype}")
    if dtype != "float32":
        notes.append(
            f"the weights are trained in {dtype} as --dtype asks: steps below 1/256 of a weight round to "
            "nothing; --mixed-precision bf16 keeps float32 weights"
        )
    return notes
