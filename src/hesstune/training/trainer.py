"""The training loop, on accelerate: it runs a method and leaves the decisions to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hesstune.data.examples import Examples
from hesstune.errors import DivergedError, RunError
from hesstune.inputs.batches import ModelInputs, predict_logits
from hesstune.methods import Batch, Method
from hesstune.noise.matrix import NoiseMatrix
from hesstune.runs.checkpoint import Checkpoints
from hesstune.runs.config import FinetuneConfig
from hesstune.runs.records import Epoch
from hesstune.runtime.accelerator import (
    loss_scale,
    make_accelerator,
    random_state,
    scale_gradients_,
    set_random_state,
)
from hesstune.runtime.distributed import SplitForward, all_reduce_sum, average_gradients_, rank, world
from hesstune.runtime.progress import Progress
from hesstune.runtime.seeds import mixed_seed
from hesstune.runtime.signals import Stop, stoppable
from hesstune.storage.tensors import Tree
from hesstune.training.best import Best, Judged
from hesstune.training.evaluate import Validation, accuracy
from hesstune.training.optim import make_optimizer, make_schedule
from hesstune.training.order import BatchOrder
from hesstune.training.state import Partial, load_optimizer, optimizer_state, restore, state_of

__all__ = ["Trainer"]

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
        noise_matrix: The noise matrix believed; validation then uses the consistent loss.
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
        self._judged: Judged | None = None  # the validation examples, as last seen
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
        tree = self.checkpoints.load_together()
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
        self.best.offer(self._judged, self._state, 0)
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
            self.best.offer(self._judged, self._state, epoch + 1)
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
        self._judged = Judged(self.validation.losses(logits, part.labels, part.clean), wrong.double())
        loss = _finite(float(self._judged.losses.mean()), "validation loss")
        return loss, accuracy(logits, part.labels), accuracy(logits, part.true)

    def _distance(self, epoch: int) -> float:
        distances = self.method.distances()
        total = float(np.sqrt(sum(d * d for d in distances.values())))
        return _finite(total, f"distance from the reference in epoch {epoch + 1}")


def _finite(value: float, what: str) -> float:
    if not np.isfinite(value):
        raise DivergedError(f"the {what} became {value}; lower --lr, or set --grad-clip")
    return value
