"""The base class of fine-tuning methods, what it is built from, and the losses that methods share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.constraints.distance import DistanceConstraint
from hesstune.errors import ConfigError, DataError, unknown_name
from hesstune.forward import logits_of
from hesstune.losses.consistent import ConsistentLoss
from hesstune.models.adapters import Adapters, LoraSize
from hesstune.noise.matrix import NoiseMatrix
from hesstune.reference import Reference, in_modules
from hesstune.storage.tensors import Tree

if TYPE_CHECKING:
    from torch import nn

    from hesstune.constraints.adapters import AdapterConstraint
    from hesstune.forward import Inputs
    from hesstune.weak.votes import Votes

T = TypeVar("T")
Loss = Callable[[Any, torch.Tensor], torch.Tensor]
Budget = Literal["fast", "default", "thorough"]
Tier = Literal["recommended", "baseline", "research"]
TIERS: tuple[Tier, ...] = get_args(Tier)
# The least class probability of a probe.
MIN_PROBABILITY = 1e-3
# The share of a head's penalty for methods whose loss is robust to noise: of 0, 0.1 and 1 the best on average
# on nine development tasks of heads.
ROBUST_HEAD_PENALTY = 0.1


@dataclass(frozen=True)
class HeadMaterial:
    """What a head is solved from: the training examples, as a frozen network sees them.

    Attributes:
        features: (N, D) what the head is given.
        labels: (N,) labels as given, possibly wrong.
        k: Number of classes K.
        soft: (N, K) soft labels to be trained on instead, or None.
        checked: (rows, true labels) that a person has checked, or None.
        noise_matrix: F if the user knows it, or None.
        weight: (N,) how much each example counts, or None: once.
        budget: How many candidates may be tried.
        seed: Of everything drawn.
        votes: The votes that the labels were made of, or None.
        copies: (N,) group of each example, the same for copies of one example; None if unknown.
    """

    features: NDArray[np.float64]
    labels: NDArray[np.int64]
    k: int
    soft: NDArray[np.float64] | None = None
    checked: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    noise_matrix: NoiseMatrix | None = None
    weight: NDArray[np.float64] | None = None
    budget: Budget = "default"
    seed: int = 0
    votes: Votes | None = None
    copies: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class ClassEvidence:
    """Probabilities of each training example's class, from its features and its given label.

    Attributes:
        probabilities: P(true class | features), (N, K), of a probe that did not see the example.
        likelihood: P(label as given | true class), (N, K); one-hot for examples that a person has checked.
    """

    probabilities: NDArray[np.float64]
    likelihood: NDArray[np.float64]

    def posterior(self, seen: NDArray[np.float64] | None = None, share: float = 1.0) -> NDArray[np.float64]:
        """Return P(true class | features, label), (N, K), q ∝ p^share · p_net^(1 − share) · likelihood.

        Args:
            seen: ln p_net, (N, K), of another network; None: the probe alone.
            share: The probe's part in the geometric mean of the two.

        Example:
            >>> evidence = ClassEvidence(np.array([[0.9, 0.1]]), np.array([[0.3, 0.7]]))
            >>> evidence.posterior().round(3).tolist()
            [[0.794, 0.206]]
        """
        log_p = np.log(np.maximum(self.probabilities, MIN_PROBABILITY))
        if seen is not None:
            log_p = share * log_p + (1.0 - share) * seen
        joint = np.exp(log_p - log_p.max(axis=1, keepdims=True)) * self.likelihood
        return np.asarray(joint / np.maximum(joint.sum(axis=1, keepdims=True), 1e-300))


@dataclass(frozen=True)
class SolvedHead:
    """A linear head, and what was found on the way.

    Attributes:
        weight: (K, D), as `torch.nn.Linear` keeps it.
        bias: (K,).
        noise_matrix: The noise matrix for deeper layers and validation, or None.
        name: What was chosen, for people.
        reason: Why, in a sentence.
        details: Candidates, scores and cost, JSON-ready.
        evidence: What deeper layers are trained on: what was found of each example's true class, or None.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    noise_matrix: NoiseMatrix | None
    name: str
    reason: str
    details: dict[str, Any] = field(default_factory=dict)
    evidence: ClassEvidence | None = None

    def record(self) -> dict[str, Any]:
        """Return what a run's record says of it, JSON-ready."""
        return {"chosen": self.name, "reason": self.reason, "details": self.details}


