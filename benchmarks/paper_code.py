"""The quantity of the paper's code compared with v_iᵀ H_i⁺ v_i, from dense Hessians in float64.

Three small networks are trained on scikit-learn's digits, then fine-tuned on 128 more with 20 % of the
labels changed. On 64 of these, in batches of 4, the paper's code takes one Hessian-vector product of
the batch's mean loss with every layer's v_i at once, and the largest v_iᵀ(Hv)_i over the batches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import hesstune as ht
from hesstune import NoiseMatrix, Reference

sys.path.append(str(Path(__file__).parents[1]))
from tests.dense_hessians import block_hessian, paper_code_quantity, positive_form

EXAMPLES, BATCH = 64, 4


class Cnn(nn.Module):
    """ReLU, batch norm and a stride: the exact path holds for every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 8, 3, stride=2)
        self.head = nn.Linear(72, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.first(x[:, None])))
        logits: torch.Tensor = self.head(F.relu(self.second(x)).flatten(1))
        return logits


class Transformer(nn.Module):
    """One encoder layer over the eight rows of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 24, dropout=0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.encoder(x).flatten(1))
        return logits


def gelu_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12), nn.GELU(), nn.Linear(12, 12), nn.GELU(), nn.Linear(12, 10)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"cnn": Cnn, "gelu_mlp": gelu_mlp, "transformer": Transformer}


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, lr: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(y), (32,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)


def compare(model: nn.Module, ref: Reference, x: torch.Tensor, y: torch.Tensor) -> dict[str, dict[str, Any]]:
    """Return, by layer, the paper's quantity, the block form, its positive part, and `hesstune.measure`."""
    model.eval()
    deltas = {name: ref.difference(model, name) for name in ref.layers()}
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    paper = [paper_code_quantity(model, *batch, deltas) for batch in batches]
    fast = ht.measure(model, ref, [(x, y)])
    rows = {}
    for i, (name, delta) in enumerate(deltas.items()):
        forms, positive = [], []
        for part, targets in batches:
            hessian = block_hessian(model, part, targets, name)
            flat = delta.flatten()
            forms.append(torch.einsum("i,bij,j->b", flat, hessian, flat))
            positive.append(positive_form(hessian, delta))
        form, plus = torch.cat(forms), torch.cat(positive)
        of_paper = torch.stack([p[name] for p in paper])
        rows[name] = {
            "distance": float(delta.norm()),
            "paper_maximum": float(of_paper.max()),
            "paper_mean": float(of_paper.mean()),
            "paper_negative_batches": int((of_paper < 0).sum()),
            "block_mean": float(form.mean()),
            "block_negative_share": float((form < 0).double().mean()),
            "positive_mean": float(plus.mean()),
            "positive_maximum": float(plus.max()),
            "fast_maximum": float(fast.maximum[i]),
            "exact": fast.exact[i],
            "batches": len(batches),
        }
    return rows


def cases(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the layers of the networks."""
    for network, make in NETWORKS.items():
        yield from ({"network": network, "layer": layer} for layer in Reference.of(make()).layers())


def measure(case: dict[str, Any], run: object) -> dict[str, Any]:
    """Return the quantities of one layer."""
    return compared(case["network"])[case["layer"]]


@cache
def compared(network: str) -> dict[str, dict[str, Any]]:
    """Train a network, and return the quantities of its layers."""
    torch.set_default_dtype(torch.float64)
    try:
        images, labels = load_digits(return_X_y=True)
        x, y = torch.tensor(images / 16).view(-1, 8, 8), torch.tensor(labels)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        early, late = order[:800], order[800:928]
        noisy = torch.from_numpy(NoiseMatrix.symmetric(10, 0.2).corrupt(y[late].numpy(), seed=0))
        torch.manual_seed(0)
        model = NETWORKS[network]()
        train(model, x[early], y[early], 300, 3e-3)
        model.eval()  # batch norm keeps its statistics, as in fine-tuning
        ref = Reference.of(model, x[:2])
        train(model, x[late], noisy, 150, 1e-3)
        return compare(model, ref, x[late[:EXAMPLES]], noisy[:EXAMPLES])
    finally:
        torch.set_default_dtype(torch.float32)
