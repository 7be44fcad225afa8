"""The page of the most doubtful labels of a data set: pictures or texts, the most doubtful first."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from hesstune.analysis.label_issues import thumbnails_of
from hesstune.labeling.clean import LabelIssues
from hesstune.report.environment import render
from hesstune.runs.records import Picture
from hesstune.storage.atomic import write_text

__all__ = ["write_clean_page"]

# Cards on the page; the CSV file has all examples.
MOST_CARDS = 120
PIXELS = 96


class Card(NamedTuple):
    """A doubtful label."""

    id: str
    given: str
    likely: str
    wrong: str
    picture: Picture | None


def write_clean_page(found: LabelIssues, path: Path) -> None:
    """Write the page: the doubtful labels, at most MOST_CARDS of them.

    Raises:
        RunError: If it cannot be written.
    """
    doubtful = [at for at in found.ranked.tolist() if found.doubtful[at]]
    shown = doubtful[:MOST_CARDS]
    pictures: dict[str, Picture] = {}
    target = found.target
    if target is not None and shown:
        place = {name: at for at, name in enumerate(target.ids)}
        part = target.examples(PIXELS).take([place[found.ids[at]] for at in shown])
        pictures = thumbnails_of(part, np.arange(len(shown)))
    cards = [
        Card(
            found.ids[at],
            found.classes[found.given[at]],
            found.classes[found.otherwise[at]],
            f"{100 * found.p_wrong[at]:.0f} %",
            pictures.get(found.ids[at]),
        )
        for at in shown
    ]
    context = {
        "cards": cards,
        "doubtful": len(doubtful),
        "examples": len(found),
        "chosen": found.chosen,
        "count": found.count_text,
    }
    write_text(path, render("clean.html.j2", context))
