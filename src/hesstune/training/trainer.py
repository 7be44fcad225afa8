"""The training loop on accelerate: optimizer, order of batches, checkpoints, choice of the best epoch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.curvature.callback import MeasureCallback
from hesstune.data.examples import Examples
from hesstune.errors import ConfigError, DivergedError, MeasureError, RunError
from hesstune.inputs.batches import ModelInputs, batches_of, predict_logits, without_singles
from hesstune.methods import Batch, Method
from hesstune.methods._base import balanced_rates
from hesstune.reference import Reference, layer_names
from hesstune.runs.checkpoint import Checkpoints
from hesstune.runs.options import OptimisationOptions, RunOptions
from hesstune.runs.records import Epoch
from hesstune.runtime.device import (
    loss_scale,
    make_accelerator,
    mixed_seed,
    random_state,
    scale_gradients_,
    set_random_state,
)
from hesstune.runtime.distributed import SplitForward, all_reduce_sum, average_gradients_, rank, world
from hesstune.runtime.sharding import is_sharded, like, local
from hesstune.runtime.signals import Progress, Stop, stoppable
from hesstune.selection import paired_gain, within_errors
from hesstune.storage.tensors import Tree
from hesstune.training.metrics import Validation, accuracy


class ValidationResult(NamedTuple):
    """How a network does on each of the N validation examples."""

    losses: torch.Tensor  # (N,)
    errors: torch.Tensor  # (N,) 1.0 if the largest logit is not the label, else 0.0


class Best:
    """The best weights so far, by validation loss.

    A solved start is simpler than what training makes of it. It is replaced only by weights whose loss is
    lower by more than one standard error of the mean difference.

    Args:
        wanted: Whether the best weights are kept.
        latest: Whether, once a start is replaced, the latest weights are kept whose error is within one
            standard error of the least. If the labels are correct, accuracy still rises as steps get smaller,
            after the likelihood has begun to fall.
    """

    def __init__(self, wanted: bool, latest: bool = False) -> None:
        self.wanted, self.latest = wanted, wanted and latest
        self.weights: dict[str, torch.Tensor] | None = None
        self.epoch: int | None = None  # the epoch of the weights
        self.path = self._now = 0  # the path of the weights, and the one that is trained
        self.waited = -1  # epochs since the loss was lowest or weights were kept
        self._loss = self._least = float("inf")
        # Losses of the solved start, while it is kept; errors of the kept weights with the fewest.
        self._start: torch.Tensor | None = None
        self._errors: torch.Tensor | None = None

    def offer(
        self,
        result: ValidationResult | None,
        weights: Callable[[], dict[str, torch.Tensor]],
        epoch: int,
    ) -> None:
        """Keep the weights if they are the best on validation."""
        self.waited += 1
        if result is None:
            return
        loss = float(result.losses.mean())
        if loss < self._least:
            self._least, self.waited = loss, 0
        if not (self.wanted and self._wins(result, loss)):
            return
        self.weights, self.epoch, self.waited, self._loss = weights(), epoch, 0, loss
        self.path = self._now
        self._start = None if epoch else result.losses
        fewer = self._errors is None or result.errors.mean() < self._errors.mean()
        if self.latest and epoch and fewer:
            self._errors = result.errors

    def _wins(self, result: ValidationResult, loss: float) -> bool:
        """Tell whether weights are better than the best so far, by the rule that applies."""
        if self._start is not None:
            mean, error = paired_gain(self._start, result.losses, ddof=1)
            return loss < self._loss and mean > error
        if self._errors is not None:
            return within_errors(-result.errors, -self._errors, ddof=1)
        return loss < self._loss

    def restart(self) -> None:
        """Wait for improvement anew, on the second path; the best weights of both paths are kept."""
        self.waited, self._least, self._now = -1, float("inf"), 1

    def tree(self) -> Tree:
        """Return what a checkpoint holds of it."""
        return {
            "best": self.weights,
            "best_epoch": self.epoch,
            "paths": [self.path, self._now],
            "best_loss": self._loss if np.isfinite(self._loss) else None,
            "start_losses": self._start,
            "least_errors": self._errors,
            "least_loss": self._least if np.isfinite(self._least) else None,
            "waited": self.waited,
        }

    def take(self, tree: Tree) -> None:
        """Take back what `tree` returned."""
        self.weights, self.epoch = tree["best"], tree["best_epoch"]
        self.path, self._now = tree["paths"]
        self._start, self._errors, self.waited = tree["start_losses"], tree["least_errors"], tree["waited"]
        self._loss, self._least = (
            float("inf") if tree[name] is None else tree[name] for name in ("best_loss", "least_loss")
        )


def make_optimizer(
    optimisation: OptimisationOptions, parameters: list[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """Build torch's Adam, AdamW or SGD; the options are resolved."""
    lr, decay = optimisation.lr, optimisation.weight_decay or 0.0
    assert lr is not None
    if optimisation.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=optimisation.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if optimisation.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=lr, weight_decay=decay)


