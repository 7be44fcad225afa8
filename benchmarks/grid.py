"""Networks and heads fine-tuned on a grid of tasks, methods and seeds; accuracy and certificates.

Settings: `common` options; `tasks` {name: {source, noise, seed, sizes, and options}}; `methods` {name:
options}; `schedules` {name: options} if several are compared; `skip`, lists of a task, a method or a schedule
that do not run together. `sizes` are the training and test sentences of a text task; without it the task has
all of them. A task without a seed has those of the configuration. `only` of a method are patterns of the
tasks it runs on. `stopped_distances` are options of a run; its layer distances become the radii of
the method. `certify` is a list of options of `hesstune.certify`, one certificate each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import hesstune as ht
from data_files import data_string
from hesstune.analysis.certify import certify_run
from records import Run


def cases(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the cells of the grid."""
    for schedule in settings.get("schedules", {None: {}}):
        for task, options in settings["tasks"].items():
            for method, own in settings["methods"].items():
                case = {"task": task, "method": method}
                case |= {} if schedule is None else {"schedule": schedule}
                skipped = any(set(some) <= set(case.values()) for some in settings.get("skip", []))
                if not skipped and any(fnmatch(task, pattern) for pattern in own.get("only", ["*"])):
                    yield case | ({"seed": options["seed"]} if "seed" in options else {})


def measure(case: dict[str, Any], asked: Run) -> dict[str, Any]:
    """Fine-tune once, and certify the run as often as is asked for."""
    settings = asked.settings
    task = dict(settings["tasks"][case["task"]])
    source, noise, sizes = task.pop("source"), task.pop("noise", None), task.pop("sizes", None)
    task.pop("seed", None)
    options: dict[str, Any] = {**settings.get("common", {}), **task, **settings["methods"][case["method"]]}
    options |= settings.get("schedules", {}).get(case.get("schedule"), {})
    options.pop("only", None)
    stopped, certificates = options.pop("stopped_distances", None), options.pop("certify", [])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if source != "digits":
            source = data_string(asked.data, source, folder, sizes, seed=asked.seed)
        options |= {"data": source, "inject_noise": noise, "seed": asked.seed}
        options["keep_weights"] = bool(certificates)
        if stopped is not None:
            plain = ht.finetune(**{**options, **stopped, "out": folder / "plain"}).outcome
            options["radius"] = {layer: max(d, 1e-6) for layer, d in plain.distances.items()}
        run = ht.finetune(**options, out=folder / "run")
        found = run.outcome
        kept: dict[str, Any] = {"accuracy": found.test_accuracy, "epochs": found.epochs}
        kept |= {key: run.result[key] for key in ("train_accuracy", "gap", "distance")}
        if run.metrics:
            kept["val_accuracy"] = run.metrics[-1].get("val_accuracy")
        for how in certificates:
            made = certify_run(run, repeats="allow", **how)  # PACS has some images twice
            body = sum(value for key, value in made.kl_terms.items() if not key.startswith("_fc"))
            own = {**made.facts(), "kl_body": body, "sigma_stem": made.sigma.get("_conv_stem.weight")}
            if made.bound == "holdout":  # certifies the network trained on a part of the examples
                start = ht.Run.load(run.path / "prior").outcome
                own["held_out"] = {"error": 1 - (start.test_accuracy or 0.0)}
            else:
                own["held_out"] = made.held_out
            kept[made.bound] = {**own, "vacuous": made.vacuous}
        return kept
