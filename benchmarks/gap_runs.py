"""Fine-tuned networks with their generalization gap, and everything that might foretell it.

Each run is fine-tuned by the product, then v_iᵀ H_i⁺ v_i (its Gauss-Newton part; where a network is
piecewise linear they are one) is computed for every layer, of training and of held-out examples: at the
weights reached, at several points of the line from the reference, and with noise on the weights. Kept are
sums over layers of √maximum and √mean, apart for the head; the same of the layers moved together; traces;
distances. `write_gap.py` makes measures of them.

Decided before the first run: measures are chosen on the development tasks (DEVELOPMENT) and confirmed on the
others, which are looked at once. Continues where it stopped.

    python benchmarks/gap_runs.py --data DATA [--part images|texts|heads] [--jobs N]
"""

from __future__ import annotations

import contextlib
import csv
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hesstune as ht
from hesstune.analysis.export import export_run
from hesstune.curvature import CurvatureEngine
from hesstune.forward import evaluating, logits_of
from hesstune.inputs.batches import ModelInputs, batches_of, make_inputs
from hesstune.runtime.device import pick_device
from records import RESULTS, alone, arguments, read_rows

PATH = RESULTS / "gap_runs.csv"
DEVELOPMENT = (
    "cartoon efficientnet 64",
    "sketch efficientnet 64",
    "cartoon efficientnet 96",
    "sketch resnet 64",
    "sst2 minilm",
    "cartoon head",
    "sketch head",
)
PICTURES = {"photo": 1000, "art_painting": 1000, "cartoon": 1000, "sketch": 2600}
TEXT_ROWS = 2000  # of each source of sentences
MEASURED = 120  # training examples, and as many held-out ones, at most
BATCH = 40
LINE = (0.25, 0.5, 0.75, 1.0)
STEP = 0.01  # of the line, for the derivative of the logits along it
NOISE = 0.5  # the noise's norm in a layer, as a share of its distance


@dataclass(frozen=True)
class Cell:
    """One run."""

    task: str
    method: str
    n: int
    noise: float
    epochs: int
    seed: int = 0


def cells() -> list[Cell]:
    """Return all runs: for each task the settings, for each setting plain, `robust`, a third, some `auto`."""
    settings = [(100, 0.0, 10), (100, 0.4, 40), (300, 0.2, 10), (300, 0.6, 20), (700, 0.0, 5), (700, 0.4, 20)]
    found = []
    for task in (*IMAGES, *TEXTS, *HEADS):
        own = [*settings, (2000, 0.2, 8)] if task == "sketch efficientnet 64" else settings
        for at, (n, noise, epochs) in enumerate(own):
            third = ("constraint", "forward", "l2_sp")[at % 3]
            methods = ["vanilla", "robust", third if noise or third != "forward" else "constraint"]
            if at in (2, 5) and task in IMAGES:
                methods.append("auto")
            found += [Cell(task, method, n, noise, epochs) for method in methods]
    # In an order that says nothing, so that what is finished early is a fair part.
    return sorted(found, key=lambda cell: zlib.crc32(repr(cell).encode()))


IMAGES = (
    *(f"{d} efficientnet 64" for d in ("photo", "art_painting", "cartoon", "sketch", "cifar")),
    *(f"{d} efficientnet 96" for d in ("photo", "art_painting", "cartoon")),
    *(f"{d} resnet 64" for d in ("sketch", "photo")),
)
TEXTS = ("sst2 minilm", "trec minilm", "mrpc minilm")
HEADS = ("photo head", "art_painting head", "cartoon head", "sketch head")
PARTS = {"images": IMAGES, "texts": TEXTS, "heads": HEADS}


