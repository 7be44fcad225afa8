"""The training loop on accelerate: optimizer, order of batches, checkpoints, choice of the best epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.data.examples import Examples
from hesstune.errors import ConfigError, DivergedError, RunError
from hesstune.inputs.batches import ModelInputs, batches_of, predict_logits, without_singles
from hesstune.methods import Batch, Method
from hesstune.methods._base import balanced_rates
from hesstune.noise.matrix import NoiseMatrix
from hesstune.runs.checkpoint import Checkpoints
from hesstune.runs.config import FinetuneConfig
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
    """How a network does on each of the N validation examples.

    Attributes:
        losses: (N,).
        errors: (N,) 1.0 where the largest logit is not the label, else 0.0.
    """

    losses: torch.Tensor
    errors: torch.Tensor


class Best:
    """The best weights so far, by validation loss.

    A start that was solved is simpler than what steps make of it: these have to beat it by more than one
    standard error of the mean difference.

    Args:
        wanted: Whether the best are kept; else nothing is.
        latest: Whether, after a start is beaten, the latest are kept that err on no more validation examples
            than those that err least, beyond one standard error: where labels are right, accuracy goes on
            rising, as steps get smaller, after the likelihood has begun to fall.
    """

    def __init__(self, wanted: bool, latest: bool = False) -> None:
        self.wanted, self.latest = wanted, wanted and latest
        self.weights: dict[str, torch.Tensor] | None = None
        self.epoch: int | None = None  # whose weights are kept
        self.waited = -1  # epochs since the loss was lowest or any were kept
        self._loss = self._least = float("inf")
        # Losses at the solved start, while that is kept; errors of those kept that erred least.
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
        self._start = None if epoch else result.losses
        fewer = self._errors is None or result.errors.mean() < self._errors.mean()
        if self.latest and epoch and fewer:
            self._errors = result.errors

    def _wins(self, result: ValidationResult, loss: float) -> bool:
        if self._start is not None:
            mean, error = paired_gain(self._start, result.losses, ddof=1)
            return loss < self._loss and mean > error
        if self._errors is not None:
            return within_errors(-result.errors, -self._errors, ddof=1)
        return loss < self._loss

    def tree(self) -> Tree:
        """Return what a checkpoint holds of it."""
        loss, least = (value if np.isfinite(value) else None for value in (self._loss, self._least))
        return {
            "best": self.weights,
            "best_epoch": self.epoch,
            "best_loss": loss,
            "start_losses": self._start,
            "least_errors": self._errors,
            "least_loss": least,
            "waited": self.waited,
        }

    def take(self, tree: Tree) -> None:
        """Take back what `tree` returned."""
        self.weights, self.epoch, self._start = tree["best"], tree["best_epoch"], tree.get("start_losses")
        self._errors = tree.get("least_errors")
        self._loss = float("inf") if tree["best_loss"] is None else tree["best_loss"]
        least = tree.get("least_loss")
        self._least = self._loss if least is None else least
        self.waited = int(tree.get("waited", 0))


def make_optimizer(config: FinetuneConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Build torch's Adam, AdamW or SGD from the configuration."""
    assert config.lr is not None
    lr, decay = config.lr, config.weight_decay or 0.0
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=config.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=lr, weight_decay=decay)


