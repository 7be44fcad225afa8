"""The measure on an encoder of BERT-base's size: what `measure_text.py --size bert-base` runs.

transformers' BertConfig as it comes (12 layers, 768 wide, 110M weights, SDPA attention), from a random start,
trained a little on the 64 SST-2 sentences that are measured, of which 20 % are mislabelled. Then, for every
seventh of its 74 Linear layers, of all kinds:

- time: `measure(examples="max")`, planning included, against 12 Lanczos steps by double backward for one
  example and one layer at a time, without padding, on a sample of both, scaled to all;
- memory, each side in a process of its own, of resident memory: a training step (AdamW, batches of 16), and
  the measurement; with the weights, and beyond what lay there before (weights, reference, gradients and
  optimizer's state of the training step; weights and reference of the measurement);
- accuracy: brackets of single layers' maxima against the same layer and example in a float64 twin.

The second row stores weights and reference in bfloat16; products are taken in float32.
"""

from __future__ import annotations

import copy
import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hesstune.curvature.batches import rows_of, trimmed
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.measure import measure
from hesstune.curvature.quadrature import Stopping
from hesstune.curvature.result import Measure
from hesstune.forward import logits_of
from hesstune.reference import Reference
from measure_text import EXAMPLES, LENGTH, STEPS, Batch, baseline, sentences, timed
from records import arguments, machine, write_record

BATCH, TWINS = 16, 3
ROWS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NAME = "measure_bert_base"


def build() -> nn.Module:
    """Return an encoder of BERT-base's size with two classes."""
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig())  # two classes


def stored(folder: Path, dtype: torch.dtype) -> tuple[nn.Module, Reference]:
    """Return the trained network and its reference with weights of this kind."""
    start, model = build().to(dtype), build()
    ref = Reference.of(start)
    del start
    model.load_state_dict(torch.load(folder / "trained.pt", weights_only=True))
    return model.to(dtype).eval(), ref


def trained(folder: Path, epochs: int) -> None:
    """Train the network a little on the sentences that are measured, and keep it.

    From a random start: with warm-up and small steps, or all sentences end with equal logits.
    """
    inputs, labels = batch_of(EXAMPLES)
    assert not isinstance(inputs, torch.Tensor)
    model = build().eval()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-5)
    generator = torch.Generator().manual_seed(1)
    orders = [torch.randperm(EXAMPLES, generator=generator).split(BATCH) for _ in range(epochs)]
    warm = max(1, epochs * len(orders[0]) // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warm))
    for order in orders:
        losses = []
        for index in order:
            logits = logits_of(model, trimmed(rows_of(inputs, index)))
            loss = nn.functional.cross_entropy(logits, labels[index])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"loss {sum(losses) / len(losses):.4f}", file=sys.stderr, flush=True)
    torch.save(model.state_dict(), folder / "trained.pt")


def batch_of(examples: int) -> Batch:
    inputs, labels, _ = sentences()
    index = torch.arange(examples)
    return rows_of(inputs, index), labels[index]


