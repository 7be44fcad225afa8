"""Noise stability against σ: the rise of the loss under Gaussian noise, compared with ½σ²·Σ Tr H_i.

EfficientNet-Lite0 (ReLU6, piecewise linear), fine-tuned on 300 noisy digits by `vanilla` and `robust`,
with noise on all layers, and a GELU network trained on the same digits at 8×8 pixels.
"""

from __future__ import annotations

import tempfile
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import hesstune as ht
from hesstune.analysis.measure import stability_of_run
from hesstune.curvature.stability import noise_stability_table

SIGMAS = (0.001, 0.002, 0.005, 0.01, 0.02)
EXAMPLES, SAMPLES = 64, 16


def efficientnet(method: str, folder: str) -> list[dict[str, Any]]:
    options = {"data": "digits", "inject_noise": "symmetric:0.4", "limit": 300, "image_size": 48}
    run = ht.finetune(options, method=method, epochs=12, lr=3e-4, out=f"{folder}/{method}")
    table = stability_of_run(run, SIGMAS, max_examples=EXAMPLES, samples=SAMPLES)
    return [row.to_dict() for row in table]


def gelu() -> list[dict[str, Any]]:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16)
    noisy = torch.from_numpy(ht.NoiseMatrix.symmetric(10, 0.4).corrupt(labels[:300], seed=0))
    model = nn.Sequential(
        nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10)
    ).double()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x[:300]), noisy).backward()
        optimizer.step()
    table = noise_stability_table(model, [(x[:EXAMPLES], noisy[:EXAMPLES])], SIGMAS, samples=64, probes=32)
    return [row.to_dict() for row in table]


def measure(case: dict[str, Any], run: object) -> dict[str, Any]:
    """Return one row of a network's table."""
    table = {row["sigma"]: row for row in stability(case["network"])}
    return {key: value for key, value in table[case["sigma"]].items() if key != "sigma"}


@cache
def stability(network: str) -> list[dict[str, Any]]:
    """Return the table of a network."""
    if network == "gelu":
        return gelu()
    with tempfile.TemporaryDirectory() as folder:
        return efficientnet(network.removeprefix("efficientnet_"), folder)