def _table(name: str, data: Path, folder: Path) -> Path:
    """Write a task's examples with true labels, a fixed part of its source, and return the table's path."""
    path = folder / f"{name}.csv"
    if path.is_file():
        return path
    rows: list[tuple[str, str]] = []
    if name in PICTURES:
        files = sorted((data / "pacs128" / name).rglob("*.jpg"))
        files.sort(key=lambda f: zlib.crc32(f"{f.parent.name}/{f.name}".encode()))
        rows = [(str(f), f.parent.name) for f in files[: PICTURES[name]]]
    elif name == "cifar":
        with (data / "cifar10n" / "labels.csv").open(encoding="utf-8") as file:
            images = sorted(csv.DictReader(file), key=lambda line: zlib.crc32(line["id"].encode()))
        rows = [(str(data / "cifar10n" / line["image"]), line["true_label"]) for line in images[:1200]]
    elif name == "trec":
        with (data / "wrench" / "trec.csv").open(encoding="utf-8") as file:
            rows = [(line["text"], line["label"]) for line in csv.DictReader(file)]
    else:
        for part in ("train", "test"):
            lines = (data / name / f"{part}.tsv").read_text(encoding="utf-8-sig").splitlines()
            if name == "mrpc":  # label, two numbers, two sentences, below a header
                parts = [line.split("\t") for line in lines[1:]]
                rows += [(f"{p[3]} / {p[4]}", p[0]) for p in parts]
            else:
                rows += [(text, label) for text, _, label in (line.rpartition("\t") for line in lines)]
    if name in ("trec", "sst2", "mrpc"):
        rows = sorted(rows, key=lambda row: zlib.crc32(row[0].encode()))[:TEXT_ROWS]
    kind = "image" if name in PICTURES or name == "cifar" else "text"
    with path.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([(kind, "label"), *rows])
    return path


def _options(cell: Cell, data: Path, folder: Path) -> dict[str, Any]:
    name, network, *size = cell.task.split()
    found: dict[str, Any] = {"data": f"csv:{_table(name, data, folder)}", **asdict(cell)}
    del found["task"], found["n"], found["noise"]
    found |= {"limit": cell.n, "val_fraction": 0.1, "test_fraction": 0.25, "train": "all", "lr": 3e-4}
    if cell.noise:
        found["inject_noise"] = f"symmetric:{cell.noise}"
    elif cell.method == "robust":
        found["noise_matrix"] = "0"
    if cell.method in ("robust", "constraint"):  # the defaults with which all were run
        found["radius"] = {"head": 2.0} if network == "head" else {"head": 0.25, "*": 0.05}
    if network == "minilm":
        found |= {"model": "minilm", "lr": 1e-4, "max_length": 48}
    elif network == "head":
        found |= {"train": "head", "image_size": 96, "lr": 1e-2, "augment": "none"}
    else:
        found |= {"image_size": int(size[0])}
    if network == "resnet":
        found |= {"model": f"hf:{folder / 'resnet'}", "lr": 1e-3}
    return found


def pretrained_resnet(data: Path, folder: Path, device: str) -> None:
    """Train a ReLU ResNet, built from its configuration, on the true labels of paintings."""
    from transformers import ResNetConfig, ResNetForImageClassification

    if (folder / "resnet").is_dir():
        return
    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 1, 1], layer_type="basic",
        hidden_act="relu",
    )  # fmt: skip
    config.num_labels = 7
    torch.manual_seed(0)
    ResNetForImageClassification(config).save_pretrained(folder / "resnet-start")
    options = {"method": "vanilla", "epochs": 12, "lr": 1e-3, "batch_norm": "adapt", "image_size": 64}
    table = _table("art_painting", data, folder)
    start = f"hf:{folder / 'resnet-start'}"
    made = ht.finetune(
        options, model=start, data=f"csv:{table}", train="all", out=folder / "resnet-run", device=device
    )
    print(f"resnet: test accuracy {made.outcome.test_accuracy:.3f}", flush=True)
    export_run(made, folder / "resnet")


