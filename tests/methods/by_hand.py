"""A small network, a batch and a method on them, to work formulas by hand."""

import numpy as np
import torch
from torch import nn

from hesstune import NoiseMatrix, Reference
from hesstune.methods import Batch, MethodSetup, method_class

K, N = 3, 6
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def built(name, **changes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, K))
    values = {
        "model": model,
        "reference": Reference.of(model),
        "noise_matrix": NoiseMatrix.symmetric(K, 0.3),
        "counts": np.array([2, 2, 2]),
        "radius": 0.1,
        "norm": "frobenius",
        "warmup_epochs": 1,
        "head": "2",
        "epochs": 10,
    }
    return method_class(name)(MethodSetup(**{**values, **changes}))


def batch(method, epoch=0, other=None):
    net = method.setup.network
    return Batch(net, X, Y, torch.arange(N), epoch, lambda: X if other is None else other)


def cross_entropy(logits, targets):
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def trained_weights(method):
    return {name: p.detach().clone() for name, p in method.setup.model.named_parameters()}


def step(method):
    """The gradients that the loop would step along."""

    def compute():
        method.setup.model.zero_grad()
        loss, _ = method.batch_loss(batch(method))
        loss.backward()

    method.gradients(compute)
    return {name: p.grad.clone() for name, p in method.setup.model.named_parameters()}


def none(net):
    raise AssertionError("not needed")