@dataclass(frozen=True)
class Option:
    """A number that a method has and others have not, set by `--method-options NAME=VALUE`.

    Attributes:
        default: Its value if none is given.
        source: Where the default comes from.
        low: The least value allowed.
        high: The largest value allowed.
        search: The range in which a search looks, or None if it keeps the default.
        log: Whether the search looks on a logarithmic scale.
    """

    default: float
    source: str
    low: float = 0.0
    high: float = float("inf")
    search: tuple[float, float] | None = None
    log: bool = False


@dataclass(frozen=True)
class MethodSetup:
    """What a method is built from.

    Attributes:
        model: The whole network.
        reference: Its weights at the start.
        noise_matrix: F, the noise matrix that the loss uses, or None.
        counts: (K,) how many training examples carry each (noisy) label.
        radius: The constraint's radii, by layer pattern or one for all; None without a constraint.
        norm: The constraint's norm.
        warmup_epochs: Epochs of plain cross-entropy first, for methods that have a warm-up.
        balance: `none`, `weights` or `sampler`: how the risk is made class-balanced.
        net: What is called on a batch and trained, the whole network or its head; None: the network.
        head: The name of the head's module in `model`.
        other_heads: Of a network that makes its logits of several classifiers, the names of the others.
        epochs: Epochs in all.
        options: The method's own numbers; absent ones have their defaults.
        radius_scale: Factor of the radii from one stage of the network to the next.
        labels: (n,) the (noisy) training labels.
        batch_size: Examples an optimizer step.
        solved: The head that was solved from frozen features, or None.
        alone: Whether that head is all there is to be, for want of time or of examples to judge more by.
        adapters: The adapters that are trained in place of layers, or None.
    """

    model: nn.Module
    reference: Reference
    noise_matrix: NoiseMatrix | None
    counts: NDArray[np.int64]
    radius: float | Mapping[str, float] | None
    norm: str
    warmup_epochs: int
    balance: str = "none"
    net: nn.Module | None = None
    head: str = ""
    epochs: int = 1
    options: Mapping[str, float] = field(default_factory=dict)
    radius_scale: float = 1.0
    labels: NDArray[np.int64] | None = None
    batch_size: int = 32
    solved: SolvedHead | None = None
    alone: bool = False
    other_heads: tuple[str, ...] = ()
    adapters: Adapters | None = None

    @cached_property
    def network(self) -> nn.Module:
        """What is called on a batch: `net`, or the whole network."""
        return self.model if self.net is None else self.net

    @cached_property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that were trainable when the method was built, by their names in `model`."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of all modules that are the head together."""
        return (self.head, *self.other_heads)

    def in_head(self, name: str) -> bool:
        """Tell whether a parameter of `model` belongs to the head."""
        return in_modules(name, self.heads)

    # -- of layers by the names they have without adapters ---------------------------------------

    def moves(self, layer: str) -> bool:
        """Tell whether training changes a layer, by its own weights or by an adapter."""
        return layer in self.trained or (self.adapters is not None and layer in self.adapters.layers)

    def merged(self) -> contextlib.AbstractContextManager[None]:
        """Hold layers with merged weights in place of adapters, if there are any."""
        return contextlib.nullcontext() if self.adapters is None else self.adapters.merged()

    def weights(self) -> Reference:
        """Return a copy of the weights as they are, those of layers with adapters without these."""
        if self.adapters is None:
            return Reference.of(self.model)
        own = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        start = self.reference
        tensors = {name: own.get(name, start[name]).detach().clone() for name in start.names()}
        return Reference(tensors, start.layers())

    def constraint(
        self, start: Reference, radius: float | Mapping[str, float]
    ) -> DistanceConstraint | AdapterConstraint:
        """Return the distance constraint around some weights; of a layer with an adapter it holds B·A."""
        if self.adapters is None:
            return DistanceConstraint(self.model, start, radius, self.norm, include=())
        from hesstune.constraints.adapters import AdapterConstraint

        return AdapterConstraint(self.model, radius, self.norm, start, warn=False)

    def distances(self) -> dict[str, float]:
        """Return ‖v_i‖ of every layer as the network stands."""
        if self.adapters is None:
            return self.reference.distances(self.model, warn=False)
        from hesstune.constraints.adapters import distances

        return distances(self.model, self.reference, warn=False)


