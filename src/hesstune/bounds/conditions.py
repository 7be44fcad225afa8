"""The conditions of a certificate: what is checked, what is refused, and what would mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from hesstune.bounds.data import BoundData
from hesstune.bounds.monte_carlo import Feeder
from hesstune.bounds.pac_bayes import MIN_EXAMPLES
from hesstune.bounds.partition import Share
from hesstune.checks import one_of
from hesstune.errors import DataError, HesstuneError, LayerError, ModelError, listed
from hesstune.forward import evaluating, logits_of, named_buffers, named_modules, named_parameters
from hesstune.reference import Reference

__all__ = [
    "HELD_OUT_LABELS",
    "LEAKS",
    "NOISE_KNOWLEDGE",
    "Conditions",
    "check_model",
    "check_separate",
    "check_story",
    "class_count_of",
    "gather",
]

NOISE_KNOWLEDGE = ("known", "estimated", "instance_dependent")
HELD_OUT_LABELS = ("true", "noisy", "unknown")
LEAKS = {
    "prior": "train the prior on a part of the data and certify on the rest",
    "prior_scales": "fix the grid of prior scales and ratios before looking at the examples",
    "batch_norm": "keep the pretrained batch-norm statistics",
    "normalisation": "keep the pretrained model's normalisation constants",
    "head": "initialise the head with zeros or at random",
    "selection": "select the prior on its own part of the data",
    "split": "draw the examples uniformly at random from all that there are",
}


class Conditions:
    """Collects failed conditions: raises at the first, or notes them where only a diagnostic is asked.

    Args:
        diagnostic: True to go on and mark the result as no certificate.
    """

    def __init__(self, diagnostic: bool = False) -> None:
        self.diagnostic = diagnostic
        self.failures: list[str] = []

    def fail(self, error: HesstuneError) -> None:
        """Raise the error, or note it."""
        if not self.diagnostic:
            raise error
        self.failures.append(str(error))

    def attempt(self, check: Callable[[], Any]) -> None:
        """Run a check that raises, and treat its HesstuneError likewise."""
        try:
            check()
        except HesstuneError as error:
            self.fail(error)


def check_model(conditions: Conditions, model: nn.Module, ref: Reference) -> None:
    """Check that all that moved since the reference is random under the posterior, and nothing else.

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


def check_story(conditions: Conditions, leaks: Iterable[str], noise_is: str, noisy: bool) -> None:
    """Refuse what the caller says about the run and the data where it breaks the certificate."""
    one_of("noise knowledge", noise_is, NOISE_KNOWLEDGE)
    for leak in leaks:
        one_of("leak", leak, tuple(LEAKS))
        conditions.fail(
            DataError(f"'{leak}' was chosen with the examples that the certificate counts on; {LEAKS[leak]}")
        )
    if noisy and noise_is == "estimated":
        conditions.fail(
            DataError(
                "the noise matrix was estimated from noisy data alone, which bounds nothing (beside injected "
                "noise it says that the labels were noisy before); give counts of (true, noisy) labels of a "
                "clean sample as NoiseConfidenceSet, or a matrix that is known"
            )
        )
    if noisy and noise_is == "instance_dependent":
        conditions.fail(
            DataError(
                "the noise is known to depend on the input, not on the class alone, as programmatic "
                "labels do, so no noise matrix carries the noisy risk over to the clean one; "
                "certify on clean labels"
            )
        )


def check_separate(conditions: Conditions, data: BoundData, others: Mapping[str, BoundData | None]) -> None:
    """Refuse repeated examples shared between the bound's examples and other parts."""
    for what, other in others.items():
        shared = 0 if other is None else len(set(data.digests) & set(other.digests))
        if shared:
            conditions.fail(
                DataError(
                    f"{shared} of the certificate's examples are also among the {what} examples; "
                    "split the data into parts without common examples"
                )
            )


def gather(
    conditions: Conditions,
    dataset: Any,
    block_size: int,
    seed: int,
    repeats: str,
    prior_data: Any,
    held_out: Any,
    share: Share,
) -> tuple[BoundData, BoundData | None]:
    """Read all examples and check that they are a proper sample, apart from the others."""
    data = BoundData(dataset, block_size, seed, share=share)
    if data.n < MIN_EXAMPLES:
        raise DataError(f"a certificate needs at least {MIN_EXAMPLES} examples; got {data.n}")
    conditions.attempt(data.check_steady)
    if repeats == "refuse":
        conditions.attempt(data.check_repeats)
    prior = None if prior_data is None else BoundData(prior_data, block_size, seed, "prior_data")
    aside = None if held_out is None else BoundData(held_out, block_size, seed, "held_out", share)
    check_separate(conditions, data, {"prior's": prior, "held-out": aside})
    return data, aside


def class_count_of(model: nn.Module, data: BoundData) -> int:
    """Return the number of classes, from one batch's logits; the data's labels are checked against it."""
    with evaluating(model), torch.no_grad():
        k = int(logits_of(model, Feeder(model)(data.first())).shape[1])
    data.check_labels(k)
    return k
