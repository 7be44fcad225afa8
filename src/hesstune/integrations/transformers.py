"""transformers' Trainer: distance constraint and decay to the pretrained weights, consistent loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hesstune.checks import positive
from hesstune.constraints.distance import check_finite, warn_if_outside
from hesstune.constraints.optimizers import AfterSteps
from hesstune.errors import ConfigError, DivergedError, LayerError, MissingExtraError, RunError
from hesstune.forward import named_parameters
from hesstune.integrations._shared import constraint_of, distances_of, has_adapters, reference_of
from hesstune.losses.consistent import ConsistentLoss
from hesstune.noise.matrix import NoiseMatrix
from hesstune.reference import Reference
from hesstune.storage.files import made_folder

try:
    from transformers import TrainerCallback
except ImportError:
    raise MissingExtraError("transformers", "transformers", "hesstune.integrations.transformers") from None

REFERENCE = "reference.safetensors"


class RobustTrainerCallback(TrainerCallback):
    """Keep each layer within its radius around the pretrained weights, after every optimizer step.

    The reference is the model when training starts. If the model has peft's adapters, the products B·A and
    the trained copies of modules are constrained. The reference is saved as
    `output_dir/reference.safetensors`. A resumed training reads it from there, since the model then holds a
    checkpoint.

    One callback serves several trainings in turn (folds, trials): each has its own reference.

    Layers are projected right after the optimizer's step, before other callbacks see them: averages of
    weights lie within the radius in any order of callbacks. When a checkpoint is saved and when training
    ends, layers outside their radius are named in a warning; put this callback last if others change weights
    then.

    Args:
        radius: One radius, or {pattern: radius}, as for `DistanceConstraint`.
        norm: `frobenius` or `mars`.
        reference: The reference of every training; default: the model when training starts.
        include: Patterns of further parameters held like layers, as for `DistanceConstraint`.

    Attributes:
        reference: The reference of the current or last training.

    Example:
        >>> callback = RobustTrainerCallback({"classifier.*": 1.0, "*": 0.1})
        >>> # Trainer(..., callbacks=[callback])
    """

    def __init__(
        self,
        radius: float | Mapping[str, float],
        *,
        norm: str = "frobenius",
        reference: Reference | None = None,
        include: Sequence[str] | None = None,
    ) -> None:
        self.radius, self.norm, self.include = radius, norm, include
        self._given = self.reference = reference
        self.constraint: Any = None
        self._steps: AfterSteps | None = None
        self._warned = False

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Copy the reference, or read it if training resumes."""
        if self._steps is not None:
            self._steps.end()
        self._warned = False
        self.reference = _reference_at_start(args, state, model, self._given)
        self.constraint = constraint_of(model, self.reference, self.radius, self.norm, self.include)
        self._steps = AfterSteps([kwargs.get("optimizer")], self.constraint)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Project every layer onto its constraint, unless the optimizer's step has done so."""
        assert self._steps is not None
        self._steps.project_()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn of layers of a checkpoint that are outside their radius."""
        self._check()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn of layers that training leaves outside their radius; remove the optimizer's hook."""
        self._check()
        if self._steps is not None:
            self._steps.end()

    def _check(self) -> None:
        if self.constraint is not None and not self._warned:
            outside = self.constraint.outside()
            self._warned = bool(outside)
            warn_if_outside(outside, self.constraint.radii)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Add the distance from the reference to what is logged."""
        model = kwargs.get("model")
        if logs is not None and self.reference is not None and model is not None:
            _check_logged(logs)
            found = distances_of(model, self.reference)
            check_finite(found)
            logs["distance"] = sum(d * d for d in found.values()) ** 0.5
            if state.log_history:  # written before callbacks are called
                state.log_history[-1]["distance"] = logs["distance"]


def _check_logged(logs: Mapping[str, Any]) -> None:
    """Raise DivergedError if the Trainer logs a training loss that is not finite."""
    value = logs.get("loss")
    if isinstance(value, int | float) and not math.isfinite(value):
        raise DivergedError(
            f"the Trainer's loss became {value}: training has diverged; go back to the last good checkpoint "
            "and lower learning_rate, or max_grad_norm"
        )


def _reference_at_start(args: Any, state: Any, model: nn.Module, given: Reference | None) -> Reference:
    """Return the reference on the model's device: the given one, the saved one, or a copy of the model."""
    path = Path(args.output_dir) / REFERENCE
    resumes = state.global_step > 0
    if resumes and given is None and not path.is_file():
        raise RunError(
            f"training resumes at step {state.global_step}, but {path} is missing: the model now holds "
            "a checkpoint, not the pretrained weights; give reference="
        )
    if resumes and path.is_file():
        kept = Reference.load(path)
        if given is not None and not _same(kept, given):
            raise RunError(
                f"the given reference differs from {path}, with which this training began; "
                "leave reference= out to resume with that one"
            )
        given = kept
    found = reference_of(model) if given is None else given
    if state.is_world_process_zero and not resumes:
        made_folder(path.parent)
        found.save(path)
    return found.to(next(model.parameters()).device)