@dataclass
class Batch:
    """One batch of training examples.

    Attributes:
        net: What is called on the inputs.
        inputs: The inputs, augmented.
        targets: (N,) noisy labels.
        indices: (N,) positions of the examples in the training set.
        epoch: The epoch, from 0.
        again: Returns the same examples augmented by another draw.
        forward: How logits are computed; None: by calling the network.
        soft: (N, K) soft labels to train on instead of `targets`, or None.
        clean: (N,) whether a person has checked the label, or None if nobody checked any.
        share: The rows that this process runs if several share the batch; None: all of them.
    """

    net: nn.Module
    inputs: Inputs
    targets: torch.Tensor
    indices: torch.Tensor
    epoch: int
    again: Callable[[], Inputs]
    forward: Callable[[nn.Module, Inputs], torch.Tensor] | None = None
    soft: torch.Tensor | None = None
    clean: torch.Tensor | None = None
    share: slice | None = None

    def logits(self, net: nn.Module | None = None, inputs: Inputs | None = None) -> torch.Tensor:
        """Return the (N, K) logits of these inputs, or others, by this network, or another."""
        forward = logits_of if self.forward is None else self.forward
        return forward(self.net if net is None else net, self.inputs if inputs is None else inputs)


def balanced_rates(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the relative rates q, (K,), at which a balanced sampler draws each label, mean 1.

    An example of label j is drawn q[j] times as often as under uniform sampling: q[j] = n / (K n_j).

    Raises:
        DataError: If a class has no training example.
    """
    if (counts == 0).any():
        absent = int(np.flatnonzero(counts == 0)[0])
        raise DataError(f"class {absent} has no training example, so classes cannot be balanced")
    rates: NDArray[np.float64] = counts.sum() / (len(counts) * counts.astype(np.float64))
    return rates


def clean_shares(
    noise_matrix: NoiseMatrix, counts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the true classes' shares π, (K,), estimated from the labels, and which of them were raised.

    π̂ = F⁻ᵀπ̃ has the covariance F⁻ᵀ(diag π̃ − π̃π̃ᵀ)F⁻¹/n. A share below its own standard error, or below
    one example, cannot be distinguished from zero or from that error: it is raised to it, so that its weight
    1/(Kπ) stays of a size that the examples can estimate.
    """
    n = int(counts.sum())
    noisy = counts / n
    inverse = noise_matrix.inverse
    covariance = inverse.T @ (np.diag(noisy) - np.outer(noisy, noisy)) @ inverse / n
    least = np.maximum(np.sqrt(np.diagonal(covariance).clip(min=0.0)), 1.0 / n)
    found = noisy @ inverse
    shares = np.maximum(found, least)
    return shares / shares.sum(), np.flatnonzero(found < least)


def class_weights(setup: MethodSetup) -> torch.Tensor | None:
    """Return the weights of the noisy labels, (K,), or None if classes are not weighted."""
    return torch.from_numpy(balanced_rates(setup.counts)) if setup.balance == "weights" else None


def cross_entropy(setup: MethodSetup) -> Loss:
    """Return plain cross-entropy; balanced weights follow the noisy labels' frequencies."""

    def losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if targets.ndim == 2:
            targets = targets.to(logits)
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none")

    return averaged(setup, losses)


def averaged(setup: MethodSetup, losses: Loss) -> Loss:
    """Return the mean of per-example losses, weighted by class if `balance` is `weights`."""
    weight = class_weights(setup)

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        values = losses(logits, targets)
        return (values if weight is None else weight.to(values)[targets] * values).mean()

    return loss


def consistent(setup: MethodSetup) -> ConsistentLoss:
    """Return the consistent loss, unbiased for the clean risk or the class-balanced clean risk.

    Balance weighs the *true* classes by 1/(K π_k), π of `clean_shares`; a balanced sampler is undone by
    its own rates, which leaves the same expectation.
    """
    assert setup.noise_matrix is not None
    if setup.balance == "none":
        return ConsistentLoss(setup.noise_matrix)
    rates = balanced_rates(setup.counts)
    prior, _ = clean_shares(setup.noise_matrix, setup.counts)
    weight = torch.from_numpy(1.0 / (setup.noise_matrix.k * prior))
    sampling = torch.from_numpy(rates) if setup.balance == "sampler" else None
    return ConsistentLoss(setup.noise_matrix, weight=weight, sampling=sampling)


class Method:
    """Plain cross-entropy; other methods override what they change.

    The loop calls, in this order: `start_epoch`, then for every real optimizer step `gradients`
    (which calls `batch_loss` for each batch), the optimizer, `after_step`; at the end `finish`.
    Random draws come from torch's global generator, which the loop seeds by run and epoch.
    """

    # How well it is supported by the records: see TIERS.
    tier: ClassVar[Tier] = "research"
    needs_noise_matrix: ClassVar[bool] = False
    # Whether it uses a noise matrix if one is known; those that need one do.
    uses_noise_matrix: ClassVar[bool] = False
    constrained: ClassVar[bool] = False
    # Whether balanced class weights enter its loss; if not, asking for them is an error.
    weighs_classes: ClassVar[bool] = True
    # Whether it trains with plain cross-entropy for `warmup_epochs` first.
    warms_up: ClassVar[bool] = False
    # Whether it mixes inputs: they must then be numbers (images, or a head's features), not texts.
    mixes_inputs: ClassVar[bool] = False
    # The weight decay of a head that it trains alone, if none is given, as a share of the penalty that
    # cross-validation finds for cross-entropy: 0 if a constraint or a penalty of its own limits the head.
    head_penalty: ClassVar[float] = 1.0
    # Whether it freezes and thaws parameters while training.
    toggles_requires_grad: ClassVar[bool] = False
    # Whether its loss is linear in the label, so that soft labels can be trained on.
    takes_soft: ClassVar[bool] = True
    # Whether it learns from votes, in place of the labels that were made of them.
    needs_votes: ClassVar[bool] = False
    # Whether it trains the head alone, on features of the frozen network.
    head_alone: ClassVar[bool] = False
    # Whether it trains adapters in place of layers (--lora): it then reads no weight of a layer by name.
    adapts: ClassVar[bool] = True
    # Whether it trains weights that are divided among processes: it then touches them by the constraint
    # alone. Said by each class for itself.
    shards: ClassVar[bool] = False
    # Whether `solve_head` gives the head before the first step; validation then judges the start, too.
    solves_head: ClassVar[bool] = False
    own_options: ClassVar[dict[str, Option]] = {}

    def __init__(self, setup: MethodSetup) -> None:
        self.setup = setup
        self.options = self.checked_options(setup.options)
        self._cross_entropy = cross_entropy(setup)

    # -- configuration -----------------------------------------------------------------------

    @classmethod
    def uses_noise(cls) -> bool:
        """Tell whether the method makes use of a noise matrix."""
        return cls.needs_noise_matrix or cls.uses_noise_matrix

    @classmethod
    def defaults(cls, head_only: bool) -> dict[str, Any]:
        """Return the run's options that this method sets if the user does not.

        Args:
            head_only: Whether the head's parameters are the only ones that are trained.
        """
        return {}

    @classmethod
    def checked_options(cls, given: Mapping[str, float] | None) -> dict[str, float]:
        """Return the method's own options, defaults filled in.

        Raises:
            ConfigError: If a name is unknown or a value outside its range.
        """
        values = {name: option.default for name, option in cls.own_options.items()}
        for name, value in (given or {}).items():
            if name not in cls.own_options:
                if not cls.own_options:
                    raise ConfigError(f"unknown method option '{name}': this method has none")
                raise unknown_name("method option", name, cls.own_options)
            option = cls.own_options[name]
            if not option.low <= value <= option.high:
                raise ConfigError(
                    f"method option '{name}' must lie in [{option.low:g}, {option.high:g}]; got {value:g}"
                )
            values[name] = float(value)
        return values

    @classmethod
    def adapter_size(cls, rank: int | None, options: Mapping[str, float] | None) -> LoraSize | None:
        """Return the size of the adapters that are trained in place of layers, or None.

        Args:
            rank: The rank that was asked for, or None.
            options: The method's own options.
        """
        return None if rank is None else LoraSize(rank, 2.0 * rank)

    @property
    def goes_on(self) -> bool:
        """Whether steps follow: not if the head was solved and nothing else is trained."""
        return True

    @property
    def forks_after(self) -> int | None:
        """The epochs after which a second path starts, if validation chooses the epoch; None: there is none.

        Both paths start from the same weights; the best epoch of both is kept.
        """
        return None

    def take_second_path(self) -> None:
        """Train by the loss of the second path from now on."""

    def kept_note(self, second: bool) -> str:
        """Return what its user should know of the path, the first or the second, that was kept."""
        return ""

    @classmethod
    def solve_head(cls, material: HeadMaterial) -> SolvedHead:
        """Return the head that training starts from, of frozen features; for those that `solves_head`."""
        raise NotImplementedError(f"{cls.__name__} solves no head")

    # -- a batch -----------------------------------------------------------------------------

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, epoch: int) -> torch.Tensor:
        """Return the mean training loss of a batch: (N, K) logits, (N,) noisy targets or (N, K) soft ones."""
        return self._cross_entropy(logits, targets)

    def penalty(self) -> torch.Tensor | None:
        """Return what is added to every batch's loss: a function of the weights alone."""
        return None

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of a batch and the (N, K) logits it comes from."""
        logits = batch.logits()
        loss = self._labels_loss(logits, batch)
        penalty = self.penalty()
        return (loss if penalty is None else loss + penalty), logits

    def _labels_loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the mean loss; labels that a person has checked need no correction."""
        targets = batch.targets if batch.soft is None else batch.soft
        clean = batch.clean
        if clean is None or not bool(clean.any()):
            return self.loss(logits, targets, batch.epoch)
        share = clean.float().mean()
        checked = share * self._cross_entropy(logits[clean], targets[clean])
        if bool(clean.all()):
            return checked
        return checked + (1 - share) * self.loss(logits[~clean], targets[~clean], batch.epoch)

    # -- a step ------------------------------------------------------------------------------

    def gradients(self, compute: Callable[[], T]) -> T:
        """Fill the gradients of a step; `compute()` sets them afresh at the weights as they are."""
        return compute()

    def lr_factor(self, epoch: int) -> float:
        """Return the factor of the learning rate in an epoch."""
        return 1.0

    def after_step(self) -> None:
        """Act after a real optimizer step."""

    # -- the run -----------------------------------------------------------------------------

    def networks(self) -> list[nn.Module]:
        """Return the networks that are trained beside the run's own."""
        return []

    def learnt(self) -> list[torch.Tensor]:
        """Return what is learnt beside weights: several processes take the mean of its gradients."""
        return []

    def start_epoch(self, epoch: int, predict: Callable[[nn.Module], torch.Tensor]) -> None:
        """Act before an epoch; `predict(net)` gives the (n, K) logits of all training examples."""

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[None]:
        """Hold, inside, the weights that validation judges and that are kept: by default those trained."""
        yield

    def finish(self) -> None:
        """Act when training has ended: the weights are then the run's result."""

    def distances(self) -> dict[str, float]:
        """Return ‖v_i‖ of every layer as the network stands."""
        return self.setup.distances()

    def radii(self) -> dict[str, float]:
        """Return the radius of every layer, in the run's norm; empty without a constraint."""
        return {}

    def done(self) -> bool:
        """Tell whether training is at its end, before the last epoch."""
        return False

    def picked(self) -> list[int] | None:
        """Return the training examples that alone determine the weights, if only some do."""
        return None

    def posterior(self) -> dict[str, float] | None:
        """Return the deviation of the noise each trained parameter was trained to bear, if any was."""
        return None

    def notes(self) -> list[str]:
        """Return what its user should know of what it leaves undone with these options."""
        return []

    def state(self) -> Tree:
        """Return what a resumed run needs beside weights and optimizer: tensors and plain values."""
        return {}

    def load_state(self, state: Tree) -> None:
        """Take back what `state` returned."""
