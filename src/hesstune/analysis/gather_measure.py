"""Join the measurements of several processes, each on its own share of the examples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.curvature.exact import skipped_classes_note
from hesstune.curvature.result import Measure, sample_note
from hesstune.runtime.distributed import all_gather, all_reduce_sum, rank, world

__all__ = ["gathered_measure", "own_batches"]

# Tensors with a row an example.
_ROWS = ("quadratic", "lower", "upper", "losses", "trace", "trace_stderr", "spectrum")


_ELSEWHERE = "examples of another process use it in another way"


def own_batches(n: int, size: int) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Split n examples into batches; return this rank's batches and all batches rank by rank.

    The batches are those of one process, unless there would not be one for every rank.
    """
    size = min(size, max(1, -(-n // world())))
    batches = [np.arange(start, min(start + size, n)) for start in range(0, n, size)]
    return batches[rank() :: world()], [b for r in range(world()) for b in batches[r :: world()]]


def gathered_measure(found: Measure, order: list[NDArray[np.int64]]) -> Measure:
    """Return the measurement of all examples, on every rank.

    Rows are gathered; a sampled mean is the mean over ranks, weighted by their examples.

    Args:
        found: This rank's measurement.
        order: All batches of examples, rank by rank.
    """
    if world() == 1:
        return found
    place = torch.from_numpy(np.concatenate(order)).argsort()
    changes: dict[str, torch.Tensor | None] = {}
    for name in _ROWS:
        rows = getattr(found, name)
        changes[name] = None if rows is None else torch.cat(all_gather(rows))[place]
    share = len(found.losses) / len(place)
    if found.sampled_mean is not None and found.sampled_stderr is not None:
        changes["sampled_mean"] = all_reduce_sum(share * found.sampled_mean)
        changes["sampled_stderr"] = all_reduce_sum((share * found.sampled_stderr).square()).sqrt()
    own = sample_note(found.quadratic)
    quadratic = changes["quadratic"]
    assert quadratic is not None
    added = sample_note(quadratic)
    if found.skipped is not None:
        own += skipped_classes_note(found.skipped)
        largest = torch.stack([rows.reshape(2) for rows in all_gather(found.skipped)]).amax(0)
        added += skipped_classes_note(largest)
    notes = added + [note for note in found.notes if note not in own]
    # A layer that one process moved to weight space is not exact on any.
    apart = all_reduce_sum(torch.tensor([int(method == "weight_space") for method in found.methods])).tolist()
    pairs = zip(found.methods, found.reasons, apart, strict=True)
    chosen = [("weight_space", _ELSEWHERE) if a and m != "weight_space" else (m, why) for m, why, a in pairs]
    methods, reasons = ([pair[i] for pair in chosen] for i in range(2))
    return replace(found, notes=notes, methods=methods, reasons=reasons, **changes)  # type: ignore[arg-type]
