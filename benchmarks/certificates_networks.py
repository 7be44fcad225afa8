"""Certificates of networks themselves: sample compression and exact tails, three seeds each.

    python benchmarks/certificates_networks.py --data DATA [--only NAME …] [--seeds 0 1 2]

DATA holds pacs128/DOMAIN/CLASS/*.jpg and sst2/{train,dev,test}.tsv. Finished cells are kept in
results/certificates_networks.json. The penalty of `pick_to_learn` is its default; docs/certificates.md says
on which images it was chosen.
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hesstune as ht
from hesstune.analysis.certify import certify_run
from hesstune.inputs.features import FeatureStore, sharing
from records import alone, arguments, read_record, write_record

NAME = "certificates_networks"
DOMAINS = ("photo", "art_painting", "cartoon", "sketch")
# The record's options, also of the rows "half for the start", whose heads `certify` now trains with the
# defaults; certificates_tight.py compares the two.
PLAIN = {"average": 0, "center": 0}
PICKED: dict[str, Any] = {"method": "pick_to_learn", "val_fraction": 0, "method_options": PLAIN}
HEAD = {"method": "vanilla", "train": "head", "augment": "none", "epochs": 30, "val_fraction": 0}
WHOLE = {"method": "vanilla", "train": "all", "epochs": 3, "val_fraction": 0}
Options = dict[str, Any]


def cells(data: Path, folder: Path) -> dict[str, tuple[Options, list[Options]]]:
    """Return the options of `finetune` and, for each certificate, those of `certify`, by name."""

    def pacs(domain: str, options: Options) -> Options:
        return {"data": f"folder:{data / 'pacs128' / domain}", "image_size": 128, **options}

    half = {"prior_fraction": 0.5}
    found: dict[str, tuple[Options, list[Options]]] = {
        "photo, head": (pacs("photo", PICKED), [{"bound": "compression"}]),
        "digits, head, 20 % symmetric noise, from noisy labels": (
            {"data": "digits", "inject_noise": "symmetric:0.2", "limit": 600, **PICKED},
            [{"bound": "compression"}],
        ),
        "photo, head, half for the start": (
            pacs("photo", HEAD),
            [{"bound": "holdout", **half}, {"bound": "compression", **half}],
        ),
    }
    for domain in DOMAINS[1:]:
        found[f"{domain}, head"] = (pacs(domain, PICKED), [{"bound": "compression"}])
    # What photo and sketch alone would have chosen.
    for domain in ("art_painting", "cartoon"):
        other = {**PICKED, "method_options": {**PLAIN, "penalty": 0.03}}
        found[f"{domain}, head, penalty 0.03"] = (pacs(domain, other), [{"bound": "compression"}])
    text = {"data": f"csv:{sentences(data, folder)}", "model": "minilm", **PICKED}
    found["SST-2, MiniLM head"] = (text, [{"bound": "compression"}])
    bounded = {**text, "method": "certified", "train": "head", "method_options": None}
    found["SST-2, MiniLM head, certified"] = (bounded, [{"bound": "pac_bayes"}])
    found["photo, all weights, half for the start"] = (
        pacs("photo", WHOLE),
        [{"bound": "holdout", **half}, {"bound": "compression", **half}],
    )
    return found


def sentences(data: Path, folder: Path) -> Path:
    """Write the sentences as a table with their true labels; the data's own test part stays that."""
    path = folder / "sst2.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["id", "text", "label", "split"])
        for part, name in (("train", "train"), ("train", "dev"), ("test", "test")):
            lines = (data / "sst2" / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
            for at, line in enumerate(line for line in lines if line.strip()):
                text, _, label = line.rpartition("\t")
                out.writerow([f"{name}-{at}", text, label, part])
    return path


def certified(options: Mapping[str, Any], asked: list[Options], seed: int, folder: Path) -> dict[str, Any]:
    """Fine-tune once and certify in every way that is asked for; return the numbers by bound."""
    started = time.perf_counter()
    run = ht.finetune(dict(options), seed=seed, out=str(folder / "run"))
    found: dict[str, Any] = {"test_error": 1 - run.result["test_accuracy"], "seconds": {}}
    found["seconds"]["train"] = round(time.perf_counter() - started, 1)
    for how in asked:
        started = time.perf_counter()
        # Some of PACS's pictures occur twice; they are draws from a collection that has such pairs.
        made = certify_run(run, repeats="allow", **how)
        name = str(how["bound"])
        held = made.held_out or {}
        if name == "holdout":
            held = _of_start(run)
        found[name] = {**made.facts(), "held_out": held}
        found["seconds"][name] = round(time.perf_counter() - started, 1)
    return found


def _of_start(run: ht.Run) -> dict[str, float]:
    """Return the errors on the test part of the network that was trained on a part."""
    start = ht.Run.load(run.path / "prior")
    n = start.facts.examples.test
    error = 1 - float(start.outcome.test_accuracy or 0.0)
    return {"errors": round(error * n), "n": n, "error": error}


def main() -> None:
    parser = arguments(__doc__, "pacs128 and sst2")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--store", type=Path, help="folder that keeps features from call to call")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sharing(FeatureStore(asked.store)):
        for number, (name, (options, how)) in enumerate(cells(asked.data, Path(folder)).items()):
            for seed in asked.seeds:
                kept = read_record(NAME, {"cells": {}})["cells"].get(name, {})
                if str(seed) in kept or (asked.only and name not in asked.only):
                    continue
                found = certified(options, how, seed, Path(folder) / f"{number}-{seed}")
                with alone(NAME):
                    record = read_record(NAME, {"cells": {}})
                    record["cells"].setdefault(name, {})[str(seed)] = found
                    write_record(NAME, record)
                shown = {
                    bound: round(v["risk"], 4)
                    for bound, v in found.items()
                    if isinstance(v, dict) and "risk" in v
                }
                print(f"{name}, seed {seed}: {shown}, test error {found['test_error']:.4f}", flush=True)


if __name__ == "__main__":
    main()
