"""Methods that replace cross-entropy by another loss."""

from __future__ import annotations

from typing import ClassVar

import torch

from hesstune.losses.robust import (
    ActivePassiveLoss,
    ForwardLoss,
    GeneralizedCrossEntropy,
    JensenShannonLoss,
    SymmetricCrossEntropy,
    early_learning_penalty,
)
from hesstune.methods._base import (
    ROBUST_HEAD_PENALTY,
    Batch,
    Loss,
    Method,
    MethodSetup,
    Option,
    Tier,
    averaged,
    class_weights,
    consistent,
)
from hesstune.storage.tensors import Tree


class RobustLoss(Method):
    """A loss of logits and targets instead of cross-entropy; classes are weighted as there."""

    shards = True
    takes_soft = False

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self._robust = averaged(setup, self.make())

    def make(self) -> Loss:
        """Return the loss of each example, (N,), as a function of logits, (N, K), and targets, (N,)."""
        raise NotImplementedError

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, epoch: int) -> torch.Tensor:
        return self._robust(logits, targets)


class Consistent(Method):
    """Consistent loss alone ("backward correction"), with no constraint.

    Source: the paper, section 4; Patrini et al. 2017. Unbounded below: the weights can run away.
    """

    shards = True
    needs_noise_matrix = True

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self._consistent = consistent(setup)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, epoch: int) -> torch.Tensor:
        loss: torch.Tensor = self._consistent(logits, targets)
        return loss


class Forward(RobustLoss):
    """Forward correction: the likelihood of the noisy label, −log Σ_i F[i, ỹ] p_i.

    Source: Patrini et al. 2017, section 4.2. Bounded below, unlike the consistent loss, and without its
    variance; unbiased only at its minimum.
    """

    tier = "baseline"
    needs_noise_matrix = True
    head_penalty = ROBUST_HEAD_PENALTY

    def make(self) -> Loss:
        return ForwardLoss(self.setup.noise_matrix, reduction="none")


class LabelSmoothing(RobustLoss):
    """Label smoothing: cross-entropy against (1 − ε)·label + ε/K.

    Source: Szegedy et al. 2016, section 7, ε = 0.1; Lukasik et al. 2020 on why it helps under noise.
    """

    tier = "baseline"
    own_options = {"epsilon": Option(0.1, "Szegedy et al. 2016, section 7", high=1.0, search=(0.0, 0.9))}

    def make(self) -> Loss:
        smoothed = torch.nn.CrossEntropyLoss(reduction="none", label_smoothing=self.options["epsilon"])
        return lambda logits, targets: smoothed(logits.float(), targets)


class GCE(RobustLoss):
    """Generalised cross-entropy: (1 − p_y^q)/q, between cross-entropy (q → 0) and mean absolute error.

    Source: Zhang and Sabuncu 2018, equation 6, q = 0.7.
    """

    tier = "baseline"
    head_penalty = ROBUST_HEAD_PENALTY
    own_options = {
        "q": Option(0.7, "Zhang and Sabuncu 2018, section 4", low=1e-6, high=1.0, search=(0.1, 1.0))
    }

    def make(self) -> Loss:
        return GeneralizedCrossEntropy(self.options["q"], reduction="none")


SCE_SOURCE = "Wang et al. 2019, section 4.3 (CIFAR-10)"


class SCE(RobustLoss):
    """Symmetric cross-entropy: α·CE + β·RCE, cross-entropy of label and prediction with roles exchanged.

    Source: Wang et al. 2019, section 3.2; α = 0.1, β = 1 for ten classes.
    """

    own_options = {
        "alpha": Option(0.1, SCE_SOURCE, search=(0.01, 6.0), log=True),
        "beta": Option(1.0, SCE_SOURCE, search=(0.1, 1.0), log=True),
    }

    def make(self) -> Loss:
        return SymmetricCrossEntropy(self.options["alpha"], self.options["beta"], reduction="none")


APL_SOURCE = "Ma et al. 2020, section 4.1 (CIFAR-10)"


class APL(RobustLoss):
    """Active-passive loss: α·NCE + β·RCE, both constant when summed over all labels.

    Source: Ma et al. 2020, section 4; α = β = 1 for ten classes.
    """

    own_options = {
        "alpha": Option(1.0, APL_SOURCE, search=(0.1, 10.0), log=True),
        "beta": Option(1.0, APL_SOURCE, search=(0.1, 10.0), log=True),
    }

    def make(self) -> Loss:
        return ActivePassiveLoss(self.options["alpha"], self.options["beta"], reduction="none")


