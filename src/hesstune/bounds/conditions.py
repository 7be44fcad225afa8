"""The conditions of a certificate: checks of the model, the sample and a stated noise matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import special
from torch import nn

from hesstune.bounds.noisy import KnownNoise, NoiseConfidenceSet
from hesstune.checks import one_of
from hesstune.errors import DataError, HesstuneError, LayerError, ModelError, RefutedNoiseError, listed
from hesstune.forward import named_buffers, named_modules, named_parameters
from hesstune.reference import Reference

NOISE_KNOWLEDGE = ("known", "estimated", "instance_dependent")
HELD_OUT_LABELS = ("true", "noisy", "unknown")
LEAKS = {
    "prior": "train the prior on a part of the data and certify on the other part",
    "prior_scales": "fix the grid of prior scales and ratios before looking at the examples",
    "batch_norm": "keep the pretrained batch-norm statistics",
    "normalisation": "keep the pretrained model's normalisation constants",
    "head": "initialise the head with zeros or at random",
    "selection": "select the prior on its own part of the data",
    "split": "draw the examples uniformly at random from all that there are",
}


class Conditions:
    """Collects failed conditions: raises the first one, or records all of them for a diagnostic.

    Args:
        diagnostic: True to continue and mark the result as no certificate.
    """

    def __init__(self, diagnostic: bool = False) -> None:
        self.diagnostic = diagnostic
        self.failures: list[str] = []

    def fail(self, error: HesstuneError) -> None:
        """Raise the error, or record it."""
        if not self.diagnostic:
            raise error
        self.failures.append(str(error))

    def attempt(self, check: Callable[[], Any]) -> None:
        """Run a check and handle a HesstuneError that it raises in the same way."""
        try:
            check()
        except HesstuneError as error:
            self.fail(error)


def check_model(conditions: Conditions, model: nn.Module, ref: Reference) -> None:
    """Check that exactly the random parameters of the posterior differ from the reference.

    Batch norm must use stored statistics, buffers must be the reference's, and parameters with
    requires_grad=False must not have moved.
    """
    ref.check(model)
    for path, module in named_modules(model).items():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            conditions.fail(
                ModelError(
                    f"batch norm '{path}' has no running statistics, so one example's prediction depends on "
                    "the others in its batch; set track_running_stats=True with pretrained statistics"
                )
            )
    moved = [name for name, value in _fixed(model) if not _same(value, ref[name])]
    buffers = set(named_buffers(model))
    if stats := [name for name in moved if name in buffers]:
        conditions.fail(
            ModelError(
                f"buffers moved since the reference ({listed(stats, 3)}): batch-norm statistics that saw the "
                "examples are covered by no prior; keep batch norm in eval mode while fine-tuning"
            )
        )
    if frozen := [name for name in moved if name not in buffers]:
        conditions.fail(
            LayerError(
                f"parameters with requires_grad=False moved since the reference ({listed(frozen, 3)}), "
                "so they are neither fixed nor part of the KL; set requires_grad=True on what was trained"
            )
        )


def _fixed(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from ((name, p) for name, p in named_parameters(model).items() if not p.requires_grad)
    # The count of batches changes no prediction.
    yield from (
        (name, b) for name, b in named_buffers(model).items() if not name.endswith("num_batches_tracked")
    )


def _same(value: torch.Tensor, reference: torch.Tensor) -> bool:
    return torch.equal(value.detach(), reference.to(value.device))


def check_knowledge(conditions: Conditions, leaks: Iterable[str], noise_is: str, noisy: bool) -> None:
    """Refuse stated facts about the run and the data that break the certificate."""
    one_of("noise knowledge", noise_is, NOISE_KNOWLEDGE)
    for leak in leaks:
        one_of("leak", leak, tuple(LEAKS))
        conditions.fail(
            DataError(f"'{leak}' was chosen with the examples that the certificate counts on; {LEAKS[leak]}")
        )
    if noisy and noise_is == "estimated":
        conditions.fail(
            DataError(
                "the noise matrix was estimated from noisy data alone, which bounds nothing (with injected "
                "noise it means that the labels were noisy before); give counts of (true, noisy) labels of a "
                "clean sample as NoiseConfidenceSet, or a matrix that is known"
            )
        )
    if noisy and noise_is == "instance_dependent":
        conditions.fail(
            DataError(
                "the noise is known to depend on the input, not on the class alone, as programmatic "
                "labels do, so no noise matrix relates the noisy risk to the clean one; "
                "certify on clean labels"
            )
        )


# The level of the tests of the noise floor, as a share of delta. A test that rejects leads to a refusal and
# to nothing else, so no part of delta is spent on it: the event of a wrong certificate only becomes smaller.
TEST_SHARE = 0.01
_ADVICE = (
    "give the matrix of these labels, or certify without one: hesstune check RUN draws examples to label, "
    "then hesstune certify RUN --checked-labels FILE"
)


def noise_floors(noise_matrix: Any) -> NDArray[np.float64]:
    """Return the smallest probability that each prediction differs from the given label, (K,).

    Whatever the true class y is, a prediction h agrees with the given label with probability F[y, h]. So it
    differs with probability at least 1 − max_y F[y, h], and any classifier's error on the given labels is at
    least the minimum over h. A confidence set counts with its largest entries.

    Args:
        noise_matrix: F, (K, K), rows sum to 1, an object with `.array`, or a `NoiseConfidenceSet`.

    Example:
        >>> noise_floors([[0.8, 0.2], [0.3, 0.7]]).round(2).tolist()
        [0.2, 0.3]
    """
    if isinstance(noise_matrix, NoiseConfidenceSet):
        most = noise_matrix.upper
    else:
        most = KnownNoise(noise_matrix).centre
    return np.asarray(np.clip(1.0 - most.max(axis=0), 0.0, 1.0), np.float64)


def check_floor(
    confusion: ArrayLike, noise_matrix: Any, delta: float, model_name: str = "the network's"
) -> None:
    """Refuse a noise matrix under which so few errors on the given labels are very improbable.

    The test is P(Bin(n, floor) ≤ errors) on all examples at half of the level 0.01·δ, and on the examples of
    each predicted class at 1/(2K) of it. It is exact for a network that was fixed before the examples. It
    refuses the true matrix with probability at most 0.01·δ, plus the failure probability of a confidence set.

    Args:
        confusion: (K, K) counts, indexed [given label, prediction].
        noise_matrix: As of `hesstune.certify`; None for true labels: nothing is tested.
        delta: The certificate's probability of failure.
        model_name: What made the predictions, for the message.

    Raises:
        RefutedNoiseError: If the test rejects.

    Example:
        >>> check_floor([[120, 30], [30, 120]], [[0.8, 0.2], [0.2, 0.8]], 0.05)
        >>> check_floor([[145, 5], [4, 146]], [[0.8, 0.2], [0.2, 0.8]], 0.05)
        Traceback (most recent call last):
        hesstune.errors.RefutedNoiseError: ...
    """
    if noise_matrix is None:
        return
    table, floors = np.asarray(confusion, np.int64), noise_floors(noise_matrix)
    level, k = TEST_SHARE * delta, len(floors)
    counts, errors = table.sum(axis=0), table.sum(axis=0) - np.diag(table)
    tests = [("", int(counts.sum()), int(errors.sum()), float(floors.min()), level / 2)]
    tests += [
        (f" of class {h}", int(counts[h]), int(errors[h]), float(floors[h]), level / (2 * k))
        for h in range(k)
    ]
    for part_name, n, wrong, floor, part in tests:
        chance = float(special.bdtr(wrong, n, floor))
        if n and chance < part:
            raise RefutedNoiseError(
                f"the noise floor test refutes the noise matrix: {wrong} of {model_name} n = {n} predictions"
                f"{part_name} on unseen examples differ from the given label; under the matrix each does "
                f"with probability {floor:.4g} or more, so P(Bin({n}, {floor:.4g}) <= {wrong}) = "
                f"{chance:.2g} is below the test's level {part:.2g}; {_ADVICE}"
            )


def check_noisy_risk(upper: float, noise_matrix: Any, level: float) -> None:
    """Refuse a noise matrix if its floor lies above an upper bound on the error on the given labels.

    Args:
        upper: The bound.
        noise_matrix: As of `check_floor`.
        level: The probability that the bound fails, and of a false refusal.

    Raises:
        RefutedNoiseError: If the bound lies below the floor.
    """
    if noise_matrix is None:
        return
    floor = float(noise_floors(noise_matrix).min())
    if upper < floor:
        raise RefutedNoiseError(
            f"the noise floor test refutes the noise matrix: the error on the given labels is at most "
            f"{upper:.4g} with probability {1 - level:.6g}, and under the matrix every classifier's is "
            f"at least {floor:.4g}; {_ADVICE}"
        )


def check_bound(risk: float, noise_matrix: Any, delta: float) -> None:
    """Refuse a noise matrix under which an upper bound on the true error is below 0.

    Under the true matrix this happens only if the bound fails, with probability at most delta.

    Raises:
        RefutedNoiseError: If the bound is below 0.
    """
    if noise_matrix is not None and risk < 0:
        raise RefutedNoiseError(
            f"the noise matrix is refuted: under it the true error would be at most {risk:.4g}, below 0, "
            f"with probability {1 - delta:g}; {_ADVICE}"
        )
