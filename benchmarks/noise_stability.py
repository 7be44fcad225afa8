"""Noise stability against σ: the rise of the loss under Gaussian noise, beside ½σ²·Σ Tr H_i.

EfficientNet-Lite0 (ReLU6: piecewise linear) fine-tuned on 300 noisy digits plainly and robustly, all
layers perturbed; and a GELU network trained on the same digits at 8×8 pixels. As in the paper's
noise-stability table, but with the standard error and the prediction's ratio.

    python benchmarks/noise_stability.py
"""

from __future__ import annotations

import tempfile

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import hesstune as ht
from hesstune.analysis.measure import stability_of_run
from hesstune.curvature.stability import noise_stability_table
from records import write_record

SIGMAS = (0.001, 0.002, 0.005, 0.01, 0.02)
EXAMPLES, SAMPLES = 64, 16


def efficientnet(method: str, folder: str) -> list[dict[str, object]]:
    run = ht.finetune(
        data="digits",
        method=method,
        inject_noise="symmetric:0.4",
        limit=300,
        image_size=48,
        epochs=12,
        lr=3e-4,
        out=f"{folder}/{method}",
    )
    table = stability_of_run(run, SIGMAS, max_examples=EXAMPLES, samples=SAMPLES)
    return [row.to_dict() for row in table]


def gelu() -> list[dict[str, object]]:
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


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        networks = {f"efficientnet_{m}": efficientnet(m, folder) for m in ("vanilla", "robust")}
    networks["gelu"] = gelu()
    record = {
        "command": "python benchmarks/noise_stability.py",
        "torch": torch.__version__,
        "examples": EXAMPLES,
        "networks": networks,
    }
    write_record("noise_stability", record)
    for name, rows in networks.items():
        for row in rows:
            print(name, {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    main()
