"""Methods that train two networks, each on what the other one selects."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import nn

from hesstune.forward import unmoved_statistics
from hesstune.methods._base import ROBUST_HEAD_PENALTY, Batch, Method, MethodSetup, Option
from hesstune.methods.baselines import beta_draw, mixed
from hesstune.storage.tensors import Tree

# Standard deviation of the twin's head: two equal networks would pick the same examples for ever.
HEAD_NOISE = 0.01


class TwoNetworks(Method):
    """A second network beside the run's own, with a head that starts elsewhere.

    The run's result is the first network. Both are stepped by one optimizer: their losses are summed,
    and no parameter is in both.
    """

    takes_soft = False
    weighs_classes = False
    head_penalty = ROBUST_HEAD_PENALTY

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        self.twin = copy.deepcopy(setup.network)
        generator = torch.Generator().manual_seed(int(setup.counts.sum()))
        head = {id(p) for name, p in setup.model.named_parameters() if setup.in_head(name)}
        with torch.no_grad():
            for own, other in zip(setup.network.parameters(), self.twin.parameters(), strict=True):
                if id(own) in head:
                    other.add_(HEAD_NOISE * torch.randn(own.shape, generator=generator).to(other))

    def networks(self) -> list[nn.Module]:
        return [self.twin]

    def state(self) -> Tree:
        return {"twin": dict(self.twin.state_dict())}

    def load_state(self, state: Tree) -> None:
        self.twin.load_state_dict(state["twin"])


class CoTeaching(TwoNetworks):
    """Co-teaching: two networks; each learns from the examples with the other's smallest losses.

    The share kept falls from 1 to 1 − τ, τ the noise rate. Source: Han et al. 2018, algorithm 1,
    R(T) = 1 − min(τ·T/T_k, τ).
    """

    needs_noise_matrix = True
    own_options = {"ramp": Option(0.3, "T_k as a share of the epochs; Han et al. 2018: 10 epochs", high=1.0)}

    def kept(self, epoch: int) -> float:
        """Return R(T), the share of a batch that is kept in an epoch."""
        assert self.setup.noise_matrix is not None
        rate, over = self.setup.noise_matrix.rate, self.options["ramp"] * self.setup.epochs
        return 1.0 - rate * (min(1.0, (epoch + 1) / over) if over else 1.0)

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        logits = [batch.logits(), batch.logits(self.twin)]
        losses = [
            torch.nn.functional.cross_entropy(x.float(), batch.targets, reduction="none") for x in logits
        ]
        count = max(1, math.ceil(self.kept(batch.epoch) * len(batch.targets)))
        easy = [values.detach().argsort(stable=True)[:count] for values in losses]
        return losses[0][easy[1]].mean() + losses[1][easy[0]].mean(), logits[0]


DIVIDE_MIX_SOURCE = "Li, Socher, Hoi 2020, section 4.2"


def clean_probability(losses: torch.Tensor) -> torch.Tensor:
    """Return P(clean), (n,): the posterior of the component with the lower mean, of two Gaussians."""
    from sklearn.mixture import GaussianMixture

    values = losses.double().cpu().numpy()
    spread = np.ptp(values)
    if not spread > 0:
        return torch.ones(len(values))
    values = ((values - values.min()) / spread)[:, None]
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(values)
    return torch.from_numpy(mixture.predict_proba(values)[:, int(mixture.means_.argmin())]).float()


class DivideMix(TwoNetworks):
    """DivideMix, simplified: a mixture of two Gaussians on each network's losses divides the examples
    for the other one; labels are refined or guessed, and all is mixed.

    Source: Li, Socher, Hoi 2020, algorithm 1: p > 0.5 is clean, sharpening T = 0.5, Beta(4, 4). Simplified:
    one pass over all examples instead of MixMatch's two streams, two views of the augmentation, λ_u with
    the squared error on guessed labels, and a plain warm-up of `--warmup-epochs`.
    """

    warms_up = True
    mixes_inputs = True
    own_options = {
        "threshold": Option(0.5, DIVIDE_MIX_SOURCE, high=1.0),
        "temperature": Option(0.5, DIVIDE_MIX_SOURCE, low=1e-3),
        "alpha": Option(4.0, DIVIDE_MIX_SOURCE, search=(0.2, 8.0), log=True),
        "lambda_u": Option(25.0, DIVIDE_MIX_SOURCE, search=(0.1, 50.0), log=True),
    }

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        n = int(setup.counts.sum())
        self.clean = [torch.ones(n), torch.ones(n)]
        self.labels = torch.full((n,), -1)

    def start_epoch(self, epoch: int, predict: Callable[[nn.Module], torch.Tensor]) -> None:
        if epoch < self.setup.warmup_epochs or bool((self.labels < 0).all()):
            return
        seen = self.labels >= 0
        for at, net in enumerate((self.setup.network, self.twin)):
            losses = nn.functional.cross_entropy(predict(net)[seen], self.labels[seen], reduction="none")
            self.clean[at][seen] = clean_probability(losses)

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        self.labels[batch.indices.cpu()] = batch.targets.cpu()
        warming = batch.epoch < self.setup.warmup_epochs
        # Later, statistics move by what is trained on, the mixed batch: not by guesses of labels, too.
        with nullcontext() if warming else unmoved_statistics(batch.net, self.twin):
            first, second = batch.logits(), batch.logits(self.twin)
        if warming:
            plain = [nn.functional.cross_entropy(x.float(), batch.targets) for x in (first, second)]
            return plain[0] + plain[1], first
        again = batch.again()
        p = [torch.softmax(x.detach().float(), dim=1) for x in (first, second)]
        with torch.no_grad(), unmoved_statistics(batch.net, self.twin):
            for at, net in enumerate((batch.net, self.twin)):
                p[at] = 0.5 * (p[at] + torch.softmax(batch.logits(net, again).float(), dim=1))
        # Each network learns from the division that the other one made.
        losses = [
            self._mixed_loss(batch, net, p[at], p[1 - at], self.clean[1 - at])
            for at, net in enumerate((batch.net, self.twin))
        ]
        return losses[0] + losses[1], first

    def targets(
        self, batch: Batch, own: torch.Tensor, other: torch.Tensor, clean: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return soft targets, (N, K), and which examples count as clean, (N,).

        Clean ones: w·label + (1 − w)·own prediction; the others: both networks' mean; both sharpened.
        """
        w = clean[batch.indices.cpu()].to(own)[:, None]
        trusted = w[:, 0] > self.options["threshold"]
        labels = nn.functional.one_hot(batch.targets, own.shape[1]).to(own)
        soft = torch.where(trusted[:, None], w * labels + (1.0 - w) * own, 0.5 * (own + other))
        soft = soft ** (1.0 / self.options["temperature"])
        return soft / soft.sum(dim=1, keepdim=True), trusted

    def _mixed_loss(
        self, batch: Batch, net: nn.Module, own: torch.Tensor, other: torch.Tensor, clean: torch.Tensor
    ) -> torch.Tensor:
        soft, trusted = self.targets(batch, own, other, clean)
        share = beta_draw(self.options["alpha"])
        share = max(share, 1.0 - share)
        order = torch.randperm(len(soft)).to(soft.device)
        assert isinstance(batch.inputs, torch.Tensor)
        logits = batch.logits(net, mixed(batch.inputs, order, share)).float()
        target = mixed(soft, order, share)
        p = torch.softmax(logits, dim=1)
        entropy = -(target * torch.log_softmax(logits, dim=1)).sum(dim=1)
        squared = (p - target).square().mean(dim=1)
        ramp = min(1.0, (batch.epoch - self.setup.warmup_epochs + 1) / max(1, self.setup.epochs // 2))
        weight = ramp * self.options["lambda_u"]
        total = torch.where(trusted, entropy, weight * squared).mean()
        # Their last term keeps the mean prediction from collapsing onto one class.
        prior = torch.full_like(p[0], 1.0 / p.shape[1])
        return total + (prior * (prior.log() - p.mean(dim=0).clamp_min(1e-8).log())).sum()

    def state(self) -> Tree:
        return {**super().state(), "clean": self.clean, "labels": self.labels}

    def load_state(self, state: Tree) -> None:
        super().load_state(state)
        self.clean, self.labels = state["clean"], state["labels"]


METHODS = {"co_teaching": CoTeaching, "divide_mix": DivideMix}
