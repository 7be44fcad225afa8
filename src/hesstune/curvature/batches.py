"""Batches of examples: checks, rows, examples that differ, padding, and the logits of each example."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from hesstune.errors import DataError, MeasureError
from hesstune.forward import Inputs, batch_size, logits_of

LabelledBatch = tuple[Inputs, torch.Tensor]
HALF = (torch.bfloat16, torch.float16)
_MASK = "attention_mask"
# How far an example is moved if no other one differs from it, as a share of its root mean square.
_NUDGE = 0.1


def checked_batches(batches: Iterable[LabelledBatch], most: int | None) -> Iterator[LabelledBatch]:
    """Check each batch and yield it; stop after `most` examples."""
    left = math.inf if most is None else most
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise DataError(f"batches must yield (inputs, targets); got {type(batch).__name__}")
        inputs, targets = batch
        size = batch_size(inputs)
        if size > left:
            keep = torch.arange(int(left))
            inputs, targets = rows_of(inputs, keep), targets[: int(left)]
        if batch_size(inputs):
            yield inputs, targets
        left -= size
        if left <= 0:
            return


class BatchMapping(dict[str, Any]):
    """A mapping of inputs, and the keys of its entries without a batch dimension, which all examples share.

    In a batch of 8 examples, the shape of a (4, 4) mask of tokens shows that it has no row for each example.
    In 4 examples taken from that batch the shapes no longer show it.
    """

    def __init__(self, values: Mapping[str, Any], shared: frozenset[str]) -> None:
        super().__init__(values)
        self.shared = shared


def shared_entries(inputs: Inputs) -> frozenset[str]:
    """Return the keys of the entries that all examples share: those without a batch dimension.

    Example:
        >>> sorted(shared_entries({"x": torch.zeros(8, 4, 3), "mask": torch.zeros(4, 4), "scale": 2.0}))
        ['mask', 'scale']
    """
    if isinstance(inputs, torch.Tensor):
        return frozenset()
    if isinstance(inputs, BatchMapping):
        return inputs.shared
    size = batch_size(inputs)
    return frozenset(
        key
        for key, value in inputs.items()
        if not isinstance(value, torch.Tensor) or not value.ndim or value.shape[0] != size
    )


def with_shared_entries(inputs: Inputs, shared: frozenset[str]) -> Inputs:
    """Return the batch with these entries, and those with such shapes, marked as shared."""
    if isinstance(inputs, torch.Tensor):
        return inputs
    return BatchMapping(inputs, shared | shared_entries(inputs))


def rows_of(inputs: Inputs, index: torch.Tensor) -> Inputs:
    """Return the batch's examples `index`; entries of a mapping without a batch dimension stay."""
    if isinstance(inputs, torch.Tensor):
        return inputs[index.to(inputs.device)]
    rows = {key: value[index.to(value.device)] for key, value in _entries_by_example(inputs).items()}
    return BatchMapping({**inputs, **rows}, shared_entries(inputs))


def each_alone(inputs: Inputs) -> Iterator[tuple[int, Inputs]]:
    """Yield (row, the example as a batch of one)."""
    for row in range(batch_size(inputs)):
        yield row, rows_of(inputs, torch.tensor([row]))


def differing_rows(inputs: Inputs, most: int) -> torch.Tensor:
    """Return min(B, most) rows: the first that differ from each other, then others if there are too few.

    Example:
        >>> differing_rows(torch.tensor([[1.0], [1.0], [1.0], [2.0], [1.0]]), 3).tolist()
        [0, 3, 1]
    """
    size = batch_size(inputs)
    found: list[int] = []
    for row in range(size):
        if len(found) < most and all(_differ(inputs, row, other) for other in found):
            found.append(row)
    spare = [row for row in range(size) if row not in found]
    return torch.tensor(found + spare[: most - len(found)])


def changed_example(inputs: Inputs, row: int) -> Inputs | None:
    """Return the batch with example `row` changed and every other one left as it is; None if it cannot be.

    It becomes a copy of an example that differs from it. If there is none, its numbers are moved a little
    and its tokens are rolled by one place, since other tokens may be outside the vocabulary.

    Example:
        >>> changed_example(torch.tensor([[1, 2], [1, 2]]), 0).tolist()
        [[2, 1], [1, 2]]
    """
    size = batch_size(inputs)
    other = next((by for by in range(size - 1, -1, -1) if by != row and _differ(inputs, row, by)), None)
    if other is not None:
        index = torch.arange(size)
        index[row] = other
        return rows_of(inputs, index)
    before = _entries_by_example(inputs)
    after = {key: _with_changed_row(value, row) for key, value in before.items()}
    if all(torch.equal(before[key], value) for key, value in after.items()):
        return None
    if isinstance(inputs, torch.Tensor):
        return after[""]
    return BatchMapping({**inputs, **after}, shared_entries(inputs))