class _Moved:
    """A network on the line from its reference (t = 0) to what it became (t = 1)."""

    def __init__(self, run: ht.Run, device: torch.device) -> None:
        self.loaded, self.reference = run.loaded(), run.reference()
        self.model = self.loaded.model.to(device)
        self.head = self.loaded.head_layers[0]
        own = dict(self.model.named_parameters())
        self.start = {n: self.reference[n].to(device) for n in own if n in self.reference}
        self.ends = {n: own[n].detach().clone() for n in self.start}
        layers = [n for n in self.reference.layers() if bool((self.ends[n] != self.start[n]).any())]
        self.changes = {n: self.ends[n] - self.start[n] for n in layers}

    @contextlib.contextmanager
    def at(self, t: float, noise: float = 0.0) -> Iterator[None]:
        """Move the network there, with noise of a norm relative to each layer's distance."""
        generator = torch.Generator().manual_seed(0)
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, start in self.start.items():
                own[name].copy_(start + t * (self.ends[name] - start))
                if noise and name in self.changes:
                    drawn = torch.randn(start.shape, generator=generator).to(start.device)
                    own[name].add_(drawn * noise * self.changes[name].norm() / drawn.norm())
        try:
            yield
        finally:
            with torch.no_grad():
                for name, end in self.ends.items():
                    own[name].copy_(end)


def _logits(model: torch.nn.Module, feed: ModelInputs, rows: np.ndarray) -> torch.Tensor:
    with torch.no_grad(), evaluating(model):
        parts = [logits_of(model, feed.inputs(batch)) for batch in batches_of(feed, rows, BATCH)]
        return torch.cat(parts).double().cpu()


def _forms(moved: _Moved, feed: ModelInputs, rows: np.ndarray, labels: torch.Tensor) -> torch.Tensor:
    """v_iᵀ H_i⁺ v_i, (n, L), at the network's present weights."""
    engine = CurvatureEngine(moved.model, moved.changes, method="lanczos")
    found = []
    for batch in batches_of(feed, rows, BATCH):
        with evaluating(moved.model):
            found.append(engine.gauss_newton((feed.inputs(batch), labels[batch])))
    return torch.cat(found)


def _joint(moved: _Moved, feed: ModelInputs, rows: np.ndarray, t: float) -> torch.Tensor:
    """vᵀ H⁺ v of all layers moved together, (n,)."""
    with moved.at(t + STEP):
        after = _logits(moved.model, feed, rows)
    with moved.at(t - STEP):
        before = _logits(moved.model, feed, rows)
    u = (after - before) / (2 * STEP)
    p = torch.softmax((after + before) / 2, 1)
    return (p * (u - (p * u).sum(1, keepdim=True)).square()).sum(1)


def _facts(moved: _Moved, name: str, feed: ModelInputs, labels: np.ndarray) -> dict[str, float]:
    """Return the sums over layers of one part's examples, by place and statistic."""
    rows = np.sort(np.random.default_rng(0).permutation(len(feed))[:MEASURED])
    # Texts come back in batches of similar length: sums do not depend on the order.
    targets = torch.from_numpy(labels)
    on_line = []
    for t in LINE:
        with moved.at(t):
            on_line.append(_forms(moved, feed, rows, targets))
    with moved.at(1.0, NOISE):
        noisy = _forms(moved, feed, rows, targets)
    places = {"end": on_line[-1], "half": on_line[1], "line": torch.stack(on_line).mean(0), "noise": noisy}
    head = list(moved.changes).index(moved.head)
    found: dict[str, float] = {}
    for place, values in places.items():
        for kind, statistic in (("max", values.amax(0)), ("mean", values.mean(0))):
            found[f"{name} {place} {kind}"] = float(statistic.sqrt().sum())
            found[f"{name} {place} {kind} head"] = float(statistic[head].sqrt())
    joint = torch.stack([_joint(moved, feed, rows, t) for t in LINE])
    for place, values in (("end", joint[-1]), ("line", joint.mean(0))):
        found[f"{name} {place} joint max"] = float(values.amax().sqrt())
        found[f"{name} {place} joint mean"] = float(values.mean().sqrt())
    order = np.concatenate(batches_of(feed, rows, BATCH))
    logits = _logits(moved.model, feed, rows)
    losses = torch.nn.functional.cross_entropy(logits, targets[order], reduction="none")
    p = torch.softmax(logits, 1)
    found[f"{name} loss max"], found[f"{name} loss mean"] = float(losses.max()), float(losses.mean())
    with moved.at(1.0, NOISE):
        shaken = torch.nn.functional.cross_entropy(_logits(moved.model, feed, rows), targets[order])
    found[f"{name} noise loss"] = float(shaken)
    found[f"{name} uncertainty"] = float((1 - p.square().sum(1)).mean())
    return found


