"""What every fine-tuning method offers to the training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

from hesstune.errors import ConfigError, unknown_name
from hesstune.methods._losses import cross_entropy
from hesstune.methods._setup import Batch, MethodSetup, Option
from hesstune.storage.tensors import Tree

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hesstune.methods._setup import HeadMaterial, SolvedHead

__all__ = ["TIERS", "Batch", "Method", "MethodSetup", "Option", "Tier"]


T = TypeVar("T")
Tier = Literal["recommended", "baseline", "research"]
TIERS: tuple[Tier, ...] = get_args(Tier)
# The share of a head's penalty for methods whose loss is robust to noise: of 0, 0.1 and 1 the best on average
# on nine development tasks of heads.
RESISTANT = 0.1


class Method:
    """Plain cross-entropy; other methods override what they change.

    The loop calls, in this order: `start_epoch`, then for every real optimizer step `gradients`
    (which calls `batch_loss` for each batch), the optimizer, `after_step`; at the end `finish`.
    Random draws come from torch's global generator, which the loop seeds by run and epoch.
    """

    # How well it is supported by the records: see TIERS.
    tier: ClassVar[Tier] = "research"
    needs_noise_matrix: ClassVar[bool] = False
    # Whether it uses a noise matrix where one is known; those that need one do.
    uses_noise_matrix: ClassVar[bool] = False
    constrained: ClassVar[bool] = False
    # Whether balanced class weights enter its loss; where not, asking for them is an error.
    weighs_classes: ClassVar[bool] = True
    # Whether plain cross-entropy for `warmup_epochs` goes before its own loss.
    warms_up: ClassVar[bool] = False
    # Whether it mixes inputs: they must then be numbers (images, or a head's features), not texts.
    mixes_inputs: ClassVar[bool] = False
    # The weight decay of a head that it trains alone, where none is given, as a share of the penalty that
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
    # Whether it trains weights of which each process holds a part: it then touches them by the constraint
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

    @property
    def goes_on(self) -> bool:
        """Whether steps follow: not where the head was solved and nothing else is trained."""
        return True

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
        return self.setup.reference.distances(self.setup.model, warn=False)

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
