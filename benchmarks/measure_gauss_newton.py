"""Time and memory of the Gauss–Newton form on an encoder of the size of BERT-base.

Weights are drawn at random from the configuration (110M, 12 layers, all Linear layers measured), 7 classes,
sentences of 32 tokens, one thread, CPU time. The sides take turns in one process; read the ratios.

- Limit: one forward pass and K − 1 backward passes to the activations, nothing else.
- Lanczos: a recurrence by double backward for one example and one layer at a time (`measure_text.py`), for a
  few pairs of examples and layers.
- Memory: the peak above the loaded network, beside that of a training step of as many sentences.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

import hesstune as ht
from hesstune.curvature.capture import differentiable
from hesstune.curvature.engine import CurvatureEngine
from hesstune.forward import logits_of
from measure import begin_peak, end_peak
from measure_text import STEPS, baseline

K, LENGTH, EXAMPLES, BATCH, TURNS, PAIRS = 7, 32, 8, 4, 3, 4
Inputs = dict[str, torch.Tensor]


class Encoder:
    """BERT-base from its configuration, a small random step away from its reference."""

    def __init__(self, examples: int = EXAMPLES) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(0)
        config = BertConfig()
        config.num_labels = K
        self.model: nn.Module = BertForSequenceClassification(config).eval()
        self.ref = ht.Reference.of(self.model)
        with torch.no_grad():
            for name in self.ref.layers():
                weight = self.model.get_parameter(name)
                weight.add_(0.05 * float(weight.std()) * torch.randn_like(weight))
        ids = torch.randint(1000, 20000, (examples, LENGTH))
        self.inputs, self.labels = {"input_ids": ids}, torch.randint(0, K, (examples,))

    def batches(self) -> list[tuple[Inputs, torch.Tensor]]:
        """Return the sentences in batches."""
        ids = self.inputs["input_ids"]
        return [
            ({"input_ids": some}, labels)
            for some, labels in zip(ids.split(BATCH), self.labels.split(BATCH), strict=True)
        ]

    def limit(self) -> None:
        """One forward pass and K − 1 backward passes to the first Linear layer's output."""
        first = next(m for m in self.model.modules() if isinstance(m, nn.Linear))
        outputs: list[torch.Tensor] = []
        handle = first.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        with differentiable(self.model, self.ref.layers()):
            for inputs, _ in self.batches():
                outputs.clear()
                logits = logits_of(self.model, inputs)
                for k in range(K - 1):
                    torch.autograd.grad(logits[:, k].sum(), outputs, retain_graph=True)
        handle.remove()

    def training_step(self) -> None:
        """One step of plain SGD on all sentences."""
        self.model.train()
        optimizer = torch.optim.SGD(self.model.parameters(), 1e-6)
        nn.functional.cross_entropy(logits_of(self.model, self.inputs), self.labels).backward()
        optimizer.step()


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def peak_mib(side: str) -> float:
    """Peak memory above the loaded network and differences of one side, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, side], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_peak(side: str) -> None:
    torch.set_num_threads(1)
    encoder = Encoder(BATCH)
    engine = CurvatureEngine.of(encoder.model, encoder.ref, method="gauss_newton")
    batch = encoder.inputs, encoder.labels
    engine.plan_on(encoder.inputs)
    for parameter in encoder.model.parameters():  # gradients exist on both sides, as after training
        parameter.grad = torch.zeros_like(parameter)
    before = begin_peak()
    if side == "training":
        encoder.training_step()
    else:
        engine.exact(batch, joint=True, trace=side == "trace")
    print(end_peak(before))


def measure(case: dict[str, Any], run: object) -> dict[str, Any]:
    """Time the sides in turns."""
    encoder = Encoder()
    engine = CurvatureEngine.of(encoder.model, encoder.ref, method="gauss_newton")
    engine.plan_on(encoder.inputs)
    names = engine.names

    def forms(trace: bool = False) -> None:
        for batch in encoder.batches():
            engine.exact(batch, joint=True, trace=trace)

    sides: dict[str, Callable[[], object]] = {
        "limit": encoder.limit,
        "form": forms,
        "trace": lambda: forms(trace=True),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(TURNS):
        for name, call in sides.items():
            taken[name].append(seconds(call))
    middle = {name: median(values) / EXAMPLES for name, values in taken.items()}
    pairs = []
    for pair in range(PAIRS):
        name = names[pair * (len(names) - 1) // (PAIRS - 1)]
        one = {"input_ids": encoder.inputs["input_ids"][pair : pair + 1]}, encoder.labels[pair : pair + 1]
        delta = {name: engine.differences[name]}
        pairs.append(seconds(partial(baseline, encoder.model, one, delta, STEPS)))
    each = sum(pairs) / len(pairs)
    peaks = {side: peak_mib(side) for side in ("training", "form", "trace")}
    return {
        "setting": {
            "parameters": sum(p.numel() for p in encoder.model.parameters()),
            "layers": len(names),
            "classes": K,
            "tokens": LENGTH,
            "examples": EXAMPLES,
            "batch": BATCH,
            "steps": STEPS,
        },
        "cpu_seconds_per_example": middle,
        "cpu_seconds_of_lanczos": pairs,
        "ratio_form_to_limit": middle["form"] / middle["limit"],
        "ratio_trace_to_limit": middle["trace"] / middle["limit"],
        "ratio_lanczos_to_form": each * len(names) / middle["form"],
        "peak_mib": peaks,
        "ratio_peak_form_to_training": peaks["form"] / peaks["training"],
        "ratio_peak_trace_to_training": peaks["trace"] / peaks["training"],
    }


if __name__ == "__main__":
    print_peak(sys.argv[1])