def _same(a: Reference, b: Reference) -> bool:
    names = set(a.names())
    return names == set(b.names()) and all(torch.equal(a[name].cpu(), b[name].cpu()) for name in names)


class PretrainedDecayCallback(TrainerCallback):
    """Decay the weights towards the pretrained ones, as AdamW decays them towards zero.

    Before every optimizer step w ← w − lr·decay·(w − w⁽ˢ⁾), with lr that of the parameter's group. Like
    AdamW's own decay (Loshchilov and Hutter, arXiv 1711.05101) it is not part of the gradient, so Adam's
    moments do not rescale it. Leave the Trainer's `weight_decay` at 0. The reference is saved and read as by
    `RobustTrainerCallback`.

    Args:
        decay: As AdamW's `weight_decay`, above 0.
        reference: The reference; default: the model when training starts.

    Raises:
        ConfigError: If the Trainer has a `weight_decay` of its own, which pulls towards zero.
        LayerError: If the model has peft's adapters: `weight_decay` of B·A already pulls towards the
            pretrained weights.

    Example:
        >>> callback = PretrainedDecayCallback(0.1)
        >>> # Trainer(..., callbacks=[callback])
    """

    def __init__(self, decay: float, *, reference: Reference | None = None) -> None:
        self.decay = positive("decay", decay)
        self._given = self.reference = reference
        self._starts: dict[int, torch.Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Copy the reference, or read it if training resumes."""
        if has_adapters(model):
            raise LayerError(
                "the model has peft's adapters, and their weight decay already pulls towards the pretrained "
                "weights; use the Trainer's weight_decay instead of PretrainedDecayCallback"
            )
        if args.weight_decay:
            raise ConfigError(
                f"the Trainer's weight_decay of {args.weight_decay} pulls towards zero, against "
                "PretrainedDecayCallback; set weight_decay=0"
            )
        self.reference = _reference_at_start(args, state, model, self._given)
        self.reference.check(model)
        self._starts = {
            id(parameter): self.reference[name]
            for name, parameter in named_parameters(model).items()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Pull every trained parameter towards its start."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                start = self._starts.get(id(parameter))
                if start is not None:
                    parameter.lerp_(start.to(parameter.dtype), float(group["lr"]) * self.decay)

    @torch.no_grad()
    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Raise DivergedError, naming the parameters, if a step made one of them not finite."""
        trained = {name: p for name, p in named_parameters(model).items() if p.requires_grad}
        sizes = torch.stack([torch.linalg.vector_norm(p) for p in trained.values()]).tolist()
        check_finite(dict(zip(trained, sizes, strict=True)))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Raise DivergedError if the logged loss is not finite."""
        _check_logged(logs or {})


def consistent_loss(noise_matrix: NoiseMatrix, **options: Any) -> Callable[..., torch.Tensor]:
    """Return the consistent loss in the form of the Trainer's `compute_loss_func`.

    Args:
        noise_matrix: F[i, j] = P(noisy = j | true = i).
        **options: Of `ConsistentLoss`, such as class weights.

    Example:
        >>> loss = consistent_loss(NoiseMatrix.symmetric(2, 0.2))
        >>> # Trainer(..., compute_loss_func=loss)
    """
    each = ConsistentLoss(noise_matrix, reduction="none", **options)

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits
        losses = each(logits, labels)
        # With gradient accumulation the Trainer counts the examples of the whole step.
        mean: torch.Tensor = losses.mean()
        if num_items_in_batch is not None:
            mean = losses.sum() / num_items_in_batch
        return mean

    return loss
