"""Commands on a finished run: measure, certify, predict, export, label issues, noise check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.analysis.certify import certify_run
    from hesstune.analysis.export import export_run, push_to_hub
    from hesstune.analysis.label_issues import label_posterior
    from hesstune.analysis.measure import measure_run, stability_of_run
    from hesstune.analysis.noise import check_noise

__all__ = [
    "certify_run",
    "check_noise",
    "export_run",
    "label_posterior",
    "measure_run",
    "push_to_hub",
    "stability_of_run",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "certify_run": "hesstune.analysis.certify",
        "check_noise": "hesstune.analysis.noise",
        "export_run": "hesstune.analysis.export",
        "label_posterior": "hesstune.analysis.label_issues",
        "measure_run": "hesstune.analysis.measure",
        "push_to_hub": "hesstune.analysis.export",
        "stability_of_run": "hesstune.analysis.measure",
    },
)
