"""The memory forecast of `measure`, compared with the peak of resident memory, on six networks.

Each case is a process of its own: the network and its reference are loaded, and the least case of the same
measurement is run once, so that code and thread pools are loaded. Then the peak above that is taken, without
a budget and with one of 1.5 times the least.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import nn

import hesstune as ht
from hesstune.curvature.declared import FORECAST
from hesstune.errors import MeasureError
from hesstune.forward import Inputs
from measure import begin_peak, end_peak

Made = tuple[nn.Module, Inputs]
# Lanczos takes as many products as it may.
LANCZOS = {"method": "lanczos", "steps": 2, "tol": 1e-9}
GAUSS_NEWTON: dict[str, Any] = {"method": "gauss_newton"}


def efficientnet() -> Made:
    """EfficientNet-Lite0, 96 pixels."""
    from hesstune.models.load import load_model

    return load_model("efficientnet_lite0", 7).model, torch.randn(64, 3, 96, 96)


def wide() -> Made:
    """Three wide layers on vectors."""
    sizes = (768, 2048, 2048)
    layers = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(2048, 10)), torch.randn(256, 768)


def convolutions() -> Made:
    """A plain convolutional network with smooth activations."""
    sizes = (3, 32, 64, 64)
    layers: list[nn.Module] = []
    for i, o in pairwise(sizes):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.GELU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 64, 10)), torch.randn(32, 3, 64, 64)


def _tokens(count: int, length: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(1000, 20000, (count, length))}


def _labelled(config: Any, classes: int) -> Any:
    config.num_labels = classes
    return config


def encoder() -> Made:
    """Four layers of the width of BERT-base."""
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(_labelled(BertConfig(num_hidden_layers=4), 3)), _tokens(16, 32)


def vision() -> Made:
    """A small vision transformer."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=192, num_hidden_layers=6, num_attention_heads=3, intermediate_size=768)
    return ViTForImageClassification(_labelled(config, 10)), torch.randn(16, 3, 224, 224)


def decoder() -> Made:
    """A small Llama for sequence classification."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(
        hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6,
        vocab_size=32000, pad_token_id=0,
    )  # fmt: skip
    return LlamaForSequenceClassification(_labelled(config, 4)), _tokens(16, 64)


CASES: dict[str, tuple[Callable[[], Made], dict[str, Any]]] = {
    "EfficientNet-Lite0, exact": (efficientnet, {}),
    "EfficientNet-Lite0, exact with traces": (efficientnet, {"trace": True}),
    "wide layers, exact": (wide, {}),
    "convolutions with GELU, Lanczos": (convolutions, LANCZOS),
    "encoder, Lanczos": (encoder, LANCZOS),
    "encoder, Gauss–Newton with traces": (encoder, {**GAUSS_NEWTON, "trace": True}),
    "vision transformer, Gauss–Newton": (vision, GAUSS_NEWTON),
    "decoder, Gauss–Newton": (decoder, GAUSS_NEWTON),
}
BUDGETS = (None, 1.5)


def cases(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each network and measurement, without a budget and with one."""
    for name in CASES:
        for times in BUDGETS:
            yield {"measurement": name, "budget, times the least": times}


def print_peak(name: str, times: str) -> None:
    """Measure one case; print the budget, the forecast and the peak in MiB."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    make, options = CASES[name]
    model, inputs = make()
    ref = ht.Reference.of(model.eval())
    with torch.no_grad():
        for layer in ref.layers():
            weight = model.get_parameter(layer)
            weight.add_(0.02 * float(weight.std()) * torch.randn_like(weight))
    size = len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)
    batches = [(inputs, torch.zeros(size, dtype=torch.long))]
    least = 0.0
    try:
        ht.measure(model, ref, batches, memory_mib=1e-6, **options)
    except MeasureError as error:
        least = float(re.search(r"give memory_mib=([\d.]+)", str(error))[1])  # type: ignore[index]
    budget = None if times == "None" else float(times) * least
    smallest = ref.layers()[-1]
    ht.measure(model, ref, batches, layers=[smallest], max_examples=1, **options)
    lines: list[str] = []

    def planned(line: str) -> None:
        if not lines:  # planning, which looks at four examples whatever the budget, is over
            begin_peak()
        lines.append(line)

    before = begin_peak()
    ht.measure(model, ref, batches, memory_mib=budget, on_forecast=planned, **options)
    forecast = float(re.search(rf"{FORECAST} at most ([\d.]+) MiB", lines[0])[1])  # type: ignore[index]
    print(budget or 0.0, forecast, end_peak(before))


def measure(case: dict[str, Any], run: object) -> dict[str, Any]:
    """Return budget, forecast and peak of one case, in MiB."""
    command = [sys.executable, __file__, *map(str, case.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    budget, forecast, peak = map(float, done.stdout.split()[-3:])
    return {
        "budget_mib": budget or None,
        "forecast_mib": forecast,
        "peak_mib": peak,
        "ratio": forecast / peak,
    }


if __name__ == "__main__":
    print_peak(*sys.argv[1:])