def make_schedule(
    optimisation: OptimisationOptions, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Build the schedule: a linear rise over `lr_warmup` of the steps, then cosine, step or constant."""
    warmup, schedule = optimisation.lr_warmup, optimisation.schedule
    rise = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise if warmup else 1.0
        done = (step - rise) / max(1, steps - rise)
        if schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        if schedule == "step":
            return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
        return 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class BatchOrder:
    """The batches of every epoch; they depend on the seed and the epoch alone."""

    def __init__(
        self,
        optimisation: OptimisationOptions,
        seed: int,
        adapts: bool,  # Whether batch norm adapts to the batches
        counts: NDArray[np.int64],  # (K,) how many training examples carry each label
        labels: NDArray[np.int64],  # (n,)
    ) -> None:
        self.n, self.seed, self.adapts = len(labels), seed, adapts
        self.size, self.accumulate = optimisation.batch_size, optimisation.accumulate
        # Batch norm that adapts takes the variance of a batch, and one example has none.
        if adapts and 1 in (self.size, self.n):
            raise ConfigError(
                "batch norm cannot adapt to batches of one example; give --batch-size 2 or more, two "
                "training examples or more, or --batch-norm frozen"
            )
        self.weights: NDArray[np.float64] | None = None
        if optimisation.sampler != "uniform":
            weights = balanced_rates(counts)[labels]
            self.weights = weights / weights.sum()

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        batches = -(-self.n // self.size)
        if self.adapts and self.n % self.size == 1:
            batches -= 1
        return -(-batches // self.accumulate)

    def batches(self, epoch: int, feed: ModelInputs) -> list[NDArray[np.int64]]:
        """Return the batches of an epoch."""
        rng = np.random.default_rng([self.seed, epoch, 0x0DE])
        if self.weights is None:
            order = rng.permutation(self.n)
        else:
            order = rng.choice(self.n, size=self.n, p=self.weights)
        batches = batches_of(feed, order, self.size, np.random.default_rng([self.seed, epoch, 0xBA7]))
        return without_singles(batches) if self.adapts else batches


@dataclass
class Partial:
    """An epoch that is under way."""

    epoch: int  # From 0
    batches: int = 0  # Batches done
    loss: float = 0.0  # Summed loss of their examples
    hits: int = 0  # Examples of theirs that were classified as labelled
    rate: float = 0.0  # The learning rate of the last step
    seconds: float = 0.0


def _optimizer_state(optimizer: torch.optim.Optimizer) -> Tree:
    """Return its state, of sharded parameters this process's parts."""
    found: Tree = optimizer.state_dict()
    parts = {
        at: {name: local(v) if isinstance(v, torch.Tensor) else v for name, v in kept.items()}
        for at, kept in found["state"].items()
    }
    return {**found, "state": parts}


def _load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    optimizer.load_state_dict(dict(state))
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if is_sharded(parameter) and isinstance(value, torch.Tensor) and value.ndim:  # no step count
                kept[name] = like(value, parameter)


# Checkpoints of runs whose epochs are shorter than this are written less often than every epoch.
CHECKPOINT_SECONDS = 2.0
# The share of a run's epochs that a second path may have.
SECOND_PATH = 0.8
# --measure-every: the validation examples at most, and the share of training's passes.
MEASURED, MEASURE_SHARE = 64, 0.05


@dataclass(frozen=True)
class TrainingInputs:
    """What is trained and validated, and on what.

    The network is what is called on a batch: the whole one, its head on cached features, or the layers after
    the last frozen one.
    """

    net: nn.Module
    feeds: Mapping[str, ModelInputs]  # By part
    train: Examples  # With the labels that are trained on
    val: Examples
    soft: NDArray[np.float64] | None  # (n, K) to train on in place of the labels
    validation: Validation
    device: torch.device
    batch_norm: str = "frozen"  # `frozen` keeps the statistics, `adapt` adapts them


class Trainer:
    """Train a network by a method, which holds all of it, and validate it after each epoch.

    `on_epoch` is called with all records so far whenever an epoch has ended, `progress` with (steps done,
    steps in all, text) after every step.
    """

    def __init__(
        self,
        optimisation: OptimisationOptions,
        run: RunOptions,
        method: Method,
        inputs: TrainingInputs,
        checkpoints: Checkpoints,
        on_epoch: Callable[[list[Epoch]], None],
        progress: Progress | None = None,
    ) -> None:
        self.optimisation, self.run, self.method, self.inputs = optimisation, run, method, inputs
        self.checkpoints, self.on_epoch, self.progress = checkpoints, on_epoch, progress
        net, device = inputs.net, inputs.device
        self.accelerator = make_accelerator(
            optimisation.mixed_precision, device, method.toggles_requires_grad
        )
        labels, clean = inputs.train.labels, inputs.train.clean
        assert labels is not None
        self.labels = torch.from_numpy(labels).to(device)
        self.soft = None if inputs.soft is None else torch.from_numpy(inputs.soft).float().to(device)
        self.clean = None if clean is None else torch.from_numpy(clean).to(device)
        adapts = inputs.batch_norm == "adapt"
        self.order = BatchOrder(optimisation, run.seed, adapts, method.setup.counts, labels)
        # Fixed now: methods freeze and thaw parameters while they train.
        self._names = [name for name, p in net.named_parameters() if p.requires_grad]
        self.networks = method.networks()
        trained = [p for part in (net, *self.networks) for p in part.parameters() if p.requires_grad]
        optimizer = make_optimizer(optimisation, trained)
        self.schedule = make_schedule(optimisation, optimizer, self.order.steps * optimisation.epochs)
        self.optimizer = self.accelerator.prepare(optimizer)
        # A sharded network has its own way to average gradients.
        self.net = net if run.shard else self.accelerator.prepare(net)
        self.trained = trained
        self.forward: SplitForward | None = None
        if world() > 1:  # every network takes part in the ranks' common backward pass
            wrapped = {id(net): self.net, id(self.net): self.net}
            others = {id(other): self.accelerator.prepare_model(other) for other in self.networks}
            self.forward = SplitForward({**wrapped, **others})
        self.metrics: list[Epoch] = []
        # The state at which the paths of a method part, and the epochs of the first path once it has ended.
        self._fork: Tree | None = None
        self._first_path: list[Epoch] = []
        # If the head was solved without a noise matrix, the labels are assumed correct.
        solved = method.setup.solved
        latest = solved is not None and method.setup.noise_matrix is None
        self.best = Best(optimisation.select == "best", latest)
        self._measured = self._measure_callback() if run.measure_every else None
        self.kept_epoch: int | None = None  # the epoch of the resulting weights, once training has ended
        self._stop = Stop()
        self._resumed: Tree | None = None
        self._saved_at = time.monotonic()

    # -- state -------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return what training may change: trained parameters and all buffers, sharing their memory."""
        net = self.accelerator.unwrap_model(self.net)
        parameters = dict(net.named_parameters())
        found = {**{name: parameters[name] for name in self._names}, **dict(net.named_buffers())}
        return {name: local(tensor).detach() for name, tensor in found.items()}

    def _restore(self, state: Mapping[str, torch.Tensor]) -> None:
        own = self._tensors()
        for name, tensor in state.items():
            own[name].copy_(tensor)

    def _training_state(self) -> Tree:
        """Return weights, optimizer and schedule, sharing their memory."""
        return {
            "net": self._tensors(),
            "optimizer": _optimizer_state(self.optimizer),
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if k != "lr_lambdas"},
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
        }

    def _take_training_state(self, tree: Tree) -> None:
        self._restore(tree["net"])
        _load_optimizer(self.optimizer, tree["optimizer"])
        self.schedule.load_state_dict({**tree["schedule"], "lr_lambdas": [None]})
        if self.accelerator.scaler is not None and tree["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(tree["scaler"])

    def save(self, partial: Partial | None = None) -> None:
        """Write a checkpoint: between epochs, or within the one that is under way."""
        tree = {
            "start": self.checkpoints.start,
            **self._training_state(),
            **self.best.tree(),
            "metrics": [epoch.to_dict() for epoch in self.metrics],
            "fork": self._fork,
            "first_path": [epoch.to_dict() for epoch in self._first_path],
            "method": self.method.state(),
            "partial": None if partial is None else asdict(partial),
            "random": None if partial is None else random_state(self.accelerator.device),
        }
        if rank() == 0 or self.run.shard:
            # Checkpoints are in order of their steps; those of a second path follow the first one's.
            first = self.order.steps * self.optimisation.epochs if self._first_path else 0
            self.checkpoints.save(first + self.schedule.last_epoch, tree)
        self._saved_at = time.monotonic()

    def resume(self) -> None:
        """Continue from the last whole checkpoint if there is one.

        Raises:
            RunError: If no checkpoint is whole, or it does not fit the run.
        """
        tree = self.checkpoints.load()
        if tree is not None:
            self._take(tree)
            self._resumed = None if tree["partial"] is None else tree
            self.on_epoch(self.metrics)

    def _take(self, tree: Tree) -> None:
        """Continue from a checkpoint; RunError if it does not fit."""
        try:
            if tree["start"] != self.checkpoints.start:
                raise ValueError("it is of a run from other examples or weights")
            self._take_training_state(tree)
            self.best.take(tree)
            self.metrics = [Epoch.model_validate(epoch) for epoch in tree["metrics"]]
            self._first_path = [Epoch.model_validate(epoch) for epoch in tree["first_path"]]
            self._fork = tree["fork"]
            self.method.load_state(tree["method"])
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            folder = self.checkpoints.folder
            raise RunError(
                f"the checkpoint in {folder} does not fit this run ({error}); use --overwrite"
            ) from error

    # -- training ----------------------------------------------------------------------------

    def fit(self) -> None:
        """Train from the last checkpoint, or the start, to the end.

        Raises:
            KeyboardInterrupt: After SIGINT, once the step has ended and a checkpoint is written; after
                SIGTERM whatever its handler does.
        """
        with stoppable() as self._stop:
            if self.method.solves_head and not self.metrics:
                self._validate_start()
            self._train_path()
            if self._fork is not None:
                self._start_second_path(self._fork)
                self._train_path()
        if self._first_path and self.best.path == 0:
            self.metrics = self._first_path
            self.on_epoch(self.metrics)
        self.kept_epoch = self.metrics[-1].epoch if self.metrics else None
        if self.best.weights is not None:
            self._restore(self.best.weights)
            self.kept_epoch = self.best.epoch
        self.method.finish()

    def kept_note(self) -> str | None:
        """Return what the user should know of the path that was kept, if there were two."""
        kept = self.best.epoch
        if not self._first_path or kept is None or kept <= (self.method.forks_after or 0):
            return None
        return self.method.kept_note(self.best.path == 1)

    def _train_path(self) -> None:
        """Train from the epochs done to the last one, or until nothing improves."""
        epochs = self.optimisation.epochs if self.method.goes_on else 0
        forks = self.method.forks_after if self.best.wanted and len(self.inputs.val) else None
        if self._first_path and forks is not None:
            epochs = min(epochs, forks + int(SECOND_PATH * epochs))
        done = sum(record.epoch > 0 for record in self.metrics)
        for epoch in range(done, epochs):
            if self._stalled():
                break
            if epoch == forks and self._fork is None and not self._first_path:
                self._fork = copy.deepcopy({**self._training_state(), "epochs": len(self.metrics)})
            self._whole_epoch(epoch)

    def _start_second_path(self, fork: Tree) -> None:
        """Go back to where the paths part, to train by the method's other loss."""
        self._take_training_state(fork)
        self._fork, self._first_path = None, self.metrics
        self.metrics = self.metrics[: fork["epochs"]]
        self.best.restart()
        self.method.take_second_path()
        self.save()

    def _validate_start(self) -> None:
        """Validate a solved start: it is epoch 0, and the best so far."""
        labels = self.inputs.train.labels
        assert labels is not None
        logits = predict_logits(self.net, self.inputs.feeds["train"])
        loss = float(nn.functional.cross_entropy(logits, torch.from_numpy(labels)))
        hits = float((logits.argmax(dim=1).numpy() == labels).mean())
        validated = self._validated(0)
        self._add(Epoch(epoch=0, train_loss=loss, train_accuracy=hits, lr=0.0, **validated, seconds=0.0))

    def _whole_epoch(self, epoch: int) -> None:
        """Train an epoch, record and save it; if it diverges, restore the last checkpoint."""
        try:
            record = self._epoch(epoch)
        except DivergedError:
            if self.metrics and (tree := self.checkpoints.load()) is not None:
                self._restore(tree["net"])
            raise
        self._add(record)
        last = epoch + 1 == self.optimisation.epochs or self._stalled()
        self._save_if_due(CHECKPOINT_SECONDS, always=last)

    def _add(self, record: Epoch) -> None:
        self.metrics.append(record)
        self.on_epoch(self.metrics)

    def _save_if_due(self, seconds: float, partial: Partial | None = None, always: bool = False) -> None:
        """Save if any rank was asked to stop or the last checkpoint on rank 0 is old; then stop if asked."""
        due, stop = time.monotonic() - self._saved_at > seconds, bool(self._stop)
        if world() > 1:
            asked = torch.tensor([float(due and rank() == 0), float(stop)])
            due, stop = (all_reduce_sum(asked) > 0).tolist()
        if due or stop or always:
            self.save(partial)
        if stop:
            self._stop.deliver()

    def _stalled(self) -> bool:
        """Tell whether training ends before its last epoch."""
        patience = self.optimisation.patience
        waited = patience is not None and bool(self.metrics) and self.best.waited >= patience
        return self.method.done() or waited

    def _training_mode(self) -> None:
        for net in (self.net, *self.networks):
            net.train()
            if self.inputs.batch_norm == "frozen":
                for module in net.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()

    def _epoch(self, epoch: int) -> Epoch:
        started = time.monotonic()
        feed = self.inputs.feeds["train"]
        feed.start_epoch(epoch)
        # Dropout and methods draw from the global generator: keyed by epoch, so that a resumed run draws
        # the same.
        torch.manual_seed(mixed_seed(self.run.seed, epoch))
        self.method.start_epoch(epoch, lambda net: predict_logits(net, feed))
        done = self._begun(epoch)
        self._training_mode()
        batches = self.order.batches(epoch, feed)
        while done.batches < len(batches):
            group = batches[done.batches : done.batches + self.optimisation.accumulate]
            done.rate = self.optimizer.param_groups[0]["lr"]
            loss, hits = self._step(group, epoch)
            done.loss += loss
            done.hits += hits
            done.batches += len(group)
            done.seconds, started = done.seconds + time.monotonic() - started, time.monotonic()
            if self.progress is not None:
                steps = epoch * len(batches) + done.batches
                self.progress(steps, self.optimisation.epochs * len(batches), f"epoch {epoch + 1}")
            if done.batches < len(batches):
                self._save_if_due(60 * self.run.checkpoint_minutes, done)
        with self.method.evaluated():
            validated = self._validated(epoch + 1) | self._measure(epoch + 1)
        return Epoch(
            epoch=epoch + 1,
            train_loss=done.loss / self.order.n,
            train_accuracy=done.hits / self.order.n,
            lr=done.rate,
            **validated,
            seconds=round(done.seconds + time.monotonic() - started, 3),
        )

    def _begun(self, epoch: int) -> Partial:
        """Return the state of an epoch that begins, or was under way when the run was interrupted."""
        tree, self._resumed = self._resumed, None
        if tree is None:
            return Partial(epoch)
        # Starting the epoch changed more, such as a method's memory: restore the state again.
        self._take(tree)
        set_random_state(tree["random"], self.accelerator.device)
        return Partial(**tree["partial"])

    def _step(self, group: list[NDArray[np.int64]], epoch: int) -> tuple[float, int]:
        """Take one optimizer step on a group of batches; return summed loss and hits."""
        total, hits = self.method.gradients(lambda: self._gradients(group, epoch))
        scale_gradients_(self.trained, loss_scale(self.accelerator))  # as the scaler's step expects them
        # A loss scaler refuses a step without gradients, such as those of a method that takes none.
        some = any(p.grad is not None for p in self.trained)
        if some and self.optimisation.grad_clip is not None:
            self.accelerator.clip_grad_norm_(self.trained, self.optimisation.grad_clip)
        if (factor := self.method.lr_factor(epoch)) != 1.0:
            for parameters in self.optimizer.param_groups:  # the schedule sets them again below
                parameters["lr"] *= factor
        (self.optimizer if some else self.optimizer.optimizer).step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.method.after_step()
        return total, hits

    def _gradients(self, group: list[NDArray[np.int64]], epoch: int) -> tuple[float, int]:
        """Set the gradients of a group of batches; return summed loss and hits."""
        examples = sum(len(indices) for indices in group)
        self.optimizer.zero_grad()
        total, hits = 0.0, 0
        for indices in group:
            batch = self._batch(indices, epoch)
            with self.accelerator.autocast():
                loss, logits = self.method.batch_loss(batch)
            value = float(loss.detach())
            if not np.isfinite(value):
                raise DivergedError(
                    f"the training loss became {value} in epoch {epoch + 1}; training stopped and the last "
                    "good checkpoint is kept. Lower --lr, or set --grad-clip"
                )
            self.accelerator.backward(loss * (len(indices) / examples))
            total += value * len(indices)
            hits += int((logits.detach().argmax(dim=1) == batch.targets).sum())
        average_gradients_(self.method.learnt())
        # Methods add terms of their own to the gradients, so they get them as those of the loss.
        scale_gradients_([*self.trained, *self.method.learnt()], 1 / loss_scale(self.accelerator))
        return total, hits

    def _batch(self, indices: NDArray[np.int64], epoch: int) -> Batch:
        feed, rows = self.inputs.feeds["train"], torch.from_numpy(indices).to(self.labels.device)
        inputs = feed.inputs(indices, augment=True)
        if self.forward is not None:
            self.forward.start_batch(self.run.seed, epoch, int(indices[0]), len(indices))
        return Batch(
            self.net,
            inputs,
            self.labels[rows],
            rows,
            epoch,
            lambda: feed.inputs(indices, augment=True, view=1),
            self.forward,
            None if self.soft is None else self.soft[rows],
            None if self.clean is None else self.clean[rows],
            None if self.forward is None else self.forward.share(len(indices)),
        )

    def _validated(self, epoch: int) -> dict[str, Any]:
        """Validate the weights as they are, offer them as the best, and return the epoch's numbers.

        Without validation examples, or labels of them, all but the distance is None.
        """
        part, result = self.inputs.val, None
        found: dict[str, Any] = dict.fromkeys(("val_loss", "val_accuracy", "val_accuracy_true_labels"))
        if len(part) and part.labels is not None:
            logits = predict_logits(self.net, self.inputs.feeds["val"])
            wrong = logits.argmax(dim=1) != torch.from_numpy(part.labels)
            losses = self.inputs.validation.losses(logits, part.labels, part.clean)
            result = ValidationResult(losses, wrong.double())
            found["val_loss"] = _finite(float(losses.mean()), "validation loss")
            found["val_accuracy"] = accuracy(logits, part.labels)
            found["val_accuracy_true_labels"] = accuracy(logits, part.true)
        total = float(np.sqrt(sum(d * d for d in self.method.distances().values())))
        found["distance"] = _finite(total, f"distance from the reference in epoch {epoch}")
        self.best.offer(result, lambda: {n: t.clone() for n, t in self._tensors().items()}, epoch)
        return found

    def _measure_callback(self) -> MeasureCallback:
        """Return what measures the trained layers on a fixed sample of the validation examples."""
        part, setup, net = self.inputs.val, self.method.setup, self.inputs.net
        with setup.merged():
            names = {id(tensor): name for name, tensor in _named(setup.model)}
            whole = {name: names[id(tensor)] for name, tensor in _named(net)}
            layers = [name for name in layer_names(net) if setup.moves(whole[name])]
        reference = Reference({name: setup.reference[own] for name, own in whole.items()}, layers)
        assert part.labels is not None
        rows = np.random.default_rng([self.run.seed, 0x3EA5]).permutation(len(part))[:MEASURED]
        batch = self.inputs.feeds["val"].inputs(rows), torch.from_numpy(part.labels[rows])
        assert self.run.measure_every is not None
        share = MEASURE_SHARE / world()  # of a process's passes: each measures the same examples
        return MeasureCallback(reference, batch, self.order.n, every=self.run.measure_every, share=share)

    def _measure(self, epoch: int) -> dict[str, Any]:
        """Measure the weights as they are if it is time; return the epoch's numbers."""
        if self._measured is None:
            return {}
        try:
            with self.method.setup.merged():
                point = self._measured(self.inputs.net, epoch)
        except MeasureError as error:
            raise MeasureError(f"{error}; train on with --resume and without --measure-every") from error
        if point is None:
            return {}
        stderr = point.stderr if math.isfinite(point.stderr) else None
        return {"measure": point.value, "measure_stderr": stderr, "measure_examples": point.examples}


def _named(net: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*net.named_parameters(), *net.named_buffers()]


def _finite(value: float, what: str) -> float:
    if not np.isfinite(value):
        raise DivergedError(f"the {what} became {value}; lower --lr, or set --grad-clip")
    return value
