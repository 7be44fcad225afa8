"""Parquet: `parquet:PATH`."""

from __future__ import annotations

from hesstune.data.formats.csv import Csv
from hesstune.storage.tables import PARQUET


class Parquet(Csv):
    """A Parquet file."""

    written = "parquet:PATH"
    summary = "A Parquet file with the columns of `csv:`."
    suffixes = (PARQUET,)


FORMAT = Parquet
