"""Generalization gaps of fine-tuned networks, and quantities that may predict them.

Each network is fine-tuned by `hesstune.finetune`. Then v_iᵀ G_i v_i is computed, the Gauss–Newton form, which
is v_iᵀ H_i⁺ v_i on heads and on the networks for images. It is computed for every layer, of training and of
held-out examples: at the weights reached, at points on the line from the reference, and with noise on the
weights. A result has sums over layers of √maximum and √mean, also
for the head alone, the same for all layers moved together, losses and distances. `analysis.py` makes
measures of them.

Measures were chosen on the development tasks, DEVELOPMENT, which were fixed before the first run, and
confirmed once on the others.
"""

from __future__ import annotations

import contextlib
import csv
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hesstune as ht
from data_files import cifar10n_lines, sentences, write_table
from hesstune.analysis.export import export_run
from hesstune.curvature import CurvatureEngine
from hesstune.forward import evaluating, logits_of
from hesstune.inputs.batches import ModelInputs, batches_of, make_inputs
from hesstune.runtime.device import pick_device
from records import Run, alone

DEVELOPMENT = (
    "cartoon efficientnet 64",
    "sketch efficientnet 64",
    "cartoon efficientnet 96",
    "sketch resnet 64",
    "sst2 minilm",
    "cartoon head",
    "sketch head",
)
IMAGE_COUNTS = {"photo": 1000, "art_painting": 1000, "cartoon": 1000, "sketch": 2600}
TEXT_ROWS = 2000  # of each source of sentences
MEASURED = 120  # training examples, and as many held-out ones, at most
BATCH = 40
LINE = (0.25, 0.5, 0.75, 1.0)
STEP = 0.01  # of the line, for the derivative of the logits along it
NOISE = 0.5  # the noise's norm in a layer, as a share of its distance


IMAGES = (
    *(f"{d} efficientnet 64" for d in ("photo", "art_painting", "cartoon", "sketch", "cifar")),
    *(f"{d} efficientnet 96" for d in ("photo", "art_painting", "cartoon")),
    *(f"{d} resnet 64" for d in ("sketch", "photo")),
)
TEXTS = ("sst2 minilm", "trec minilm", "mrpc minilm")
HEADS = ("photo head", "art_painting head", "cartoon head", "sketch head")
SETTINGS = ((100, 0.0, 10), (100, 0.4, 40), (300, 0.2, 10), (300, 0.6, 20), (700, 0.0, 5), (700, 0.4, 20))


