"""Parquet: `parquet:PATH`."""

from __future__ import annotations

from hesstune.data.formats.csv import Csv
from hesstune.storage.table_files import SUFFIXES


class Parquet(Csv):
    """A Parquet file."""

    written = "parquet:PATH"
    summary = "A Parquet file with the columns of `csv:`; `image` may also hold the bytes of image files."
    suffixes = SUFFIXES["parquet"]


FORMAT = Parquet
