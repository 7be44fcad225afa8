"""Where modules went: importing one by its former path says, in one line, what it is called now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

__all__ = ["FormerModules", "former_names"]

# Former paths below hesstune, and where their contents are now.
MOVED = {
    "bounds.share": "bounds.partition",
    "curvature.auto": "curvature.planning.plan",
    "curvature.lanczos": "curvature.smooth.lanczos",
    "curvature.layouts": "curvature.planning.layouts",
    "curvature.products": "curvature.smooth.products",
    "curvature.quadrature": "curvature.smooth.quadrature",
    "curvature.ranking": "curvature.smooth.ranking",
    "curvature.refusals": "curvature.planning.refusals",
    "curvature.screening": "curvature.smooth.screening",
    "curvature.structure": "curvature.planning.structure",
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

# Names within them that are others now.
RENAMED = {
    "bounds.share": {"Share.summed": "Share.all_reduce_sum", "Share.gathered": "Share.all_gather"},
    "curvature.auto": {"Plan": "MeasurePlan", "make_plan": "make_measure_plan"},
    "curvature.lanczos": {
        "Stopping": "curvature.smooth.stopping.Stopping",
        "lanczos_forms": "curvature.CurvatureEngine.lanczos",
        "lanczos_trace": "curvature.CurvatureEngine.trace",
    },
    "curvature.products": {
        "WeightProducts": "curvature.smooth.weight_space.WeightProducts",
        "mixture_losses": "curvature.smooth.losses.mixture_losses",
    },
    "curvature.ranking": {"rank_examples": "curvature.CurvatureEngine.rank"},
    "data.looks": {"looks": "raw_features"},
    "training.doubts": {"doubtful_labels": "label_issues"},
    "training.feeds": {
        "make_feed": "inputs.batches.make_inputs",
        "Feed": "inputs.batches.ModelInputs",
        "ImageFeed": "ImageInputs",
        "FeatureFeed": "inputs.features.FeatureInputs",
    },
    "training.merging": {"merged": "gathered_measure"},
    "training.ranks": {"on_first": "on_main_process", "summed": "all_reduce_sum", "gathered": "all_gather"},
    "training.texts": {"TextFeed": "TextInputs"},
    "training.yardsticks": {"yardsticks": "complexity_measures"},
    "weak.sheet": {"read_sheet": "read_table", "Sheet": "CsvTable"},
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
            names = "".join(f"; {old} is {new}" for old, new in RENAMED.get(rest, {}).items())
            # Without the error's `name`: `from package import module` would take it for a module that is
            # merely absent, and keep the line to itself.
            raise ModuleNotFoundError(f"{name} is now hesstune.{MOVED[rest]}{names}")
        if package == "hesstune" and rest in LEFT:
            raise ModuleNotFoundError(f"{name} has left the package: it is {LEFT[rest]} in the source tree")
        return None


def former_names(module: str, **now: str) -> Callable[[str], NoReturn]:
    """Return a module's `__getattr__`, which says what names that it had before are now.

    The error is an ImportError, because `from module import name` keeps an AttributeError's line to itself.

    Args:
        module: The module's `__name__`.
        **now: What each former name is now.

    Example:
        >>> former_names("hesstune.study.plan", Plan="StudyPlan")("Plan")
        Traceback (most recent call last):
        ImportError: hesstune.study.plan.Plan is now StudyPlan
    """

    def load(name: str) -> NoReturn:
        if name in now:
            raise ImportError(f"{module}.{name} is now {now[name]}")
        raise AttributeError(f"module '{module}' has no attribute '{name}'")

    return load
