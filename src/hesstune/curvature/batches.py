"""The examples of a batch: some of them, some that differ, one of them changed, and the logits of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from hesstune.errors import MeasureError
from hesstune.forward import Inputs, batch_size, logits_of

__all__ = [
    "KnownEntries",
    "changed_example",
    "differing_rows",
    "each_alone",
    "fixed_entries",
    "known_as",
    "logits_of_each",
    "rows_of",
]

# How far an example is moved where no other one differs from it, as a share of its root mean square.
_NUDGE = 0.1


class KnownEntries(dict[str, Any]):
    """A mapping of inputs that remembers which entries are the same for all examples.

    In a batch of 8, a (4, 4) mask of tokens plainly has no row for each example; in 4 examples taken from it,
    the shapes no longer tell.

    Args:
        values: The entries.
        fixed: The keys of those without a batch dimension.
    """

    def __init__(self, values: Mapping[str, Any], fixed: frozenset[str]) -> None:
        super().__init__(values)
        self.fixed = fixed


def fixed_entries(inputs: Inputs) -> frozenset[str]:
    """Return the keys of the entries that are the same for all examples, as far as shapes tell.

    Example:
        >>> sorted(fixed_entries({"x": torch.zeros(8, 4, 3), "mask": torch.zeros(4, 4), "scale": 2.0}))
        ['mask', 'scale']
    """
    if isinstance(inputs, torch.Tensor):
        return frozenset()
    if isinstance(inputs, KnownEntries):
        return inputs.fixed
    size = batch_size(inputs)
    return frozenset(
        key
        for key, value in inputs.items()
        if not isinstance(value, torch.Tensor) or not value.ndim or value.shape[0] != size
    )


def known_as(inputs: Inputs, fixed: frozenset[str]) -> Inputs:
    """Return the batch with these entries, and others of which shapes tell so, known as the same for all."""
    if isinstance(inputs, torch.Tensor):
        return inputs
    return KnownEntries(inputs, fixed | fixed_entries(inputs))


def rows_of(inputs: Inputs, index: torch.Tensor) -> Inputs:
    """Return the batch's examples `index`; entries of a mapping without a batch dimension stay."""
    if isinstance(inputs, torch.Tensor):
        return inputs[index.to(inputs.device)]
    rows = {key: value[index.to(value.device)] for key, value in _batched(inputs).items()}
    return KnownEntries({**inputs, **rows}, fixed_entries(inputs))


def differing_rows(inputs: Inputs, most: int) -> torch.Tensor:
    """Return the first `most` examples that differ from each other, filled up with others where too few do.

    Args:
        inputs: One batch of B examples.
        most: How many are wanted.

    Returns:
        min(B, most) distinct indices, int64.

    Example:
        >>> differing_rows(torch.tensor([[1.0], [1.0], [1.0], [2.0], [1.0]]), 3).tolist()
        [0, 3, 1]
    """
    size = batch_size(inputs)
    found: list[int] = []
    for row in range(size):
        if len(found) == most:
            break
        if all(_differ(inputs, row, other) for other in found):
            found.append(row)
    spare = (row for row in range(size) if row not in found)
    found += [row for row, _ in zip(spare, range(most - len(found)), strict=False)]
    return torch.tensor(found)


def changed_example(inputs: Inputs, row: int) -> Inputs | None:
    """Return the batch with example `row` changed and every other one left as it is.

    It becomes a copy of an example that differs from it. Where none does, its numbers are moved a little
    and its tokens, of which any may be out of the vocabulary, are rolled by one place.

    Returns:
        The batch; None where the example cannot be changed (all are the same, of one token repeated).

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
    before = _batched(inputs)
    after = {key: _nudged(value, row) for key, value in before.items()}
    if all(torch.equal(before[key], value) for key, value in after.items()):
        return None
    if isinstance(inputs, torch.Tensor):
        return after[""]
    return KnownEntries({**inputs, **after}, fixed_entries(inputs))


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
            f"the model returned {logits.shape[0]} rows of logits for inputs whose first dimension is "
            f"{size}; that must run over the examples, also where the network works sequence first: give "
            "inputs batch first and transpose them in the model's forward"
        )
    return logits


def _batched(inputs: Inputs) -> dict[str, torch.Tensor]:
    if isinstance(inputs, torch.Tensor):
        return {"": inputs}
    fixed = fixed_entries(inputs)
    return {key: value for key, value in inputs.items() if key not in fixed}


def _differ(inputs: Inputs, row: int, other: int) -> bool:
    return any(not torch.equal(value[row], value[other]) for value in _batched(inputs).values())


def _nudged(value: torch.Tensor, row: int) -> torch.Tensor:
    changed = value.detach().clone()
    if value.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(value[row].shape, generator=generator, dtype=torch.float64).to(value)
        scale = float(value[row].double().square().mean().sqrt()) or 1.0
        changed[row] += _NUDGE * scale * noise
    elif value.ndim > 1 and value.dtype is not torch.bool:
        changed[row] = value[row].roll(1, 0)
    return changed


def each_alone(inputs: Inputs) -> Iterator[tuple[int, Inputs]]:
    """Yield (row, the example as a batch of one)."""
    for row in range(batch_size(inputs)):
        yield row, rows_of(inputs, torch.tensor([row]))
