"""The data adapters: `digits`, `folder:PATH`, `csv:PATH`, `array:PATH`, `hf:NAME`."""

from __future__ import annotations

import numpy as np
import torch

from hesstune.checks import expanded
from hesstune.data.arrays import enlarged, read_arrays
from hesstune.data.contents import image_digests
from hesstune.data.csv_listing import read_csv
from hesstune.data.examples import MEMORY, Listing
from hesstune.data.folders import folder_listing
from hesstune.data.hub import read_hub
from hesstune.data.reading import Columns, Reading
from hesstune.errors import DataError, unknown_name

KINDS = ("digits", "folder", "csv", "array", "hf")


def listing(spec: str, size: int, labelled: bool = True, how: Reading | None = None) -> Listing:
    """List the examples that a data specification names.

    Args:
        spec: `digits`, `folder:PATH` (one subfolder a class, or train/ val/ test/ of those) or
            `csv:PATH` (columns `image` or `text`, `label`, and perhaps `text2` for pairs, `id` and
            `split`; tab-separated where it ends in .tsv), or `array:PATH`, an .npz file (see
            `hesstune.data.arrays`), or `hf:NAME_OR_PATH` (see `hesstune.data.hub`).
        size: Side in pixels that built-in images are enlarged to.
        labelled: Whether labels are needed; where not, a flat folder and a CSV without `label` do too.
        how: Which columns hold what, how votes become labels, and what lies behind transparent images.

    Raises:
        DataError: If nothing usable is there, with what is needed.
    """
    if spec == MEMORY:
        raise DataError(
            "the data 'memory' was objects given in Python, which no file holds: give them again, "
            "finetune(data=…), Run.load(path, data=…) or run.measure(data=…)"
        )
    how = how or Reading()
    kind, _, path = spec.partition(":")
    _refuse_columns(kind, how.columns)
    if kind == "digits" and not path:
        return _digits(size, labelled)
    if kind in KINDS[1:]:
        if not path:
            raise DataError(f"data '{spec}' names no path; write {kind}:PATH")
        if kind == "hf":
            return read_hub(str(expanded(path)) if path.startswith("~") else path, size, labelled, how)
        if kind == "array":
            return read_arrays(expanded(path), size, labelled, how)
        if kind == "folder":
            return folder_listing(expanded(path), labelled)
        return read_csv(expanded(path), labelled, how)
    if expanded(spec).exists():
        raise DataError(
            f"data '{spec}' is a path; write {'folder' if expanded(spec).is_dir() else 'csv'}:{spec}"
        )
    raise unknown_name("data", kind, KINDS, DataError)


def _refuse_columns(kind: str, columns: Columns) -> None:
    """Raise DataError where a column is named for data that has none."""
    if columns.demanded and kind in ("digits", "folder", "array"):
        raise DataError(
            f"--{columns.demanded[0]}-column names a column, and {kind} data has none; leave it out"
        )


def _digits(size: int, labelled: bool) -> Listing:
    from sklearn.datasets import load_digits

    digits = load_digits()
    array = enlarged(torch.from_numpy(digits.images / 16.0 * 255.0).float()[:, None], size)
    count = len(digits.target)
    return Listing(
        ids=[str(row) for row in range(count)],
        labels=digits.target.astype(np.int64) if labelled else None,
        classes=[str(name) for name in digits.target_names] if labelled else [],
        given=None if labelled else [str(digits.target_names[label]) for label in digits.target],
        array=array,
        flip=False,
        digests=image_digests(digits.images[..., None] / 16.0),
    )
