"""A bound's sample: how its examples are read, checked, cut into blocks, and shared by several processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import default_collate

from hesstune.bounds.noisy import CleanLoss, Noise, centre_of, clean_losses, read_noise, zero_one_loss
from hesstune.checks import integer_labels, one_of
from hesstune.errors import ConfigError, DataError, HesstuneError, NoiseMatrixError, listed
from hesstune.forward import Inputs, evaluating, logits_of, moved
from hesstune.noise.confidence import NoiseConfidenceSet
from hesstune.runtime.distributed import all_gather, rank, world
from hesstune.runtime.signals import Progress

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
# Examples are kept in memory up to this size, and read again in every pass beyond it.
CACHE_BYTES = 2**30
# The examples that are read twice, to find random augmentation.
_REREAD = 16


def network_logits(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """Return the logits of inputs on the network's device; images channels last as its convolutions are."""
    there = moved(inputs, next(model.parameters()).device)
    if isinstance(there, torch.Tensor) and there.ndim == 4:
        weights = (p for p in model.parameters() if p.ndim == 4)
        last = torch.channels_last
        if any(p.is_contiguous(memory_format=last) and not p.is_contiguous() for p in weights):
            there = there.contiguous(memory_format=last)
    return logits_of(model, there)


class Conditions:
    """Failed conditions: the first one is raised, or for a diagnostic all are collected."""

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