class GJS(Method):
    """GJS: the Jensen–Shannon divergence of the label and the predictions of two augmented views.

    It also rewards views that agree. Source: Englesson and Azizpour 2021, equation 7. On cached features
    both views are the same and the loss is their JS.
    """

    shards = True
    takes_soft = False
    own_options = {
        "weight": Option(
            0.5, "the middle of their search, 0.1 … 0.9", low=1e-6, high=1 - 1e-6, search=(0.1, 0.9)
        )
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self._gjs = averaged(setup, JensenShannonLoss(self.options["weight"], reduction="none"))

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        views = [batch.logits(), batch.logits(inputs=batch.again())]
        return self._gjs(views, batch.targets), views[0]


ELR_SOURCE = "Liu et al. 2020, appendix (CIFAR-10)"


class ELR(Method):
    """ELR: cross-entropy + λ·log(1 − ⟨p, t⟩), t a running average of each example's own predictions.

    Networks learn correct labels before wrong ones; the penalty keeps early predictions. Source: Liu et al.
    2020, equations 6 and 9; λ = 3, β = 0.7 for CIFAR-10.
    """

    tier: ClassVar[Tier] = "baseline"
    head_penalty = ROBUST_HEAD_PENALTY
    own_options = {
        "lambda": Option(3.0, ELR_SOURCE, search=(0.3, 10.0), log=True),
        "beta": Option(0.7, ELR_SOURCE, high=1.0, search=(0.5, 0.99)),
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self.memory = torch.zeros(int(setup.counts.sum()), len(setup.counts))

    def remember(self, p: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Set t ← β·t + (1 − β)·p for the examples of a batch, and return it."""
        p = p.detach().clamp(1e-4, 1.0 - 1e-4)
        p = p / p.sum(dim=1, keepdim=True)
        self.memory = self.memory.to(p)
        beta = self.options["beta"]
        self.memory[indices] = beta * self.memory[indices] + (1.0 - beta) * p
        return self.memory[indices]

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        logits = batch.logits()
        p = torch.softmax(logits.float(), dim=1)
        penalty = early_learning_penalty(p, self.remember(p, batch.indices)).mean()
        return self._labels_loss(logits, batch) + self.options["lambda"] * penalty, logits

    def state(self) -> Tree:
        return {"memory": self.memory}

    def load_state(self, state: Tree) -> None:
        self.memory = state["memory"]


class SAT(Method):
    """Self-adaptive training: targets drift from the labels to the network's own running predictions.

    After a first phase t ← α·t + (1 − α)·p; the loss is the cross-entropy against t, each example weighted
    by max t. Source: Huang, Zhang, Zhang 2020, algorithm 1; α = 0.9, the first 60 of 200 epochs plain.
    """

    takes_soft = False
    own_options = {
        "alpha": Option(0.9, "Huang et al. 2020, section 3.1", high=1.0, search=(0.5, 0.99)),
        "after": Option(0.3, "60 of 200 epochs, Huang et al. 2020", high=1.0, search=(0.05, 0.7)),
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        n, k = int(setup.counts.sum()), len(setup.counts)
        self.soft = torch.zeros(n, k)
        self.seen = torch.zeros(n, dtype=torch.bool)
        self._weights = class_weights(setup)

    def adapt(self, p: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Move the targets of a batch towards its predictions, once the first phase is over."""
        self.soft, self.seen = self.soft.to(p), self.seen.to(p.device)
        rows = batch.indices
        labels = torch.nn.functional.one_hot(batch.targets, p.shape[1]).to(p)
        soft = torch.where(self.seen[rows, None], self.soft[rows], labels)
        if batch.epoch >= self.options["after"] * self.setup.epochs:
            soft = self.options["alpha"] * soft + (1.0 - self.options["alpha"]) * p.detach()
        self.soft[rows], self.seen[rows] = soft, True
        return soft

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        logits = batch.logits()
        log_p = torch.log_softmax(logits.float(), dim=1)
        soft = self.adapt(log_p.exp(), batch)
        weight = soft.max(dim=1).values
        if self._weights is not None:
            weight = weight * self._weights.to(weight)[batch.targets]
        losses = -(soft * log_p).sum(dim=1)
        return (weight * losses).sum() / weight.sum(), logits

    def state(self) -> Tree:
        return {"soft": self.soft, "seen": self.seen}

    def load_state(self, state: Tree) -> None:
        self.soft, self.seen = state["soft"], state["seen"]


METHODS = {
    "consistent": Consistent,
    "forward": Forward,
    "label_smoothing": LabelSmoothing,
    "gce": GCE,
    "sce": SCE,
    "apl": APL,
    "gjs": GJS,
    "elr": ELR,
    "sat": SAT,
}
