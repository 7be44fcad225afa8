"""The default method: a head on frozen features, then deeper layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from hesstune.constraints.distance import weight_norm
from hesstune.losses.robust import ForwardLoss
from hesstune.methods._base import (
    Batch,
    ClassEvidence,
    HeadMaterial,
    MethodSetup,
    Option,
    SolvedHead,
    averaged,
)
from hesstune.methods._heads import SolvedHeadMethod
from hesstune.noise.latent.channel import Observed
from hesstune.noise.latent.head import (
    CANDIDATES,
    FAST_CANDIDATES,
    GIVEN_MATRIX,
    THOROUGH_CANDIDATES,
    Choice,
    robust_head,
)
from hesstune.noise.matrix import NoiseMatrix
from hesstune.storage.tensors import Tree

# Epochs in which the network's own predictions say too little yet to be used.
OWN_PREDICTIONS_AFTER = 2
# An example that a person has checked counts as so many: the others' classes are inferred. Of 1, 4 and 8 on
# development tasks of heads, with 50 and 200 checked.
CHECKED_WEIGHT = 4.0
DEVELOPMENT_TASKS = "development tasks of images, 4, 6, 12 and 40 epochs"
# Steps up to which the head helps most: in so few the network learns little itself. In more, what the head
# gives falls with the square of their number.
SHORT_RUN_STEPS = 64


# Candidates within each budget, and the number of folds that they are scored on.
BUDGETS = {"fast": (FAST_CANDIDATES, 2), "default": (CANDIDATES, 3), "thorough": (THOROUGH_CANDIDATES, 5)}
KINDS = {
    "none": "penalised cross-entropy on the labels as they are",
    "given": "posteriors under the given noise matrix",
    "symmetric": "posteriors under symmetric noise, its rate estimated",
    "full": "posteriors under an estimated noise matrix",
}


class Auto(SolvedHeadMethod):
    """Auto: a head chosen by held-out likelihood, then deeper layers if that improves validation.

    `auto` fits several linear heads on frozen features, with and without a noise model: softmax regressions
    and linear discriminants. Their mean is the head, weighted such that it predicts held-out given labels
    best (`hesstune.noise.latent`). Deeper layers start from it (Kumar et al. 2022), with its logits damped,
    more in longer training: a head that already fits
    gives them no gradient. They are trained on posteriors of each example's true class, inside distance
    constraints that are a share of each layer's norm. The posteriors combine the
    out-of-sample probe (with less weight in longer training), the network's own earlier predictions and the
    given label. The epoch
    with the best validation likelihood is kept if it beats the head alone by more than one standard error.
    If no noise was found, it is the latest epoch whose validation error is within one standard error of the
    lowest.
    """

    tier = "recommended"
    uses_noise_matrix = True
    constrained = True
    own_options = {
        "share": Option(0.2, "of each layer's norm: its radius", low=1e-6, search=(0.02, 1.0), log=True),
        "damping": Option(
            0.3,
            f"of the solved head's logits in a run of up to {SHORT_RUN_STEPS} steps, less in longer ones; "
            f"{DEVELOPMENT_TASKS}",
            low=1e-3,
            high=1.0,
            search=(0.1, 1.0),
            log=True,
        ),
        "probe": Option(
            0.5,
            f"the probe's part in posteriors in a run of up to {SHORT_RUN_STEPS} steps, less in longer ones, "
            "the rest the network's: equal parts, not searched",
            high=1.0,
        ),
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        if setup.noise_matrix is not None:
            self._forward = averaged(setup, ForwardLoss(setup.noise_matrix, reduction="none"))
        self.evidence = None if setup.solved is None else setup.solved.evidence
        # ln p of the training examples, a running mean over epochs, and the posteriors that follow.
        self.seen: torch.Tensor | None = None
        # The mean's weights fall by a factor e in an epoch; the mean stays within the radius.
        self.horizon = max(1, round(float(setup.counts.sum()) / setup.batch_size))
        # The part of `damping` and `probe` that is left in a run of so many steps.
        self.fall = min(1.0, SHORT_RUN_STEPS / (self.horizon * setup.epochs)) ** 2
        self._update_posteriors()
        self.mean: dict[str, torch.Tensor] = {}
        self.steps = 0
        start, radii = setup.weights(), setup.radius
        if radii is None:
            radii = {
                name: max(self._share(name) * weight_norm(start[name], setup.norm), 1e-6)
                for name in start.layers()
                if setup.moves(name)
            }
        # Radii of the user's own hold the known kinds of layers, as of every method.
        self.constraint = setup.constraint(start, radii) if radii else None

    def _share(self, name: str) -> float:
        """Return the radius of a layer as a share of its norm; the head can undo its damping."""
        share = self.options["share"]
        return max(share, 1.0) if self.setup.in_head(name) else share

    def _update_posteriors(self) -> None:
        """Set the posteriors, (n, K), of the training examples' true classes."""
        self.posteriors: torch.Tensor | None = None
        if self.evidence is not None:
            seen = None if self.seen is None else self.seen.double().numpy()
            found = self.evidence.posterior(seen, self.fall * self.options["probe"])
            self.posteriors = torch.from_numpy(found).float()

    @torch.no_grad()
    def start_epoch(self, epoch: int, predict: Callable[[nn.Module], torch.Tensor]) -> None:
        if self.setup.solved is not None and epoch == 0:
            for parameter in self.setup.model.get_submodule(self.setup.head).parameters():
                parameter.mul_(self.fall * self.options["damping"])
        if self.evidence is not None and epoch >= OWN_PREDICTIONS_AFTER:
            with self.evaluated():
                now = torch.log_softmax(predict(self.setup.network).float().cpu(), dim=1)
            self.seen = now if self.seen is None else 0.5 * (self.seen + now)
            self._update_posteriors()

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        if self.posteriors is None:
            return super().batch_loss(batch)
        logits = batch.logits()
        self.posteriors = self.posteriors.to(logits.device)  # once an epoch: later it is there
        targets = self.posteriors[batch.indices]
        if batch.clean is None:
            return nn.functional.cross_entropy(logits.float(), targets), logits
        losses = nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        weight = torch.where(batch.clean, CHECKED_WEIGHT, 1.0).to(losses)
        return (weight * losses).sum() / weight.sum(), logits

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, epoch: int) -> torch.Tensor:
        if self.setup.noise_matrix is None or targets.ndim == 2:
            return super().loss(logits, targets, epoch)
        return self._forward(logits, targets)

    @torch.no_grad()
    def after_step(self) -> None:
        if self.constraint is not None:
            self.constraint.project_()
        self.steps += 1
        for name, parameter in self.setup.trained.items():
            if name not in self.mean:
                self.mean[name] = parameter.detach().clone()
            self.mean[name].lerp_(parameter.detach(), 1 / min(self.steps, self.horizon))

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[None]:
        kept = self._swap(self.mean)
        if self.setup.adapters is not None and self.constraint is not None:
            self.constraint.project_()  # a product of mean factors may lie outside
        try:
            yield
        finally:
            self._swap(kept)

    @torch.no_grad()
    def _swap(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        before = {name: self.setup.trained[name].detach().clone() for name in weights}
        for name, value in weights.items():
            self.setup.trained[name].copy_(value)
        return before

    def state(self) -> Tree:
        mean = {k: v.clone() for k, v in self.mean.items()}
        return {"mean": mean, "steps": self.steps, "seen": self.seen}

    def load_state(self, state: Tree) -> None:
        self.mean, self.steps, self.seen = dict(state["mean"]), int(state["steps"]), state["seen"]
        self._update_posteriors()

    def radii(self) -> dict[str, float]:
        return {} if self.constraint is None else dict(self.constraint.radii)

    @classmethod
    def solve_head(cls, material: HeadMaterial) -> SolvedHead:
        given, weight, checked = material.noise_matrix, material.weight, material.checked
        if checked is not None:
            weight = np.ones(len(material.labels)) if weight is None else weight.copy()
            weight[checked[0]] *= CHECKED_WEIGHT
        labels = material.labels if material.soft is None else material.soft
        matrix = None if given is None else given.array
        observed = Observed.of(labels, material.k, matrix, checked, weight, material.copies)
        tried, held_out = (GIVEN_MATRIX, 2) if given is not None else BUDGETS[material.budget]
        found = robust_head(
            material.features, observed, candidates=tried, held_out=held_out, seed=material.seed
        )
        truth = found.truth
        if given is None and truth.channel.rate > 0:
            given = NoiseMatrix(truth.channel.matrix, "estimated")
        details = {**found.choice.details(), "rate": truth.channel.rate}
        if checked is not None:
            details["checked"] = {"examples": len(checked[0]), "counts": CHECKED_WEIGHT}
        return SolvedHead(
            found.linear.weight.T,
            found.linear.bias,
            given,
            _description(found.choice),
            _reason(found.choice),
            details,
            ClassEvidence(truth.probabilities, observed.known(truth.channel.likelihood(observed.given))),
        )


def _description(choice: Choice) -> str:
    """Return the noise model and the heads of the pool, in words."""
    noise = f"{KINDS[choice.candidate.shape]} (C = {choice.candidate.strength:g})"
    if not choice.pool:
        return noise
    largest = sorted(choice.pool, key=lambda one: -one.share)
    heads = (f"{one.name} ({one.share:.0%})" for one in largest if round(100 * one.share) >= 1)
    return f"{noise}; the weighted mean of the heads {', '.join(heads)}"


def _reason(choice: Choice) -> str:
    mean, error = choice.gain
    if not choice.scores:
        return "too few examples to choose among candidates"
    if choice.plain_noise_rate is not None:
        return (
            "it predicts held-out noisy labels as well as the plain head, which estimates a noise rate of "
            f"{choice.plain_noise_rate:.0%}"
        )
    if choice.candidate == choice.plain:
        return "no other predicts held-out noisy labels better beyond half a standard error"
    return (
        f"it predicts held-out noisy labels better than the plain head, by {mean:.3f} ± {error:.3f} in "
        "log-likelihood"
    )


METHODS = {"auto": Auto}
