"""Part 3 of the study: a ReLU ResNet and a small vision transformer, through `hf:`.

python benchmarks/study/architectures.py [--root PACS] [--seeds 1] [--jobs N]

No ImageNet weights: both networks are built from their configuration and pretrained here, briefly, on
the true labels of PACS's cartoons; then photos with 40 % symmetric noise are fine-tuned and measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

import hesstune as ht
from hesstune.analysis.export import export_run
from hesstune.storage.row_json import row_json
from labels import ROOT, write_true
from parts import RESULTS, WORK, arguments, run

FIRST_SEED = 60
DATA, MODELS = WORK / "data_true", WORK / "models"
SIZE, CLASSES = 64, 7
PRETRAINING: dict[str, Any] = {"method": "vanilla", "epochs": 4, "lr": 1e-3, "test_fraction": 0.1}
METHODS: dict[str, dict[str, Any]] = {"vanilla": {}, "robust": {"radius": {"head": 0.25, "*": 0.05}}}
BUDGET: dict[str, Any] = {
    "data": f"csv:{DATA}/photo.csv",
    "image_size": SIZE,
    "inject_noise": "symmetric:0.4",
    "limit": 200,
    "epochs": 5,
    "lr": 3e-4,
}


def resnet() -> Any:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 1, 1], layer_type="basic",
        hidden_act="relu",
    )  # fmt: skip
    config.num_labels = CLASSES
    return ResNetForImageClassification(config)


def vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=96, num_hidden_layers=4, num_attention_heads=4, intermediate_size=192, image_size=SIZE,
        patch_size=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    config.num_labels = CLASSES
    return ViTForImageClassification(config)


NETWORKS: dict[str, Callable[[], Any]] = {"resnet": resnet, "vit": vit}


def pretrained(name: str, build: Callable[[], Any]) -> dict[str, Any]:
    """Pretrain a network on cartoons, once, and return how it went."""
    folder = MODELS / name
    if not (folder / "trained.json").is_file():
        torch.manual_seed(0)
        build().save_pretrained(MODELS / f"{name}-start")
        made = ht.finetune(
            {**PRETRAINING, "batch_norm": "adapt" if name == "resnet" else "frozen"},
            model=f"hf:{MODELS / f'{name}-start'}",
            data=f"csv:{DATA}/cartoon.csv",
            image_size=SIZE,
            out=MODELS / f"{name}-run",
            resume=True,
        )
        export_run(made, folder, overwrite=True)
        facts = {"test_accuracy": made.result["test_accuracy"], "examples": made.record["examples"]["train"]}
        (folder / "trained.json").write_text(json.dumps(facts))
    facts = json.loads((folder / "trained.json").read_text())
    weights = sum(p.numel() for p in build().parameters())
    return {**facts, "parameters": weights, "epochs": PRETRAINING["epochs"]}


def main() -> None:
    asked = arguments(__doc__, 1, ROOT)
    for domain in ("cartoon", "photo"):
        write_true(asked.root, domain, DATA)
    found = {name: pretrained(name, build) for name, build in NETWORKS.items()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "pretraining.json").write_text(row_json(found))
    tasks = {name: {"model": f"hf:{MODELS / name}"} for name in NETWORKS}
    seeds = range(FIRST_SEED, FIRST_SEED + asked.seeds)
    run("architectures", "architectures.py", BUDGET, METHODS, tasks, seeds, asked.jobs, measure_examples=20)


if __name__ == "__main__":
    main()
