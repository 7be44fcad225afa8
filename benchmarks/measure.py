"""Time and memory of the exact path, compared with its limit, the paper's code and block Lanczos.

EfficientNet-Lite0, all 50 layers, 7 classes, 96 px, 64 examples, one thread. The sides take turns in one
process. Seconds are CPU time, which other work on the machine changes little; ratios are of medians.
Block Lanczos uses curvlinops 3.0.1 (the extra `benchmarks`): its next release removes the block-diagonal
Hessian.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import hesstune as ht
from hesstune import Reference
from hesstune.curvature.capture import differentiable
from hesstune.curvature.declared import SKIP_CLASSES
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.exact import FormOptions, exact_forms
from hesstune.curvature.quadrature import Krylov, Stopping
from hesstune.inputs.batches import to_channels_last
from hesstune.models.load import load_model

K, SIZE, N, BATCH, PAPER_BATCH, PUBLIC = 7, 96, 64, 16, 4, 256


class Setting:
    """A network a few training steps away from its reference, and 64 examples."""

    def __init__(self, classes: int = K, steps: int = 5, examples: int = N, lr: float = 1e-4) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = load_model("efficientnet_lite0", classes).model
        to_channels_last(self.model, torch.device("cpu"))
        self.ref = Reference.of(self.model)
        x = torch.randn(examples, 3, SIZE, SIZE, generator=generator)
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.y = torch.randint(0, classes, (examples,), generator=generator)
        self.model.eval()  # batch norm keeps its statistics, as in fine-tuning
        optimizer = torch.optim.Adam(self.model.parameters(), lr)
        for _ in range(steps):
            self.training_step(optimizer)
        self.model.zero_grad(set_to_none=True)
        self.names = self.ref.layers()
        self.deltas = {n: self.ref.difference(self.model, n) for n in self.names}
        self.engine = CurvatureEngine.of(self.model, self.ref)
        self.engine.plan_on(self.x[:2])

    def training_step(self, optimizer: torch.optim.Optimizer, batch: int = BATCH) -> None:
        """Take one step on the first examples."""
        optimizer.zero_grad()
        F.cross_entropy(self.model(self.x[:batch]), self.y[:batch]).backward()
        optimizer.step()

    def exact(self, rows: slice) -> torch.Tensor:
        """Compute all layers' forms of these examples."""
        with differentiable(self.model, self.names):
            captured = self.engine.capture(self.x[rows], self.names)
            return exact_forms(captured, self.names, self.deltas).quadratic

    def limit(self, rows: slice) -> None:
        """Two forward passes and K backward passes to the first layer's output, nothing else."""
        x = self.x[rows]
        with torch.no_grad():
            self.model(x)
        first: list[torch.Tensor] = []
        stem = self.model.get_submodule(self.names[0].removesuffix(".weight"))
        handle = stem.register_forward_hook(lambda module, inputs, output: first.append(output))
        with differentiable(self.model, self.names):
            logits = self.model(x)
            for k in range(K):
                torch.autograd.grad(logits[:, k].sum(), first, retain_graph=True)
        handle.remove()

    def paper(self, rows: slice) -> None:
        """One double backward for all layers at once, as the paper's code does (v_iᵀ(Hv)_i)."""
        parameters = dict(self.model.named_parameters())
        weights = [parameters[name] for name in self.names]
        loss = F.cross_entropy(self.model(self.x[rows]), self.y[rows])
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        slope = torch.stack(
            [(g * self.deltas[n]).sum() for g, n in zip(gradients, self.names, strict=True)]
        ).sum()
        for product, name in zip(torch.autograd.grad(slope, weights), self.names, strict=True):
            float((product * self.deltas[name]).sum())


def seconds(call: Callable[[slice], object], batch: int, examples: int) -> float:
    start = time.process_time()
    for first in range(0, examples, batch):
        call(slice(first, first + batch))
    return (time.process_time() - start) / examples


def in_turns(
    sides: Mapping[str, tuple[Callable[[slice], object], int]], blocks: int
) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for call, batch in sides.values():
        call(slice(0, batch))
    for _ in range(blocks):
        for name, (call, batch) in sides.items():
            taken[name].append(seconds(call, batch, N))
    return taken


