"""A head trained on few examples, for compression bounds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hesstune.bounds.pick_to_learn import Picker, Picks
from hesstune.errors import ConfigError, RunError
from hesstune.methods._base import Batch, Method, MethodSetup, Option, T
from hesstune.methods._heads import linear_head, training_features
from hesstune.storage.tensors import Tree


class PickToLearn(Method):
    """Pick-to-Learn: a head trained on few examples that classifies all others correctly.

    For `--bound compression`. The worst misclassified examples are added, and the head is fitted to the
    picked examples alone and averaged over the fits, until none is misclassified. Each epoch adds its share;
    no other step is taken. Source: Paccagnan, Campi & Garatti 2023.
    """

    head_alone = True
    weighs_classes = False
    head_penalty = 0.0
    takes_soft = False
    own_options = {
        "penalty": Option(0.1, "PACS, each pair of domains by the other pair", low=1e-9),
        "grow": Option(0.01, "of the picked, added at a time", low=0.0, high=1.0),
        "steps": Option(20, "of L-BFGS a fit, at most", low=1.0),
        "average": Option(0.95, "PACS photo and cartoon, split of seed 100", low=0.0, high=0.999),
        "center": Option(1.0, "PACS photo and cartoon, split of seed 100", low=0.0, high=1.0),
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        head = linear_head(setup)
        if head is None or not all(setup.in_head(name) for name in setup.trained):
            raise ConfigError("method 'pick_to_learn' needs a plain linear layer as the network's head")
        self.head = head
        self.first = head.weight.detach().double().clone()
        self.picker: Picker | None = None
        self.picks: Picks | None = None
        self._step_result: tuple[float, int] | None = None

    @classmethod
    def defaults(cls, head_only: bool) -> dict[str, Any]:
        """Return the options of a run whose epochs only add examples."""
        return {"train": "head", "augment": "none", "batch_size": 4096, "epochs": 20}

    # -- picking -----------------------------------------------------------------------------

    def start_epoch(self, epoch: int, predict: Callable[[nn.Module], torch.Tensor]) -> None:
        """Add this epoch's share of the examples."""
        if self.picker is None:
            self.picker = self._made(predict)
        n, share = len(self.picker.labels), (epoch + 1) / self.setup.epochs
        self._pick(n if epoch + 1 == self.setup.epochs else math.ceil(share * n))
        assert self.picks is not None
        lead = self.picker.lead(self.picks.weight)
        logits = self.picker.start.double() + self.picker.features.double() @ self.picks.weight.T
        targets = torch.from_numpy(self.picker.labels)
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        self._step_result = float(loss), int((lead > 0).sum())

    def _made(self, predict: Callable[[nn.Module], torch.Tensor]) -> Picker:
        assert self.setup.labels is not None
        features = training_features(self.setup, self.head, predict).cpu()
        bias = 0.0 if self.head.bias is None else self.head.bias.detach().double().cpu()
        start = features.double() @ self.first.cpu().T + bias
        options = self.options
        return Picker(
            features,
            self.setup.labels,
            start,
            options["penalty"],
            options["grow"],
            int(options["steps"]),
            options["average"],
            options["center"] > 0,
        )

    def _pick(self, most: int) -> None:
        """Pick until that many examples are kept, or no error is left; the head is left fitted to them."""
        assert self.picker is not None
        self.picks = self.picker.begin() if self.picks is None else self.picks
        for picks in self.picker.going_on(self.picks):
            self.picks = picks
            if len(picks.kept) >= most and most < len(self.picker.labels):
                break
        self._write(self.picks)

    @torch.no_grad()
    def _write(self, picks: Picks) -> None:
        self.head.weight.copy_((self.first + picks.weight.to(self.first)).to(self.head.weight))

    # -- the loop ----------------------------------------------------------------------------

    def gradients(self, compute: Callable[[], T]) -> T:
        """Take no step: what is learnt comes from the picked examples alone."""
        result, self._step_result = self._step_result or (0.0, 0), (0.0, 0)
        return result  # type: ignore[return-value]

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        raise ConfigError("method 'pick_to_learn' trains on no batches")

    def done(self) -> bool:
        """Tell whether every example that was not picked is classified right."""
        return self.picks is not None and self.picks.done

    def finish(self) -> None:
        """Leave the head as it was fitted last, whatever an earlier epoch's validation said."""
        if self.picker is not None and not self.done():
            self._pick(len(self.picker.labels))
        if self.picks is None or not self.picks.done:
            raise RunError("Pick-to-Learn was stopped before its end; start over with --overwrite")
        self._write(self.picks)

    def picked(self) -> list[int]:
        return [] if self.picks is None else list(self.picks.kept)

    def state(self) -> Tree:
        if self.picks is None:
            return {}
        return dataclasses.asdict(self.picks)

    def load_state(self, state: Tree) -> None:
        if state:
            kept = [int(at) for at in state["kept"]]
            self.picks = Picks(kept, state["weight"].clone(), state["fitted"].clone(), bool(state["done"]))


METHOD = PickToLearn
