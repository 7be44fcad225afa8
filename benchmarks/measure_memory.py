"""Memory of `measure`, predicted and measured, on six networks; and with budgets.

Each network and method runs in a process of its own: first without a budget, then with two budgets, the least
that `measure` accepts and half of the way from it to the first forecast. The peak is that of resident memory
from the forecast on, beside the network, its reference and what the process held before. Freed memory goes
back to the system at once (MALLOC_MMAP_THRESHOLD_), since otherwise the allocator keeps some of it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hesstune.curvature.batches import rows_of
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.measure import measure as measure_layers
from hesstune.errors import MeasureError
from hesstune.forward import Inputs
from hesstune.reference import Reference
from measure import begin_peak, end_peak

EXAMPLES, CLASSES, PIXELS, TOKENS = 16, 7, 128, 48
# The defaults of the command line, with fewer products and sampled examples of smooth layers.
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {"examples": "max", "trace": "exact", "mean_sample": 2, "steps": 2, "max_examples": EXAMPLES},
    "gauss_newton": {"method": "gauss_newton", "trace": True},
}
Network = tuple[nn.Module, Reference, Inputs]


class Residual(nn.Module):
    """The block of ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        same = stride == 1 and inputs == outputs
        self.short = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner: torch.Tensor = self.norms[1](self.second(torch.relu(self.norms[0](self.first(x)))))
        return torch.relu(inner + self.short(x))


def moved(model: nn.Module, inputs: Inputs) -> Network:
    """Take the reference, and move the layers by 5 % of their spread."""
    ref = Reference.of(model.eval())
    with torch.no_grad():
        for name in ref.layers():
            weight = model.get_parameter(name)
            weight.add_(0.05 * float(weight.std()) * torch.randn_like(weight))
    return model, ref, inputs


def _pictures() -> torch.Tensor:
    return torch.randn(EXAMPLES, 3, PIXELS, PIXELS)


def _tokens(words: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, words, (EXAMPLES, TOKENS))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def efficientnet() -> Network:
    from hesstune.models.load import load_model

    return moved(load_model("efficientnet_lite0", CLASSES).model, _pictures())


def resnet() -> Network:
    stages = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
    widths = [width for stage in stages for width in (stage, (stage[1], stage[1], 1))]
    blocks = [Residual(*width) for width in widths]
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES)]
    return moved(nn.Sequential(*stem, *blocks, *head), _pictures())


def minilm() -> Network:
    from measure_text import load

    return moved(load(), _tokens(20_000))


def bert() -> Network:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig()
    config.num_labels = CLASSES
    return moved(BertForSequenceClassification(config), _tokens(30_000))


def vit() -> Network:
    from transformers import ViTConfig, ViTForImageClassification

    shape: dict[str, Any] = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    config = ViTConfig(**shape, image_size=PIXELS)
    config.num_labels = CLASSES
    return moved(ViTForImageClassification(config), _pictures())


def llama() -> Network:
    import peft
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from hesstune.integrations.peft import base_reference, merged

    shape: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
    }
    config = LlamaConfig(vocab_size=4000, **shape, num_key_value_heads=2, pad_token_id=0)
    config.num_labels = CLASSES
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=8, target_modules="all-linear")
    model = peft.get_peft_model(LlamaForSequenceClassification(config), lora).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05)
    return merged(model), base_reference(model), _tokens(4000)


NETWORKS: dict[str, Callable[[], Network]] = {
    "EfficientNet-Lite0": efficientnet, "ResNet-18": resnet, "MiniLM": minilm, "BERT-base": bert,
    "ViT, 12 layers of 192": vit, "Llama, 6 layers of 256, LoRA": llama,
}  # fmt: skip


def one(name: str, method: str) -> dict[str, Any]:
    """Measure the peaks of one network and method; run it in a process of its own."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, ref, inputs = NETWORKS[name]()
    targets = torch.arange(EXAMPLES) % 2

    def peaks(budget: float | None) -> dict[str, float]:
        lines: list[str] = []
        held = begin_peak()

        def forecast_made(line: str) -> None:
            lines.append(line)
            begin_peak()

        measure_layers(
            model, ref, [(inputs, targets)], memory_mib=budget, on_forecast=forecast_made, **OPTIONS[method]
        )
        peak = end_peak(held)
        forecast = re.search(r"at most ([\d.]+) MiB", lines[0])
        at_once = re.search(r"passes of (\d+) at a time", lines[0])
        assert forecast is not None
        assert at_once is not None
        return {"forecast_mib": float(forecast[1]), "peak_mib": peak, "examples_at_once": int(at_once[1])}

    peaks(None)  # kernels are loaded
    measure_layers(model, ref, [(rows_of(inputs, torch.arange(1)), targets[:1])], **OPTIONS[method])
    held = begin_peak()
    CurvatureEngine.of(model, ref, method=OPTIONS[method].get("method", "auto")).plan_on(inputs)
    found: dict[str, Any] = {"plan_mib": end_peak(held), **peaks(None)}
    try:
        peaks(1e-3)
    except MeasureError as error:
        needed = re.search(r"give memory_mib=([\d.]+)", str(error))
    assert needed is not None
    least = float(needed[1])
    budgets = (least, (least + found["forecast_mib"]) / 2)
    found["budgets"] = [{"budget_mib": budget, **peaks(budget)} for budget in budgets]
    return found


def measure(case: dict[str, Any], run: object) -> dict[str, Any]:
    """Measure one case in a process of its own."""
    command = [sys.executable, __file__, case["network"], case["method"]]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "16384", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    print(json.dumps(one(*sys.argv[1:])))
