"""Certificates on PACS and digits, and what the Monte-Carlo step costs: the figures of docs/certificates.md.

    python benchmarks/certificates.py --data DATA [--only NAME …]

DATA holds pacs128/DOMAIN/CLASS/*.jpg. Finished cells are kept in results/certificates.json.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hesstune as ht
from hesstune.analysis.certify import certify_run
from hesstune.bounds.monte_carlo import Feeder, Perturbation, WeightDraws
from hesstune.forward import evaluating, logits_of
from hesstune.inputs.batches import make_inputs, to_channels_last
from hesstune.runs.loading import run_task
from records import arguments, read_record, write_record

DOMAINS = ("photo", "art_painting", "cartoon", "sketch")
HEAD = {"method": "certified", "train": "head", "augment": "none", "epochs": 1, "val_fraction": 0}
# Step, noise and epochs of the backbone: of a row of certificate_frontier.py, chosen on validation pictures.
WHOLE = {
    "method": "certified",
    "method_options": {"body_noise": 0.05},
    "train": "all",
    "epochs": 6,
    "lr": 0.5,
    "val_fraction": 0,
}
PLAIN_HEAD = {"method": "vanilla", "train": "head", "augment": "none", "epochs": 30}
DIGITS = {"data": "digits", "inject_noise": "symmetric:0.2", "limit": 600}


def cells(data: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return the options of `finetune` and of `certify` of every cell."""

    def pacs(domain: str, options: dict[str, Any]) -> dict[str, Any]:
        return {"data": f"folder:{data / 'pacs128' / domain}", "image_size": 128, **options}

    found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "photo, head only, data-free prior": (pacs("photo", HEAD), {}),
        "digits, 20 % symmetric noise, head only, from noisy labels": ({**DIGITS, **HEAD}, {}),
    }
    for domain in DOMAINS:
        name = f"{domain}, head only, prior trained on half"
        found[name] = (pacs(domain, {**PLAIN_HEAD, "val_fraction": 0}), {"prior_fraction": 0.5})
    found["photo, all weights, data-free prior"] = (pacs("photo", WHOLE), {"draws": 1024})
    for domain in DOMAINS[1:]:
        found[f"{domain}, head only, data-free prior"] = (pacs(domain, HEAD), {})
    return found


def run_cell(options: dict[str, Any], how: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune and certify; return the numbers."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run = ht.finetune(options, out=f"{folder}/run")
        return certified_cell(run, options, how, time.perf_counter() - started)


def certified_cell(
    run: ht.Run, options: dict[str, Any], how: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Certify a finished run; return the numbers."""
    trained = time.perf_counter()
    # Some of PACS's pictures occur twice; they are draws from a collection that has such pairs.
    found = certify_run(run, repeats="allow", **how)
    return {
        "test_accuracy": run.result["test_accuracy"],
        "test_error": 1 - run.result["test_accuracy"],
        "risk": found.risk,
        "vacuous": found.vacuous,
        "empirical": found.empirical,
        "kl": found.kl,
        "kl_head": sum(v for k, v in found.kl_terms.items() if k.startswith("_fc")),
        "n": found.n,
        "delta": found.delta,
        "family": found.family,
        "draws": found.draws,
        "held_out": found.held_out,
        "distance": {k: v for k, v in found.distance.items() if k.endswith("weight") and v > 0},
        "seconds": {"train": seconds, "certify": time.perf_counter() - trained},
        "options": {k: v for k, v in options.items() if k != "data"},
    }


def throughput(data: Path, turns: int = 5) -> dict[str, Any]:
    """Return the Monte-Carlo step's throughput against a plain forward pass of the same blocks."""
    with tempfile.TemporaryDirectory() as folder:
        options = {**HEAD, "data": f"folder:{data / 'pacs128' / 'photo'}", "image_size": 128, "limit": 256}
        run = ht.finetune(options, out=f"{folder}/run")
        task, loaded = run_task(run.config), run.loaded()
        model, labels = loaded.model, task.train.labels
        assert labels is not None
        to_channels_last(model, torch.device("cpu"))
        feed = make_inputs(task.train, loaded, torch.device("cpu"))
        blocks = [
            (feed.inputs(rows), torch.from_numpy(labels[rows]))
            for rows in np.array_split(np.arange(len(task.train)), len(task.train) // 32)
        ]
    ratios, feeder = [], Feeder(model)
    for p in model.parameters():
        p.requires_grad_(True)
    sigma = {name: 1e-6 for name, _ in model.named_parameters()}
    with evaluating(model), torch.no_grad(), Perturbation(dict(model.named_parameters())) as noise:
        draws = WeightDraws(model, noise, blocks.__iter__, [len(y) for _, y in blocks])
        draws.run(sigma, len(blocks), torch.Generator())
        for turn in range(turns):
            started = time.perf_counter()
            for inputs, _ in blocks:
                logits_of(model, feeder(inputs)).argmax(dim=1)
            plain = time.perf_counter()
            draws.run(sigma, len(blocks), torch.Generator().manual_seed(turn))
            ratios.append((plain - started) / (time.perf_counter() - plain))
    return {"block": 32, "image_size": 128, "threads": torch.get_num_threads(), "ratios": sorted(ratios)}


def main() -> None:
    parser = arguments(__doc__, "pacs128")
    parser.add_argument("--only", nargs="*")
    asked = parser.parse_args()
    record = read_record("certificates", {"cells": {}})
    record["versions"] = {"hesstune": ht.__version__, "torch": torch.__version__}
    for name, (options, how) in cells(asked.data).items():
        if name in record["cells"] or (asked.only and name not in asked.only):
            continue
        shown = run_cell(options, how)
        record["cells"].update(read_record("certificates", {"cells": {}})["cells"])  # of other processes
        record["cells"][name] = shown
        print(f"{name}: risk {shown['risk']:.4f}, test error {shown['test_error']:.4f}, KL {shown['kl']:.1f}")
        write_record("certificates", record)
    if "throughput" not in record or (asked.only and "throughput" in asked.only):
        record["throughput"] = throughput(asked.data)
        print("throughput", record["throughput"]["ratios"])
        write_record("certificates", record)


if __name__ == "__main__":
    main()
