"""Data sets of the library datasets: `hf:NAME_OR_PATH`, from a folder made by save_to_disk or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.data.arrays import square_pixels
from hesstune.data.examples import Listing, Text
from hesstune.errors import DataError, MissingExtraError, listed

__all__ = ["hub_listing", "read_hub"]

SPLITS = {"train": "train", "validation": "val", "dev": "val", "val": "val", "test": "test"}
FIRST = ("text", "sentence", "sentence1", "premise", "question")
SECOND = ("text2", "sentence2", "hypothesis")
IMAGES = ("image", "img")
LABELS = ("label", "labels")


def read_hub(name: str, size: int, labelled: bool) -> Listing:
    """List the examples of a data set: a text (or pair) or an image column, and a label column.

    Args:
        name: A folder made by `save_to_disk`, or a name on the hub, perhaps `NAME/CONFIGURATION` such as
            `glue/sst2`.
        size: Side that images are brought to.
        labelled: Whether labels are needed. Rows labelled −1 (hidden test labels) are left out.

    Raises:
        MissingExtraError: If the library datasets is not installed.
        DataError: If the data set cannot be loaded or has no such columns.
    """
    return hub_listing(_loaded(name), f"hf:{name}", size, labelled)


def hub_listing(found: Any, what: str, size: int, labelled: bool) -> Listing:
    """List the examples of a Dataset or DatasetDict in memory; see `read_hub`.

    Args:
        found: The data set; of a dictionary the parts train, validation (dev, val) and test count.
        what: What messages call it.
        size: Side that images are brought to.
        labelled: Whether labels are needed.
    """
    parts = _parts(found, what)
    columns = next(iter(parts.values())).column_names
    label = next((c for c in LABELS if c in columns), None)
    if label is None and labelled:
        raise DataError(f"{what} needs a column 'label'; got the columns {listed(columns)}")
    rows = [(part, i) for part, rows in parts.items() for i in range(len(rows))]
    labels: NDArray[np.int64] | None = None
    classes: list[str] = []
    if label is not None:
        labels, classes = _labels([v for rows in parts.values() for v in rows[label]], parts, label, what)
        keep = labels >= 0
        rows, labels = [row for row, k in zip(rows, keep, strict=True) if k], labels[keep]
    ids = [f"{part}/{i}" for part, i in rows] if len(parts) > 1 else [str(i) for _, i in rows]
    given = [SPLITS[part] for part, _ in rows] if len(parts) > 1 else None
    first = next((c for c in FIRST if c in columns), None)
    image = next((c for c in IMAGES if c in columns), None)
    if (first is None) == (image is None):
        raise DataError(
            f"{what} needs either a text column ({listed(FIRST, 9)}) or an image column "
            f"({listed(IMAGES)}); got {listed(columns)}"
        )
    if first is not None:
        second = next((c for c in SECOND if c in columns), None)
        texts: list[Text] = [
            (str(parts[part][i][first]), None if second is None else str(parts[part][i][second]))
            for part, i in rows
        ]
        return Listing(ids, labels, classes, texts=texts, parts=given)
    array = torch.cat([_pixels(parts[part][i][image], size, what) for part, i in rows])
    return Listing(ids, labels, classes, array=array, parts=given)


def _loaded(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "transformers", "data hf:NAME") from None
    datasets.disable_progress_bars()
    path = Path(name)
    try:
        if path.is_dir() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
            return datasets.load_from_disk(str(path))
        base, _, configuration = name.partition("/")
        if base in ("glue", "super_glue") and configuration:
            return datasets.load_dataset(base, configuration)
        return datasets.load_dataset(name)
    except Exception as error:  # the hub, the files and the library each raise their own kinds
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"datasets cannot load '{name}': {reason}") from error


def _parts(found: Any, what: str) -> dict[str, Any]:
    """Return {split: rows}."""
    parts = dict(found) if isinstance(found, dict) else {"train": found}
    known = {part: rows for part, rows in parts.items() if part in SPLITS and len(rows)}
    if "train" not in known:
        raise DataError(f"{what} needs a split 'train'; got {listed(list(parts))}")
    return known


def _labels(
    values: list[Any], parts: dict[str, Any], column: str, what: str
) -> tuple[NDArray[np.int64], list[str]]:
    """Turn the label column into indices; names where the data set has them."""
    feature = parts["train"].features[column]
    names = getattr(feature, "names", None)
    if names:
        return np.array(values, dtype=np.int64), [str(n) for n in names]
    if all(isinstance(v, str) for v in values):
        classes = sorted(set(values))
        index = {c: i for i, c in enumerate(classes)}
        return np.array([index[v] for v in values], dtype=np.int64), classes
    if not all(isinstance(v, int) and not isinstance(v, bool) and v >= -1 for v in values):
        raise DataError(f"the labels of {what} must be class indices or names; got {values[0]!r}")
    labels = np.array(values, dtype=np.int64)
    return labels, [str(i) for i in range(int(labels.max()) + 1)]


def _pixels(image: Any, size: int, what: str) -> torch.Tensor:
    if not hasattr(image, "convert"):
        raise DataError(f"the image column of {what} holds {type(image).__name__}, not images")
    return square_pixels(image, size)
