"""Certificates of a network without weight noise: held-out, compression and checked-label bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import default_collate

from hesstune.bounds.data import BoundData
from hesstune.bounds.monte_carlo import Feeder
from hesstune.bounds.noisy import KnownNoise, NoiseConfidenceSet, kind_of, losses_for, margin_of
from hesstune.bounds.record import Certificate
from hesstune.bounds.sample import Sample, SampleOptions, confusion_of, errors_in
from hesstune.errors import DataError, RunError
from hesstune.forward import evaluating, logits_of

# The class of an example without a checked label.
UNCHECKED = -1
_INDEPENDENT = "the network (its training, its selection, input normalisation) did not use these examples"


def certify_holdout(
    model: nn.Module,
    dataset: Any,
    delta: float = 0.05,
    noise_matrix: Any = None,
    *,
    noise_is: str = "known",
    options: SampleOptions | None = None,
) -> Certificate:
    """Bound the clean error of a network by examples that it has not seen, with an exact binomial tail.

    With probability at least 1 − δ the error is at most the largest p with P(Binomial(n, p) ≤ errors) ≥ δ
    (Clopper & Pearson 1934). For noisy labels see `hesstune.bounds.sample.tail_bound`.

    Args:
        model: The network; runs in eval mode and is left unchanged.
        dataset: Map-style (input, target), independent draws that nothing of the network depends on.
        delta: Probability with which the certificate may fail, in (0, 1).
        noise_matrix: As of `hesstune.certify`.
        noise_is: As there.
        options: How the examples are read and checked.

    Raises:
        HesstuneError: If a condition fails.

    Example:
        >>> x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
        >>> model = nn.Linear(5, 2)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.stack([-torch.ones(5), torch.ones(5)])), model.bias.zero_()
        >>> data = torch.utils.data.TensorDataset(x, (x.sum(dim=1) > 0).long())
        >>> round(certify_holdout(model, data).risk, 4)
        0.0099
    """
    sample = Sample.read(dataset, options or SampleOptions(), delta, noise_matrix, noise_is)
    k = sample.class_count(model)
    losses = losses_for(noise_matrix, k)
    certificate = sample.tail_certificate(sample.confusion(model, k), losses, delta - sample.spent)
    return sample.finish(certificate, model, losses, sample.assumptions(_INDEPENDENT))


def certify_compression(
    model: nn.Module,
    dataset: Any,
    kept: Sequence[int],
    delta: float = 0.05,
    noise_matrix: Any = None,
    *,
    noise_is: str = "known",
    options: SampleOptions | None = None,
) -> Certificate:
    """Bound the error of a network that Pick-to-Learn trained, by the number of examples it kept.

    See `hesstune.bounds.compression.compression_bound`. Noisy labels give a bound ε on the error on noisy
    labels. Since ε ≥ c + γ·(the true error), the true error is at most (ε − c)/γ.

    Args:
        model: The network; runs in eval mode and is left unchanged.
        dataset: Map-style (input, target): all N examples, independent draws.
        kept: Those it was trained on, by `hesstune.bounds.pick_to_learn` or another preferent scheme.
        delta: Probability with which the certificate may fail, in (0, 1).
        noise_matrix: As of `hesstune.certify`.
        noise_is: As there.
        options: How the examples are read and checked; `seen` trained the start.

    Raises:
        HesstuneError: If a condition fails, or an example that was not kept is misclassified.
    """
    options = options or SampleOptions()
    sample = Sample.read(dataset, options, delta, noise_matrix, noise_is, seen_as="start's training")
    k = sample.class_count(model)
    _check_picked(model, dataset, kept, k, sample)
    certificate = Certificate.of_network(
        "compression",
        {"kept": float(len(kept)), **_floor_and_margin(noise_matrix)},
        n=sample.n,
        delta=delta,
        classes=k,
        shares={"compression": delta - sample.spent, "noise": sample.spent},
        noise=kind_of(noise_matrix),
    )
    assumptions = sample.assumptions(
        "the start (weights, batch-norm statistics, input normalisation), the penalty and the number of "
        "examples added at a time were fixed without these examples",
        "an example's features depend on it alone, up to rounding",
    )
    losses = [] if sample.held_out is None else losses_for(noise_matrix, k)
    return sample.finish(certificate, model, losses, assumptions)


def certify_checked(
    model: nn.Module,
    dataset: Any,
    true: Mapping[int, int],
    delta: float = 0.05,
    *,
    sheets: int = 1,
    options: SampleOptions | None = None,
) -> Certificate:
    """Bound the true error of a network by the given labels of all examples and the true labels of a few.

    See `hesstune.bounds.checked.checked_bound`: nothing is assumed about the noise of the given labels.

    Args:
        model: The network; runs in eval mode and is left unchanged.
        dataset: Map-style (input, given label), independent draws that nothing of the network depends on.
        true: {index: true label} of all examples that were drawn, uniformly at random. UNCHECKED marks a
            missing label and counts as an error, since hard examples are left out more often.
        delta: Probability with which the certificate may fail, in (0, 1).
        sheets: How many samples were drawn to be checked: they share delta.
        options: How the examples are read and checked.

    Raises:
        HesstuneError: If a condition fails.
    """
    sample = Sample.read(dataset, options or SampleOptions(), delta)
    k, picked = sample.class_count(model), sorted(true)
    if not picked or not 0 <= picked[0] <= picked[-1] < sample.n:
        raise DataError(f"checked labels must be of some of the {sample.n} examples; got {len(picked)}")
    some = _Subset(dataset, picked)
    confusion = sample.confusion(model, k)
    with evaluating(model), torch.no_grad():
        guesses = [logits_of(model, Feeder(model)(x)).argmax(dim=1).cpu().numpy() for x, _ in _batches(some)]
    labels = np.concatenate([np.asarray(y) for _, y in _batches(some)])
    guess, truth = np.concatenate(guesses), np.array([true[at] for at in picked])
    disagrees, wrong = guess != labels, guess != truth
    numbers = {
        "wrong_disagreeing": float((disagrees & wrong).sum()),
        "checked_disagreeing": float(disagrees.sum()),
        "wrong_agreeing": float((~disagrees & wrong).sum()),
        "checked_agreeing": float((~disagrees).sum()),
        "disagreeing": float(errors_in(confusion)),
        "unchecked": float((truth == UNCHECKED).sum()),
    }
    certificate = Certificate.of_network(
        "checked",
        numbers,
        n=sample.n,
        delta=delta,
        classes=k,
        shares={"checked": delta / sheets, "other_sheets": delta - delta / sheets},
        noise="noisy in any way, some of them checked",
    )
    drawn = (
        f"the {len(picked)} checked examples were drawn uniformly at random among them, and checked correctly"
    )
    return sample.finish(certificate, model, [], sample.assumptions(_INDEPENDENT, drawn))


def _check_picked(model: nn.Module, dataset: Any, kept: Sequence[int], k: int, sample: Sample) -> None:
    """Raise unless the examples kept are some of the n, each once, and all others are correct."""
    picked, n, options = set(map(int, kept)), sample.n, sample.options
    if len(picked) < len(kept) or not picked <= set(range(n)):
        raise DataError(f"kept must name some of the {n} examples, each once; got {len(kept)}")
    others = _Subset(dataset, sorted(set(range(n)) - picked))
    if not len(others):
        return
    data = BoundData(others, options.block_size, 0, share=options.share)
    with evaluating(model), torch.no_grad():
        confusion = confusion_of(model, data, k, options.share)
    if wrong := errors_in(confusion):
        raise RunError(
            f"the network misclassifies {wrong} of the examples that it was not trained on, so Pick-to-Learn "
            "had not ended; train it again with --overwrite"
        )


def _floor_and_margin(noise_matrix: Any) -> dict[str, float]:
    if noise_matrix is None:
        return {}
    known = noise_matrix if isinstance(noise_matrix, NoiseConfidenceSet) else KnownNoise(noise_matrix)
    floor, gamma = margin_of(known)
    return {"floor": floor, "gamma": gamma}


def _batches(some: _Subset, size: int = 32) -> Iterator[tuple[Any, Any]]:
    """Yield batches in the order of the examples."""
    for at in range(0, len(some), size):
        items = [some[i] for i in range(at, min(at + size, len(some)))]
        yield default_collate([x for x, _ in items]), np.array([int(y) for _, y in items])


class _Subset:
    """Some examples of a map-style data set, read in batches if it reads in batches."""

    def __init__(self, dataset: Any, rows: list[int]) -> None:
        self._dataset, self._rows = dataset, rows
        if hasattr(dataset, "batch"):
            self.batch = lambda part: dataset.batch([rows[i] for i in part])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self._rows[index]]
