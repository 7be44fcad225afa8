"""Images as arrays in a file: `array:PATH`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.checks import readable_file
from hesstune.data.examples import Listing
from hesstune.data.formats._base import DataFormat
from hesstune.data.images import pixels_of_array
from hesstune.data.reading import Reading
from hesstune.data.tables import listing_of
from hesstune.errors import DataError, listed
from hesstune.resizing import Size
from hesstune.storage.columns import CsvTable, as_cell
from hesstune.storage.files import npz_names, read_npz, reading

# The arrays that are read, and those with one value per image.
NAMES, EACH = ("images", "labels", "classes", "split"), ("labels", "split")
# Arrays are kept in memory whole; a small file may claim to unpack to any size.
MAX_MIB = 8192


class Array(DataFormat):
    """An .npz file; it is read without pickle."""

    written = "array:PATH"
    summary = "An .npz file with `images` and `labels`, perhaps `classes` (names) and `split`."
    suffixes = (".npz",)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if not super().recognises(path):
            return False
        names = npz_names(path)
        return names is None or "images" in names

    @classmethod
    def read(cls, path: str, size: Size, labelled: bool, how: Reading) -> Listing:
        file = readable_file(path, "the data file")
        with reading(file, ".npz arrays", DataError):
            found, entries = read_npz(file, NAMES, MAX_MIB)
        if "images" not in found or (labelled and "labels" not in found):
            raise DataError(f"{file} needs the arrays 'images' and 'labels'; got {listed(entries) or 'none'}")
        images = pixels_of_array(found["images"], size, f"the images in {file}", how.background)
        if others := [name for name in entries if name not in NAMES]:
            images.notes.append(f"arrays of {file} left out: {listed(others)}")
        cells = {
            name: _cells(found[name], len(images), f"{name}' in {file}") for name in found if name in EACH
        }
        columns = {name.removesuffix("s"): own for name, own in cells.items()}
        table = CsvTable.of(columns, str(file), first=0)
        names = [str(name) for name in found["classes"].ravel()] if "classes" in found else None
        ids = [str(row) for row in range(len(images))]
        return listing_of(table, {}, how, labelled, images=images, names=names, ids=ids)


def _cells(values: NDArray[Any], n: int, what: str) -> list[str]:
    if values.shape != (n,) or values.dtype.kind not in "uibfUS":
        raise DataError(
            f"the array '{what} must hold {n} values, one per image, class indices or names; got "
            f"{values.dtype} of shape {values.shape}"
        )
    plain = np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values
    return [as_cell(value) for value in plain.tolist()]


FORMAT = Array
