"""Put together what several processes measured, each on its own share of the examples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.curvature.exact.skipping import left_out
from hesstune.curvature.result import Measure
from hesstune.curvature.smooth.screening import screening_sentence
from hesstune.runtime.distributed import all_gather, all_reduce_sum, rank, world

__all__ = ["gathered_measure", "own_batches"]

# Tensors with a row an example.
_ROWS = ("quadratic", "lower", "upper", "losses", "trace", "trace_stderr", "spectrum")


_ELSEWHERE = "another process met examples that use it in another way"


def own_batches(n: int, size: int) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Cut n examples into batches; return this rank's, every world-th, and all of them rank by rank.

    Batches go to ranks whole, so that each is computed as by one process; they are smaller where there
    would not be one for every rank.
    """
    size = min(size, max(1, -(-n // world())))
    batches = [np.arange(start, min(start + size, n)) for start in range(0, n, size)]
    return batches[rank() :: world()], [b for r in range(world()) for b in batches[r :: world()]]


def gathered_measure(found: Measure, order: list[NDArray[np.int64]]) -> Measure:
    """Return the measurement of all examples, on every rank, from each rank's own.

    Rows are gathered as they are; a sampled mean is the mean over ranks, weighted by their examples.

    Args:
        found: This rank's.
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
    notes = found.notes
    if found.screened is not None:  # of all ranks together, not of this one's share
        notes = [screening_sentence(torch.stack(all_gather(found.screened))), *notes[1:]]
    if found.skipped is not None:
        own = left_out(found.skipped)
        largest = torch.stack([rows.reshape(2) for rows in all_gather(found.skipped)]).amax(0)
        notes = [note for note in notes if note not in own] + left_out(largest)
    # A layer that one process moved to weight space is not exact on any.
    apart = all_reduce_sum(torch.tensor([int(method == "weight_space") for method in found.methods])).tolist()
    pairs = zip(found.methods, found.reasons, apart, strict=True)
    chosen = [("weight_space", _ELSEWHERE) if a and m != "weight_space" else (m, why) for m, why, a in pairs]
    methods, reasons = ([pair[i] for pair in chosen] for i in range(2))
    return replace(found, notes=notes, methods=methods, reasons=reasons, **changes)  # type: ignore[arg-type]
