"""Write the page on which a person reviews suspected label errors."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from hesstune.data.decisions import COLUMNS
from hesstune.data.images import thumbnails
from hesstune.labeling.clean import LabelIssues
from hesstune.labeling.review import Suspect
from hesstune.labeling.sources import Target
from hesstune.report.rendering import render
from hesstune.storage.files import write_text
from hesstune.storage.tables import FORMULA_SIGNS
from hesstune.storage.tensors import digest_of_texts

# Suspected label errors on the page, the most probable ones; and characters of a text.
MOST_ROWS, MOST_LETTERS = 5000, 2000
# Rows of the table that a browser without scripts shows.
MOST_PLAIN = 100
# (rows up to which, the longer side of images in pixels): the page stays below about 30 MB.
SIDES = ((500, 288), (2000, 176), (MOST_ROWS, 112))
QUALITY = 80


def write_clean_page(found: LabelIssues, path: Path) -> None:
    """Write the page: at most MOST_ROWS suspected label errors, and what a review needs."""
    write_text(path, render_clean(found))


def render_clean(found: LabelIssues) -> str:
    """Return the page as HTML; see `write_clean_page`."""
    suspects = found.suspects()
    shown, index = suspects[:MOST_ROWS], {name: at for at, name in enumerate(found.classes)}
    rows = [
        [own.id, index[own.given], index[own.suggested], round(own.p_wrong, 4), own.content, seen]
        for own, seen in zip(shown, _displays(found.labelled(), shown), strict=True)
    ]
    review = {
        "key": _key(found.labelled()),
        "classes": found.classes,
        "rows": rows,
        "columns": COLUMNS,
        "signs": FORMULA_SIGNS,
    }
    context = {
        "review": review,
        "shown": [(own, f"{own.p_wrong:.0%}") for own in shown[:MOST_PLAIN]],
        "rows": len(shown),
        "suspected": len(suspects),
        "examples": len(found),
        "chosen": found.chosen,
        "count": found.count_text,
    }
    return render("clean.html.j2", context, ("page", "clean"), strict=True)


def _key(target: Target) -> str:
    """Return the digest of the data by which a browser keeps decisions: ids, labels and texts."""
    texts = [part for pair in target.texts or () for part in pair]
    return digest_of_texts([*target.ids, *(target.true or ()), *texts])


def _displays(target: Target, shown: Sequence[Suspect]) -> list[list[str]]:
    """Return what the page shows of each example: ["image", JPEG in base64], ["text", …, …], or []."""
    place = {name: n for n, name in enumerate(target.ids)}
    rows = [place[own.id] for own in shown]
    if target.texts is not None:
        return [["text", *(_shortened(t) for t in target.texts[n] if t is not None)] for n in rows]
    side = next(side for most, side in SIDES if len(rows) <= most)
    if target.paths is not None:
        return [["image", _encoded(image)] for image in thumbnails([target.paths[n] for n in rows], side)]
    return [[] for _ in rows]


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}… ({len(text):,} characters)"


def _encoded(image: Image.Image) -> str:
    """Return an image as JPEG in base64."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return base64.b64encode(file.getvalue()).decode("ascii")
