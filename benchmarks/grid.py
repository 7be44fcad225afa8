"""Networks and heads fine-tuned on a grid of tasks, methods and seeds; test accuracy on true labels.

Settings: `common` options; `tasks` {name: {source, noise, seed, sizes, and options}}; `methods` {name:
options}; `schedules` {name: options} if several are compared; `skip`, lists of a task, a method or a schedule
that do not run together. `sizes` are the training and test sentences of a text task. A task without a seed
has those of the configuration. `stopped_distances` of a method are options of a run whose layer distances
become its radii; `certify` are options of the certificate of its run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hesstune as ht
from data_files import data_string
from hesstune.analysis.certify import certify_run

if TYPE_CHECKING:
    from bench import Run


def cases(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the cells of the grid."""
    for schedule in settings.get("schedules", {None: {}}):
        for task, told in settings["tasks"].items():
            for method in settings["methods"]:
                case = {"task": task, "method": method}
                case |= {} if schedule is None else {"schedule": schedule}
                if not any(set(skipped) <= set(case.values()) for skipped in settings.get("skip", [])):
                    yield case | ({"seed": told["seed"]} if "seed" in told else {})


def measure(case: dict[str, Any], asked: Run) -> dict[str, Any]:
    """Fine-tune once."""
    settings = asked.settings
    task = dict(settings["tasks"][case["task"]])
    source, noise, sizes = task.pop("source"), task.pop("noise", None), task.pop("sizes", (0, 0))
    task.pop("seed", None)
    options: dict[str, Any] = {**settings.get("common", {}), **task, **settings["methods"][case["method"]]}
    options |= settings.get("schedules", {}).get(case.get("schedule"), {})
    stopped, bound = options.pop("stopped_distances", None), options.pop("certify", None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if source != "digits":
            assert asked.data is not None
            source = data_string(asked.data, source, folder, sizes, seed=asked.seed or 0)
        options |= {"data": source, "inject_noise": noise, "seed": asked.seed}
        options["keep_weights"] = bound is not None
        if stopped is not None:
            plain = ht.finetune(**{**options, **stopped, "out": folder / "plain"}).outcome
            options["radius"] = {layer: max(d, 1e-6) for layer, d in plain.distances.items()}
        run = ht.finetune(**options, out=folder / "run")
        found = run.outcome
        kept: dict[str, Any] = {"accuracy": found.test_accuracy, "epochs": found.epochs}
        kept |= {key: run.result[key] for key in ("train_accuracy", "gap", "distance")}
        if run.metrics:
            kept["val_accuracy"] = run.metrics[-1].get("val_accuracy")
        if bound is not None:  # PACS has some images twice: they count as draws of such a distribution
            made = certify_run(run, repeats="allow", **bound)
            kept |= {key: getattr(made, key) for key in ("risk", "empirical", "kl", "n")}
            kept["kl_body"] = sum(value for key, value in made.kl_terms.items() if not key.startswith("_fc"))
            kept["sigma_stem"] = made.sigma.get("_conv_stem.weight")
        return kept