def status(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


@contextmanager
def peaks(found: dict[str, float]) -> Iterator[None]:
    """Tell the peak of resident memory in MiB: in all, and beyond what lay there before."""
    # Give freed memory back and forget the peak so far, so that the next one is this side's own.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = status("VmRSS")
    yield
    peak = status("VmHWM")
    found |= {"peak_mib": peak, "peak_beyond_mib": peak - before}


def training_peaks(folder: Path) -> dict[str, float]:
    """The peaks of a second training step, when gradients and optimizer's state lie there."""
    model, _ = stored(folder, torch.float32)
    inputs, labels = batch_of(BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)

    def step() -> None:
        loss = nn.functional.cross_entropy(logits_of(model.train(), trimmed(inputs)), labels)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()

    step()
    found: dict[str, float] = {}
    with peaks(found):
        step()
    return found


def measured(folder: Path, row: str, examples: int, apart: int, every: int) -> dict[str, Any]:
    """Measure one row: peaks, seconds, the baseline's seconds, and float64 twins of single layers."""
    model, ref = stored(folder, ROWS[row])
    batch = batch_of(examples)
    names = ref.layers()[::every]
    found: dict[str, Any] = {}
    memory: dict[str, float] = {}
    with peaks(memory):
        seconds, result = timed(lambda: measure(model, ref, [batch], layers=names, examples="max"))
    assert isinstance(result, Measure)
    found |= {"seconds": seconds, **memory, "notes": result.notes, "layers": len(result.names)}
    print(json.dumps(found), file=sys.stderr, flush=True)  # what follows takes long, too
    found["maxima"] = dict(zip(result.names, result.maximum.tolist(), strict=True))
    model = model.float()
    deltas = {name: ref.difference(model, name) for name in result.names}
    found["twins"] = twins(model, deltas, batch, result)
    if row == "float32":
        found["baseline"] = lanczos_apart(model, deltas, batch, apart)
    return found


def lanczos_apart(
    model: nn.Module, deltas: dict[str, torch.Tensor], batch: Batch, examples: int
) -> dict[str, Any]:
    """Time the baseline on middle examples by length, scaled."""
    inputs, labels = batch
    assert not isinstance(inputs, torch.Tensor)
    order = inputs["attention_mask"].sum(1).argsort()
    cuts = [order[(2 * i + 1) * len(order) // (2 * examples)].reshape(1) for i in range(examples)]
    taken = []
    for one in cuts:
        part = trimmed(rows_of(inputs, one)), labels[one]
        taken.append(timed(partial(baseline, model, part, deltas, STEPS))[0])
    each = sum(taken) / len(taken) / len(deltas)
    return {"pairs": len(taken) * len(deltas), "seconds": each * len(labels) * len(deltas)}


def twins(
    model: nn.Module, deltas: dict[str, torch.Tensor], batch: Batch, result: Measure
) -> list[dict[str, Any]]:
    """Compare single layers' maxima with the same example's value in a float64 twin, proved to 1 %."""
    inputs, labels = batch
    twin = copy.deepcopy(model).double()
    names = [n for n, m in zip(result.names, result.methods, strict=True) if m == "lanczos"]
    rows = []
    for name in names[:: max(1, len(names) // TWINS)][:TWINS]:
        i, example = result.names.index(name), result.example(name)
        one = torch.tensor([example])
        engine = CurvatureEngine(twin, {name: deltas[name].double()})
        engine.plan_on(rows_of(inputs, torch.arange(4)))
        stop = Stopping(tol=0.01, most=96)
        truth = engine.lanczos((trimmed(rows_of(inputs, one)), labels[one]), stopping=stop)
        low, high = float(truth.lower), float(truth.upper)
        value = float(result.maximum[i])
        bounds = float(result.lower[example, i]), float(result.upper[example, i])
        rows.append(
            {
                "layer": name,
                "value": value,
                "bracket": bounds,
                "float64_between": [low, high],
                "relative_difference": value / float(truth.quadratic) - 1,
                "bracket_holds": bounds[0] <= high and low <= bounds[1],
            }
        )
    return rows


def run(epochs: int, examples: int, apart: int, threads: int, every: int) -> None:
    """Run every side in a process of its own, and write the record; of fewer than 64 examples, beside it."""
    sides: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in ("train", "training", *ROWS):
            numbers = [str(number) for number in (epochs, examples, apart, threads, every)]
            command = [sys.executable, __file__, side, folder, *numbers]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            sides[side] = json.loads(done.stdout.splitlines()[-1])
            print(side, json.dumps(sides[side]), flush=True)
    training, plain = sides["training"], sides["float32"]
    rows = {}
    for row in ROWS:
        own = sides[row]
        rows[row] = {
            **{key: own[key] for key in ("seconds", "peak_mib", "peak_beyond_mib", "twins")},
            "ratio_peak_to_training": own["peak_mib"] / training["peak_mib"],
            "ratio_peak_beyond_to_training": own["peak_beyond_mib"] / training["peak_beyond_mib"],
            "ratio_baseline_to_maximum": plain["baseline"]["seconds"] / own["seconds"],
            "notes": own["notes"],
        }
    largest = 0.0
    for name, value in plain["maxima"].items():
        if value > 0:
            largest = max(largest, abs(sides["bfloat16"]["maxima"][name] / value - 1))
    record = {
        "command": "python benchmarks/measure_text.py --size bert-base",
        "machine": machine(threads),
        "torch": torch.__version__,
        "data": sentences()[2],
        "weights": sum(p.numel() for p in build().parameters()),
        "layers": plain["layers"],
        "every": every,
        "examples": examples,
        "length": LENGTH,
        "epochs": epochs,
        "steps": STEPS,
        "training_batch": BATCH,
        "training": training,
        "baseline": plain["baseline"],
        "rows": rows,
        "largest_difference_of_a_maximum_bfloat16": largest,
    }
    write_record(NAME if examples == EXAMPLES else f"{NAME}_trial", record)
    print(json.dumps(record, indent=1))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("side", choices=("train", "training", *ROWS))
    parser.add_argument("folder", type=Path)
    for name in ("epochs", "examples", "apart", "threads", "every"):
        parser.add_argument(name, type=int)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    found: dict[str, Any] = {}
    if asked.side == "train":
        trained(asked.folder, asked.epochs)
    elif asked.side == "training":
        found = training_peaks(asked.folder)
    else:
        found = measured(asked.folder, asked.side, asked.examples, asked.apart, asked.every)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
