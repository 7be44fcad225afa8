"""How far may the backbone move under a certificate? Step, noise and epochs against bound and accuracy.

    python benchmarks/certificate_frontier.py --data DATA

PACS photo at 128 pixels, true labels, seed 100; a quarter of the training pictures validates, the test part
is not looked at. Finished cells are kept in results/certificate_frontier.json.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import hesstune as ht
from hesstune.analysis.certify import certify_run
from records import arguments, read_record, write_record

# (learning rate, noise to start from, epochs)
GRID = (
    (0.5, 0.05, 6),
    (1.0, 0.03, 6),
    (1.0, 0.05, 3),
    (2.0, 0.05, 3),
    (3.0, 0.015, 3),
    (3.0, 0.03, 3),
    (10.0, 0.01, 3),
)
DRAWS = 128


def cells() -> dict[str, dict[str, Any]]:
    """Return the options of every cell."""
    found: dict[str, dict[str, Any]] = {
        "head only": {"method": "certified", "train": "head", "augment": "none", "epochs": 1},
        "plain fine-tuning": {
            "method": "vanilla",
            "train": "all",
            "augment": "none",
            "epochs": 4,
            "lr": 1e-4,
        },
    }
    for lr, noise, epochs in GRID:
        found[f"lr {lr:g}, noise {noise:g}, {epochs} epochs"] = {
            "method": "certified",
            "train": "all",
            "epochs": epochs,
            "lr": lr,
            "method_options": {"body_noise": noise},
        }
    return found


def run_cell(options: dict[str, Any], data: Path) -> dict[str, Any]:
    """Fine-tune, certify where the method is for it; return the numbers."""
    fixed = {
        "data": f"folder:{data / 'pacs128' / 'photo'}",
        "image_size": 128,
        "val_fraction": 0.25,
        "seed": 100,
    }
    with tempfile.TemporaryDirectory() as folder:
        run = ht.finetune({**options, **fixed}, out=f"{folder}/run")
        cell: dict[str, Any] = {"val_accuracy": run.metrics[-1]["val_accuracy"], "options": options}
        if options["method"] == "certified":
            # Some of PACS's pictures occur twice; they are draws from a collection that has such pairs.
            how: dict[str, Any] = {} if options["train"] == "head" else {"draws": DRAWS}
            found = certify_run(run, repeats="allow", **how)
            cell |= {"risk": found.risk, "empirical": found.empirical, "kl": found.kl, "n": found.n}
            cell["kl_body"] = sum(v for k, v in found.kl_terms.items() if not k.startswith("_fc"))
            cell["sigma_stem"] = found.sigma["_conv_stem.weight"] if options["train"] == "all" else None
        return cell


def main() -> None:
    data = arguments(__doc__, "pacs128").parse_args().data
    record = read_record("certificate_frontier", {})
    for name, options in cells().items():
        if name not in record:
            record[name] = run_cell(options, data)
            print(name, json.dumps(record[name]))
            write_record("certificate_frontier", record)


if __name__ == "__main__":
    main()