def cases(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield, for each task and setting, plain fine-tuning, `robust`, a third method, and sometimes `auto`."""
    for task in (*IMAGES, *TEXTS, *HEADS):
        own = [*SETTINGS, (2000, 0.2, 8)] if task == "sketch efficientnet 64" else SETTINGS
        for at, (_, noise, epochs) in enumerate(own):
            third = ("constraint", "forward", "l2_sp")[at % 3]
            methods = ["vanilla", "robust", third if noise or third != "forward" else "constraint"]
            if at in (2, 5) and task in IMAGES:
                methods.append("auto")
            for method in methods:
                yield {"task": task, "method": method, "noise": noise, "epochs": epochs}


def _table(name: str, data: Path, folder: Path) -> Path:
    """Write a task's examples with true labels, a fixed part of its source, and return the table's path."""
    path = folder / f"{name}.csv"
    rows: list[tuple[str, str]]
    if name in IMAGE_COUNTS:
        files = sorted((data / "pacs128" / name).rglob("*.jpg"))
        files.sort(key=lambda f: zlib.crc32(f"{f.parent.name}/{f.name}".encode()))
        rows = [(str(f), f.parent.name) for f in files[: IMAGE_COUNTS[name]]]
    elif name == "cifar":
        images = sorted(cifar10n_lines(data / "cifar10n"), key=lambda line: zlib.crc32(line["id"].encode()))
        rows = [(line["image"], line["true_label"]) for line in images[:1200]]
    elif name == "trec":
        with (data / "wrench" / "trec.csv").open(encoding="utf-8") as file:
            rows = [(line["text"], line["label"]) for line in csv.DictReader(file)]
    else:
        found = [sentences(data, name, part) for part in ("train", "test")]
        rows = [(" / ".join(texts), label) for part in found for texts, label in part]
    if name in ("trec", "sst2", "mrpc"):
        rows = sorted(rows, key=lambda row: zlib.crc32(row[0].encode()))[:TEXT_ROWS]
    kind = "image" if name in IMAGE_COUNTS or name == "cifar" else "text"
    return write_table(path, (kind, "label"), rows)


def run_options(case: dict[str, Any], run: Run, folder: Path) -> dict[str, Any]:
    name, network, *size = case["task"].split()
    limits = {(noise, epochs): n for n, noise, epochs in (*SETTINGS, (2000, 0.2, 8))}
    found: dict[str, Any] = {"data": f"csv:{_table(name, run.data, folder)}", "method": case["method"]}
    found |= {"epochs": case["epochs"], "seed": run.seed, "limit": limits[case["noise"], case["epochs"]]}
    found |= {"val_fraction": 0.1, "test_fraction": 0.25, "train": "all", "lr": 3e-4}
    if case["noise"]:
        found["inject_noise"] = f"symmetric:{case['noise']}"
    elif case["method"] == "robust":
        found["noise_matrix"] = "0"
    if case["method"] in ("robust", "constraint"):
        found["select"] = "last"
        found["radius"] = {"head": 2.0} if network == "head" else {"head": 0.25, "*": 0.05}
    if network == "minilm":
        found |= {"model": "minilm", "lr": 1e-4, "max_length": 48}
    elif network == "head":
        found |= {"train": "head", "image_size": 96, "lr": 1e-2, "augment": "none"}
    else:
        found |= {"image_size": int(size[0])}
    if network == "resnet":
        found |= {"model": f"hf:{pretrained_resnet(run.data)}", "lr": 1e-3}
    return found


def pretrained_resnet(data: Path) -> Path:
    """Return a ReLU ResNet, trained once on the true labels of paintings, as a transformers folder."""
    from transformers import ResNetConfig, ResNetForImageClassification

    folder = Path(tempfile.gettempdir()) / "hesstune-gap-resnet"
    with alone("gap-resnet"):
        if not (folder / "resnet").is_dir():
            folder.mkdir(exist_ok=True)
            config = ResNetConfig(
                embedding_size=32, hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 1, 1], layer_type="basic",
                hidden_act="relu",
            )  # fmt: skip
            config.num_labels = 7
            torch.manual_seed(0)
            ResNetForImageClassification(config).save_pretrained(folder / "start")
            options = {"method": "vanilla", "epochs": 12, "lr": 1e-3, "batch_norm": "adapt", "image_size": 64}
            table, start = _table("art_painting", data, folder), f"hf:{folder / 'start'}"
            made = ht.finetune(options, model=start, data=f"csv:{table}", train="all", out=folder / "run")
            export_run(made, folder / "resnet")
    return folder / "resnet"


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


def measure(case: dict[str, Any], asked: Run) -> dict[str, Any]:
    """Fine-tune and measure one network."""
    with tempfile.TemporaryDirectory() as name:
        run = ht.finetune(run_options(case, asked, Path(name)), out=f"{name}/run")
        task, target = run.task(), pick_device("auto")
        moved = _Moved(run, target)
        found: dict[str, Any] = {"n": len(task.train), "k": len(task.classes), "gap": run.outcome.gap}
        found |= {"test accuracy": run.outcome.test_accuracy}
        found |= {"train loss": run.outcome.train_loss, "test loss": run.outcome.test_loss}
        for part_name, part in (("train", task.train), ("held", task.val)):
            assert part.labels is not None
            feed = make_inputs(part, moved.loaded, target, max_length=run.config.max_length)
            if moved.changes:
                found |= _facts(moved, part_name, feed, part.labels)
        norms = {n: float(v.double().norm()) for n, v in moved.changes.items()}
        sizes = {n: max(1e-9, float(moved.start[n].norm())) for n in norms}
        found |= {"layers": len(norms), "distance": sum(norms.values())}
        found["relative distance"] = sum(v / sizes[n] for n, v in norms.items() if n != moved.head)
        return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found.items()}
