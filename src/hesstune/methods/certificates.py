"""Methods for certificates: training on a PAC-Bayes bound, and on few examples for compression bounds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hesstune.bounds.kl import MIN_EXAMPLES
from hesstune.bounds.noisy import clean_losses, read_noise, zero_one_loss
from hesstune.bounds.pick_to_learn import Picker, Picks
from hesstune.bounds.posterior import SCALE_STEP, BoundGradient, learn_head, soft_loss, unit_matrix
from hesstune.bounds.prior import PRIOR_SCALES, base_deviations, head_ratios, nearest_member
from hesstune.errors import ConfigError, RunError
from hesstune.methods._base import Batch, Method, MethodSetup, Option, T
from hesstune.methods._heads import linear_head, training_features
from hesstune.storage.tensors import Tree

# The running mean of the batches' losses, which weighs the KL.
MEMORY = 0.95


class Certified(Method):
    """Certified: fine-tuning that minimises its own certificate (PAC-Bayes with backprop).

    Every trained weight has Gaussian noise, proportional to the prior's deviations. Loss and KL are weighted
    as in the bound. The sizes of the noise of the head and of the other layers are learnt. Source: Dziugaite
    & Roy 2017; Pérez-Ortiz et al. 2021.
    """

    tier = "recommended"
    uses_noise_matrix = True
    adapts = False
    weighs_classes = False
    head_penalty = 0.0
    own_options = {
        "delta": Option(0.05, "the certificate's default", low=1e-6, high=0.5),
        "body_noise": Option(
            0.01, "of the weights' size, to start from", low=1e-6, search=(1e-3, 0.1), log=True
        ),
        "scale_lr": Option(0.3, "of ln σ", low=0.0),
        "examples": Option(0.0, "of the bound, if not all of them", low=0.0),
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        names = list(setup.trained)
        self.base = base_deviations(setup.model, setup.reference)
        self.head = {name for name in names if setup.in_head(name)}
        self.body = [name for name in names if name not in self.head]
        noise = setup.noise_matrix
        loss = zero_one_loss(len(setup.counts)) if noise is None else clean_losses(read_noise(noise))[0]
        self.matrix = unit_matrix(loss)
        family = len(PRIOR_SCALES) * len(head_ratios(names, setup.heads))
        n = int(self.options["examples"] or setup.counts.sum())
        self.bound = BoundGradient(max(n, MIN_EXAMPLES), self.options["delta"], family)
        # Logits of a linear head have a known distribution: its noise is drawn there, for each example.
        self.linear = linear_head(setup) if self.head else None
        self.log_scale = torch.zeros(2, requires_grad=True)  # of the head, and of the rest
        self._set_body_scale(math.log(self.options["body_noise"]))
        self.recent, self.most = 0.5, 1e9

    @classmethod
    def defaults(cls, head_only: bool) -> dict[str, Any]:
        # A head alone is learnt before the first epoch; on cached features further steps are full-batch.
        steps = {"lr": 10.0, "batch_size": 4096} if head_only else {"lr": 0.5, "batch_size": 64}
        return {"optimizer": "sgd", "momentum": 0.9, **steps}

    @torch.no_grad()
    def _set_body_scale(self, value: float) -> None:
        self.log_scale[1] = value

    def _deviation(self, name: str) -> float:
        return self.base[name] * math.exp(float(self.log_scale[0 if name in self.head else 1]))

    # -- the head first ----------------------------------------------------------------------

    def start_epoch(self, epoch: int, predict: Callable[[nn.Module], torch.Tensor]) -> None:
        if epoch or self.linear is None or self.setup.labels is None:
            return
        device = self.linear.weight.device
        features = training_features(self.setup, self.linear, predict).to(device)
        weight, bias = (self._head_parameter(part) for part in ("weight", "bias"))
        with torch.no_grad():
            found = learn_head(
                features,
                torch.from_numpy(self.setup.labels).to(device),
                self.matrix,
                self.bound,
                (self.base.get(weight, 0.0), self.base.get(bias, 0.0)),
                torch.Generator(device=device).manual_seed(0),
                self.linear(features),
            )
            if weight in self.head:
                self.linear.weight.add_(found.weight)
            if bias in self.head:
                self.linear.bias.add_(found.bias)
            self.log_scale[0], self.most = found.log_scale, found.most

    def _head_parameter(self, part: str) -> str:
        return f"{self.setup.head}.{part}" if self.setup.head else part

    # -- a batch -----------------------------------------------------------------------------

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        batch.net.eval()  # what is certified runs in eval mode: no dropout beside the noise
        with self._noisy_head(len(batch.targets), batch.share or slice(None)):
            logits = batch.logits()
        loss = soft_loss(logits.float(), batch.targets, self.matrix)
        self.recent = MEMORY * self.recent + (1 - MEMORY) * float(loss.detach())
        return loss, logits

    @contextmanager
    def _noisy_head(self, size: int, share: slice) -> Iterator[None]:
        """Disturb the head's outputs for these rows of a batch of this size."""
        if self.linear is None:
            yield
            return
        weight, bias = (self.base.get(self._head_parameter(p), 0.0) for p in ("weight", "bias"))

        def disturb(_: nn.Module, args: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
            # In float32 at least: a square may exceed float16, and each type draws other random numbers.
            wide = torch.promote_types(out.dtype, torch.float32)
            spread = (weight**2 * args[0].to(wide).square().sum(dim=1, keepdim=True) + bias**2).sqrt()
            # Of the whole batch on every process: each then takes the noise that one process would.
            noise = torch.randn((size, *out.shape[1:]), dtype=wide, device=out.device)[share]
            return out + (self.log_scale[0].exp().to(spread) * spread * noise).to(out)

        handle = self.linear.register_forward_hook(disturb)
        try:
            yield
        finally:
            handle.remove()

    # -- a step ------------------------------------------------------------------------------

    @torch.no_grad()
    def gradients(self, compute: Callable[[], T]) -> T:
        """Fill the bound's gradient at weights drawn from the posterior, in the prior's metric.

        Multiplied by s², a step of plain gradient descent is one in u = v/s, with KL = ‖u‖²/2.
        """
        parameters, reference = self.setup.trained, self.setup.reference
        drawn = [n for n in parameters if self.linear is None or n not in self.head]
        means = {n: parameters[n].clone() for n in drawn}
        noise = {n: torch.randn_like(p) * self._deviation(n) for n, p in parameters.items() if n in means}
        for name in drawn:
            parameters[name].add_(noise[name])
        self.log_scale.grad = None
        with torch.enable_grad():
            result = compute()
        slope = torch.zeros(2) if self.log_scale.grad is None else self.log_scale.grad.clone()
        if any(p.grad is not None and not bool(p.grad.isfinite().all()) for p in parameters.values()):
            slope.fill_(float("nan"))  # too large for fp16: its scaler then takes no step
        kl = torch.zeros(2, dtype=torch.float64)
        steps = {}
        for name, p in parameters.items():
            group = 0 if name in self.head else 1
            if name in means:
                p.copy_(means[name])
                if p.grad is not None:
                    slope[group] += float((p.grad * noise[name]).sum())
            steps[name] = p - reference[name].to(p)
            kl[group] += float(steps[name].double().square().sum()) / (2 * self._deviation(name) ** 2)
        weight = self.bound.kl_weight(self.recent, float(kl.sum()))
        for name, p in parameters.items():
            scaled = weight * steps[name]
            p.grad = scaled if p.grad is None else p.grad * self._deviation(name) ** 2 + scaled
        pull = self.options["scale_lr"] * (slope.double() - 2 * weight * kl)
        if bool(pull.isfinite().all()):
            self.log_scale -= pull.clamp(-SCALE_STEP, SCALE_STEP).float()
        self.log_scale[0].clamp_(max=self.most)
        return result

    # -- the run -----------------------------------------------------------------------------

    def learnt(self) -> list[torch.Tensor]:
        return [self.log_scale]

    def posterior(self) -> dict[str, float]:
        head, body = (float(v) for v in self.log_scale.detach())
        if not self.head:
            head, body = body, 0.0
        scale, ratio = nearest_member(head, body - head)
        both = bool(self.head) and bool(self.body)
        return {
            name: base * scale * (ratio if both and name not in self.head else 1.0)
            for name, base in self.base.items()
        }

    def state(self) -> Tree:
        return {"log_scale": self.log_scale.detach().clone(), "recent": self.recent, "most": self.most}

    def load_state(self, state: Tree) -> None:
        self.log_scale = state["log_scale"].clone().requires_grad_()
        self.recent, self.most = state["recent"], state["most"]


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
        return {"train": "head", "augment": "none", "batch_size": 4096, "epochs": 20}

    # -- picking -----------------------------------------------------------------------------

    def start_epoch(self, epoch: int, predict: Callable[[nn.Module], torch.Tensor]) -> None:
        if self.picker is None:
            assert self.setup.labels is not None
            features = training_features(self.setup, self.head, predict).cpu()
            bias = 0.0 if self.head.bias is None else self.head.bias.detach().double().cpu()
            start = features.double() @ self.first.cpu().T + bias
            penalty, grow, steps, average, center = self.options.values()
            how = (penalty, grow, int(steps), average, center > 0)
            self.picker = Picker(features, self.setup.labels, start, *how)
        n, share = len(self.picker.labels), (epoch + 1) / self.setup.epochs
        self._pick(n if epoch + 1 == self.setup.epochs else math.ceil(share * n))
        assert self.picks is not None
        lead = self.picker.lead(self.picks.weight)
        logits = self.picker.start.double() + self.picker.features.double() @ self.picks.weight.T
        targets = torch.from_numpy(self.picker.labels)
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        self._step_result = float(loss), int((lead > 0).sum())

    def _pick(self, most: int) -> None:
        """Pick until that many examples are kept, or no error is left; the head is left fitted to them."""
        assert self.picker is not None
        self.picks = self.picker.begin() if self.picks is None else self.picks
        for picks in self.picker.going_on(self.picks):
            self.picks = picks
            if len(picks.kept) >= most and most < len(self.picker.labels):
                break
        self._set_head_weight(self.picks)

    @torch.no_grad()
    def _set_head_weight(self, picks: Picks) -> None:
        self.head.weight.copy_((self.first + picks.weight.to(self.first)).to(self.head.weight))

    # -- the loop ----------------------------------------------------------------------------

    def gradients(self, compute: Callable[[], T]) -> T:
        result, self._step_result = self._step_result or (0.0, 0), (0.0, 0)
        return result  # type: ignore[return-value]

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        raise ConfigError("method 'pick_to_learn' trains on no batches")

    def done(self) -> bool:
        return self.picks is not None and self.picks.done

    def finish(self) -> None:
        if self.picker is not None and not self.done():
            self._pick(len(self.picker.labels))
        if self.picks is None or not self.picks.done:
            raise RunError("Pick-to-Learn was stopped before its end; start over with --overwrite")
        self._set_head_weight(self.picks)

    def picked(self) -> list[int]:
        return [] if self.picks is None else list(self.picks.kept)

    def state(self) -> Tree:
        return {} if self.picks is None else dataclasses.asdict(self.picks)

    def load_state(self, state: Tree) -> None:
        if state:
            kept = [int(at) for at in state["kept"]]
            self.picks = Picks(kept, state["weight"].clone(), state["fitted"].clone(), bool(state["done"]))


METHODS = {"certified": Certified, "pick_to_learn": PickToLearn}