def make_schedule(
    config: FinetuneConfig, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Build the schedule: a linear rise over `lr_warmup` of the steps, then cosine, step or constant."""
    rise = max(1, round(config.lr_warmup * steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise if config.lr_warmup else 1.0
        done = (step - rise) / max(1, steps - rise)
        if config.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        if config.schedule == "step":
            return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
        return 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class BatchOrder:
    """The batches of every epoch; they depend on the seed and the epoch alone.

    Args:
        config: The resolved configuration.
        counts: (K,) how many training examples carry each label.
        labels: (n,) the labels.

    Raises:
        ConfigError: If batch norm is to adapt to batches of one example.
    """

    def __init__(self, config: FinetuneConfig, counts: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        self.config, self.n = config, len(labels)
        # Batch norm that adapts takes the variance of a batch, and one example has none.
        self.adapts = config.batch_norm == "adapt"
        if self.adapts and 1 in (config.batch_size, self.n):
            raise ConfigError(
                "batch norm cannot adapt to batches of one example; give --batch-size 2 or more, two "
                "training examples or more, or --batch-norm frozen"
            )
        self.weights: NDArray[np.float64] | None = None
        if config.sampler != "uniform":
            weights = balanced_rates(counts)[labels]
            self.weights = weights / weights.sum()

    @property
    def steps(self) -> int:
        """Optimizer steps in all epochs."""
        batches = -(-self.n // self.config.batch_size)
        if self.adapts and self.n % self.config.batch_size == 1:
            batches -= 1
        return -(-batches // self.config.accumulate) * self.config.epochs

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the examples of an epoch."""
        rng = np.random.default_rng([self.config.seed, epoch, 0x0DE])
        if self.weights is None:
            return rng.permutation(self.n)
        return rng.choice(self.n, size=self.n, p=self.weights)

    def batches(self, epoch: int, feed: ModelInputs) -> list[NDArray[np.int64]]:
        """Return the batches of an epoch."""
        rng = np.random.default_rng([self.config.seed, epoch, 0xBA7])
        batches = batches_of(feed, self.order(epoch), self.config.batch_size, rng)
        return without_singles(batches) if self.adapts else batches


@dataclass
class Partial:
    """An epoch that is under way.

    Attributes:
        epoch: The epoch, from 0.
        batches: Batches done.
        loss: Summed loss of their examples.
        hits: Examples of theirs that were classified as labelled.
        rate: The learning rate of the last step.
        seconds: Time spent on them.
    """

    epoch: int
    batches: int = 0
    loss: float = 0.0
    hits: int = 0
    rate: float = 0.0
    seconds: float = 0.0


def state_of(net: nn.Module, trained: Sequence[str], copy: bool = True) -> dict[str, torch.Tensor]:
    """Return what training may change: trained parameters and all buffers, copied by default."""
    parameters = dict(net.named_parameters())
    found = {**{name: parameters[name] for name in trained}, **dict(net.named_buffers())}
    parts = {name: local(tensor).detach() for name, tensor in found.items()}
    return {name: part.clone() for name, part in parts.items()} if copy else parts


@torch.no_grad()
def restore(net: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Set them back."""
    own = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    for name, tensor in state.items():
        local(own[name]).copy_(tensor)


def optimizer_state(optimizer: torch.optim.Optimizer) -> Tree:
    """Return the optimizer's state."""
    found: Tree = optimizer.state_dict()
    return {**found, "state": {i: _mapped(kept, local) for i, kept in found["state"].items()}}


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Set it back."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = {}
    for index, values in state["state"].items():
        parameter = parameters[int(index)]
        shape = local(parameter).shape

        def cut(value: torch.Tensor, p: torch.Tensor = parameter, s: torch.Size = shape) -> torch.Tensor:
            # A step count has no parts.
            return like(value, p) if is_sharded(p) and value.ndim and value.shape == s else value

        kept[index] = _mapped(values, cut)
    optimizer.load_state_dict({**state, "state": kept})


def _mapped(values: Mapping[str, Any], change: Any) -> Tree:
    return {k: change(v) if isinstance(v, torch.Tensor) else v for k, v in values.items()}


# Checkpoints of runs whose epochs are shorter than this are written less often than every epoch.
CHECKPOINT_SECONDS = 2.0


class Trainer:
    """Train `net` by `method` on one feed, and validate on another.

    Args:
        config: The resolved configuration.
        net: What is called on a batch: the whole network, or its head on cached features.
        method: The method, which holds the whole network.
        feeds: Inputs of `train` and `val`.
        parts: Examples of `train` and `val`.
        noise_matrix: F, or None; validation then uses the likelihood of the labels under F.
        device: Where to train.
        checkpoints: Where the state is kept.
        on_epoch: Called with all records so far whenever an epoch has ended.
        progress: Called with (steps done, steps in all, text) after every step.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        net: nn.Module,
        method: Method,
        feeds: dict[str, ModelInputs],
        parts: dict[str, Examples],
        noise_matrix: NoiseMatrix | None,
        device: torch.device,
        checkpoints: Checkpoints,
        on_epoch: Callable[[list[Epoch]], None],
        progress: Progress | None = None,
    ) -> None:
        self.config, self.method, self.feeds, self.parts = config, method, feeds, parts
        self.checkpoints, self.on_epoch, self.progress = checkpoints, on_epoch, progress
        self.accelerator = make_accelerator(config.mixed_precision, device, method.toggles_requires_grad)
        labels = parts["train"].labels
        assert labels is not None
        self.labels = torch.from_numpy(labels).to(device)
        soft, clean = parts["train"].soft, parts["train"].clean
        self.soft = None
        if config.soft_labels and soft is not None:
            self.soft = torch.from_numpy(soft).float().to(device)
        self.clean = None if clean is None else torch.from_numpy(clean).to(device)
        self.order = BatchOrder(config, method.setup.counts, labels)
        # Fixed now: methods freeze and thaw parameters while they train.
        self._names = [name for name, p in net.named_parameters() if p.requires_grad]
        self.networks = method.networks()
        trained = [p for part in (net, *self.networks) for p in part.parameters() if p.requires_grad]
        optimizer = make_optimizer(config, trained)
        self.schedule = make_schedule(config, optimizer, self.order.steps)
        self.optimizer = self.accelerator.prepare(optimizer)
        # A sharded network has its own way to average gradients.
        self.net = net if config.shard else self.accelerator.prepare(net)
        self.trained = trained
        self.forward = self._split_forward(net) if world() > 1 else None
        self.validation = Validation(None if config.clean_val else noise_matrix, method.solves_head)
        self.metrics: list[Epoch] = []
        # A head that was solved has found out whether the labels are right.
        self.best = Best(config.select == "best", method.setup.solved is not None and noise_matrix is None)
        self.kept_epoch: int | None = None  # whose weights are the result, once training has ended
        self._last_result: ValidationResult | None = None  # the validation examples, as last seen
        self._stop = Stop()
        self._resumed: Tree | None = None
        self._saved_at = time.monotonic()

    def _split_forward(self, net: nn.Module) -> SplitForward:
        """Make every network one that takes part in the ranks' common backward pass."""
        wrapped = {id(net): self.net, id(self.net): self.net}
        for other in self.networks:
            wrapped[id(other)] = self.accelerator.prepare_model(other)
        return SplitForward(wrapped)

    # -- state -------------------------------------------------------------------------------

    def _state(self, copy: bool = True) -> dict[str, torch.Tensor]:
        return state_of(self.accelerator.unwrap_model(self.net), self._names, copy)

    def _restore(self, state: dict[str, torch.Tensor]) -> None:
        restore(self.accelerator.unwrap_model(self.net), state)

    def save(self, partial: Partial | None = None) -> None:
        """Write a checkpoint: between epochs, or within the one that is under way."""
        tree = {
            "start": self.checkpoints.start,
            "net": self._state(copy=False),
            "optimizer": optimizer_state(self.optimizer),
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if k != "lr_lambdas"},
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            **self.best.tree(),
            "metrics": [epoch.to_dict() for epoch in self.metrics],
            "method": self.method.state(),
            "partial": None if partial is None else asdict(partial),
            "random": None if partial is None else random_state(self.accelerator.device),
        }
        if rank() == 0 or self.config.shard:
            self.checkpoints.save(self.schedule.last_epoch, tree)
        self._saved_at = time.monotonic()

    def resume(self) -> bool:
        """Continue from the last whole checkpoint if there is one; return whether there was.

        Raises:
            RunError: If no checkpoint is whole, or it does not fit the run.
        """
        tree = self.checkpoints.load()
        if tree is None:
            return False
        self._take(tree)
        self._resumed = None if tree["partial"] is None else tree
        self.on_epoch(self.metrics)
        return True

    def _take(self, tree: Tree) -> None:
        try:
            if tree["start"] != self.checkpoints.start:
                raise ValueError("it is of a run from other examples or weights")
            self._restore(tree["net"])
            load_optimizer(self.optimizer, tree["optimizer"])
            self.schedule.load_state_dict({**tree["schedule"], "lr_lambdas": [None]})
            if self.accelerator.scaler is not None and tree["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(tree["scaler"])
            self.best.take(tree)
            self.metrics = [Epoch.model_validate(epoch) for epoch in tree["metrics"]]
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
                self._judge_start()
            done = sum(record.epoch > 0 for record in self.metrics)
            for epoch in range(done, self.config.epochs if self.method.goes_on else 0):
                if self._stalled():
                    break
                self._whole_epoch(epoch)
        self.kept_epoch = self.metrics[-1].epoch if self.metrics else None
        if self.best.weights is not None:
            self._restore(self.best.weights)
            self.kept_epoch = self.best.epoch
        self.method.finish()

    def _whole_epoch(self, epoch: int) -> None:
        try:
            record = self._epoch(epoch)
        except DivergedError:
            if self.metrics and (tree := self.checkpoints.load()) is not None:
                self._restore(tree["net"])
            raise
        self.metrics.append(record)
        self.on_epoch(self.metrics)
        stop, due = self._agreed(CHECKPOINT_SECONDS)
        if due or stop or epoch + 1 == self.config.epochs or self._stalled():
            self.save()
        if stop:
            self._stop.deliver()

    def _between_steps(self, partial: Partial) -> None:
        """Save within an epoch if asked to stop, or if the last checkpoint is old."""
        stop, due = self._agreed(60 * self.config.checkpoint_minutes)
        if stop or due:
            self.save(partial)
        if stop:
            self._stop.deliver()

    def _agreed(self, seconds: float) -> tuple[bool, bool]:
        """Return whether any rank was asked to stop, and whether the last checkpoint is so old on rank 0."""
        due = time.monotonic() - self._saved_at > seconds
        if world() == 1:
            return bool(self._stop), due
        asked = torch.tensor([float(bool(self._stop)), float(due and rank() == 0)])
        stop, due_there = (all_reduce_sum(asked) > 0).tolist()
        return stop, due_there

    def _stalled(self) -> bool:
        patience = self.config.patience
        if self.method.done():
            return True
        return patience is not None and bool(self.metrics) and self.best.waited >= patience

    def _judge_start(self) -> None:
        """Make the start a record of its own, epoch 0, and the best so far: it has been solved."""
        labels = self.parts["train"].labels
        assert labels is not None
        logits = predict_logits(self.net, self.feeds["train"])
        val_loss, val_right, val_right_true = self._validate()
        record = Epoch(
            epoch=0,
            train_loss=float(nn.functional.cross_entropy(logits, torch.from_numpy(labels))),
            train_accuracy=float((logits.argmax(dim=1).numpy() == labels).mean()),
            lr=0.0,
            val_loss=val_loss,
            val_accuracy=val_right,
            val_accuracy_true_labels=val_right_true,
            distance=self._distance(0),
            seconds=0.0,
        )
        self.best.offer(self._last_result, self._state, 0)
        self.metrics.append(record)
        self.on_epoch(self.metrics)

    def _training_mode(self) -> None:
        for net in (self.net, *self.networks):
            net.train()
            if self.config.batch_norm == "frozen":
                for module in net.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()

    def _epoch(self, epoch: int) -> Epoch:
        started = time.monotonic()
        feed = self.feeds["train"]
        feed.start_epoch(epoch)
        # Dropout and methods draw from the global generator: keyed by epoch, so that a resumed run sees
        # the same.
        torch.manual_seed(mixed_seed(self.config.seed, epoch))
        self.method.start_epoch(epoch, lambda net: predict_logits(net, feed))
        done = self._continued(epoch)
        self._training_mode()
        batches = self.order.batches(epoch, feed)
        while done.batches < len(batches):
            group = batches[done.batches : done.batches + self.config.accumulate]
            done.rate = self.optimizer.param_groups[0]["lr"]
            loss, right = self._step(group, epoch)
            done.loss += loss
            done.hits += right
            done.batches += len(group)
            done.seconds, started = done.seconds + time.monotonic() - started, time.monotonic()
            if self.progress is not None:
                steps = epoch * len(batches) + done.batches
                self.progress(steps, self.config.epochs * len(batches), f"epoch {epoch + 1}")
            if done.batches < len(batches):
                self._between_steps(done)
        with self.method.evaluated():
            val_loss, val_right, val_right_true = self._validate()
            record = Epoch(
                epoch=epoch + 1,
                train_loss=done.loss / self.order.n,
                train_accuracy=done.hits / self.order.n,
                lr=done.rate,
                val_loss=val_loss,
                val_accuracy=val_right,
                val_accuracy_true_labels=val_right_true,
                distance=self._distance(epoch),
                seconds=round(done.seconds + time.monotonic() - started, 3),
            )
            self.best.offer(self._last_result, self._state, epoch + 1)
        return record

    def _continued(self, epoch: int) -> Partial:
        """Return the state of an epoch that is begun, or was when the run was interrupted."""
        tree, self._resumed = self._resumed, None
        if tree is None:
            return Partial(epoch)
        # What starting the epoch has changed, such as a method's memory, is as it was then.
        self._take(tree)
        set_random_state(tree["random"], self.accelerator.device)
        return Partial(**tree["partial"])

    def _step(self, group: list[NDArray[np.int64]], epoch: int) -> tuple[float, int]:
        """Take one real optimizer step on a group of batches; return summed loss and hits."""
        total, hits = self.method.gradients(lambda: self._gradients(group, epoch))
        scale_gradients_(self.trained, loss_scale(self.accelerator))  # as the scaler's step expects them
        # A loss scaler refuses a step without gradients, such as those of a method that takes none.
        some = any(p.grad is not None for p in self.trained)
        if some and self.config.grad_clip is not None:
            self.accelerator.clip_grad_norm_(self.trained, self.config.grad_clip)
        if (factor := self.method.lr_factor(epoch)) != 1.0:
            for parameters in self.optimizer.param_groups:  # the schedule sets them afresh below
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
        feed, rows = self.feeds["train"], torch.from_numpy(indices).to(self.labels.device)
        inputs = feed.inputs(indices, augment=True)
        if self.forward is not None:
            self.forward.start_batch(self.config.seed, epoch, int(indices[0]), len(indices))
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

    def _validate(self) -> tuple[float | None, float | None, float | None]:
        """Return loss, accuracy, and accuracy by true labels; None where there are no examples or labels."""
        part = self.parts["val"]
        if not len(part) or part.labels is None:
            return None, None, None
        logits = predict_logits(self.net, self.feeds["val"])
        wrong = logits.argmax(dim=1) != torch.from_numpy(part.labels)
        self._last_result = ValidationResult(
            self.validation.losses(logits, part.labels, part.clean), wrong.double()
        )
        loss = _finite(float(self._last_result.losses.mean()), "validation loss")
        return loss, accuracy(logits, part.labels), accuracy(logits, part.true)

    def _distance(self, epoch: int) -> float:
        distances = self.method.distances()
        total = float(np.sqrt(sum(d * d for d in distances.values())))
        return _finite(total, f"distance from the reference in epoch {epoch + 1}")


def _finite(value: float, what: str) -> float:
    if not np.isfinite(value):
        raise DivergedError(f"the {what} became {value}; lower --lr, or set --grad-clip")
    return value
