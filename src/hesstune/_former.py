"""Where modules went: importing one by its former path says, in one line, what it is called now."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["FormerModules"]

# Former paths below hesstune, and where their contents are now.
MOVED = {
    "bounds.share": "bounds.partition",
    "curvature.auto": "curvature.planning",
    "data.looks": "data.raw_features",
    "data.votes": "weak.vote_columns",
    "demo": "study.demo",
    "reading": "storage.reading",
    "report.records": "runs.read_records",
    "report.words": "report.narrative",
    "sharding": "runtime.sharding",
    "training.accelerating": "runtime.accelerator",
    "training.believed": "training.noise_estimate",
    "training.card": "runs.model_card",
    "training.certify": "analysis.certify",
    "training.checkpoint": "runs.checkpoint",
    "training.config": "runs.config",
    "training.device": "runtime.device",
    "training.doubts": "analysis.label_issues",
    "training.export": "analysis.export",
    "training.feature_store": "inputs.feature_store",
    "training.feeds": "inputs.image_inputs",
    "training.files": "storage.atomic",
    "training.fingerprint": "runs.fingerprint",
    "training.folder": "runs.folder",
    "training.frozen": "inputs.feature_store",
    "training.heads": "analysis.linear_heads",
    "training.labelling": "labeling.result",
    "training.labels": "runs.task",
    "training.measured": "analysis.measure",
    "training.merging": "analysis.gather_measure",
    "training.noise_check": "analysis.noise",
    "training.predict": "analysis.predict",
    "training.prior": "analysis.trained_prior",
    "training.programmatic": "labeling.label_data",
    "training.radius": "training.radii",
    "training.ranks": "runtime.distributed",
    "training.run": "runs.run",
    "training.sharded": "runs.sharded",
    "training.stopping": "runtime.signals",
    "training.target": "labeling.labeling_target",
    "training.texts": "inputs.text_inputs",
    "training.weak_labelers": "labeling.domain_labelers",
    "training.yardsticks": "analysis.complexity",
    "weak.labelers": "noise.linear_probe",
    "weak.sheet": "storage.csv_table",
}

# What served the project's own benchmarks only, and where it is in the source tree.
LEFT = {
    "study.features": "benchmarks/kept_features.py",
    "study.tasks": "benchmarks/weak_tasks.py",
}


class FormerModules:
    """A finder, asked when no other has found a module; it finds none, and says where it went."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raise ModuleNotFoundError for a module that has moved; leave others to the usual error."""
        package, _, rest = name.partition(".")
        if package == "hesstune" and rest in MOVED:
            raise ModuleNotFoundError(f"{name} is now hesstune.{MOVED[rest]}", name=name)
        if package == "hesstune" and rest in LEFT:
            raise ModuleNotFoundError(
                f"{name} has left the package: it is {LEFT[rest]} in the source tree", name=name
            )
        return None
