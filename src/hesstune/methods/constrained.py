"""Methods with a layer-wise distance constraint, the paper's algorithm among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from hesstune.constraints.distance import (
    depth_scaled,
    resolve_radii,
    trained_matrices,
)
from hesstune.errors import listed
from hesstune.methods._base import Batch, Method, MethodSetup, Option, Tier, class_weights, consistent
from hesstune.methods.robust_losses import ELR
from hesstune.storage.tensors import Tree

TASKS = "development tasks of benchmarks/field/tasks.py"
# Options of the default radii.
RADII = {
    "head_share": Option(
        2.0,
        "of the norm of the head that penalised cross-entropy fits: the radius of a head that is trained "
        f"alone; a quarter of it for a head beside other layers; {TASKS}",
        low=1e-6,
        search=(0.5, 8.0),
        log=True,
    ),
    "layer_share": Option(
        0.003,
        "of a layer's norm: the radius of a layer that is not the head; images and sentences, 12 and 40 "
        "epochs",
        low=1e-9,
        search=(0.0005, 0.05),
        log=True,
    ),
}

STOPPED_FACTOR = Option(
    16.0,
    "of the default radii if the best epoch on validation is kept: a layer share near 0.05, as accurate as "
    "no constraint (benchmarks/configs/radii.yaml)",
    low=1e-6,
    search=(0.25, 64.0),
    log=True,
)


def unused_radius_options(radius: object, head_only: bool) -> tuple[str, ...]:
    """Return the options of default radii that have no effect beside the radii that were asked for."""
    if isinstance(radius, float | Mapping):
        return (*RADII, "stopped_factor")
    return ("layer_share", "stopped_factor") if head_only else ()


class Constraint(Method):
    """Layer-wise constraint alone: cross-entropy with a distance constraint around the reference.

    Source: the paper, section 4; Gouk et al. 2021 for the MARS norm; `--radius-scale` for radii that
    grow with depth, as in the paper's code.
    """

    tier: ClassVar[Tier] = "baseline"
    shards = True
    constrained = True
    head_penalty = 0.0
    own_options = dict(RADII)

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        assert setup.radius is not None
        radius = setup.radius
        if setup.radius_scale != 1.0:
            layers = setup.reference.layers()
            heads = [name for name in layers if setup.in_head(name)]
            radius = depth_scaled(resolve_radii(layers, radius), layers, setup.radius_scale, heads)
        self.constraint = setup.constraint(setup.reference, radius)

    def after_step(self) -> None:
        self.constraint.project_()

    def notes(self) -> list[str]:
        if self.setup.adapters is not None:
            return []  # adapters and head are all that trains
        layers = set(self.setup.reference.layers())
        loose = [name for name, _ in trained_matrices(self.setup.model) if name not in layers]
        return (
            [f"trained without a constraint, since no layer of a known kind: {listed(loose)}"]
            if loose
            else []
        )

    def radii(self) -> dict[str, float]:
        return dict(self.constraint.radii)


class Robust(Constraint):
    """Robust fine-tuning: the paper's algorithm.

    Consistent loss and layer-wise constraint, after a warm-up of plain cross-entropy (inside the same
    constraints). If validation chooses the epoch (`--select best`, the default if more than the head is
    trained), the constraints are so wide that they seldom act, and a second path goes on with the warm-up's
    loss: the epoch with the best validation likelihood under the noise matrix is kept. Source: Ju, Li, Zhang
    2022, Algorithm 1.
    """

    tier: ClassVar[Tier] = "recommended"
    shards = True
    needs_noise_matrix = True
    warms_up = True
    own_options = {**RADII, "stopped_factor": STOPPED_FACTOR}

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self._consistent = consistent(setup)
        # The second path goes on with the warm-up's loss.
        self._second_path = False

    @classmethod
    def defaults(cls, head_only: bool) -> dict[str, Any]:
        return {} if head_only else {"select": "best", "patience": 3}

    @property
    def forks_after(self) -> int | None:
        matrix = self.setup.noise_matrix
        return None if matrix is None or matrix.rate == 0 else self.setup.warmup_epochs

    def take_second_path(self) -> None:
        self._second_path = True

    def kept_note(self, second: bool) -> str:
        losses = ("the consistent loss", "plain cross-entropy")
        return (
            f"the epoch kept was trained by {losses[second]} after the warm-up: on validation its likelihood "
            f"under the noise matrix is better than with {losses[not second]}"
        )

    def state(self) -> Tree:
        return {**super().state(), "second_path": self._second_path}

    def load_state(self, state: Tree) -> None:
        super().load_state(state)
        self._second_path = bool(state["second_path"])

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, epoch: int) -> torch.Tensor:
        if self._second_path or epoch < self.setup.warmup_epochs:
            return super().loss(logits, targets, epoch)
        loss: torch.Tensor = self._consistent(logits, targets)
        return loss


class RobustPlus(ELR, Robust):
    """robust+: the method `robust` with a memory of each example's early predictions.

    The consistent loss is unbiased, but not for each example. Early-learning regularisation keeps every
    prediction near its running average, which the noise changes less. The radii of the constraint are chosen
    on noisy validation (`--radius auto`).
    Source: Ju, Li, Zhang 2022, Algorithm 1, for loss and constraint; Liu et al. 2020, equation 6, for the
    memory, with λ = 1 in place of their 3 for plain cross-entropy, chosen on development splits of four
    tasks with weak labels; β = 0.7 as there.
    """

    tier: ClassVar[Tier] = "research"
    shards = False
    head_penalty = 0.0
    own_options = {
        **RADII,
        **ELR.own_options,
        "lambda": Option(1.0, "development splits of weakly labelled tasks", search=(0.1, 10.0), log=True),
    }

    @classmethod
    def defaults(cls, head_only: bool) -> dict[str, Any]:
        return {"radius": "auto"}

    @property
    def forks_after(self) -> int | None:
        return None  # the memory follows one path


REGSL_SOURCE = "the code of Li and Zhang 2021, its README"


class RegSL(Constraint):
    """RegSL: a layer-wise constraint, examples reweighted by their loss, and confident predictions as labels.

    The weight of an example is softmax(−ℓ/γ) over its batch; a label is replaced if max p exceeds a
    threshold. Source: Li and Zhang 2021, section 4, and their code: reweighting from epoch 5 and
    relabelling from epoch 10 of 30, γ = 2, threshold 0.9.
    """

    tier: ClassVar[Tier] = "research"
    shards = False
    takes_soft = False
    own_options = {
        **RADII,
        "reweight_after": Option(5 / 30, REGSL_SOURCE, high=1.0),
        "correct_after": Option(10 / 30, REGSL_SOURCE, high=1.0, search=(0.1, 0.8)),
        "temperature": Option(2.0, REGSL_SOURCE, low=1e-6, search=(0.5, 5.0), log=True),
        "threshold": Option(0.9, REGSL_SOURCE, high=1.0, search=(0.5, 0.99)),
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self._weights = class_weights(setup)

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        logits = batch.logits()
        done = batch.epoch / self.setup.epochs
        targets = batch.targets
        if done >= self.options["correct_after"]:
            confidence, predicted = torch.softmax(logits.detach().float(), dim=1).max(dim=1)
            targets = torch.where(confidence > self.options["threshold"], predicted, targets)
        losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        if self._weights is not None:
            losses = self._weights.to(losses)[targets] * losses
        if done < self.options["reweight_after"]:
            return losses.mean(), logits
        weight = torch.softmax(-losses.detach() / self.options["temperature"], dim=0)
        return (weight * losses).sum(), logits


METHODS = {"constraint": Constraint, "robust": Robust, "robust_plus": RobustPlus, "regsl": RegSL}