class BoundData:
    """Map-style examples, in a random order fixed by the seed, in blocks whose sizes differ by at most 1.

    A data set with a method `batch` gives (inputs, targets) of a list of indices by it, with any padding:
    padding marked by `attention_mask` is ignored when inputs are compared. With `distributed`, each process
    iterates over every world-th block (`own`), from its rank; all blocks are read once. `order`, `digests`
    and `labels` are in the order of the blocks.

    Raises:
        DataError: If the data set is not map-style, empty, or its items are no (input, target) pairs.
    """

    def __init__(
        self, dataset: Any, block: int, seed: int, what: str = "dataset", distributed: bool = False
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise DataError(
                f"{what} must be map-style (a length, and items by index); got {type(dataset).__name__}. "
                "A DataLoader has one as its .dataset"
            )
        self.n = len(dataset)
        if not self.n:
            raise DataError(f"{what} holds no examples")
        self._dataset, self._what = dataset, what
        self.order = np.random.default_rng(seed).permutation(self.n)
        self._parts = [part.tolist() for part in np.array_split(self.order, -(-self.n // block))]
        self.sizes = [len(part) for part in self._parts]
        self.distributed, self._world = distributed, world() if distributed else 1
        self.own = range(rank() if distributed else 0, len(self._parts), self._world)
        self._kept: dict[int, tuple[Inputs, torch.Tensor]] = {}
        self.digests: list[str] = []
        room, labels = CACHE_BYTES, []
        for index, part in enumerate(self._parts):
            inputs, targets = self._collate(part)
            self.digests += _digests(inputs, len(part))
            labels.append(targets.numpy())
            if index in self.own:
                room -= sum(t.nbytes for t in _tensors(inputs))
                if room >= 0:
                    self._kept[index] = inputs, targets
        self.labels = np.concatenate(labels)

    def _collate(self, part: list[int]) -> tuple[Inputs, torch.Tensor]:
        if hasattr(self._dataset, "batch"):
            inputs, targets = self._dataset.batch(part)
            return inputs, torch.as_tensor(targets, dtype=torch.int64)
        items = [self._dataset[i] for i in part]
        for item in items:
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise DataError(f"items of {self._what} must be (input, target); got {type(item).__name__}")
        inputs = default_collate([x for x, _ in items])
        return inputs, torch.as_tensor(np.array([int(y) for _, y in items], np.int64))

    def __iter__(self) -> Iterator[tuple[Inputs, torch.Tensor]]:
        """Yield (inputs, targets) of each of this process's blocks, always in the same order."""
        for index in self.own:
            yield self._kept.get(index) or self._collate(self._parts[index])

    def first(self) -> Inputs:
        """Return the inputs of the first block of all."""
        return (self._kept.get(0) or self._collate(self._parts[0]))[0]

    def gathered(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of all blocks, in their order, of each process's own rows (n_own, …)."""
        if self._world == 1:
            return rows
        parts: dict[int, torch.Tensor] = {}
        for number, found in enumerate(all_gather(rows)):
            blocks = range(number, len(self.sizes), self._world)
            parts |= dict(zip(blocks, found.split([self.sizes[b] for b in blocks]), strict=True))
        return torch.cat([parts[b] for b in range(len(self.sizes))])

    def predict(self, model: nn.Module) -> NDArray[np.int64]:
        """Return the network's class of every example, (n,), in the order of the blocks."""
        found = [torch.zeros(0, dtype=torch.int64)]  # a process may have no block
        with evaluating(model), torch.no_grad():
            found += [network_logits(model, inputs).argmax(dim=1).cpu() for inputs, _ in self]
        return np.asarray(self.gathered(torch.cat(found)).numpy())

    def confusion(self, model: nn.Module, k: int) -> NDArray[np.int64]:
        """Count the network's predictions, (K, K), indexed [given label, prediction]."""
        self.check_labels(k)
        counts = np.zeros((k, k), np.int64)
        np.add.at(counts, (self.labels, self.predict(model)), 1)
        return counts

    def check_labels(self, k: int) -> None:
        """Raise DataError unless every label lies in [0, k)."""
        integer_labels(self.labels, k, f"targets of {self._what}")

    def check_steady(self) -> None:
        """Raise DataError if reading an example again gives another input (random augmentation)."""
        part = self._parts[0][:_REREAD]
        if _digests(self._collate(part)[0], len(part)) != self.digests[: len(part)]:
            raise DataError(
                f"reading an example of {self._what} twice gave different inputs: it is augmented at random; "
                "certify on the plain examples (augmentation in training is fine)"
            )

    def check_repeats(self) -> None:
        """Raise DataError if two inputs are equal."""
        if not (repeats := self.n - len(set(self.digests))):
            return
        first: dict[str, int] = {}
        pairs = []
        for index, digest in zip(self.order.tolist(), self.digests, strict=True):
            if digest in first:
                pairs.append(f"{first[digest]} and {index}")
            first.setdefault(digest, index)
        raise DataError(
            f"{repeats} inputs of {self._what} are repeated (such as indices {listed(pairs, 3)}), "
            "so they are not an independent sample; remove repeats before splitting, or give "
            "repeats='allow' if the examples were drawn independently from a distribution that "
            "has such repeats"
        )


def _tensors(inputs: Inputs) -> list[torch.Tensor]:
    values = [inputs] if isinstance(inputs, torch.Tensor) else [inputs[key] for key in sorted(inputs)]
    return [v for v in values if isinstance(v, torch.Tensor)]


def _digests(inputs: Inputs, count: int) -> list[str]:
    """Hash each example's tensors, with their dtypes and shapes."""
    if not isinstance(inputs, torch.Tensor | Mapping):
        raise DataError(f"an input must be a tensor or a mapping of tensors; got {type(inputs).__name__}")
    arrays = [t.detach().cpu().contiguous() for t in _tensors(inputs)]
    arrays = [t.view(torch.uint8) if t.dtype is torch.bfloat16 else t for t in arrays]
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    result = []
    for row in range(count):
        digest = hashlib.blake2b(digest_size=16)
        for array in arrays:
            value = array[row].numpy()
            if mask is not None and array.shape == mask.shape:
                value = value[mask[row].cpu().numpy() != 0]
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        result.append(digest.hexdigest())
    return result


@dataclass(frozen=True, kw_only=True)
class BoundOptions:
    """What is stated about a bound's examples, and how they are read and checked; see `hesstune.certify`."""

    delta: float = 0.05
    noise_matrix: Any = None
    noise_is: str = "known"
    # Examples that the network, its prior or its start was trained or selected on: checked to be
    # different from those of the bound.
    seen: Any = None
    held_out: Any = None
    held_out_labels: str = "true"
    # {index: true label} of examples drawn uniformly at random, for the bound `checked`; -1 marks a
    # missing label, which counts as an error since hard examples are left out more often.
    checked: Mapping[int, int] | None = None
    sheets: int = 1  # How many such samples were drawn: they share delta
    draws: int | None = None
    block_size: int = 32
    seed: int = 0
    repeats: str = "refuse"
    leaks: Sequence[str] = ()
    assumptions: Sequence[str] = ()
    diagnostic: bool = False
    progress: Progress | None = None
    distributed: bool = False

    def __post_init__(self) -> None:
        one_of("held_out_labels", self.held_out_labels, HELD_OUT_LABELS)
        one_of("repeats", self.repeats, ("refuse", "allow"))
        one_of("noise knowledge", self.noise_is, NOISE_KNOWLEDGE)
        for leak in self.leaks:
            one_of("leak", leak, tuple(LEAKS))
        if self.block_size < 1:
            raise ConfigError(f"block_size must be at least 1; got {self.block_size}")
        if self.draws is not None and self.draws < 1:
            raise ConfigError(f"draws must be at least 1; got {self.draws}")
        if not 0 < self.delta - self.spent < 1 or not self.delta < 1:
            least = f"above the noise set's own {self.spent:g} and below 1" if self.spent else "in (0, 1)"
            raise ConfigError(f"delta must lie {least}; got {self.delta}")

    @property
    def spent(self) -> float:
        """The part of delta that a confidence set of the noise has."""
        return spent_by(self.noise_matrix)

    @property
    def knowledge(self) -> str:
        """How the noise is known; `known` does not override the recorded origin of a matrix."""
        origin = getattr(self.noise_matrix, "origin", "stated")
        overrules = self.noise_is == "known" and origin in ("estimated", "instance_dependent")
        return origin if overrules else self.noise_is


def spent_by(noise_matrix: Any) -> float:
    """Return the part of delta that a confidence set of the noise has."""
    return noise_matrix.delta if isinstance(noise_matrix, NoiseConfidenceSet) else 0.0


@dataclass(frozen=True)
class Sample:
    """The examples of a bound, read and checked, and what is known about their labels."""

    data: BoundData  # The examples
    held_out: BoundData | None  # The held-out examples, if any
    k: int  # Number of classes
    noise: Noise | None  # The noise of the labels; None for true labels
    conditions: Conditions  # Collects the conditions that fail
    options: BoundOptions  # How the examples were read

    @classmethod
    def read(cls, model: nn.Module, dataset: Any, options: BoundOptions) -> Sample:
        """Read all examples; check that they are a proper sample and separate from the others."""
        conditions, size, seed = Conditions(options.diagnostic), options.block_size, options.seed
        _check_knowledge(conditions, options)
        data = BoundData(dataset, size, seed, distributed=options.distributed)
        conditions.attempt(data.check_steady)
        if options.repeats == "refuse":
            conditions.attempt(data.check_repeats)
        seen = None if options.seen is None else BoundData(options.seen, size, seed, "seen")
        held_out = None
        if options.held_out is not None:
            held_out = BoundData(options.held_out, size, seed, "held_out", options.distributed)
        for what, other in (("training", seen), ("held-out", held_out)):
            shared = 0 if other is None else len(set(data.digests) & set(other.digests))
            if shared:
                conditions.fail(
                    DataError(
                        f"{shared} of the certificate's examples are also among the {what} examples; "
                        "split the data into parts without common examples"
                    )
                )
        with evaluating(model), torch.no_grad():
            k = int(network_logits(model, data.first()).shape[1])
        data.check_labels(k)
        noise = None if options.noise_matrix is None else read_noise(options.noise_matrix)
        if noise is not None and len(centre_of(noise)) != k:
            raise NoiseMatrixError(
                f"the noise matrix is for {len(centre_of(noise))} classes; the model has {k}"
            )
        return cls(data, held_out, k, noise, conditions, options)

    @property
    def n(self) -> int:
        """The number of examples."""
        return self.data.n

    @cached_property
    def losses(self) -> list[CleanLoss]:
        """The losses with means that bound the clean risk: 1 − I for true labels."""
        return [zero_one_loss(self.k)] if self.noise is None else clean_losses(self.noise)

    @property
    def noise_text(self) -> str:
        """How the labels' noise is known."""
        if self.noise is None:
            return "clean"
        if isinstance(self.noise, NoiseConfidenceSet):
            return "noisy, with a confidence set for the noise matrix"
        return "noisy, with a known noise matrix"

    def assumptions(self) -> list[str]:
        """List the assumptions on the examples, their labels, and what was fixed before them."""
        stated = [
            f"the {self.n} examples are independent draws from the distribution that the model will meet",
            "delta, the method, every option and the part of the data that the bound counts on were chosen "
            "without regard to the result",
        ]
        if self.options.repeats == "allow":
            stated.append("repeated inputs are independent draws of a distribution that has such repeats")
        if self.noise is None:
            return stated
        stated.append("label noise depends on the true class alone, not on the input")
        if isinstance(self.noise, NoiseConfidenceSet):
            stated.append(
                f"the clean sample's {int(self.noise.counts.sum())} examples are independent of the "
                "certificate's and have the same noise"
            )
        elif self.options.knowledge == "known":
            stated.append("the noise matrix is known, not estimated")
        return stated


def _check_knowledge(conditions: Conditions, options: BoundOptions) -> None:
    """Refuse stated facts about the run and the data that break the certificate."""
    for leak in options.leaks:
        conditions.fail(
            DataError(f"'{leak}' was chosen with the examples that the certificate counts on; {LEAKS[leak]}")
        )
    known = "known" if options.noise_matrix is None else options.knowledge
    if known == "estimated":
        conditions.fail(
            DataError(
                "the noise matrix was estimated from noisy data alone, which bounds nothing (with injected "
                "noise it means that the labels were noisy before); give counts of (true, noisy) labels of a "
                "clean sample as NoiseConfidenceSet, or a matrix that is known"
            )
        )
    if known == "instance_dependent":
        conditions.fail(
            DataError(
                "the noise is known to depend on the input, not on the class alone, as programmatic "
                "labels do, so no noise matrix relates the noisy risk to the clean one; "
                "certify on clean labels"
            )
        )
