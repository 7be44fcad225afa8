"""From annotators, labeling functions and votes to labels and their noise matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.labeling.clean import LabelIssues
    from hesstune.labeling.label_data import Labelling
    from hesstune.labeling.options import CleanOptions, LabelOptions

__all__ = [
    "CleanOptions",
    "LabelIssues",
    "LabelOptions",
    "Labelling",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "CleanOptions": "hesstune.labeling.options",
        "LabelIssues": "hesstune.labeling.clean",
        "LabelOptions": "hesstune.labeling.options",
        "Labelling": "hesstune.labeling.label_data",
    },
)