def block_lanczos(setting: Setting, count: int = 6) -> dict[str, Any]:
    """Time Lanczos on curvlinops' block Hessian, per example and layer, to a relative error of 1 %.

    The recurrence ends when its Gauss-Radau bracket is that narrow, or after as many steps as the rank.
    """
    from curvlinops import HessianLinearOperator

    def product(operator: Any, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = operator @ x[0]
        return found[None]

    expected = setting.exact(slice(0, count))
    parameters = dict(setting.model.named_parameters())
    taken, products, worst = [], [], 0.0
    for row in range(count):
        column = row * (len(setting.names) - 1) // (count - 1)
        name = setting.names[column]
        data = [(setting.x[row : row + 1], setting.y[row : row + 1])]
        start = time.process_time()
        operator = HessianLinearOperator(
            setting.model, nn.CrossEntropyLoss(), [parameters[name]], data, check_deterministic=False
        )
        krylov = Krylov(partial(product, operator), setting.deltas[name].reshape(1, -1))
        bracket = Stopping(tol=0.01, most=K).run(krylov)
        taken.append(time.process_time() - start)
        products.append(krylov.products)
        worst = max(worst, abs(float(bracket.value) / float(expected[row, column]) - 1))
    return {"seconds": taken, "products": products, "largest_relative_difference": worst}


def peak_mib(side: str) -> float:
    """Peak memory above the loaded model of one side on a batch of 32, in a process of its own."""
    command = [sys.executable, __file__, side]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def print_peak(side: str) -> None:
    torch.set_num_threads(1)
    setting = Setting(steps=0, examples=32)
    optimizer = torch.optim.SGD(setting.model.parameters(), 1e-5)
    setting.training_step(optimizer, 1)  # gradients exist on both sides, as after training
    setting.deltas = {n: torch.full_like(v, 1e-3) for n, v in setting.deltas.items()}
    setting.exact(slice(0, 1))
    before = begin_peak()
    if side == "training":
        setting.training_step(optimizer, 32)
    else:
        setting.exact(slice(0, 32))
    print(end_peak(before))


def begin_peak() -> int:
    """Give freed memory back and forget the peak so far; return the memory in use, in KiB."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def end_peak(before: int) -> float:
    """Return the peak since `begin_peak` above the memory in use then, in MiB."""
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def growth() -> dict[str, list[dict[str, float]]]:
    """Cost over examples (7 classes) and over classes (32 examples)."""
    setting = Setting(steps=1)
    examples = []
    for n in (16, 32, 48, 64):
        each = min(seconds(setting.exact, BATCH, n) for _ in range(2))
        examples.append({"examples": n, "seconds": each * n})
    classes = []
    for k in (3, 7, 15, 31):
        other = Setting(classes=k, steps=1, examples=BATCH)
        classes.append({"classes": k, "seconds": min(seconds(other.exact, BATCH, BATCH) for _ in range(2))})
    return {"examples": examples, "classes": classes}


def skipped(classes: int) -> dict[str, float]:
    """Passes and CPU seconds with each example's unlikely classes left out, as by default, and without.

    The head is scaled up, so that little mass lies on classes that no example has, as on fitted networks.
    """
    setting = Setting(classes=classes, steps=10, examples=BATCH, lr=1e-3)
    with torch.no_grad():
        dict(setting.model.named_parameters())[setting.names[-1]].mul_(3.0)
    found, taken = [], []
    for tol in (0.0, SKIP_CLASSES):
        with differentiable(setting.model, setting.names):
            captured = setting.engine.capture(setting.x, setting.names)
            start = time.process_time()
            found.append(
                exact_forms(captured, setting.names, setting.deltas, FormOptions(trace=True, tol=tol))
            )
            taken.append(time.process_time() - start)
    full, few = found
    assert full.trace is not None
    assert few.trace is not None
    error = ((few.quadratic - full.quadratic).abs() / full.quadratic).max()
    inside = ((few.lower <= full.quadratic * 1.0001) & (full.quadratic <= few.upper * 1.0001)).double().mean()
    return {
        "classes": classes,
        "tolerance": SKIP_CLASSES,
        "mean_top_probability": float(captured.logits.detach().softmax(1).amax(1).mean()),
        "passes_all": full.passes,
        "passes": few.passes,
        "ratio_seconds": taken[0] / taken[1],
        "largest_relative_error": float(error),
        "largest_relative_error_of_a_trace": float((few.trace / full.trace - 1).abs().max()),
        "share_inside_bounds": float(inside),
    }


def public() -> dict[str, float]:
    """CPU seconds an example of `measure`, its plan included, on 256 examples, in turns with the limit."""
    setting = Setting(examples=PUBLIC)
    sides: dict[str, Callable[[], object]] = {
        "limit": lambda: seconds(setting.limit, BATCH, PUBLIC),
        "measure": lambda: ht.measure(setting.model, setting.ref, [(setting.x, setting.y)]),
        "measure_with_traces": lambda: ht.measure(
            setting.model, setting.ref, [(setting.x, setting.y)], trace=True
        ),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(3):
        for name, run in sides.items():
            start = time.process_time()
            run()
            taken[name].append((time.process_time() - start) / PUBLIC)
    middle = {name: median(values) for name, values in taken.items()}
    ratios = {f"ratio_{name}": middle[name] / middle["limit"] for name in sides if name != "limit"}
    return {"examples": PUBLIC, **middle, **ratios}


def measure(case: dict[str, Any], run: object) -> dict[str, Any]:
    """Time all sides in turns."""
    setting = Setting()
    sides = {
        "exact": (setting.exact, BATCH),
        "limit": (setting.limit, BATCH),
        "paper": (setting.paper, PAPER_BATCH),
    }
    taken = in_turns(sides, 3)
    middle = {name: median(values) for name, values in taken.items()}
    names = setting.names
    blocks = block_lanczos(setting)
    each = sum(blocks["seconds"]) / len(blocks["seconds"])
    single = each / (sum(blocks["products"]) / len(blocks["products"]))
    peaks = {side: peak_mib(side) for side in ("training", "exact")}
    return {
        "setting": {"layers": len(names), "classes": K, "pixels": SIZE, "examples": N, "batch": BATCH},
        "cpu_seconds_per_example": middle,
        "public": public(),
        "blocks": taken,
        "ratio_exact_to_limit": middle["exact"] / middle["limit"],
        "ratio_paper_to_exact": middle["paper"] / middle["exact"],
        "block_lanczos": blocks,
        "ratio_block_lanczos_to_exact": each * len(names) / middle["exact"],
        "ratio_one_product_each_to_exact": single * len(names) / middle["exact"],
        "peak_mib_batch_32": peaks,
        "ratio_peak_exact_to_training": peaks["exact"] / peaks["training"],
        "growth": growth(),
        "skipped_classes": [skipped(classes) for classes in (K, 100, 1000)],
    }


if __name__ == "__main__":
    print_peak(sys.argv[1])
