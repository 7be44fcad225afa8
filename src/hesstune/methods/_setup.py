"""What a method is built from and is given: its setup, options, a batch, and the inputs of a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hesstune.reference import in_modules

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from hesstune.forward import Inputs
    from hesstune.noise.matrix import NoiseMatrix
    from hesstune.reference import Reference
    from hesstune.weak.votes import Votes

Budget = Literal["fast", "default", "thorough"]
# The least class probability of a probe.
LEAST = 1e-3


@dataclass(frozen=True)
class HeadMaterial:
    """What a head is solved from: the training examples, as a frozen network sees them.

    Attributes:
        features: (N, D) what the head is given.
        labels: (N,) labels as given, possibly wrong.
        k: Number of classes K.
        soft: (N, K) soft labels to be trained on instead, or None.
        checked: (rows, true labels) that a person has checked, or None.
        noise_matrix: F where the user knows it, or None.
        weight: (N,) how much each example counts, or None: once.
        budget: How many candidates may be tried.
        seed: Of everything drawn.
        votes: The votes that the labels were made of, or None.
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


@dataclass(frozen=True)
class ClassEvidence:
    """Probabilities of each training example's class, from its features and its given label.

    Attributes:
        probabilities: P(true class | features), (N, K), of a probe that did not see the example.
        likelihood: P(label as given | true class), (N, K); where a person has checked, one-hot.
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
        log_p = np.log(np.maximum(self.probabilities, LEAST))
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
        default: Its value where none is given.
        source: Where the default comes from.
        low: The least value allowed.
        high: The largest value allowed.
        search: The range in which a search looks, or None where it leaves the default alone.
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
        radius: The constraint's radii, by layer pattern or one for all; None where unconstrained.
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
        clean: (N,) whether a person has checked the label, or None where nobody checked any.
        share: The rows that this process runs, where several share the batch; None: all of them.
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
        from hesstune.forward import logits_of

        forward = logits_of if self.forward is None else self.forward
        return forward(self.net if net is None else net, self.inputs if inputs is None else inputs)