def measured(cell: Cell, data: Path, folder: Path, device: str) -> dict[str, Any]:
    """Fine-tune and measure one run."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as out:
        run = ht.finetune(_options(cell, data, folder), out=f"{out}/run", device=device)
        task, target = run.task(), pick_device(device)
        moved = _Moved(run, target)
        found: dict[str, Any] = {**asdict(cell), "n": len(task.train), "k": len(task.classes)}
        found["gap"], found["test accuracy"] = run.outcome.gap, run.outcome.test_accuracy
        found["train loss"], found["test loss"] = run.outcome.train_loss, run.outcome.test_loss
        length = run.config.max_length
        for name, part in (("train", task.train), ("held", task.val)):
            assert part.labels is not None
            feed = make_inputs(part, moved.loaded, target, max_length=length)
            if moved.changes:
                found |= _facts(moved, name, feed, part.labels)
        norms = {n: float(v.double().norm()) for n, v in moved.changes.items()}
        found |= {"layers": len(norms), "distance": sum(norms.values())}
        found["distance, all"] = float(np.sqrt(sum(v**2 for v in norms.values())))
        found["distance, head"] = norms.get(moved.head, 0.0)
        found["relative distance"] = sum(v / max(1e-9, float(moved.start[n].norm())) for n, v in norms.items()
                                         if n != moved.head)  # fmt: skip
        return found


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what tells a run: its task, method, noise, epochs and seed. No two settings share them."""
    return (row["task"], row["method"], float(row["noise"]), int(row["epochs"]), int(row["seed"]))


def _written(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def keep(found: dict[str, Any]) -> None:
    """Add a finished run to the record."""
    with alone("gap_runs"):
        rows = read_rows(PATH)
        columns = list(dict.fromkeys([*(rows[0] if rows else {}), *found]))
        rows.append({key: str(_written(value)) for key, value in found.items()})
        with PATH.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def main() -> None:
    parser = arguments(__doc__, "pacs128, cifar10n, sst2, mrpc and wrench")
    parser.add_argument("--part", choices=list(PARTS), nargs="*", default=list(PARTS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--most", type=int, help="stop after so many runs")
    asked = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = Path(tempfile.gettempdir()) / "gap_runs"
    folder.mkdir(exist_ok=True)
    done = {_key(row) for row in read_rows(PATH)}
    wanted = [task for part in asked.part for task in PARTS[part]]
    todo = [cell for cell in cells() if cell.task in wanted]
    todo = [cell for cell in todo if _key(asdict(cell)) not in done]
    if any("resnet" in cell.task for cell in todo):
        pretrained_resnet(asked.data, folder, asked.device)
    for name in {cell.task.split()[0] for cell in todo}:
        _table(name, asked.data, folder)
    with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(measured, c, asked.data, folder, asked.device): c for c in todo[: asked.most]}
        for at, job in enumerate(as_completed(jobs), 1):
            try:
                keep(job.result())
                print(f"{at}/{len(jobs)} {jobs[job]}", flush=True)
            except Exception as error:  # one run that fails leaves the others
                print(f"{jobs[job]} failed: {error!r}", flush=True)


if __name__ == "__main__":
    main()