def _entries_by_example(inputs: Inputs) -> dict[str, torch.Tensor]:
    if isinstance(inputs, torch.Tensor):
        return {"": inputs}
    shared = shared_entries(inputs)
    return {key: value for key, value in inputs.items() if key not in shared}


def _differ(inputs: Inputs, row: int, other: int) -> bool:
    return any(not torch.equal(value[row], value[other]) for value in _entries_by_example(inputs).values())


def _with_changed_row(value: torch.Tensor, row: int) -> torch.Tensor:
    """Return a copy of a tensor with noise on one row, or with its entries rolled if they are integers."""
    changed = value.detach().clone()
    if value.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(value[row].shape, generator=generator, dtype=torch.float64).to(value)
        scale = float(value[row].double().square().mean().sqrt()) or 1.0
        changed[row] += _NUDGE * scale * noise
    elif value.ndim > 1 and value.dtype is not torch.bool:
        changed[row] = value[row].roll(1, 0)
    return changed


def logits_of_each(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """Run the model on one batch and return its logits, (B, K), one row an example.

    Raises:
        ModelError: If the output holds no (N, K) logits.
        MeasureError: If N is not B: the first dimension of the inputs does not run over the examples.
    """
    logits = logits_of(model, inputs)
    size = batch_size(inputs)
    if logits.shape[0] != size:
        raise MeasureError(
            f"the model returned {logits.shape[0]} rows of logits for inputs with a first dimension of "
            f"{size}; that must run over the examples, also if the network works sequence first: give "
            "inputs batch first and transpose them in the model's forward"
        )
    return logits


def in_full_precision(inputs: Inputs) -> Inputs:
    """Return the inputs with tensors of half precision converted to float32."""
    if isinstance(inputs, torch.Tensor):
        return inputs.float() if inputs.dtype in HALF else inputs
    half = {k: v.float() for k, v in inputs.items() if isinstance(v, torch.Tensor) and v.dtype in HALF}
    return {**inputs, **half} if half else inputs


def _mask_of(inputs: Inputs) -> torch.Tensor | None:
    mask = None if isinstance(inputs, torch.Tensor) else inputs.get(_MASK)
    return mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None


def _token_lengths(mask: torch.Tensor) -> torch.Tensor:
    """Return the number of leading positions up to the last attended one, (B,)."""
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (places * (mask != 0)).amax(1).clamp_min(1)


def trimmed(inputs: Inputs) -> Inputs:
    """Cut the trailing positions that no example of the batch attends to.

    Example:
        >>> mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
        >>> trimmed({"input_ids": mask, "attention_mask": mask})["input_ids"].shape
        torch.Size([2, 2])
    """
    mask = _mask_of(inputs)
    if mask is None or isinstance(inputs, torch.Tensor):
        return inputs
    longest = int(_token_lengths(mask).max())
    cut = {
        key: value[:, :longest]
        for key, value in inputs.items()
        if isinstance(value, torch.Tensor) and value.shape[:2] == mask.shape
    }
    return BatchMapping({**inputs, **cut}, shared_entries(inputs))


def by_length(inputs: Inputs) -> torch.Tensor:
    """Return the examples' indices by ascending length, (B,); their own order without a mask."""
    mask = _mask_of(inputs)
    if mask is None:
        return torch.arange(batch_size(inputs))
    return _token_lengths(mask).cpu().argsort(stable=True)


@torch.no_grad()
def ignores_padding(model: nn.Module, inputs: Inputs) -> bool:
    """Tell whether cutting the padding leaves the logits of the shorter examples unchanged.

    It does not for a model that averages over padded positions. False if there is nothing to cut.
    """
    mask = _mask_of(inputs)
    if mask is None:
        return False
    shorter = (_token_lengths(mask) < mask.shape[1]).nonzero().squeeze(1)[:4]
    if not len(shorter):
        return False
    few = rows_of(inputs, shorter)
    try:
        found = logits_of(model, trimmed(few))
    except (RuntimeError, ValueError, IndexError):  # the model needs the full width
        return False
    wanted = logits_of(model, few)
    tolerance = 1e-9 if wanted.dtype == torch.float64 else 1e-4
    return bool(((found - wanted).abs() <= tolerance * wanted.abs().amax().clamp_min(1e-6)).all())
