"""Time of the `robust` step compared with the plain step, and of the plain step with a PyTorch loop.

EfficientNet-Lite0, all 50 layers, 7 classes, 96 px. The three loops take turns in short blocks of steps
in one process, so that changes of the machine's speed affect all of them. Ratios are of the medians of
the blocks.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hesstune import NoiseMatrix, Reference
from hesstune.data.augment import Augmentation
from hesstune.data.examples import Examples
from hesstune.data.images import DecodedImages
from hesstune.inputs.batches import ImageInputs, ModelInputs, to_channels_last
from hesstune.methods import MethodSetup, method_class
from hesstune.models.load import load_model
from hesstune.runs.checkpoint import Checkpoints
from hesstune.runs.config import make_config
from hesstune.training.metrics import Validation
from hesstune.training.trainer import Trainer, TrainingInputs

K, SIZE, N = 7, 96, 256
BATCH, BLOCKS, STEPS = 32, 12, 3


def examples() -> Examples:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (N, 3, SIZE, SIZE), dtype=np.uint8))
    return Examples(DecodedImages(images), np.arange(N), [str(i) for i in range(N)], rng.integers(0, K, N))


def make_trainer(method: str, batch: int) -> Trainer:
    config = make_config(
        {"method": method, "inject_noise": "symmetric:0.4", "batch_size": batch, "warmup_epochs": 0}
    )
    config = config.resolved()
    part, device = examples(), torch.device("cpu")
    loaded = load_model("efficientnet_lite0", K)
    to_channels_last(loaded.model, device)
    radii = config.radius if isinstance(config.radius, dict) else {}
    radius = {loaded.head_layers[0] if k == "head" else k: v for k, v in radii.items()} or None
    noise = NoiseMatrix.symmetric(K, 0.4)
    assert part.labels is not None
    counts = np.bincount(part.labels, minlength=K)
    setup = MethodSetup(loaded.model, Reference.of(loaded.model), noise, counts, radius, "frobenius", 0)
    augmentation = Augmentation("auto", flip=True, n=N, seed=0)
    augmentation.start_epoch(0)
    feeds: dict[str, ModelInputs] = {
        "train": ImageInputs(part, loaded, device, augmentation),
        "val": ImageInputs(part, loaded, device),
    }
    checkpoints = Checkpoints(Path(tempfile.mkdtemp()))
    made = method_class(method)(setup)
    inputs = TrainingInputs(loaded.model, feeds, part, part, None, Validation(None), device)
    trainer = Trainer(config, config, made, inputs, checkpoints, lambda _: None)
    trainer._training_mode()
    return trainer


def trainer_step(trainer: Trainer, batch: int) -> Callable[[int], None]:
    def step(at: int) -> None:
        trainer._step([batch_indices(at, batch)], 0)

    return step


def batch_indices(at: int, batch: int) -> np.ndarray:
    return np.arange(at * batch, (at + 1) * batch) % N


def bare_step(batch: int) -> Callable[[int], None]:
    """Return the same work in plain PyTorch: augment, normalise, forward, loss, backward, Adam, schedule."""
    part = examples()
    model = load_model("efficientnet_lite0", K).model.train()
    to_channels_last(model, torch.device("cpu"))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    augment = Augmentation("auto", flip=True, n=N, seed=0)
    augment.start_epoch(0)
    assert part.labels is not None
    labels = torch.from_numpy(part.labels)

    def step(at: int) -> None:
        rows = batch_indices(at, batch)
        images = augment(part.images(rows), rows).contiguous(memory_format=torch.channels_last)
        logits = model((images.float() - 127) / 128)
        targets = labels[torch.from_numpy(rows)]
        loss = torch.nn.functional.cross_entropy(logits, targets)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        float(loss.detach())
        int((logits.argmax(dim=1) == targets).sum())

    return step


def measure(case: dict[str, Any], run: object) -> dict[str, Any]:
    """Time the three loops in turns."""
    loops = {
        "bare": bare_step(BATCH),
        "plain": trainer_step(make_trainer("vanilla", BATCH), BATCH),
        "robust": trainer_step(make_trainer("robust", BATCH), BATCH),
    }
    times: dict[str, list[float]] = {name: [] for name in loops}
    for block in range(BLOCKS + 1):
        for name, step in loops.items():
            started = time.perf_counter()
            for at in range(STEPS):
                step(block * STEPS + at)
            if block:  # the first block warms up
                times[name].append((time.perf_counter() - started) / STEPS)
    median = {name: float(np.median(values)) for name, values in times.items()}
    pairs = zip(times["robust"], times["plain"], strict=True)
    setting = {"model": "efficientnet_lite0", "layers": 50, "classes": K, "pixels": SIZE, "batch": BATCH}
    return {
        "setting": setting,
        "ratio_plain_to_bare": round(median["plain"] / median["bare"], 3),
        "ratio_robust_to_plain": round(median["robust"] / median["plain"], 3),
        "ratio_robust_to_plain_by_block": [round(r / p, 3) for r, p in pairs],
    }
